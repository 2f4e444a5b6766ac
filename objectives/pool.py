"""Many trials in one program: slots that are refilled as trials end.

A pool takes trials from a source, trains one epoch of each (a *tick*), reports them all at once, and refills the slots
of those that ended. What one trial raises is that trial's: its neighbours go on. One slot is the ordinary case.

``docs/objectives.md`` says what a worker and an objective owe each other.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from objectives.hyperparameters import Hyperparameters
from objectives.member import Member
from objectives.stack import Stack
from objectives.states import StateError, expect_same, from_bytes, to_bytes

log = logging.getLogger(__name__)

State = Literal["complete", "pruned", "fail", "left"]


class Diverged(ArithmeticError):
    """A loss, of the training or the validation data, is no longer a finite number."""


class Saved(Protocol):
    """A checkpoint of this or an earlier attempt at the trial."""

    @property
    def step(self) -> int:
        """The number of complete epochs."""

    @property
    def state(self) -> bytes:
        """The saved bytes."""


class Trial(Protocol):
    """The parts of a trial that a pool uses."""

    device: str
    seed: int
    Interrupted: type[BaseException]
    """Raised by its methods when the trial is to be requeued."""

    @property
    def params(self) -> dict[str, Any]:
        """Its parameters; empty if the objective suggests them."""

    @property
    def stop_requested(self) -> bool:
        """Whether the worker wants a checkpoint, and the trial back."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        """As in Optuna."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """As in Optuna."""

    def should_prune(self) -> bool:
        """Whether the pruner, or a person, ends the trial."""

    def checkpoint(self, step: int, state: Callable[[], bytes]) -> None:
        """Save ``state()`` if a checkpoint is due; costs nothing otherwise."""

    def restore(self) -> Saved | None:
        """The checkpoint to continue from; ``None`` on a fresh start."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One step of a trial."""

    trial: Any
    step: int
    """The epoch, from 1."""
    value: float
    """The value that the pruner compares."""
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a trial ended."""

    trial: Any
    state: State
    """``left``: it is requeued, to continue from its newest checkpoint."""
    value: float | list[float] | None = None
    """Of a complete trial: one number, or one for each objective."""
    error: BaseException | None = None
    """Of a failed trial."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """User attributes for the trial."""


class Trials(Protocol):
    """The source of a pool's trials, which also takes their reports and results."""

    @property
    def is_over(self) -> bool:
        """Whether no more trials will come."""

    def take(self, count: int) -> Sequence[Any]:
        """Up to ``count`` new trials; empty if there is none now."""

    def report(self, reports: Sequence[Report]) -> None:
        """Report a step of each of several trials, which then know whether to be pruned or left."""

    def end(self, results: Sequence[Result]) -> None:
        """End trials with their results."""

    def wait(self) -> None:
        """Wait until there may be a trial again. Called while all slots are free."""


class OneTrial:
    """A source of one trial, which takes its own reports: for an objective that is called with one trial."""

    def __init__(self, trial: Any) -> None:
        self._waiting = [trial]
        self.result: Result | None = None

    @property
    def is_over(self) -> bool:
        """Whether the trial was taken."""
        return not self._waiting

    def take(self, _count: int) -> Sequence[Any]:
        """The trial, once."""
        taken, self._waiting = self._waiting, []
        return taken

    def report(self, reports: Sequence[Report]) -> None:
        """Report by the trial's own method."""
        for report in reports:
            report.trial.report(report.value, report.step, **report.metrics)

    def end(self, results: Sequence[Result]) -> None:
        """Keep the result."""
        (self.result,) = results

    def wait(self) -> None:
        """Nothing to wait for."""


class Training:
    """The members of one trial, and how far they have come together.

    Args:
        members: one, or one for each fold and seed.
        hyperparameters: of all.
        metric: of the validation data; the mean of the members' is the trial's value.
        epochs: at most.
        trial: ``None`` to train without one.
        needed: bytes of memory that it takes from its first epoch on, if known.
        values: the names of the trial's values among the metrics, where it has several; the first is ``metric``'s.
        costs: are asked for once, at the end, and reported with the last epoch.
    """

    def __init__(
        self,
        members: Sequence[Member],
        hyperparameters: Hyperparameters,
        *,
        metric: str,
        epochs: int,
        trial: Any = None,
        needed: int = 0,
        values: Sequence[str] = (),
        costs: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.members = list(members)
        self.trial = trial
        self.needed = needed
        self._hyperparameters = hyperparameters
        self._metric = metric
        self._epochs = epochs
        self._values = values
        self._costs = costs
        self._measured: Mapping[str, float] = {}
        self.epoch = 0

    @property
    def due(self) -> list[Member]:
        """The members that have not finished the next epoch."""
        return [member for member in self.members if not member.is_over and member.epoch == self.epoch]

    @property
    def is_over(self) -> bool:
        """Whether no member has an epoch left."""
        return all(member.is_over for member in self.members)

    def should_leave(self) -> bool:
        """Whether the worker wants the trial back."""
        return self.trial is not None and bool(self.trial.stop_requested)

    def end_epoch(self) -> dict[str, float]:
        """Count the epoch that all members have completed; returns its metrics, means over the members.

        Raises:
            Diverged: a member's loss is no longer finite.
        """
        for i, member in enumerate(self.members):
            for part, name in (("training", "train_loss"), ("validation", "val_loss")):
                loss = member.metrics.get(name, 0.0)  # the last training is without validation data
                if not math.isfinite(loss):
                    which = f" in member {i + 1} of {len(self.members)}" if len(self.members) > 1 else ""
                    lr = self._hyperparameters.lr
                    raise Diverged(f"the {part} loss is {loss} after {member.step} steps{which} (lr = {lr:.3g})")
        self.epoch += 1
        metrics = self._means([member.metrics for member in self.members])
        if self.is_over:
            self._measured = self._costs()
        return {**metrics, "scheduled_lr": max(member.lr for member in self.members), **self._measured}

    def _means(self, of_members: Sequence[Mapping[str, float]]) -> dict[str, float]:
        means = {name: statistics.fmean(of[name] for of in of_members) for name in of_members[0]}
        name = f"val_{self._metric}"
        if len(of_members) > 1 and name in means:
            means[f"{name}_std"] = statistics.stdev(of[name] for of in of_members)
        return means

    def value(self, metrics: Mapping[str, float]) -> float:
        """The trial's value in ``metrics``."""
        return metrics[f"val_{self._metric}"]

    def result(self) -> Result:
        """Of a training that is over: with ``patience`` the best epochs count, else the last ones."""
        best = [member.best for member in self.members]
        final = [b.metrics if b else member.metrics for b, member in zip(best, self.members, strict=True)]
        attributes: dict[str, Any] = {}
        if any(best):
            patience, monitor = self._hyperparameters.patience, self._hyperparameters.monitor
            attributes["best_epochs"] = [b.epoch for b in best if b]
            if self.epoch < self._epochs:
                attributes["stopped_early"] = (
                    f"after epoch {self.epoch} of {self._epochs}: val_{monitor} was no better for {patience} epochs"
                )
        metrics = {**self._means(final), **self._measured}
        value = [metrics[name] for name in self._values] if self._values else self.value(metrics)
        return Result(trial=self.trial, state="complete", value=value, attributes=attributes)

    def checkpoint(self) -> None:
        """Offer the trial a checkpoint, between two batches."""
        self.trial.checkpoint(self.epoch, self.state)

    def state(self) -> bytes:
        """Everything that the rest of the training depends on."""
        return to_bytes(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Likewise, as plain values and tensors."""
        members = dict(enumerate(member.state_dict() for member in self.members))
        return {"hyperparameters": self._hyperparameters.plain(), "epoch": self.epoch, "members": members}

    def restore(self, data: bytes) -> None:
        """Continue the training whose :meth:`state` this is.

        Raises:
            StateError: these bytes are something else, or of another training.
        """
        self.load_state_dict(from_bytes(data))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Likewise, from :meth:`state_dict`."""
        expect_same(state.get("hyperparameters", {}), self._hyperparameters.plain())
        # A checkpoint is another process's, perhaps of an older version: nothing in it is taken on trust.
        members = state.get("members")
        if not isinstance(members, dict) or list(members) != list(range(len(self.members))):
            raise StateError(f"the checkpoint has members = {members!r:.80}; expected those of {len(self.members)}")
        for i, member in enumerate(self.members):
            member.load_state_dict(members[i])
        self.epoch = state.get("epoch", 0)
        least = min(member.epoch for member in self.members if not member.has_stopped) if not self.is_over else None
        if self.epoch != least:
            raise StateError(f"the checkpoint has epoch = {self.epoch!r:.80}; expected {least}")


class Tick:
    """Runs trainings one epoch at a time, and keeps the stacks for the next epoch.

    Args:
        stacked: whether members of one shape train as one stack, as on a GPU.
    """

    def __init__(self, *, stacked: bool) -> None:
        self._stacked = stacked
        self._stacks: dict[tuple[int, ...], Stack] = {}
        self._next: dict[tuple[int, ...], Stack] = {}

    def groups(self, trainings: Sequence[Training]) -> list[list[tuple[Training, Member]]]:
        """The members that are due, grouped by stack."""
        groups: dict[object, list[tuple[Training, Member]]] = {}
        for training in trainings:
            for member in training.due:
                # A stack saves kernel launches, of which a CPU has none; one model at a time stays in its cache.
                groups.setdefault(member.key if self._stacked else id(member), []).append((training, member))
        return list(groups.values())

    def run(self, group: Sequence[tuple[Training, Member]], stop: Callable[[], bool] = lambda: False) -> None:
        """Train a group to the end of its epoch, or until all its trainings should be left, or ``stop`` says so."""
        members = [member for _, member in group]
        key = tuple(map(id, members))
        # Making a stack copies the parameters of all members: it stays while the same ones train.
        stack = self._stacks.get(key) or Stack(members)
        owners = {id(training): training for training, _ in group}.values()
        if stack.run_epoch(lambda: stop() or all(training.should_leave() for training in owners)):
            for member, metrics in zip(members, stack.measure(), strict=True):
                member.end_epoch(metrics)
        self._next[key] = stack

    def end(self) -> None:
        """Forget the stacks of groups that were not run since the last call."""
        self._stacks, self._next = self._next, {}


class Pool:
    """Trains trials from a source until it is over.

    Args:
        trials: the source.
        slots: how many members train side by side; a trial of several may exceed them.
        begin: makes the training of a trial, from its checkpoint if it has one; told how many bytes of free memory
            others of this tick are about to take.
        stacked: as of :class:`Tick`.
    """

    def __init__(self, trials: Trials, slots: int, begin: Callable[[Any, int], Training], *, stacked: bool) -> None:
        self._trials = trials
        self._slots = slots
        #: What is left of the slots if the device's memory does not suffice, however many trials find that in one tick.
        self._half = slots
        self._begin = begin
        self._trainings: list[Training] = []
        self._results: list[Result] = []
        self._tick = Tick(stacked=stacked)

    def run(self) -> None:
        """Returns when the source is over and no trial is left."""
        while True:
            self._half = max(1, self._slots // 2)
            # Judged before the slots are refilled: a trial that is pruned or left frees its slot in the same tick.
            for training in self._trainings:
                with self._fate(training.trial):
                    self._judge(training)
            self._tell()
            has_taken = self._refill()
            if self._going():
                self._train()
            # What a new trial raised on its way in is told first, in the next round.
            elif not self._results and self._trials.is_over:
                return
            elif not has_taken:
                self._trials.wait()

    def _refill(self) -> bool:
        free = self._slots - sum(len(training.members) for training in self._trainings)
        if free < 1 or self._trials.is_over:
            return False
        taken, promised = self._trials.take(free), 0
        for trial in taken:
            with self._fate(trial):
                training = self._begin(trial, promised)
                promised += training.needed
                self._trainings.append(training)
                self._judge(training)
        return bool(taken)

    def _train(self) -> None:
        """One epoch of each; what ends with it is told when the others have been judged."""
        self._run_epoch()
        self._report()
        for training in self._going():
            with self._fate(training.trial):
                # After the report: a checkpoint never holds an epoch whose report is missing. None after the last
                # epoch, so that every checkpoint leaves an epoch to run, which gives the value.
                if training.is_over:
                    self._results.append(training.result())
                else:
                    training.checkpoint()

    def _going(self) -> list[Training]:
        """The trainings that have not ended."""
        ended = {id(result.trial) for result in self._results}
        return [training for training in self._trainings if id(training.trial) not in ended]

    def _judge(self, training: Training) -> None:
        """Asked before an epoch, not after one: whoever goes on from a checkpoint asks again, since its writer may
        have died before it had the answer."""
        if any(result.trial is training.trial for result in self._results):
            return
        if training.should_leave():
            self._leave(training)
        elif training.epoch and training.trial.should_prune():
            self._results.append(Result(trial=training.trial, state="pruned"))

    def _leave(self, training: Training) -> None:
        training.checkpoint()
        self._results.append(Result(trial=training.trial, state="left"))

    def _run_epoch(self) -> None:
        for group in self._tick.groups(self._going()):
            owners = list({id(training): training for training, _ in group}.values())
            if not all(owner in self._going() for owner in owners):
                continue  # another member of the trial has failed in this tick
            try:
                self._tick.run(group)
            except Exception as error:  # of one operator over all slots: nobody knows whose it is
                self._raised([owner.trial for owner in owners], error)
        self._tick.end()

    def _report(self) -> None:
        reports = []
        for training in self._going():
            with self._fate(training.trial):
                if training.due:  # the epoch was left
                    self._leave(training)
                    continue
                metrics = training.end_epoch()
                value = training.value(metrics)
                reports.append(Report(trial=training.trial, step=training.epoch, value=value, metrics=metrics))
        if reports:
            self._trials.report(reports)

    @contextmanager
    def _fate(self, trial: Any) -> Iterator[None]:
        """End this trial alone with what is raised within the block."""
        try:
            yield
        except trial.Interrupted:
            self._results.append(Result(trial=trial, state="left"))
        except Exception as error:
            self._raised([trial], error)

    def _raised(self, trials: Sequence[Any], error: Exception) -> None:
        """These trials fail; for want of memory they are left, unless one trial alone is too large.

        What is left goes on from its newest checkpoint: these weights may be in the middle of a step.
        """
        has_company = len(trials) > 1 or any(training.trial is not trials[0] for training in self._trainings)
        if isinstance(error, torch.OutOfMemoryError) and has_company:
            if self._slots > self._half:
                log.warning("slots reduced from %d to %d: %s", self._slots, self._half, " ".join(str(error).split()))
            self._slots = self._half
            self._results.extend(Result(trial=trial, state="left") for trial in trials)
        else:
            self._results.extend(Result(trial=trial, state="fail", error=error) for trial in trials)

    def _tell(self) -> None:
        if self._results:
            self._trainings = self._going()
            results, self._results = self._results, []
            self._trials.end(results)
