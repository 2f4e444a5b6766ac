"""The trial that an objective gets: Optuna's, with metrics, checkpoints and interruption."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, check_distribution_compatibility

from studies.spec.space import categorical
from studies.text import counted
from studies.values import as_stored, key_of

#: The largest step: Optuna's tables hold 32 bits.
MAX_STEP: Final = 2**31 - 1
#: System attribute of a trial that was enqueued with a seed of its own.
SEED: Final = "studyhall:seed"
#: float() reads these, but Optuna refuses them as values.
_TEXT: Final = (str, bytes, bytearray)


class Interrupted(BaseException):
    """The worker is being stopped, or has lost the trial's lease. The trial is requeued as it is.

    Not an :exc:`Exception`: an objective that catches those and returns a value must not turn an interrupted trial
    into a result.
    """


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state that an objective saved."""

    step: int
    """Of :meth:`Trial.checkpoint`."""
    state: bytes
    """The saved bytes, with their SHA-256 checked."""


class LeaseHolder(Protocol):
    """What a trial needs from the worker that has its lease."""

    device: str

    @property
    def stop_requested(self) -> bool:
        """Whether to stop training at the next step."""

    @property
    def is_over(self) -> bool:
        """Whether a result would be refused: the trial was cancelled, or its lease is lost."""

    @property
    def ends_at_rung(self) -> bool:
        """Whether the scheduler ends the trial here, as it can't be paused without a checkpoint."""

    def agree(self, name: str, distribution: BaseDistribution) -> BaseDistribution:
        """The distribution under which the study stores a parameter: the first trial's."""

    def put_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Buffer the metrics of a step, to be sent with its report."""

    def flush(self, step: int) -> None:
        """Send the report of a step, which renews the lease. Does not wait for an unreachable database."""

    def save(self, step: int, state: Callable[[], bytes]) -> None:
        """Save a checkpoint, if one is due."""

    def restore(self) -> Checkpoint | None:
        """The newest intact checkpoint."""


class Trial(optuna.trial.Trial):
    """An :class:`optuna.trial.Trial` with metrics, checkpoints, a device, a seed, and a way to be interrupted."""

    Pruned = optuna.TrialPruned
    Interrupted = Interrupted

    def __init__(
        self,
        study: optuna.Study,
        trial_id: int,
        *,
        holder: LeaseHolder,
        seed: Callable[[int], int],
        prune_on: str | None = None,
        constrained: Collection[str] = (),
    ) -> None:
        super().__init__(study, trial_id)
        #: The metrics that the study constrains: what is expensive to measure may be left out of the reports otherwise.
        self.constrained = constrained
        self._holder = holder
        self._prune_on = prune_on
        #: The latest value of each metric that this attempt reported.
        self.last_metrics: dict[str, float] = {}
        self._reported: dict[int, set[str]] = {}  # the metrics of each step that this attempt reported
        self._chosen: dict[str, Any] = {}  # the objective's own objects: a tuple is stored as a list
        self._stop_was_requested = False
        #: A seed of 32 bits, from (study seed, trial number) or as it was enqueued: the same on any worker.
        self.seed: int = self._cached_frozen_trial.system_attrs.get(SEED, seed(self.number))

    @property
    def device(self) -> str:
        """The PyTorch name of the device to train on, for example ``cuda:0`` or ``cpu``."""
        return self._holder.device

    @property
    def stop_requested(self) -> bool:
        """Whether to stop: save a checkpoint and raise :attr:`Interrupted` at the next step.

        Its worker is asked to stop, or the study's scheduler pauses the trial here.
        """
        return self._holder.stop_requested

    @property
    def params(self) -> dict[str, Any]:
        """The parameters so far, as they were suggested."""
        return {**super().params, **copy.deepcopy(self._chosen)}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """As Optuna's, for choices in any order and of any type that JSON has.

        A study has one list of choices, the first trial's. Choices from a set have another order in each process, and a
        tuple is stored as a list. Therefore choices are compared by their stored values, and the objective gets its own
        object back.

        Raises:
            TypeError: JSON cannot represent a choice.
            ValueError: the choices differ from the study's.
        """
        own = tuple(choices)
        if not own:
            raise ValueError(f"parameter {name!r} has no choices; give at least one")
        try:
            stored = categorical(as_stored(own))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"a choice of {name!r} cannot be stored: {error}; legal are None, booleans, numbers, text, and lists "
                "and dicts of these; suggest a name and look the object up by it"
            ) from None
        agreed = self._cached_frozen_trial.distributions.get(name) or self._holder.agree(name, stored)
        places = _places(agreed, stored)
        value = self._suggest(name, agreed)
        self._chosen[name] = own[places[int(agreed.to_internal_repr(value))]]
        return self._chosen[name]

    def set_constraint(self, key: str, value: float) -> None:
        """As Optuna's: at most 0 where the trial keeps the constraint.

        Raises:
            TypeError: a value that is no number.
            ValueError: nan, or a name that is too long.
            OverflowError: a whole number that no float can hold.
        """
        super().set_constraint(key, _as_number(value, f"trial.set_constraint: {key!r:.60}"))

    def report(self, value: float, step: int, **metrics: float) -> None:
        """Report the value to prune on, and any further metrics of that step.

        The first report of a step counts, as in Optuna, for the value and for each metric. It may come from an earlier
        attempt of this trial.

        Args:
            value: the intermediate value: anything that float() takes; it may be infinite or nan. Where the spec has
                ``pruner.metric``, the value of that metric takes its place, if it is among ``metrics``.
            step: increasing, from 0 or 1; a fraction is cut off.
            metrics: named numbers, for example ``val_loss=0.3``; these may be infinite or nan.

        Raises:
            TypeError: a value or step that is no number.
            ValueError: a negative step, or one above :data:`MAX_STEP`.
            OverflowError: a whole number that no float can hold.
            Interrupted: a stop was requested at the previous report.
        """
        if self._stop_was_requested:
            raise Interrupted
        number, step = _as_number(value, "trial.report: value"), _as_step(step)
        # The metrics before the value: a step in Optuna's tables is then complete.
        named = self._reported.get(step, set())
        numbers = {
            key: _as_number(metric, f"trial.report: metric {key!r:.60}")
            for key, metric in metrics.items()
            if key not in named
        }
        self._holder.put_metrics(step, numbers)
        self.last_metrics |= numbers
        if self._prune_on is not None:
            number = numbers.get(self._prune_on, number)
        if step in self._reported or step not in self._cached_frozen_trial.intermediate_values:
            self._report_value(number, step)
        self._reported[step] = named | set(metrics)
        self._holder.flush(step)
        # An objective that ignores stop_requested is interrupted at its next report, after a step to save its state in.
        self._stop_was_requested = self._holder.stop_requested

    def _report_value(self, value: float, step: int) -> None:
        if len(self.study.directions) == 1:
            super().report(value, step)  # which warns of a step that was reported before
        elif step not in self._reported:
            # As there, but for several objectives Optuna refuses it (optuna#3450).
            self.storage.set_trial_intermediate_value(self._trial_id, step, value)
            self._cached_frozen_trial.intermediate_values[step] = value

    def should_prune(self) -> bool:
        """Whether to prune this trial; also true when it was cancelled or its lease is lost.

        Also true at the step where the study's scheduler pauses a trial that has saved no checkpoint.

        Raises:
            Interrupted: the worker is being stopped, or the scheduler pauses the trial. Never raised to an objective
                that checks :attr:`stop_requested`.
        """
        if self._holder.is_over or self._holder.ends_at_rung:
            return True
        if self._holder.stop_requested:
            raise Interrupted
        if len(self.study.directions) == 1:
            return super().should_prune()
        return self.study.pruner.prune(self.study, self._get_latest_trial())

    def checkpoint(self, step: int, state: bytes | Callable[[], bytes]) -> None:
        """Save a checkpoint if one is due. Cheap: call it at every step.

        One is due every ``checkpoints.every`` seconds of the spec, and when a stop is requested. A failing store is
        logged, and training continues.

        Args:
            step: the step of the state, shown to people.
            state: the bytes that :meth:`restore` returns; or a function that makes them, called only when one is due.

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
            f"trial.checkpoint(step, state) got an object of type {type(made).__name__}: legal are bytes, or "
            "a function that returns bytes (torch.save into io.BytesIO, pickle.dumps, …)"
        )
    return bytes(made)


def is_feasible(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether ``trial`` satisfies its constraints as Optuna defines them: each is at most 0."""
    return all(value <= 0 for value in trial.constraints.values())


def as_values(returned: Any, count: int) -> list[float] | str:
    """The returned value as one number per direction, by Optuna's rules; or an error message."""
    is_many = isinstance(returned, Sequence) and not isinstance(returned, _TEXT)
    values = list(returned) if is_many else [returned]
    if len(values) != count:
        return (
            f"the objective returned {counted(len(values), 'value')}, and the study has {counted(count, 'direction')}; "
            "return one value for each, or run it anew with another --name and a --direction for each value"
        )
    numbers = []
    for value in values:
        try:
            if isinstance(value, _TEXT):
                raise TypeError
            numbers.append(float(value))
        except Exception:  # __float__ may raise anything, such as that of a tensor with several elements
            return f"the objective returned {_shown(value)}, which is not a number; return one, such as loss.item()"
        if math.isnan(numbers[-1]):
            return "the objective returned nan"
    return numbers


def _places(agreed: BaseDistribution, given: CategoricalDistribution) -> Sequence[int]:
    """The index in ``given`` of each choice of ``agreed``.

    Raises:
        ValueError: they have different choices.
    """
    if isinstance(agreed, CategoricalDistribution) and agreed != given:
        keys = list(map(key_of, given.choices))
        wanted = list(map(key_of, agreed.choices))
        if sorted(keys) == sorted(wanted):
            return [keys.index(key) for key in wanted]
    check_distribution_compatibility(agreed, given)
    return range(len(given.choices))


def _as_number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{what} = {_shown(value)}: should be a number") from None
    except OverflowError:
        raise OverflowError(f"{what} = {_shown(value)}: should be a number that fits into double precision") from None


def _as_step(step: Any) -> int:
    try:
        number = int(step)
    except (TypeError, ValueError):
        raise TypeError(f"trial.report: step = {_shown(step)}: should be a whole number") from None
    except OverflowError:
        number = -1
    if not 0 <= number <= MAX_STEP:
        raise ValueError(f"trial.report: step = {_shown(step)}: should be a whole number from 0 to {MAX_STEP}")
    return number


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.80}"
    except Exception:  # __repr__ may raise anything; so does that of an integer of more than 4300 digits
        return f"an object of type {type(value).__name__}"
