"""PostgresStorage: Optuna's storage, and what a study service needs beside it."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

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
from studies.spec import BudgetSpec, Direction, StudySpec
from studies.storage import roles, schema
from studies.storage.contract import Change, OptunaContract, new_token
from studies.storage.database import ANSWER_SECONDS, Database
from studies.storage.url import StorageURL
from studies.text import counted
from studies.trial import is_feasible

if TYPE_CHECKING:
    from studies.storage.embedded import EmbeddedServer

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study in the storage."""

    study_id: int
    uid: str | None
    """Its name outside of this database; ``None`` where stock Optuna made it."""
    name: str
    spec: StudySpec | None
    """As the study was created; ``None`` where stock Optuna made it."""
    budget: BudgetSpec | None
    """As it stands now; ``None`` where stock Optuna made the study."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker that was seen in the last two minutes."""

    id: str
    host: str
    pid: int
    device: str
    trial: int | None
    step: int | None
    seen_seconds_ago: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """Who ran a trial last."""

    worker: str
    host: str | None
    """``None`` where the worker has been forgotten, as by an older studyhall; so the device."""
    device: str | None
    times: int
    """How often the trial was begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A metric of a step."""

    step: int
    name: str
    value: float
    at: datetime | None
    """When it was written, by the database's clock; ``None`` where an older studyhall wrote it."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """A study at one moment."""

    study: str
    budget: BudgetSpec | None
    trials: Mapping[str, int]
    """How many are complete, pruned, running, waiting, fail."""
    paused: bool
    """Whether no trial runs for now."""
    ended: str | None
    """Why no more trials begin: complete, failures, timeout, target, or the words of who stopped it."""
    best: FrozenTrial | None
    workers: Sequence[Worker]
    objective: str | None = None
    """The path of what it runs; ``None`` where stock Optuna made the study."""
    store: str | None = None
    """Where its checkpoints lie; likewise."""

    @property
    def finished(self) -> int:
        """COMPLETE + PRUNED: what counts toward the budget."""
        return self.trials["complete"] + self.trials["pruned"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A trial that a worker may run, by a lease."""

    study_id: int
    trial_id: int
    number: int
    epoch: int
    """Counts the claims of the trial."""
    token: str
    """By which the database knows this claim: it fences off whoever else held the trial, or will."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a person wants of a running trial."""

    cancelled: bool
    """End it."""
    interrupted: bool
    """Give it back: its study is paused or stopped."""
    revision: int
    """Of the trial: it grows with each change."""


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint of a trial, as the database knows it."""

    name: str
    step: int
    sha256: bytes
    data: bytes | None
    """``None`` where it lies in the store that the spec names."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that happened to a study, which is told to an address once."""

    told: bool
    free: bool
    """Whether it was not told, and nobody is at it."""
    taker: str
    told_seconds_ago: float | None


@dataclass(frozen=True, kw_only=True)
class LostWorker:
    """A worker that ended without a goodbye."""

    worker: str
    host: str
    pid: int
    device: str
    died_of: str | None
    """As its supervisor found; ``None`` where it is silent."""
    seen_seconds_ago: float


class PostgresStorage(OptunaContract):
    """Optuna's storage on PostgreSQL; works wherever Optuna takes a storage.

    Budgets, leases, workers, metrics and checkpoints stand in the schema ``studyhall`` of the same
    database. At most two connections, for any number of threads.

    Args:
        url: a PostgreSQL URL (see :class:`studies.storage.url.StorageURL`).
        create: make the tables where they are missing.
        server: the embedded server behind the URL, given up by :meth:`close`.
        patience: seconds for which a lost server is waited for.
        stop: once set, nothing is waited for any longer.

    Raises:
        StorageURLError: the URL cannot be understood.
        StorageUnreachable: the server does not answer, or refuses us.
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
        schema.require(self.database, create=create)
        self.database.patience = patience  # from here on: who types a wrong URL wants to know at once

    def __reduce__(self) -> tuple[Any, ...]:
        # As Optuna's: another process (joblib, multiprocessing) opens it anew. The URL may hold a password.
        return PostgresStorage, (self.location.sqlalchemy,)

    def close(self) -> None:
        """Close all connections, and give up the embedded server."""
        self.database.close()
        if self.server:
            self.server.close()

    @property
    def where(self) -> str:
        """The storage, as a message names it."""
        return f"the embedded database in {self.server.home}" if self.server else self.location.display

    def require(self, kind: str) -> None:
        """Raise :exc:`NotPermitted` unless the database's user is at least a ``viewer``, ``worker`` or ``owner``."""
        roles.require(self.database, kind)

    # Studies

    def create_study(self, spec: StudySpec) -> tuple[StudyRecord, bool]:
        """Create the study that ``spec`` defines, or join the one that exists.

        Returns:
            The study, and whether it is new.

        Raises:
            SpecMismatch: it exists with another spec.
        """
        created = self.database.row(
            "create_study",
            token=new_token(),
            name=spec.name,
            directions=spec.all_directions,
            spec=spec.to_json(),
            sha256=spec.sha256,
            metric_names=spec.metric_names,
            # A grid has an end, and no trial begins beyond it.
            trials=min(spec.budget.trials, spec.combinations or spec.budget.trials),
            **spec.budget.model_dump(exclude={"timeout", "trials"}),
            timeout_seconds=spec.budget.timeout,
            notify_url=spec.notify.url,
        )
        record = self.find_study(spec.name)
        if not created:
            self.require_same(record, spec)
        return record, created is not None

    def require_same(self, record: StudyRecord, spec: StudySpec) -> None:
        """Raise :exc:`SpecMismatch` unless the stored study is the one that ``spec`` defines."""
        if record.spec is None:
            raise SpecMismatch(
                f"study {record.name!r} exists and was not made by studyhall; give this one another --name"
            )
        (counts,) = self.database.rows("status", study_id=record.study_id)
        finished = counts["complete"] + counts["pruned"]
        record.spec.require_same(spec, record.budget or record.spec.budget, finished=finished)

    def find_study(self, name: str) -> StudyRecord:
        """The study ``name``; raises :exc:`StudyNotFound` with the nearest names."""
        # What is no text, as a terminal may pass it on, is no study's name.
        row = self.database.row("find_study", name=name.encode(errors="replace").decode())
        if row is None:
            raise StudyNotFound(f"no study {name!r} in {self.where}; {nearest(name, self.study_names())}")
        return StudyRecord(
            study_id=row["study_id"],
            uid=row["uid"],
            name=row["name"],
            spec=StudySpec.from_json(row["spec"], row["notify_url"]) if row["spec"] else None,
            budget=row["budget"] and BudgetSpec(**row["budget"]),
        )

    def study_names(self) -> list[str]:
        """The names of all studies."""
        return [row["name"] for row in self.database.rows("study_names")]

    def study_uids(self) -> dict[str, str | None]:
        """The uid of each study by its name; ``None`` of those that stock Optuna made."""
        return {row["name"]: row["uid"] for row in self.database.rows("study_uids")}

    @cached_property
    def identity(self) -> str:
        """What tells this database from others: hexadecimal, the same in all its backups."""
        return str(self.database.rows("identity")[0]["identity"])

    def list_studies(self) -> list[dict[str, Any]]:
        """One row for each study: name, budget, trials by state, workers, when it began."""
        return self.database.rows("list_studies")

    def load_study(self, record: StudyRecord) -> optuna.Study:
        """The Optuna study of ``record``."""
        return optuna.load_study(study_name=record.name, storage=self)

    def objective_names(self, record: StudyRecord) -> list[str]:
        """What the objective returns: one different name for each direction."""
        if record.spec:
            return list(record.spec.metric_names)
        given = self.get_study_system_attrs(record.study_id).get("study:metric_names")
        if given and len(set(given)) == len(given):
            return [str(name) for name in given]
        count = len(self.get_study_directions(record.study_id))
        return ["value"] if count == 1 else [f"value_{i}" for i in range(count)]

    def status(self, record: StudyRecord) -> Status:
        """The study's trials, best and workers now."""
        row = self.database.rows("status", study_id=record.study_id)[0]
        ended, paused = row.pop("ended"), row.pop("paused")
        found = self.find_study(record.name)
        return Status(
            study=record.name,
            budget=found.budget,
            trials=row,
            paused=paused,
            ended=ended,
            best=self.find_best(record),
            workers=[Worker(**w) for w in self.database.rows("workers", study_id=record.study_id)],
            objective=found.spec.objective.path if found.spec else None,
            store=found.spec.checkpoints.store if found.spec else None,
        )

    def find_best(self, record: StudyRecord) -> FrozenTrial | None:
        """The best COMPLETE trial that keeps its constraints, of equal ones the lowest number; ``None`` where there
        is none, or where there are several objectives."""
        if len(self.get_study_directions(record.study_id)) > 1:
            return None
        row = self.database.row("best", study_id=record.study_id)
        best = self.get_trial(row["trial_id"]) if row else None
        if best and not is_feasible(best):
            # Constraints are rare, and stand in JSON that may hold infinities: sort them out here.
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
            NothingFinished: there is none.
            StorageError: the study has several objectives, so that no trial is the best.
        """
        objectives = len(self.get_study_directions(record.study_id))
        if objectives > 1:
            raise StorageError(
                f"study {record.name!r} has {objectives} objectives, so no best trial; choose one with --trial N "
                f"out of: {command('best', record.name)}"
            )
        best = self.find_best(record)
        if best is None:
            counts = self.database.rows("status", study_id=record.study_id)[0]
            shown = ", ".join(f"{counts[state]} {state}" for state in ("pruned", "running", "waiting", "fail"))
            what = "complete trial that keeps its constraints" if counts["complete"] else "complete trial"
            raise NothingFinished(
                f"study {record.name!r} has no {what} yet ({shown}); see: studyhall status {record.name}"
            )
        return best

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

    def metrics(self, trial: FrozenTrial) -> dict[int, dict[str, float]]:
        """Every metric of every step: ``{step: {name: value}}``."""
        steps: dict[int, dict[str, float]] = {}
        for row in self.database.rows("metrics", trial_id=trial._trial_id):
            steps.setdefault(row["step"], {})[row["name"]] = row["value"]
        return steps

    def last_metrics(self, trials: Iterable[FrozenTrial]) -> dict[int, dict[str, float]]:
        """The metrics of each trial's last step: ``{number: {name: value}}``."""
        numbers = {trial._trial_id: trial.number for trial in trials}
        last: dict[int, dict[str, float]] = {number: {} for number in numbers.values()}
        for row in self.database.rows("last_metrics", trial_ids=list(numbers)):
            last[numbers[row["trial_id"]]][row["name"]] = row["value"]
        return last

    def curves(self, trials: Iterable[FrozenTrial], after: Mapping[int, int] | None = None) -> dict[int, list[Point]]:
        """Every metric of every step of ``trials``, by step and name: ``{number: points}``.

        Args:
            trials: of one study.
            after: leave out the steps up to this one: ``{number: step}``.
        """
        numbers = {trial._trial_id: trial.number for trial in trials}
        rows = self.database.rows(
            "curves",
            trial_ids=list(numbers),
            after=[(after or {}).get(number, -1) for number in numbers.values()],
        )
        points: dict[int, list[Point]] = {number: [] for number in numbers.values()}
        for row in rows:
            points[numbers[row.pop("trial_id")]].append(Point(**row))
        return points

    def attempts(self, record: StudyRecord) -> dict[int, Attempt]:
        """Who ran each trial last, and how often it was begun: ``{number: attempt}``."""
        rows = self.database.rows("attempts", study_id=record.study_id)
        return {row.pop("number"): Attempt(**row) for row in rows}

    def extend(
        self,
        record: StudyRecord,
        *,
        trials: int | None = None,
        more_trials: int = 0,
        max_failures: int | None = None,
        timeout: float | None = None,
        target: float | None = None,
    ) -> None:
        """Change what may change of the budget, and let a stopped study go on. Where more trials are running than a
        smaller budget has room for, the newest are requeued.

        Args:
            record: the study.
            trials: so many trials in all.
            more_trials: so many on top of that.
            max_failures: FAILed trials before the study stops.
            timeout: seconds after the first trial began.
            target: the value to stop at.

        Raises:
            SpecError: a value is not legal; nothing is changed.
            StorageError: the study was not made by studyhall.
        """
        if record.spec is None or record.budget is None:
            raise StorageError(f"study {record.name!r} was made by Optuna, not by studyhall: it has no budget")
        changes: dict[str, Any] = {
            "trials": trials,
            "max_failures": max_failures,
            "timeout": timeout,
            "target": target,
        }
        budget = record.budget.model_dump() | {key: value for key, value in changes.items() if value is not None}
        budget["trials"] += more_trials
        size = record.spec.combinations
        if size is not None and budget["trials"] > size:
            raise SpecError(
                f"{record.name}: budget.trials = {budget['trials']}: its grid has {size} combinations; "
                f"legal are at most so many trials"
            )
        StudySpec.from_dict({**record.spec.model_dump(exclude_none=True), "budget": budget}, record.name)
        (row,) = self.database.rows(
            "extend", token=new_token(), study_id=record.study_id, more_trials=more_trials, **changes
        )
        if row["finished"] is not None:
            done = row["finished"]
            raise SpecError(
                f"{record.name}: budget.trials = {budget['trials']}: {counted(done, 'trial')} done already; "
                f"legal are {done} and more"
            )

    def change_directions(self, record: StudyRecord, directions: Sequence[Direction]) -> None:
        """Minimize what was maximized, or the other way round, in a study that has no result yet.

        Raises:
            SpecError: another number of directions than the study has; it has a finished trial.
            StudyBusy: workers are at work on it, whose samplers and pruners would not learn of it.
            StorageError: the study was not made by studyhall.
        """
        if record.spec is None:
            raise StorageError(f"study {record.name!r} was made by Optuna, not by studyhall: change it there")
        count = len(record.spec.all_directions)
        if len(directions) != count:
            raise SpecError(
                f"study {record.name!r} has {counted(count, 'objective')}, not {len(directions)}: give --direction "
                f"{'once' if count == 1 else 'once for each'}, or run it anew with another --name"
            )
        how: dict[str, Any] = {"directions": list(directions)} if count > 1 else {"direction": directions[0]}
        spec = record.spec.model_copy(update={"direction": None, "directions": None, **how})
        now = self.database.rows(
            "change_directions",
            study_id=record.study_id,
            directions=list(directions),
            spec=spec.to_json(),
            sha256=spec.sha256,
        )[0]
        if now["finished"]:
            raise SpecError(
                f"study {record.name!r} {record.spec.goal}, and by that {counted(now['finished'], 'trial')} finished "
                "already; run it anew with another --name"
            )
        if now["running"] or now["workers"]:
            raise StudyBusy(
                f"study {record.name!r} has {counted(now['workers'], 'worker')} (seen in the last two minutes) and "
                f"{counted(now['running'], 'running trial')}, which began with its direction; "
                f"end them first: {command('stop', record.name)}"
            )
        self._studies.pop(record.study_id, None)

    def stop(self, record: StudyRecord, reason: str) -> None:
        """Let no more trials begin."""
        self.database.rows("stop_study", study_id=record.study_id, reason=reason)

    def pause(self, record: StudyRecord) -> None:
        """Run no trial for now; the running ones are given back at their next step."""
        self.database.rows("pause", study_id=record.study_id)

    def resume(self, record: StudyRecord) -> None:
        """Run trials again, after :meth:`pause` or :meth:`stop`."""
        self.database.rows("resume", study_id=record.study_id)

    def cancel(self, trial: FrozenTrial) -> None:
        """End a trial: at its next step where a worker of ours runs it, else at once; a finished one stays as it is."""
        self.database.rows("cancel", trial_id=trial._trial_id)

    def delete(self, record: StudyRecord) -> None:
        """Delete the study with all its trials.

        Raises:
            NotPermitted: we are not the tables' owner.
        """
        self.require("owner")
        self.delete_study(record.study_id)

    # Workers

    def register_worker(
        self, records: Sequence[StudyRecord], *, worker_id: str, host: str, pid: int, device: str
    ) -> None:
        """A worker begins."""
        self.database.rows(
            "register_worker",
            study_ids=[record.study_id for record in records],
            worker_id=worker_id,
            host=host,
            pid=pid,
            device=device,
        )

    def forget_worker(self, worker_id: str, died_of: str | None = None) -> None:
        """A worker has ended, in order unless it ``died_of`` something."""
        self.database.rows("forget_worker", worker_id=worker_id, died_of=died_of)

    def claim(
        self, record: StudyRecord, worker_id: str, lease_seconds: float, *, most: int | None = None
    ) -> Claim | str:
        """The next trial for a worker: one that waits, else a new one if the budget has room.

        Args:
            record: the study.
            worker_id: the worker's.
            lease_seconds: how long the trial stays this worker's after a sign of life.
            most: begin a new trial only where the study has fewer than so many, in whatever state.

        Returns:
            The trial; or why there is none: ``wait`` while others run the last ones, ``paused``, ``exhausted``
            where only ``most`` forbids a new one, or the reason why the study is over.
        """
        study_id, token = record.study_id, new_token()
        with self._lock:
            cache, rows = self._ask(
                "claim", study_id, worker_id=worker_id, lease_seconds=lease_seconds, claim=token, most=most
            )
            if rows[0]["reason"]:
                return str(rows[0]["reason"])
            cache.learn(rows, self._own)
        taken = next(row for row in rows if row["epoch"])
        return Claim(
            study_id=study_id, trial_id=taken["trial_id"], number=taken["number"], epoch=taken["epoch"], token=token
        )

    def write(
        self,
        claim: Claim,
        changes: Mapping[str, Sequence[Change]],
        *,
        step: int | None,
        revision: int = 0,
        within: float = ANSWER_SECONDS,
    ) -> Wishes:
        """Write to a trial that is held, which keeps its lease. Tried once: who holds a lease tries again.

        Args:
            claim: by which it is held.
            changes: lists under params, reports, user_attrs, system_attrs and metrics.
            step: the newest one, for people to see.
            revision: as it was answered last.
            within: seconds of silence after which the server counts as gone.

        Raises:
            LeaseLost: it is no longer held under this claim.
            Forgotten: a crash of the server has lost what was written up to ``revision``.
        """
        (row,) = self.database.rows(
            "write",
            trial_id=claim.trial_id,
            claim=claim.token,
            revision=revision,
            step=step,
            changes=json.dumps(changes),
            within=within,
            patience=0.0,
        )
        return Wishes(**row)

    def finish(
        self,
        claim: Claim,
        state: str,
        values: Sequence[float] | None,
        changes: Mapping[str, Sequence[Change]],
        *,
        revision: int = 0,
        within: float = ANSWER_SECONDS,
    ) -> None:
        """Write the result of a trial that is held; again does nothing. See :meth:`write`.

        Raises:
            LeaseLost: it is no longer held under this claim, and the result not needed any more.
            Forgotten: a crash of the server has lost what was written up to ``revision``.
        """
        self.database.rows(
            "finish",
            trial_id=claim.trial_id,
            claim=claim.token,
            revision=revision,
            state=state,
            values=None if values is None else list(values),
            changes=json.dumps(changes),
            within=within,
            patience=0.0,
        )

    def give_back(self, claim: Claim, changes: Mapping[str, Sequence[Change]]) -> None:
        """Return a trial that is held to those that wait; one that no longer is stays as it is."""
        self.database.rows("give_back", trial_id=claim.trial_id, claim=claim.token, changes=json.dumps(changes))

    def beat(self, worker_id: str, *, within: float = ANSWER_SECONDS) -> None:
        """A worker is alive; the trials of its studies whose workers are not are given back."""
        (row,) = self.database.rows("beat", worker_id=worker_id, within=within, patience=0.0)
        if row["is_crowded"]:
            self.database.spare_connections()

    def bury(self, worker_ids: Sequence[str], *, died_of: str | None) -> int:
        """Return the running trials of workers that have ended to those that wait.

        Args:
            worker_ids: the workers.
            died_of: why they died on them, which counts against a trial; ``None`` where they did not.

        Returns:
            How many trials there were.
        """
        (row,) = self.database.rows("bury", token=new_token(), worker_ids=list(worker_ids), died_of=died_of)
        return int(row["buried"])

    # Checkpoints

    def save_checkpoint(
        self, claim: Claim, *, sequence: int, name: str, step: int, sha256: bytes, data: bytes | None
    ) -> list[str]:
        """Keep a checkpoint of a trial that is held, beside the one before.

        Returns:
            The names of those that nothing needs any more.

        Raises:
            LeaseLost: the trial is no longer held under this claim.
        """
        rows = self.database.rows(
            "save_checkpoint",
            trial_id=claim.trial_id,
            claim=claim.token,
            sequence=sequence,
            name=name,
            step=step,
            sha256=sha256,
            data=data,
        )
        return [row["name"] for row in rows]

    def checkpoints(self, trial_id: int) -> list[SavedCheckpoint]:
        """The checkpoints of a trial, the newest first."""
        return [
            SavedCheckpoint(
                name=row["name"],
                step=row["step"],
                sha256=bytes(row["sha256"]),
                data=None if row["data"] is None else bytes(row["data"]),
            )
            for row in self.database.rows("checkpoints", trial_id=trial_id)
        ]

    # Notices

    def notices(self, record: StudyRecord, address: str) -> dict[str, Notice]:
        """What was told to an address, or is about to be: ``{event: notice}``."""
        rows = self.database.rows("notices", study_id=record.study_id, address=address)
        return {row.pop("event"): Notice(**row) for row in rows}

    def take_notices(self, record: StudyRecord, address: str, events: Sequence[str], taker: str) -> list[str]:
        """Take events for a minute, to tell them; returns those that nobody else is telling or has told."""
        rows = self.database.rows(
            "take_notices", study_id=record.study_id, address=address, events=list(events), taker=taker
        )
        return [row["event"] for row in rows]

    def note_told(self, record: StudyRecord, address: str, events: Sequence[str]) -> None:
        """Events were told, or need not be any more."""
        self.database.rows("note_told", study_id=record.study_id, address=address, events=list(events))

    def lost_workers(self, record: StudyRecord) -> list[LostWorker]:
        """The workers that died or vanished within the last hour."""
        return [LostWorker(**row) for row in self.database.rows("lost_workers", study_id=record.study_id)]
