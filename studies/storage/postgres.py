"""PostgresStorage: Optuna's storage on PostgreSQL, with budgets, leases, workers, metrics and notices."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studies import environment
from studies.environment import Environment
from studies.errors import (
    NothingFinished,
    SpecError,
    SpecMismatch,
    StorageError,
    StudyBusy,
    StudyNotFound,
    TrialNotFound,
    command,
    nearest,
)
from studies.spec.constraints import in_words
from studies.spec.sections import BudgetSpec, Direction
from studies.spec.study import StudySpec
from studies.storage import roles, schema
from studies.storage.budgets import Budgets
from studies.storage.database import Database
from studies.storage.evidence import Evidence
from studies.storage.finals import Finals
from studies.storage.leases import Leases
from studies.storage.limits import to_json
from studies.storage.metrics import Metrics
from studies.storage.notices import Notices
from studies.storage.optuna_storage import OptunaContract
from studies.storage.records import Status, StudyRecord
from studies.storage.spaces import Spaces
from studies.storage.url import StorageURL
from studies.storage.workers import Workers
from studies.text import counted
from studies.trial import is_feasible

if TYPE_CHECKING:
    from studies.storage.embedded.server import EmbeddedServer

# At INFO Optuna writes a line about each trial, beside the progress that Studyhall shows.
optuna.logging.set_verbosity(optuna.logging.WARNING)


class PostgresStorage(OptunaContract):
    """Optuna's storage on PostgreSQL; works wherever Optuna takes a storage.

    Budgets, leases, workers, metrics and notices are in the schema ``studyhall`` of the same database; each is an
    attribute here. Thread-safe, with two connections at most.

    Attributes:
        budgets: extend, pause, stop and resume studies.
        leases: claim trials, write to them, finish and requeue them.
        workers: which workers are alive.
        metrics: named numbers that trials reported.
        notices: which notifications were sent.
        evidence: trials of other studies, for the sampler.
        spaces: changes of the studies' spaces.

    Args:
        url: a PostgreSQL URL (see :class:`studies.storage.url.StorageURL`).
        create: create missing tables.
        server: the embedded server behind the URL, released by :meth:`close`.
        patience: seconds for which a statement is retried while the server is unreachable.
        stop: once set, no retry is waited for.

    Raises:
        StorageURLError: the URL cannot be understood.
        StorageUnreachable: the server does not answer, or refuses the connection.
        StorageError: the tables are missing, or of another version.
    """

    def __init__(
        self,
        url: str | StorageURL,
        *,
        create: bool = True,
        server: EmbeddedServer | None = None,
        patience: float = 30.0,
        stop: threading.Event | None = None,
    ) -> None:
        self.server = server
        self.location = url if isinstance(url, StorageURL) else StorageURL.parse(url)
        super().__init__(Database(self.location, stop=stop))
        self.budgets = Budgets(self.database)
        self.leases = Leases(self.database, self._known)
        self.workers = Workers(self.database)
        self.metrics = Metrics(self.database)
        self.notices = Notices(self.database)
        self.evidence = Evidence(self.database)
        self.spaces = Spaces(self.database)
        self.finals = Finals(self.database)
        schema.require(self.database, create=create)
        if server is not None and server.alone_at is not None:
            self.workers.bury_all(before=server.alone_at)
        self.database.patience = patience  # only now: a wrong URL must fail at once

    def __reduce__(self) -> tuple[Any, ...]:
        # As Optuna's: another process (joblib, multiprocessing) opens its own connections. The pickle has the password.
        return PostgresStorage, (self.location.sqlalchemy,)

    def close(self) -> None:
        """Close all connections, and release the embedded server."""
        self.database.close()
        if self.server:
            self.server.close()

    @property
    def where(self) -> str:
        """The storage, as a message names it."""
        return f"the embedded database in {self.server.home}" if self.server else self.location.display

    @property
    def stop(self) -> threading.Event:
        """Once set, no retry is waited for."""
        return self.database.stop

    @property
    def connections(self) -> tuple[int, int]:
        """The number of open connections of the server, and its limit."""
        (facts,) = self.database.rows("server_facts")
        return facts["connections"], facts["slots"]

    def require(self, kind: str) -> None:
        """Check the rights of the database user.

        Raises:
            NotPermitted: it is less than ``kind``: ``viewer``, ``worker`` or ``owner``.
        """
        roles.require(self.database, kind)

    # Studies

    def create_study(self, spec: StudySpec) -> tuple[StudyRecord, bool]:
        """Create the study that ``spec`` defines, or join the one that exists.

        Returns:
            The study, and whether it is new.

        Raises:
            SpecMismatch: the study exists with another spec.
        """
        created = self._create(
            spec.name,
            spec.all_directions,
            spec=spec.to_json(),
            sha256=spec.sha256,
            metric_names=spec.metric_names,
            # A grid has no more trials than combinations.
            trials=min(spec.budget.trials, spec.combinations or spec.budget.trials),
            **spec.budget.model_dump(exclude={"timeout", "trials"}),
            timeout_seconds=spec.budget.timeout,
            notify_url=spec.notify.url,
        )
        record = self.find_study(spec.name)
        if created is None:
            self.require_same(record, spec)
        return record, created is not None

    def require_same(self, record: StudyRecord, spec: StudySpec) -> None:
        """Check that ``spec`` defines the stored study.

        Raises:
            SpecMismatch: it defines another one; the message shows the difference.
        """
        if record.spec is None:
            raise SpecMismatch(
                f"study {record.name!r} exists and was not made by studyhall; give this one another --name"
            )
        (counts,) = self.database.rows("status", study_id=record.study_id)
        finished = counts["complete"] + counts["pruned"]
        record.spec.require_same(spec, record.budget or record.spec.budget, finished=finished)

    def find_study(self, name: str, *, reads_spec: bool = True) -> StudyRecord:
        """The study ``name``; without its spec, if that is not to be read.

        Raises:
            StudyNotFound: there is none; the message has the nearest names.
            SpecError: this version does not accept its spec.
        """
        # Bytes of a terminal that are no UTF-8 arrive as lone surrogates, which can't be sent.
        row = self.database.row("find_study", name=name.encode(errors="replace").decode())
        if row is None:
            raise StudyNotFound(f"no study {name!r} in {self.where}; {nearest(name, self.study_names())}")
        spec = None
        if row["spec"] and reads_spec:
            try:
                spec = StudySpec.from_json(row["spec"], row["notify_url"])
            except SpecError as error:
                raise SpecError(
                    f"study {name!r}: {error}; use the version that made it, or delete it: {command('delete', name)}"
                ) from None
        return StudyRecord(
            study_id=row["study_id"],
            uid=row["uid"],
            name=row["name"],
            spec=spec,
            budget=row["budget"] and BudgetSpec(**row["budget"]),
        )

    def settle_environment(self, record: StudyRecord, given: Environment) -> dict[str, Any]:
        """The environment that the study stores: that of its first worker, which is ``given`` where it has none."""
        key = environment.ATTRIBUTE
        row = self._required("agree", study_id=record.study_id, key=key, value=to_json(key, given))
        return dict(json.loads(row["value_json"]))

    def environment(self, record: StudyRecord) -> dict[str, Any] | None:
        """The environment that the study stores; ``None`` before its first worker, or of an older version."""
        return self.get_study_system_attrs(record.study_id).get(environment.ATTRIBUTE)

    def study_names(self) -> list[str]:
        """The names of all studies."""
        return [row["name"] for row in self.database.rows("study_names")]

    def study_uids(self) -> dict[str, str | None]:
        """The uid of each study by its name; ``None`` of those that stock Optuna made."""
        return {row["name"]: row["uid"] for row in self.database.rows("study_uids")}

    @cached_property
    def identity(self) -> str:
        """The identity of this database, in hexadecimal. Its backups have the same one."""
        return str(self.database.rows("identity")[0]["identity"])

    def list_studies(self) -> list[dict[str, Any]]:
        """A row for each study: name, budget, trials by state, workers, start."""
        return self.database.rows("list_studies")

    def load_study(self, record: StudyRecord) -> optuna.Study:
        """The Optuna study of ``record``."""
        return optuna.load_study(study_name=record.name, storage=self)

    def objective_names(self, record: StudyRecord) -> list[str]:
        """The names of the objective's values: a different one for each direction."""
        if record.spec:
            return list(record.spec.metric_names)
        given = self.get_study_system_attrs(record.study_id).get("study:metric_names")
        if given and len(set(given)) == len(given):
            return [str(name) for name in given]
        count = len(self.get_study_directions(record.study_id))
        return ["value"] if count == 1 else [f"value_{i}" for i in range(count)]

    def status(self, record: StudyRecord) -> Status:
        """The study's current trials, best trial and workers."""
        row = self.database.rows("status", study_id=record.study_id)[0]
        ended, paused = row.pop("ended"), row.pop("is_paused")
        epochs, gpu_seconds = row.pop("epochs"), row.pop("gpu_seconds")
        # Read again: `extend` may have changed the budget since the record was read.
        found = self.find_study(record.name, reads_spec=record.spec is not None)
        return Status(
            study=record.name,
            budget=found.budget,
            trials=row,
            paused=paused,
            ended=ended,
            best=self.find_best(record),
            workers=self.workers.of(record),
            objective=found.spec.objective.path if found.spec else None,
            store=found.spec.checkpoints.store if found.spec else None,
            epochs=epochs,
            gpu_hours=gpu_seconds / 3600,
        )

    def find_best(self, record: StudyRecord) -> FrozenTrial | None:
        """The best COMPLETE trial that satisfies its constraints; of equal ones the lowest number.

        ``None`` without such a trial, and for several objectives.
        """
        if len(self.get_study_directions(record.study_id)) > 1:
            return None
        row = self.database.row("best", study_id=record.study_id)
        best = self.get_trial(row["trial_id"]) if row else None
        if best and not is_feasible(best):
            # Checked here, not in SQL: constraints are rare, and PostgreSQL refuses infinities in JSON.
            complete = self.get_all_trials(record.study_id, deepcopy=False, states=(TrialState.COMPLETE,))
            sign = 1 if self.get_study_directions(record.study_id)[0] == StudyDirection.MINIMIZE else -1
            feasible = [trial for trial in complete if is_feasible(trial)]
            best = min(
                feasible,
                key=lambda trial: (sign * (trial.values or [math.inf])[0], trial.number),
                default=None,
            )
        return best

    def best(self, record: StudyRecord) -> FrozenTrial:
        """Like :meth:`find_best`.

        Raises:
            NothingFinished: there is no such trial yet.
            StorageError: the study has several objectives, and no single best trial.
        """
        objectives = len(self.get_study_directions(record.study_id))
        if objectives > 1:
            raise StorageError(
                f"study {record.name!r} has {objectives} objectives, so no best trial; choose one with --trial N "
                f"out of: {command('best', record.name, '--pareto')}"
            )
        return self.find_best(record) or self.refuse_best(record)

    def refuse_best(self, record: StudyRecord) -> NoReturn:
        """Raise :exc:`NothingFinished`, with what the study has instead of a feasible COMPLETE trial."""
        counts = self.database.rows("status", study_id=record.study_id)[0]
        # Complete ones are there only where all of them break a constraint.
        states = ("complete",) * bool(counts["complete"]) + ("pruned", "running", "waiting", "fail")
        shown = ", ".join(f"{counts[state]} {state}" for state in states)
        if counts["paused"]:
            shown += f", {counts['paused']} paused"
        kept = in_words(record.spec.constraints) if record.spec else ""
        what = f"complete trial that keeps {kept or 'its constraints'}" if counts["complete"] else "complete trial"
        way = f"see: {command('status', record.name)}"
        scheduler, epochs = record.spec and record.spec.scheduler, record.budget and record.budget.epochs
        if counts["ended"] and scheduler and epochs and not counts["complete"]:
            # Few trials of a small budget come to their end: all but the most promising ones were paused before.
            way = f"give it more epochs: {command('extend', record.name, '--epochs', f'+{epochs}')}, then run it again"
        raise NothingFinished(f"study {record.name!r} has no {what} yet ({shown}); {way}")

    def front(self, record: StudyRecord) -> list[FrozenTrial]:
        """The Pareto front, by number: the feasible trials that no other one beats in all objectives.

        Of a single objective these are its best trials, which are equal.
        """
        # Private: the public Study.best_trials makes deep copies of all trials.
        from optuna.study._multi_objective import _get_pareto_front_trials_by_trials

        directions = self.get_study_directions(record.study_id)
        complete = self.get_all_trials(record.study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        return _get_pareto_front_trials_by_trials(complete, directions, consider_constraint=True)

    def trials(self, record: StudyRecord) -> list[FrozenTrial]:
        """Every trial, by number."""
        return self.get_all_trials(record.study_id, deepcopy=False)

    def trial(self, record: StudyRecord, number: int) -> FrozenTrial:
        """Trial ``number``; raises :exc:`TrialNotFound`."""
        try:
            return self.get_trial(self.get_trial_id_from_study_id_trial_number(record.study_id, number))
        except KeyError:
            count = self.get_n_trials(record.study_id)
            legal = f"its trials are 0 to {count - 1}" if count else "it has none yet"
            raise TrialNotFound(f"study {record.name!r} has no trial {number}; {legal}") from None

    def change_directions(self, record: StudyRecord, directions: Sequence[Direction]) -> None:
        """Change the directions of a study without results.

        Raises:
            SpecError: the number of directions differs from the study's, or a trial has finished.
            StudyBusy: workers are running, whose samplers and pruners have read the old directions.
            StorageError: stock Optuna made the study.
        """
        before = record.require_spec("change it there")
        count = len(before.all_directions)
        if len(directions) != count:
            raise SpecError(
                f"study {record.name!r} has {counted(count, 'objective')}, not {len(directions)}: give --direction "
                f"{'once' if count == 1 else 'once for each'}, or run it anew with another --name"
            )
        # In the form that the spec had: only one of the two keys is legal.
        how: dict[str, Any] = {"directions": list(directions)} if count > 1 else {"direction": directions[0]}
        spec = before.model_copy(update={"direction": None, "directions": None, **how})
        now = self.database.rows(
            "change_directions",
            study_id=record.study_id,
            directions=list(directions),
            spec=spec.to_json(),
            sha256=spec.sha256,
        )[0]
        if now["finished"]:
            raise SpecError(
                f"study {record.name!r} {before.goal}, and by that {counted(now['finished'], 'trial')} finished "
                "already; run it anew with another --name"
            )
        if now["running"] or now["workers"]:
            raise StudyBusy(
                f"study {record.name!r} has {counted(now['workers'], 'worker')} (seen in the last two minutes) and "
                f"{counted(now['running'], 'running trial')}, which began with its direction; "
                f"end them first: {command('stop', record.name)}"
            )
        # Directions are cached, as nothing else ever changes them.
        self._studies.pop(record.study_id, None)

    def cancel(self, trial: FrozenTrial) -> None:
        """Cancel a trial: at its next step while a worker has its lease, else at once. Ignores a finished trial."""
        self.database.rows("cancel", trial_id=trial._trial_id)

    def delete(self, record: StudyRecord) -> None:
        """Delete the study with all its trials.

        Raises:
            NotPermitted: the database user does not own the tables.
        """
        self.require("owner")
        self.delete_study(record.study_id)
