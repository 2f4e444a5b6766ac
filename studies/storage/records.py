"""What the storage tells: a study, where it stands, its workers, a claim; each a frozen record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from studies.errors import StorageError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from studies.spec.study import BudgetSpec, StudySpec

Change = Mapping[str, Any]
"""One value of a trial to write; its keys depend on its kind (see :data:`Changes`)."""
Changes = Mapping[str, Sequence[Change]]
"""What to write to a trial: lists under ``params``, ``reports``, ``user_attrs``, ``system_attrs``, ``metrics``."""


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

    def require_spec(self, otherwise: str) -> StudySpec:
        """The spec; raises :exc:`StorageError`, which ends with ``otherwise``, where stock Optuna made the study."""
        if self.spec is None:
            raise StorageError(f"study {self.name!r} was made by Optuna, not by studyhall: {otherwise}")
        return self.spec


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
class Update:
    """What there is to tell of a trial that is held."""

    claim: Claim
    changes: Changes
    step: int | None = None
    """The newest one, for people to see."""
    revision: int = 0
    """Of the trial, as it was answered last."""
    state: str | None = None
    """COMPLETE, PRUNED or FAIL; ``None`` where it goes on."""
    values: Sequence[float] | None = None
    """Of a complete one."""


@dataclass(frozen=True, kw_only=True)
class Acknowledgement:
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
