"""Optuna's contract for storages, on Optuna's own tables: one statement per call.

Two things are cached: the names and directions of studies, which never change while a worker runs, and trials
(:mod:`studies.storage.known_trials`). Writes to a leased trial go through its
:class:`~studies.storage.known_trials.Writer`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from studies.storage.database import AlreadyFinished, Database, NotThere, new_token
from studies.storage.known_trials import KnownTrials
from studies.storage.limits import check_name, check_size, to_json
from studies.storage.records import Change, Changes
from studies.storage.trials import copied, read_distribution, to_trial, to_utc
from studies.values import strict

SPEC_COLUMNS: Final = (
    "spec", "sha256", "metric_names", "trials", "max_failures", "timeout_seconds", "target", "epochs", "gpu_hours",
    "notify_url",
)  # fmt: skip
"""The columns of a study with a spec, all null for stock Optuna's."""


class OptunaContract(BaseStorage):
    """See :class:`optuna.storages.BaseStorage` for what each method does, returns and raises."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._known = KnownTrials(database)
        self._studies: dict[int, tuple[str, list[StudyDirection]]] = {}
        # Of studies whose space has changed: Optuna's rule of one list of choices for all trials does not hold there.
        self._spaces: dict[int, Mapping[str, BaseDistribution]] = {}

    def remove_session(self) -> None:
        self.database.close()

    # Studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        name = DEFAULT_STUDY_NAME_PREFIX + str(uuid.uuid4()) if study_name is None else study_name
        check_name("study name", name)
        study_id = self._create(name, [direction.name for direction in directions])
        if study_id is None:
            raise DuplicatedStudyError(
                f"Another study with name '{name}' already exists. Please specify a different name, or reuse the "
                "existing one by setting `load_if_exists` (for Python API) or `--skip-if-exists` flag (for CLI)."
            )
        return study_id

    def _create(self, name: str, directions: Sequence[str], **spec: Any) -> int | None:
        """Create a study, with a ``spec`` or without; returns its id, or ``None`` if the name exists."""
        row = self.database.row(
            "create_study",
            token=new_token(),
            name=name,
            directions=directions,
            **{**dict.fromkeys(SPEC_COLUMNS), **spec},
        )
        return int(row["study_id"]) if row else None

    def delete_study(self, study_id: int) -> None:
        self._required("delete_study", study_id=study_id, token=new_token())
        self._studies.pop(study_id, None)
        self._known.forget_study(study_id)

    def get_study_id_from_name(self, study_name: str) -> int:
        # Hyperband asks at each step: no statement while a trial of this process runs, as the study then exists.
        for study_id in self._known.own_studies():
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
        """The row of a statement about one study.

        Raises:
            KeyError: no such study, as Optuna's contract says.
        """
        row = self.database.row(name, **parameters)
        if row is None:
            raise KeyError(f"no study of id {parameters['study_id']}")
        return row

    # Writing to trials

    def create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None, *, token: str | None = None
    ) -> int:
        """As in Optuna.

        Args:
            study_id: of the study.
            template_trial: what the trial begins as.
            token: a UUID; a second trial of the same one, within a day, is the first.

        Raises:
            BudgetSpent: the study's budget has no room. A WAITING trial needs none.
        """
        template = template_trial
        with _as_optuna():
            (row,) = self.database.rows(
                "create_trial",
                token=token or new_token(),
                study_id=study_id,
                state=template.state.name if template else TrialState.RUNNING.name,
                datetime_start=to_utc(template.datetime_start) if template else None,
                datetime_complete=to_utc(template.datetime_complete) if template else None,
                values=template.values if template else None,
                changes=json.dumps(_contents(template)) if template else "{}",
            )
        trial = to_trial(row)
        if trial.state == TrialState.RUNNING:
            self._known.put(study_id, trial)
        return trial._trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        text = _checked(param_name, distribution)
        distribution = read_distribution(text)  # as stored: a tuple among the choices becomes a list
        change = {"name": param_name, "value": float(param_value_internal), "distribution": text}
        if writer := self._known.writer(trial_id):
            # No statement: the parameter is sent with the first report, and is checked against what was read.
            known = self._distribution_of(trial_id, param_name) or distribution
            check_distribution_compatibility(known, distribution)
            writer.put("params", change)
        else:
            with _as_optuna():
                row = self.database.row("set_param", trial_id=trial_id, **change)
            if row and row["previous"]:
                # Optuna allows another range, and refuses another type.
                check_distribution_compatibility(read_distribution(row["previous"]), distribution)
                self._put(trial_id, "params", change)
        self._known.change(trial_id, "params", param_name, distribution.to_external_repr(param_value_internal))
        self._known.change(trial_id, "distributions", param_name, distribution)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        value = float(intermediate_value)
        # As text where it is infinite or NaN: the JSON of PostgreSQL has neither.
        self._put(trial_id, "reports", {"step": step, "value": strict(value)})
        self._known.change(trial_id, "intermediate_values", step, value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        text = to_json(key, value)
        self._put(trial_id, "user_attrs", {"key": key, "value": text})
        # As it will be read: a tuple has become a list.
        self._known.change(trial_id, "user_attrs", key, json.loads(text))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        text = to_json(key, value)
        self._put(trial_id, "system_attrs", {"key": key, "value": text})
        self._known.change(trial_id, "system_attrs", key, json.loads(text))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As in Optuna; also false if a trial can't run because the budget has no room."""
        if writer := self._known.writer(trial_id):
            writer.finish(state, values)
            return True
        # Before the statement: if its answer is lost, the trial is read again.
        self._known.release(trial_id)
        with _as_optuna():
            (row,) = self.database.rows(
                "set_state",
                token=new_token(),
                trial_id=trial_id,
                state=state.name,
                values=None if values is None else [float(value) for value in values],
            )
        return bool(row["done"])

    def set_space(self, study_id: int, space: Mapping[str, BaseDistribution]) -> None:
        """Store the parameters of new trials under these distributions from now on, whatever those of old ones are."""
        self._spaces[study_id] = space

    def _distribution_of(self, trial_id: int, name: str) -> BaseDistribution | None:
        """The distribution under which an own trial's study stores a parameter; ``None`` if it is the first."""
        changed = self._spaces.get(self._known.study_of(trial_id), {})
        return changed.get(name) or self._known.distribution_of(trial_id, name)

    def agree(self, study_id: int, name: str, distribution: BaseDistribution) -> BaseDistribution:
        """The distribution under which the study stores a parameter, the same in all processes.

        It is that of the first trial that was read. Without one, the first process to ask decides.
        """
        known = self._spaces.get(study_id, {}).get(name) or self._known.distribution(study_id, name)
        if known is None:
            text = _checked(name, distribution)
            # Hashed: with this prefix a long name would not fit into the column of the keys.
            key = f"studyhall:distribution:{hashlib.sha256(name.encode()).hexdigest()}"
            row = self._required("agree", study_id=study_id, key=key, value=text)
            known = read_distribution(row["value_json"])
        return known

    def _put(self, trial_id: int, kind: str, change: Change) -> None:
        if writer := self._known.writer(trial_id):
            writer.put(kind, change)
            return
        with _as_optuna():
            self.database.rows("set_trial", trial_id=trial_id, changes=json.dumps({kind: [change]}))

    # Reading trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if trial := self._known.own(trial_id):
            return copied(trial)
        row = self.database.row("trial", trial_id=trial_id)
        if row is None:
            raise KeyError(f"no trial of id {trial_id}")
        return to_trial(row)

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        # Pruners and samplers ask at each step: no statement for an own trial.
        own = self._known.own(trial_id)
        return dict(own.system_attrs) if own else super().get_trial_system_attrs(trial_id)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        row = self.database.row("trial_id_of", study_id=study_id, number=trial_number)
        if row is None:
            raise KeyError(f"no trial {trial_number} in the study of id {study_id}")
        return int(row["trial_id"])

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        with _as_optuna():
            trials = self._known.read(study_id, states)
        return copy.deepcopy(trials) if deepcopy else trials

    def changes(self, study_id: int, since: int) -> tuple[Sequence[FrozenTrial], Sequence[int], int]:
        """All trials and what has changed: see :meth:`studies.storage.known_trials.KnownTrials.changes`."""
        with _as_optuna():
            return self._known.changes(study_id, since)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        row = self.database.row("best", study_id=study_id)
        if row and len(self.get_study_directions(study_id)) == 1:
            return self.get_trial(row["trial_id"])
        return super().get_best_trial(study_id)  # raises what Optuna raises


def _checked(name: str, distribution: BaseDistribution) -> str:
    """The JSON of a parameter's distribution.

    Raises:
        ValueError: the database can't store the name or the text.
    """
    check_name("parameter", name)
    text = distribution_to_json(distribution)
    check_size(f"the distribution of parameter {name!r}", text)
    return text


@contextmanager
def _as_optuna() -> Iterator[None]:
    """Translate our errors into those of Optuna's contract."""
    try:
        yield
    except NotThere as error:
        raise KeyError(str(error)) from error
    except AlreadyFinished as error:
        raise UpdateFinishedTrialError(str(error)) from error


def _object(text: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text or "{}")
    return found


def _contents(trial: FrozenTrial) -> Changes:
    """The contents of a template trial, as changes."""
    return {
        "params": [
            {
                "name": name,
                "value": distribution.to_internal_repr(trial.params[name]),
                "distribution": distribution_to_json(distribution),
            }
            for name, distribution in trial.distributions.items()
        ],
        "reports": [{"step": step, "value": strict(float(value))} for step, value in trial.intermediate_values.items()],
        "user_attrs": [{"key": key, "value": to_json(key, value)} for key, value in trial.user_attrs.items()],
        "system_attrs": [{"key": key, "value": to_json(key, value)} for key, value in trial.system_attrs.items()],
    }
