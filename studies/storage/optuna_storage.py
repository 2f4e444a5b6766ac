"""Optuna's contract for storages, on Optuna's own tables: one statement for each call.

What it remembers: the names and directions of studies, which change under no worker; the trials that it read, until
the database says that one has changed; and the running trials that this process began, which by Optuna's contract
nobody else writes to.
A trial that a worker holds by a lease is written to by its :class:`Writer`.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from studies.errors import StorageUnreachable
from studies.storage import pages
from studies.storage.database import AlreadyFinished, Database, NotThere
from studies.storage.limits import check_name, check_size, to_json
from studies.storage.trials import TrialCache, changed, copied, read_distribution, to_trial, to_utc

#: Seconds for which what was read for a worker's trial is not read again. With Hyperband, TPE reads all trials
#: once for each parameter; and steps as short as this are not pruned by what happened in between.
FRESH_SECONDS = 0.05

Change = Mapping[str, Any]


class Writer(Protocol):
    """Who writes to a trial that is held by a lease."""

    def put(self, kind: str, change: Change) -> None:
        """Have one of params, reports, user_attrs, system_attrs or metrics written, soon."""

    def finish(self, state: TrialState, values: Sequence[float] | None) -> None:
        """Have the result written, now, with all that was put before."""


class OptunaContract(BaseStorage):
    """See :class:`optuna.storages.BaseStorage` for what each method does, returns and raises."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._lock = threading.RLock()
        self._studies: dict[int, tuple[str, list[StudyDirection]]] = {}
        self._caches: dict[int, TrialCache] = {}
        # The running trials that this process began, by id, and the study of each.
        self._own: dict[int, FrozenTrial] = {}
        self._study_of: dict[int, int] = {}
        self._writers: dict[int, Writer] = {}
        self._fresh: dict[int, float] = {}  # studies whose trials need not be read again, until when

    def remove_session(self) -> None:
        self.database.close()

    # Studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        name = DEFAULT_STUDY_NAME_PREFIX + str(uuid.uuid4()) if study_name is None else study_name
        check_name("study name", name)
        row = self.database.row(
            "new_study", token=new_token(), name=name, directions=[direction.name for direction in directions]
        )
        if row is None:
            raise DuplicatedStudyError(
                f"Another study with name '{name}' already exists. Please specify a different name, or reuse the "
                "existing one by setting `load_if_exists` (for Python API) or `--skip-if-exists` flag (for CLI)."
            )
        return int(row["study_id"])

    def delete_study(self, study_id: int) -> None:
        self._required("delete_study", study_id=study_id, token=new_token())
        with self._lock:
            self._studies.pop(study_id, None)
            self._caches.pop(study_id, None)
            for trial_id in [trial_id for trial_id, of in self._study_of.items() if of == study_id]:
                self.release(trial_id)

    def get_study_id_from_name(self, study_name: str) -> int:
        # Hyperband asks for it at each step. While a trial of ours runs, the study is the one it was.
        for study_id in set(self._study_of.values()):
            if self._study(study_id)[0] == study_name:
                return study_id
        row = self.database.row("study_id", name=study_name)
        if row is None:
            raise KeyError(f"no study {study_name!r}")
        return int(row["study_id"])

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._study(study_id)[0]

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return list(self._study(study_id)[1])

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._required("set_study_user_attr", study_id=study_id, key=key, value=to_json(key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._required("set_study_system_attr", study_id=study_id, key=key, value=to_json(key, value))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return _object(self._required("study_user_attrs", study_id=study_id)["attrs"])

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return _object(self._required("study_system_attrs", study_id=study_id)["attrs"])

    def get_all_studies(self) -> list[FrozenStudy]:
        return [
            FrozenStudy(
                study_name=row["name"],
                direction=None,
                directions=[StudyDirection[name] for name in row["directions"]],
                user_attrs=_object(row["user_attrs"]),
                system_attrs=_object(row["system_attrs"]),
                study_id=row["study_id"],
            )
            for row in self.database.rows("all_studies")
        ]

    def _study(self, study_id: int) -> tuple[str, list[StudyDirection]]:
        if study_id not in self._studies:
            row = self._required("study_by_id", study_id=study_id)
            self._studies[study_id] = row["name"], [StudyDirection[name] for name in row["directions"]]
        return self._studies[study_id]

    def _required(self, name: str, **parameters: Any) -> dict[str, Any]:
        """The row of a statement about one study; raises KeyError where there is none."""
        row = self.database.row(name, **parameters)
        if row is None:
            raise KeyError(f"no study of id {parameters['study_id']}")
        return row

    # Writing to trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As in Optuna.

        Raises:
            BudgetSpent: the study has a budget, and no room in it; a WAITING trial needs none.
        """
        template = template_trial
        with _as_optuna():
            (row,) = self.database.rows(
                "create_trial",
                token=new_token(),
                study_id=study_id,
                state=template.state.name if template else TrialState.RUNNING.name,
                datetime_start=to_utc(template.datetime_start) if template else None,
                datetime_complete=to_utc(template.datetime_complete) if template else None,
                values=template.values if template else None,
                changes=_dump(_contents(template)) if template else "{}",
            )
        trial = to_trial(row)
        if trial.state == TrialState.RUNNING:
            self._keep(study_id, trial)
        return trial._trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        text = _checked(param_name, distribution)
        distribution = read_distribution(text)  # as it is stored: a tuple among its choices is a list by then
        change = {"name": param_name, "value": float(param_value_internal), "distribution": text}
        if writer := self._writers.get(trial_id):
            known = self._cache(self._study_of[trial_id]).distributions.get(param_name, distribution)
            check_distribution_compatibility(known, distribution)
            writer.put("params", change)
        else:
            with _as_optuna():
                row = self.database.row("set_param", trial_id=trial_id, **change)
            if row and row["previous"]:
                # Of another range, perhaps, which is fine; of another kind, which is not.
                check_distribution_compatibility(read_distribution(row["previous"]), distribution)
                self._put(trial_id, "params", change)
        self._change(trial_id, "params", param_name, distribution.to_external_repr(param_value_internal))
        self._change(trial_id, "distributions", param_name, distribution)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        value = float(intermediate_value)
        self._put(trial_id, "reports", {"step": step, "value": json_number(value)})
        self._change(trial_id, "intermediate_values", step, value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        text = to_json(key, value)
        self._put(trial_id, "user_attrs", {"key": key, "value": text})
        self._change(trial_id, "user_attrs", key, json.loads(text))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        text = to_json(key, value)
        self._put(trial_id, "system_attrs", {"key": key, "value": text})
        self._change(trial_id, "system_attrs", key, json.loads(text))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As in Optuna; false, too, where a trial can't run because the budget has no room."""
        if writer := self._writers.get(trial_id):
            writer.finish(state, values)
            return True
        self.release(trial_id)
        with _as_optuna():
            (row,) = self.database.rows(
                "set_state",
                token=new_token(),
                trial_id=trial_id,
                state=state.name,
                values=None if values is None else [float(value) for value in values],
            )
        return bool(row["done"])

    def agree(self, study_id: int, name: str, distribution: BaseDistribution) -> BaseDistribution:
        """The distribution under which the study stores a parameter: that of the first trial that was read, or
        else ``distribution``, unless another process has said another one first."""
        known = self._cache(study_id).distributions.get(name)
        if known is None:
            text = _checked(name, distribution)
            key = f"studyhall:distribution:{hashlib.sha256(name.encode()).hexdigest()}"
            row = self._required("agree", study_id=study_id, key=key, value=text)
            known = read_distribution(row["value_json"])
        return known

    def _put(self, trial_id: int, kind: str, change: Change) -> None:
        if writer := self._writers.get(trial_id):
            writer.put(kind, change)
            return
        with _as_optuna():
            self.database.rows("set_trial", trial_id=trial_id, changes=_dump({kind: [change]}))

    def _change(self, trial_id: int, field: str, key: Any, value: Any) -> None:
        """Keep what is remembered of an own trial as it was just written."""
        with self._lock:
            if trial := self._own.get(trial_id):
                self._keep(self._study_of[trial_id], changed(trial, field, key, value))

    def _keep(self, study_id: int, trial: FrozenTrial) -> None:
        with self._lock:
            self._own[trial._trial_id], self._study_of[trial._trial_id] = trial, study_id
            cache = self._cache(study_id)
            if cache.get(trial._trial_id):
                cache.put(trial)

    def hold(self, study_id: int, trial_id: int, writer: Writer) -> None:
        """From now on ``writer`` writes to this trial, which was read when it was claimed."""
        with self._lock:
            trial = self._cache(study_id).get(trial_id)
            assert trial is not None
            self._keep(study_id, trial)
            self._writers[trial_id] = writer
            self._note_fresh(study_id)

    def release(self, trial_id: int) -> None:
        """The trial is no longer this process's: it is read again when it is next looked at."""
        with self._lock:
            self._writers.pop(trial_id, None)
            self._own.pop(trial_id, None)
            study_id = self._study_of.pop(trial_id, -1)
            self._fresh.pop(study_id, None)
            if study_id in self._caches:
                self._caches[study_id].forget(trial_id)

    # Reading trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if trial := self._own.get(trial_id):
            return copied(trial)
        row = self.database.row("trial", trial_id=trial_id)
        if row is None:
            raise KeyError(f"no trial of id {trial_id}")
        return to_trial(row)

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        # Pruners and samplers ask for these at each step.
        own = self._own.get(trial_id)
        return dict(own.system_attrs) if own else super().get_trial_system_attrs(trial_id)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        row = self.database.row("trial_id_of", study_id=study_id, number=trial_number)
        if row is None:
            raise KeyError(f"no trial {trial_number} in the study of id {study_id}")
        return int(row["trial_id"])

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        with self._lock, _as_optuna():
            if time.monotonic() > self._fresh.get(study_id, 0.0):
                self._refresh(study_id)
            trials = self._cache(study_id).select(states)
        return copy.deepcopy(trials) if deepcopy else trials

    def known_trials(self, study_id: int) -> list[FrozenTrial]:
        """The trials as they were last read."""
        with self._lock:
            return self._cache(study_id).select(None)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        row = self.database.row("best", study_id=study_id)
        if row and len(self.get_study_directions(study_id)) == 1:
            return self.get_trial(row["trial_id"])
        return super().get_best_trial(study_id)  # raises what Optuna raises

    def _refresh(self, study_id: int) -> None:
        try:
            cache, rows = self._ask("changed_trials", study_id)
        except StorageUnreachable:
            if not self._writers:
                raise
            return  # an outage must not stop a training: what is known of the others will do to prune it
        cache.learn(rows, self._own)
        self._note_fresh(study_id)

    def _ask(self, statement: str, study_id: int, **parameters: Any) -> tuple[TrialCache, list[dict[str, Any]]]:
        """Send a statement that answers with the trials that changed since they were read into the cache."""
        while True:
            cache, losses = self._cache(study_id), self.database.losses
            if not cache.is_read or (cache.losses != losses and len(cache) >= pages.PAGE):
                cache = self._caches[study_id] = self._read_all(study_id, losses)
            elif cache.losses != losses:
                # All of it comes with this one answer. Were it read before, a line on which each third answer is
                # lost could make this go on for ever.
                cache = self._caches[study_id] = TrialCache(losses, is_read=True)
            rows = self.database.rows(statement, study_id=study_id, **parameters, **cache.question(self._own))
            if losses == self.database.losses:
                return cache, rows

    def _read_all(self, study_id: int, losses: int) -> TrialCache:
        """Read a study's trials for the first time, a page at a time."""
        # The snapshot comes first: what changes while the pages are read is asked for again.
        (row,) = self.database.rows("trial_ids", study_id=study_id)
        cache = TrialCache(losses, snapshot=row["snapshot"], is_read=True)
        with _no_collections():
            for page in pages.read_pages(self.database, row["ids"] or ()):
                cache.load(pages.to_trials(page), self._own)
        return cache

    def _note_fresh(self, study_id: int) -> None:
        """The trials of a study were just read. Only a worker's trial is content with that for a while."""
        if self._writers:
            self._fresh[study_id] = time.monotonic() + FRESH_SECONDS

    def _cache(self, study_id: int) -> TrialCache:
        return self._caches.setdefault(study_id, TrialCache())


@contextmanager
def _no_collections() -> Iterator[None]:
    """Switch the garbage collector off: what is read here stays, and each of its walks over that finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _checked(name: str, distribution: BaseDistribution) -> str:
    """The JSON of a parameter's distribution; raises :exc:`ValueError` where the database can't store that."""
    check_name("parameter", name)
    text = distribution_to_json(distribution)
    check_size(f"the distribution of parameter {name!r}", text)
    return text


@contextmanager
def _as_optuna() -> Iterator[None]:
    """The errors that Optuna's contract names."""
    try:
        yield
    except NotThere as error:
        raise KeyError(str(error)) from error
    except AlreadyFinished as error:
        raise UpdateFinishedTrialError(str(error)) from error


def new_token() -> str:
    """By which the database knows a request again that is sent twice."""
    return str(uuid.uuid4())


def _object(text: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text or "{}")
    return found


def json_number(value: float) -> float | str:
    """A float that PostgreSQL's JSON can hold."""
    return value if abs(value) < float("inf") else repr(value).replace("inf", "Infinity").replace("nan", "NaN")


def _dump(changes: Mapping[str, Sequence[Change]]) -> str:
    return json.dumps(changes)


def _contents(trial: FrozenTrial) -> dict[str, list[Change]]:
    """All that a template holds, as changes."""
    return {
        "params": [
            {
                "name": name,
                "value": distribution.to_internal_repr(trial.params[name]),
                "distribution": distribution_to_json(distribution),
            }
            for name, distribution in trial.distributions.items()
        ],
        "reports": [
            {"step": step, "value": json_number(float(value))} for step, value in trial.intermediate_values.items()
        ],
        "user_attrs": [{"key": key, "value": to_json(key, value)} for key, value in trial.user_attrs.items()],
        "system_attrs": [{"key": key, "value": to_json(key, value)} for key, value in trial.system_attrs.items()],
    }
