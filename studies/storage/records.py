"""The frozen records that the storage returns: a study, its status, its workers, a claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from studies.errors import StorageError
from studies.text import counted, number

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from studies.search.scheduler import Choice
    from studies.spec.sections import BudgetSpec
    from studies.spec.study import StudySpec

Change = Mapping[str, Any]
"""One value of a trial to write; its keys depend on its kind (see :data:`Changes`)."""
Changes = Mapping[str, Sequence[Change]]
"""What to write to a trial: lists under ``params``, ``reports``, ``user_attrs``, ``system_attrs``, ``metrics``."""


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study in the storage."""

    study_id: int
    uid: str | None
    """A UUID, by which MLflow and checkpoint stores know the study; ``None`` if stock Optuna made it."""
    name: str
    spec: StudySpec | None
    """As the study was created; ``None`` if stock Optuna made it."""
    budget: BudgetSpec | None
    """As of now: `extend` changes it. ``None`` if stock Optuna made the study."""

    def require_spec(self, otherwise: str) -> StudySpec:
        """The spec.

        Raises:
            StorageError: stock Optuna made the study; the message ends with ``otherwise``.
        """
        if self.spec is None:
            raise StorageError(f"study {self.name!r} was made by Optuna, not by studyhall: {otherwise}")
        return self.spec


@dataclass(frozen=True, kw_only=True)
class HeldTrial:
    """A running trial of a worker."""

    number: int
    step: int | None
    """The last reported one."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker that was seen in the last two minutes."""

    id: str
    host: str
    pid: int
    device: str
    slots: int
    """How many trials it can train at once."""
    trials: Sequence[HeldTrial]
    """Those of the study that it trains now, by number."""
    seen_seconds_ago: float


# With slots, as Timing and Point: there is one for each trial, or even for each step.
@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """The last attempt of a trial."""

    worker: str
    host: str | None
    """Host and device are ``None`` if the worker's row is gone, which older versions deleted."""
    device: str | None
    times: int
    """How many attempts the trial had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """When a trial ran that has begun, in local time without a zone."""

    begin: datetime
    end: datetime | None
    """``None`` while it runs."""
    is_finished: bool
    """Whether it is COMPLETE or PRUNED, which the budget counts."""
    times: int
    """How many attempts it had: with several it also waited in between."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A metric of a step."""

    step: int
    name: str
    value: float
    at: datetime | None
    """When it was written, by the database's clock; ``None`` for older versions of the tables."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """A study at one moment."""

    study: str
    budget: BudgetSpec | None
    trials: Mapping[str, int]
    """How many are complete, pruned, running, waiting, paused (by the study's scheduler), fail."""
    paused: bool
    """Whether a person paused the study."""
    ended: str | None
    """The stop reason: complete, failures, timeout, target, epochs, gpu_hours, stopped, "by hand"; ``None`` while
    trials may start."""
    best: FrozenTrial | None
    workers: Sequence[Worker]
    objective: str | None = None
    """The path of the objective; ``None`` if stock Optuna made the study."""
    store: str | None = None
    """The checkpoint store; ``None`` likewise."""
    epochs: int = 0
    """How many steps were reported for the first time, where the budget has epochs."""
    gpu_hours: float = 0.0
    """For how long workers had trials on a GPU, where the budget has such hours."""

    @property
    def finished(self) -> int:
        """COMPLETE + PRUNED, which the budget counts."""
        return self.trials["complete"] + self.trials["pruned"]

    @property
    def done(self) -> str:
        """What of the budget is spent, for people: ``12 of 100 trials, 340 of 5,000 epochs``."""
        of = f" of {self.budget.trial_limit:,}" if self.budget and self.budget.trial_limit else ""
        parts = [f"{self.finished:,}{of} trials"]
        if self.budget and self.budget.epochs is not None:
            parts.append(f"{self.epochs:,} of {counted(self.budget.epochs, 'epoch')}")
        if self.budget and self.budget.gpu_hours is not None:
            parts.append(f"{number(self.gpu_hours)} of {number(self.budget.gpu_hours)} GPU hours")
        return ", ".join(parts)

    @property
    def share_done(self) -> float | None:
        """How much of the budget is spent, from 0 to 1, of the limit that is nearest; ``None`` without a budget."""
        if self.budget is None:
            return None
        budget = self.budget
        spent = ((self.finished, budget.trials), (self.epochs, budget.epochs), (self.gpu_hours, budget.gpu_hours))
        return min(1.0, max(used / limit for used, limit in spent if limit))


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right of a worker to a trial, for as long as its lease lasts."""

    study_id: int
    trial_id: int
    number: int
    epoch: int
    """The number of claims of this trial so far."""
    token: str
    """The fencing token: the database refuses writes with the token of an earlier claim."""
    until: int | None = None
    """The step at which the trial is paused; ``None`` without a scheduler."""
    space_version: int = 0
    """How often the study's space had changed by then."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a worker's scheduler wants to train next."""

    choices: Sequence[Choice]
    """The first ones first."""
    fresh: int
    """The step at which a trial that was enqueued is paused."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """The changes to write to a leased trial."""

    claim: Claim
    changes: Changes
    step: int | None = None
    """The newest step, shown to people."""
    revision: int = 0
    """Of the trial, as last acknowledged: a lower one in the database shows that a crash lost writes."""
    state: str | None = None
    """COMPLETE, PRUNED or FAIL; ``None`` while the trial runs."""
    values: Sequence[float] | None = None
    """Of a COMPLETE trial."""


@dataclass(frozen=True, kw_only=True)
class Acknowledgement:
    """The database's answer to a write, with what a person asked for meanwhile."""

    cancelled: bool
    """A person cancelled the trial."""
    interrupted: bool
    """The study is paused or stopped: requeue the trial."""
    revision: int
    """Of the trial; grows with each write."""


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint, as recorded in the database."""

    name: str
    step: int
    sha256: bytes
    data: bytes | None
    """``None`` if the bytes are in the checkpoint store of the spec."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A notification of one event to one address."""

    told: bool
    free: bool
    """Unsent, and no process has it leased."""
    taker: str
    told_seconds_ago: float | None


@dataclass(frozen=True, kw_only=True)
class LostWorker:
    """A worker that died, or has no heartbeat."""

    worker: str
    host: str
    pid: int
    device: str
    died_of: str | None
    """As its supervisor found; ``None`` for a missing heartbeat."""
    seen_seconds_ago: float
