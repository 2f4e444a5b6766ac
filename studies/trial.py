"""The trial that an objective gets: Optuna's, and what a worker adds to it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import optuna


class Interrupted(BaseException):
    """The worker is being stopped, or the trial is no longer its own: leave the trial as it is.

    Not an :exc:`Exception`: an objective that catches those and returns a value must not turn an
    interrupted trial into a result.
    """


class Reporter(Protocol):
    """What a trial needs from its worker."""

    device: str

    @property
    def stop_requested(self) -> bool:
        """Whether the trial should be left at the next chance."""

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Store the metrics of a step, and renew the lease of the trial."""


class Trial(optuna.trial.Trial):
    """An :class:`optuna.trial.Trial` with metrics, a device, a seed, and a way to be interrupted."""

    Pruned = optuna.TrialPruned
    Interrupted = Interrupted

    def __init__(self, study: optuna.Study, trial_id: int, *, reporter: Reporter, seed: Callable[[int], int]) -> None:
        super().__init__(study, trial_id)
        self._reporter = reporter
        #: A seed of 32 bits, from (study seed, trial number): the same on any worker.
        self.seed = seed(self.number)

    @property
    def device(self) -> str:
        """The PyTorch name of the device to train on, for example ``cuda:0`` or ``cpu``."""
        return self._reporter.device

    @property
    def stop_requested(self) -> bool:
        """Whether the worker is being stopped: raise :attr:`Interrupted` at the next chance."""
        return self._reporter.stop_requested

    def report(self, value: float, step: int, **metrics: float) -> None:
        """Report the value to prune on, and any further metrics of that step.

        Args:
            value: the intermediate value.
            step: from 0 or 1, ever growing.
            metrics: named numbers, for example ``val_loss=0.3``.

        Raises:
            TypeError: a value that is no number, or a step that is no integer.
            ValueError: a negative step.
        """
        step = operator.index(step)  # NumPy's integers, too
        # First the named ones: a step that Optuna's tables show is complete.
        self._reporter.report(step, {name: float(number) for name, number in metrics.items()})
        super().report(value, step)

    def should_prune(self) -> bool:
        """Whether the pruner gives this trial up.

        Raises:
            Interrupted: the worker is being stopped. An objective that looks at
                :attr:`stop_requested` itself never sees it here.
        """
        if self._reporter.stop_requested:
            raise Interrupted
        return super().should_prune()


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
