"""The trial that an objective gets: Optuna's, and what a worker adds to it."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, check_distribution_compatibility

from studies.space import categorical
from studies.text import counted
from studies.values import as_stored, key_of

#: The largest step: Optuna's tables hold 32 bits.
MAX_STEP: Final = 2**31 - 1
#: What float() may read, but Optuna takes for no value.
_TEXT: Final = (str, bytes, bytearray)


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

    def agree(self, name: str, distribution: BaseDistribution) -> BaseDistribution:
        """The distribution under which the study stores a parameter: that of the first trial to ask."""

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
        self._reported: dict[int, set[str]] = {}  # the metrics of each step that this attempt reported
        self._chosen: dict[str, Any] = {}  # what the objective itself gave as a choice, where a list may be stored
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

    @property
    def params(self) -> dict[str, Any]:
        """The parameters so far, as they were suggested."""
        return {**super().params, **copy.deepcopy(self._chosen)}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """As Optuna's, for choices in any order and of any type that JSON can say.

        A study has one list of choices, that of the first trial. Choices from a set have another order in each
        process, and a tuple is stored as a list: both are found again by their stored values, and the objective
        gets back what it gave.

        Raises:
            TypeError: a choice that JSON cannot say.
            ValueError: other choices than the study's.
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

        A step that was reported before keeps its value, and each of its metrics the first one, as in Optuna; so
        does a step that an earlier attempt of this trial reported.

        Args:
            value: the intermediate value: anything that float() takes; it may be infinite or nan.
            step: from 0 or 1, ever growing; a real number is cut to a whole one.
            metrics: named numbers, for example ``val_loss=0.3``; these may be infinite or nan.

        Raises:
            TypeError: a value or step that is no number.
            ValueError: a negative step, or one above :data:`MAX_STEP`.
            OverflowError: a whole number that no float can hold.
            NotImplementedError: the study has several objectives.
            Interrupted: the trial should be left since the report before, and was not.
        """
        if self._overheard:
            raise Interrupted
        if len(self.study.directions) > 1:
            raise NotImplementedError("Trial.report is not supported for multi-objective optimization.")
        number, step = _as_number(value, "trial.report: value"), _as_step(step)
        # First the named ones: a step that Optuna's tables show is complete.
        named = self._reported.get(step, set())
        self._holder.put_metrics(
            step,
            {
                key: _as_number(metric, f"trial.report: metric {key!r:.60}")
                for key, metric in metrics.items()
                if key not in named
            },
        )
        if step in self._reported or step not in self._cached_frozen_trial.intermediate_values:
            super().report(number, step)  # which warns of a step that was reported before
        self._reported[step] = named | set(metrics)
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
            f"trial.checkpoint(step, state) got an object of type {type(made).__name__}: legal are bytes, or "
            "a function that returns bytes (torch.save into io.BytesIO, pickle.dumps, …)"
        )
    return bytes(made)


def is_feasible(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether ``trial`` keeps its constraints, as Optuna counts: each is at most 0."""
    return all(value <= 0 for value in trial.constraints.values())


def as_values(returned: Any, count: int) -> list[float] | str:
    """What an objective returned as one number per direction, or the reason why it is not; as Optuna judges."""
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
        except Exception:  # of an object's own __float__, as a tensor's of several elements
            return f"the objective returned {_shown(value)}, which is not a number; return one, such as loss.item()"
        if math.isnan(numbers[-1]):
            return "the objective returned nan"
    return numbers


def _places(agreed: BaseDistribution, given: CategoricalDistribution) -> Sequence[int]:
    """Where each choice of ``agreed`` stands in ``given``; raises :exc:`ValueError` unless both have the same."""
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
    except Exception:  # of an object's own __repr__, or of an integer of more than 4300 digits
        return f"an object of type {type(value).__name__}"
