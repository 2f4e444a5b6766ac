"""The trial that an objective gets: Optuna's, and what a worker adds to it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import optuna


class Interrupted(BaseException):
    """The worker is being stopped, or the trial is no longer its own: leave the trial as it is.

    Not an :exc:`Exception`: an objective that catches those and returns a value must not turn an
    interrupted trial into a result.
    """


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What an objective saved of its work."""

    step: int
    """Of :meth:`Trial.checkpoint`."""
    state: bytes
    """As it was saved: its SHA-256 has been checked."""


class Holder(Protocol):
    """What a trial needs from the worker that holds it."""

    device: str

    @property
    def stop_requested(self) -> bool:
        """Whether the trial should be left at the next chance."""

    @property
    def is_over(self) -> bool:
        """Whether nobody wants the trial's result from here: it was cancelled, or its lease is lost."""

    def put_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Have the metrics of a step written with what is told next."""

    def tell(self, step: int) -> None:
        """Tell the database of a step, which renews the lease. Does not wait for a database that is away."""

    def save(self, step: int, state: Callable[[], bytes]) -> None:
        """Keep a checkpoint, if one is due."""

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint that is whole."""


class Trial(optuna.trial.Trial):
    """An :class:`optuna.trial.Trial` with metrics, checkpoints, a device, a seed, and a way to be interrupted."""

    Pruned = optuna.TrialPruned
    Interrupted = Interrupted

    def __init__(self, study: optuna.Study, trial_id: int, *, holder: Holder, seed: Callable[[int], int]) -> None:
        super().__init__(study, trial_id)
        self._holder = holder
        self._reported: set[int] = set()
        self._overheard = False
        #: A seed of 32 bits, from (study seed, trial number): the same on any worker.
        self.seed = seed(self.number)

    @property
    def device(self) -> str:
        """The PyTorch name of the device to train on, for example ``cuda:0`` or ``cpu``."""
        return self._holder.device

    @property
    def stop_requested(self) -> bool:
        """Whether the trial should be left: save a checkpoint and raise :attr:`Interrupted` at the next chance."""
        return self._holder.stop_requested

    def report(self, value: float, step: int, **metrics: float) -> None:
        """Report the value to prune on, and any further metrics of that step.

        A step that an earlier attempt of this trial reported keeps its first value.

        Args:
            value: the intermediate value, a finite number.
            step: from 0 or 1, ever growing.
            metrics: named numbers, for example ``val_loss=0.3``; these may be infinite or nan.

        Raises:
            TypeError: a value that is no number, or a step that is no integer.
            ValueError: a value that is not finite, a negative step, or one that was reported before.
            Interrupted: the trial should be left since the report before, and was not.
        """
        if self._overheard:
            raise Interrupted
        step = operator.index(step)  # NumPy's integers, too
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(
                f"trial {self.number} reports {number} at step {step}: legal is a finite number; "
                "to give up a trial that diverged, raise optuna.TrialPruned"
            )
        if step in self._reported:
            raise ValueError(
                f"trial {self.number} reports step {step} twice: each step is reported once, with all its metrics"
            )
        # First the named ones: a step that Optuna's tables show is complete.
        self._holder.put_metrics(step, {name: float(number) for name, number in metrics.items()})
        if step not in self._cached_frozen_trial.intermediate_values:
            super().report(number, step)
        self._reported.add(step)
        self._holder.tell(step)
        # An objective that never looks is interrupted at its next report: it has had its chance by then.
        self._overheard = self._holder.stop_requested

    def should_prune(self) -> bool:
        """Whether the pruner gives this trial up; true, too, where nobody wants its result any more.

        Raises:
            Interrupted: the worker is being stopped. An objective that looks at
                :attr:`stop_requested` itself never sees it here.
        """
        if self._holder.is_over:
            return True
        if self._holder.stop_requested:
            raise Interrupted
        return super().should_prune()

    def checkpoint(self, step: int, state: bytes | Callable[[], bytes]) -> None:
        """Offer a checkpoint of the work so far: call it as often as you like.

        One is kept when it is due by the time of the spec's ``checkpoints.every``, or when the trial
        is about to be left. What goes wrong with keeping it is logged, and stops no training.

        Args:
            step: how far the work is, for people to see.
            state: everything that :meth:`restore` is to give back; or a function that makes it,
                called only when it is needed.

        Raises:
            TypeError: the state is neither bytes nor a function that returns them.
        """
        self._holder.save(operator.index(step), lambda: _as_bytes(state))

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint of this trial by any worker; ``None`` on a fresh start."""
        return self._holder.restore()


def _as_bytes(state: object) -> bytes:
    made = state() if callable(state) else state
    if not isinstance(made, bytes | bytearray | memoryview):
        raise TypeError(
            f"trial.checkpoint(step, state) got a {type(made).__name__}: legal are bytes, or a function that "
            "returns bytes (torch.save into io.BytesIO, pickle.dumps, …)"
        )
    return bytes(made)


def as_values(returned: Any, count: int) -> list[float] | str:
    """What an objective returned as one finite number per direction, or the reason why it is not."""
    values = list(returned) if isinstance(returned, list | tuple) else [returned]
    if len(values) != count:
        return f"the objective returned {len(values)} values, and the study has {count} directions"
    numbers = []
    for value in values:
        try:
            numbers.append(float(value))
        except (TypeError, ValueError):
            return f"the objective returned {value!r:.80}, which is not a number"
        if math.isnan(numbers[-1]):
            return "the objective returned nan"
    return numbers
