"""A trial that was killed or left goes on with the same bits, and a checkpoint that is none is refused."""

from __future__ import annotations

import gc
import io
import random
import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from objectives.member import Member
from objectives.mlp import MLP, Hyperparameters
from objectives.stack import Stack
from objectives.states import StateError
from tests.unit.objectives.conftest import Interrupted, Pruned, RecordingTrial

EPOCHS = 3
PARAMS = {"width": 32, "depth": 2, "dropout": 0.3, "lr": 5e-3}
TECHNIQUES: list[dict[str, Any]] = [
    {},
    {"optimizer": "sgd", "normalization": "batch", "input_noise": 0.1, "schedule": "onecycle"},
    {"optimizer": "rmsprop", "normalization": "layer", "patience": 5},
]


class Killed(BaseException):
    """kill -9, at a call that the objective makes."""


@dataclass(frozen=True)
class Saved:
    step: int
    state: bytes


@dataclass
class Stored:
    """What outlives an attempt at a trial."""

    checkpoint: Saved | None = None
    reports: dict[int, tuple[float, dict[str, float]]] = field(default_factory=dict)


@dataclass
class Attempt(RecordingTrial):
    """One attempt at a trial; killed at its call number ``die_at``, from 1, if it comes so far."""

    stored: Stored = field(default_factory=Stored)
    die_at: int = 0
    is_due: Callable[[], bool] = lambda: True
    """Asked for each checkpoint; one is always due when the worker is being stopped."""
    calls: list[str] = field(default_factory=list)

    def called(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self.die_at:
            raise Killed

    def report(self, value: float, step: int, **metrics: float) -> None:
        self.called(f"report {step}")
        assert self.stored.reports.setdefault(step, (value, metrics)) == (value, metrics)
        assert sorted(self.stored.reports) == list(range(1, len(self.stored.reports) + 1))

    def checkpoint(self, step: int, state: Callable[[], bytes]) -> None:
        self.called(f"checkpoint {step}")
        is_stopped = self.stop_after is not None and self.asked > self.stop_after
        if is_stopped or self.is_due():
            assert set(range(1, step + 1)) <= set(self.stored.reports)
            self.stored.checkpoint = Saved(step, state())

    def should_prune(self) -> bool:
        self.called(f"should_prune after {max(self.stored.reports)}")
        return self.prune_at is not None and max(self.stored.reports) >= self.prune_at

    def restore(self) -> Saved | None:
        return self.stored.checkpoint


@pytest.fixture
def chance() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed = {seed}")  # shown where the test fails
    return random.Random(seed)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Tensor]]]:
    """The weights at each evaluation."""
    weights: list[dict[str, Tensor]] = []
    evaluate = Stack.evaluate

    def recording(self: Stack, examples: Any) -> Any:
        weights.extend({name: tensor.clone() for name, tensor in member.tensors().items()} for member in self.members)
        return evaluate(self, examples)

    monkeypatch.setattr(Stack, "evaluate", recording)
    return weights


def run(attempt: Attempt) -> float | None:
    """The value, or ``None`` if the attempt was killed or left. As in another process each time."""
    torch.seed()
    try:
        return MLP("digits", epochs=EPOCHS, data_dir="unused")(attempt)
    except (Killed, Interrupted):
        return None


def same(some: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(some[name], other[name]) for name in {*some, *other})


@pytest.mark.parametrize("technique", TECHNIQUES, ids=str)
def test_a_trial_killed_at_any_call_ends_as_if_undisturbed(
    technique: dict[str, Any], evaluated: list[dict[str, Tensor]]
) -> None:
    params = {**PARAMS, **technique}
    undisturbed = Attempt(params=params)
    value = run(undisturbed)
    weights = evaluated[-1]
    assert len(undisturbed.calls) == 3 * EPOCHS - 2
    for die_at in range(1, len(undisturbed.calls) + 1):
        first = Attempt(params=params, die_at=die_at)
        assert run(first) is None
        assert run(Attempt(params=params, stored=first.stored)) == value
        assert first.stored.reports == undisturbed.stored.reports
        assert same(evaluated[-1], weights)


@pytest.mark.parametrize("technique", TECHNIQUES, ids=str)
def test_a_trial_left_at_any_batch_again_and_again_ends_as_if_undisturbed(
    technique: dict[str, Any], evaluated: list[dict[str, Tensor]], chance: random.Random
) -> None:
    params = {**PARAMS, **technique}
    undisturbed = Attempt(params=params)
    expected = run(undisturbed)
    weights = evaluated[-1]
    for _ in range(3):
        stored, value, attempts = Stored(), None, 0
        while value is None:
            # An epoch has 11 batches: some attempts end in the epoch in which they began.
            value = run(Attempt(params=params, stored=stored, stop_after=chance.randrange(1, 16)))
            attempts += 1
        assert attempts > 2
        assert value == expected
        assert stored.reports == undisturbed.stored.reports
        assert same(evaluated[-1], weights)


def test_a_trial_killed_and_left_with_few_checkpoints_due_ends_as_if_undisturbed(chance: random.Random) -> None:
    undisturbed = Attempt(params=PARAMS)
    expected = run(undisturbed)
    for _ in range(10):
        stored, value, attempts = Stored(), None, 0
        while value is None:
            attempt = Attempt(params=PARAMS, stored=stored, is_due=lambda: chance.random() < 0.3)
            if attempts < 6:
                attempt = replace(attempt, die_at=chance.randrange(1, 8), stop_after=chance.choice([None, 5, 15]))
            value = run(attempt)
            attempts += 1
        assert value == expected
        assert stored.reports == undisturbed.stored.reports


def test_a_trial_killed_before_its_result_was_told_gives_it_again() -> None:
    first = Attempt(params=PARAMS)
    value = run(first)
    assert first.stored.checkpoint is not None
    assert first.stored.checkpoint.step == EPOCHS - 1
    again = Attempt(params=PARAMS, stored=first.stored)
    assert run(again) == value
    assert again.calls == ["should_prune after 3", "report 3"]


def test_a_trial_left_before_its_first_batch_goes_on_from_there() -> None:
    first = Attempt(params=PARAMS, stop_after=0)
    assert run(first) is None
    assert first.stored.checkpoint is not None
    assert first.stored.checkpoint.step == 0
    undisturbed = Attempt(params=PARAMS)
    assert run(Attempt(params=PARAMS, stored=first.stored)) == run(undisturbed)
    assert first.stored.reports == undisturbed.stored.reports


def test_each_epoch_but_the_last_is_reported_then_saved_then_judged() -> None:
    trial = Attempt(params=PARAMS)
    run(trial)
    assert trial.calls == [
        *("report 1", "checkpoint 1", "should_prune after 1"),
        *("report 2", "checkpoint 2", "should_prune after 2"),
        "report 3",
    ]


def test_a_trial_killed_before_it_was_judged_is_judged_when_it_goes_on() -> None:
    first = Attempt(params=PARAMS, prune_at=1, die_at=3)
    assert run(first) is None
    assert first.calls == ["report 1", "checkpoint 1", "should_prune after 1"]
    second = Attempt(params=PARAMS, prune_at=1, stored=first.stored)
    with pytest.raises(Pruned):
        run(second)
    assert second.calls == ["should_prune after 1"]


def test_a_diverged_epoch_that_was_left_still_fails_at_its_end() -> None:
    params = {**PARAMS, "optimizer": "sgd", "lr": 1e30}
    first = Attempt(params=params, stop_after=7)
    assert run(first) is None
    with pytest.raises(ArithmeticError, match=r"the training loss is (nan|inf) after 11 steps"):
        run(Attempt(params=params, stored=first.stored))


def saved(**params: Any) -> tuple[bytes, int]:
    """A checkpoint in the middle of the second epoch, and how many parameters the model has."""
    trial = Attempt(params={**PARAMS, **params}, stop_after=16)
    assert run(trial) is None
    assert trial.stored.checkpoint is not None
    state = torch.load(io.BytesIO(trial.stored.checkpoint.state), weights_only=True)
    return trial.stored.checkpoint.state, sum(p.numel() for p in state["members"][0]["model"].values())


@pytest.mark.parametrize(("optimizer", "copies"), [("adamw", 3), ("adam", 3), ("sgd", 2)])
def test_a_checkpoint_is_as_large_as_the_weights_and_their_moments(optimizer: str, copies: int) -> None:
    state, parameters = saved(optimizer=optimizer, width=256)
    # Of each example of the epoch there are two numbers: 8 bytes of at most 1,293; the rest is names and padding.
    assert 0 < len(state) - copies * 4 * parameters < 32 * 1024


def test_a_checkpoint_holds_plain_values_though_the_sampler_gave_numpy_s() -> None:
    params = {"lr": np.float64(5e-3), "dropout": np.float64(0.3), "optimizer": np.str_("sgd")}
    state, _ = saved(**params)
    loaded = torch.load(io.BytesIO(state), weights_only=True)

    def kinds(value: object) -> set[type]:
        return set().union(*map(kinds, value.values()), map(type, value)) if isinstance(value, dict) else {type(value)}

    assert kinds(loaded) == {str, int, float, bool, type(None), Tensor}
    assert run(Attempt(params={**PARAMS, **params}, stored=Stored(Saved(1, state), {1: (0, {})}))) is not None


@pytest.mark.parametrize(
    "garbage",
    [b"", b"x", b"garbage" * 99, b"PK\x03\x04" + bytes(99), b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00a\x85R."],
)
def test_garbage_is_refused_in_one_line(garbage: bytes) -> None:
    with pytest.raises(ValueError, match="that torch cannot use") as caught:
        run(Attempt(params=PARAMS, stored=Stored(Saved(1, garbage))))
    assert re.fullmatch(
        rf"the checkpoint is {len(garbage)} bytes that torch cannot use \(\w+\); "
        "expected the saved state of a training",
        str(caught.value),
    )


def test_a_checkpoint_cut_short_is_refused(chance: random.Random) -> None:
    state, _ = saved()
    with pytest.raises(StateError, match=r"that torch cannot use \(\w+\); expected the saved"):
        run(Attempt(params=PARAMS, stored=Stored(Saved(1, state[: chance.randrange(len(state))]))))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"width": 64}, "the checkpoint has width = 64; expected 32"),
        ({"depth": 1}, "the checkpoint has depth = 1; expected 2"),
        ({"dropout": 0.2}, "the checkpoint has dropout = 0.2; expected 0.3"),
        ({"activation": "tanh"}, "the checkpoint has activation = tanh; expected relu"),
        ({"optimizer": "sgd"}, "the checkpoint has optimizer = sgd; expected adamw"),
        ({"lr": 0.01}, "the checkpoint has lr = 0.01; expected 0.005"),
    ],
)
def test_a_checkpoint_of_other_hyperparameters_is_refused_by_name(params: dict[str, Any], message: str) -> None:
    state, _ = saved(**params)
    with pytest.raises(StateError, match=re.escape(message)):
        run(Attempt(params=PARAMS, stored=Stored(Saved(1, state))))


def test_a_checkpoint_of_another_seed_is_refused() -> None:
    state, _ = saved()
    with pytest.raises(StateError, match=r"the checkpoint has of\.seed = 0; expected 1"):
        run(Attempt(params=PARAMS, seed=1, stored=Stored(Saved(1, state))))


HYPERPARAMETERS = Hyperparameters(**PARAMS)


def member(epochs: int = EPOCHS, steps: int = 0) -> Member:
    """A member after ``steps`` batches."""
    mlp = MLP("digits", epochs=epochs, data_dir="unused")
    made = mlp.training(HYPERPARAMETERS, 0, "cpu").members[0]
    stack = Stack([made])
    while made.step < steps:
        if stack.run_epoch(lambda: made.step >= steps):
            made.end_epoch(stack.measure()[0])
    return made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 34}, "the checkpoint has step = 34; expected 0 to 33"),
        ({"step": -1}, "the checkpoint has step = -1; expected 0 to 33"),
        ({"step": 1.5}, "the checkpoint has step = 1.5; expected 0 to 33"),
        ({"step": torch.eye(2)}, "the checkpoint has step = tensor([[1., 0.], [0., 1.]]); expected 0 to 33"),
        ({"model": {}}, "the checkpoint has model.blocks.0.linear.weight = nothing; expected float32 32 × 64"),
        ({"moments": {}}, "the checkpoint has moments.0.blocks.0.linear.weight = nothing; expected float32 32 × 64"),
        ({"record": {}}, "the checkpoint has record.0 = nothing; expected float32 640"),
        ({"metrics": None}, "the checkpoint has metrics = None; expected those of an epoch"),
        ({"more": 1}, "the checkpoint has more = 1; expected nothing"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    state = member(steps=5).state_dict() | change
    with pytest.raises(StateError, match=re.escape(message)):
        member().load_state_dict(state)


def test_a_moment_of_another_shape_is_refused() -> None:
    state = member(steps=5).state_dict()
    state["moments"][0]["blocks.0.linear.weight"] = torch.zeros(64, 32)
    message = "the checkpoint has moments.0.blocks.0.linear.weight = float32 64 × 32; expected float32 32 × 64"
    with pytest.raises(StateError, match=message):
        member().load_state_dict(state)


def test_a_state_of_more_epochs_is_refused_since_its_schedule_differs() -> None:
    with pytest.raises(StateError, match=r"the checkpoint has of\.epochs = 4; expected 3"):
        member().load_state_dict(member(epochs=4).state_dict())


def test_a_state_goes_between_a_padded_stack_and_one_that_is_not() -> None:
    undisturbed = member(steps=22)
    padded = MLP("digits", epochs=EPOCHS, data_dir="unused").training(
        HYPERPARAMETERS, 0, "cpu", pad=lambda width: width + 16
    )
    (resumed,) = padded.members
    resumed.load_state_dict(member(steps=15).state_dict())
    stack = Stack([resumed])
    assert stack.run_epoch()
    assert stack.measure()[0] == pytest.approx(undisturbed.metrics, rel=1e-4)


def test_a_training_goes_on_the_same_from_each_batch_of_an_epoch() -> None:
    undisturbed = member(steps=22)
    for step in range(11, 22):
        resumed = member()
        resumed.load_state_dict(member(steps=step).state_dict())
        assert (resumed.epoch, resumed.step) == (1, step)
        stack = Stack([resumed])
        assert stack.run_epoch()
        assert stack.measure()[0] == undisturbed.metrics
        assert same(resumed.tensors(), undisturbed.tensors())
        assert resumed.lr == undisturbed.lr


def test_nothing_of_a_trial_that_ran_out_of_memory_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = MLP("digits", epochs=EPOCHS, data_dir="unused")
    weights: list[weakref.ref[Tensor]] = []

    def fails(self: Stack, _: Any) -> Any:
        weights.append(weakref.ref(self.members[0].theta_P))
        raise torch.OutOfMemoryError("CUDA out of memory")

    gc.disable()  # A worker does not wait for the collector: the next trial needs the memory.
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Stack, "evaluate", fails)
            with pytest.raises(torch.OutOfMemoryError):
                mlp(Attempt(params=PARAMS))
        assert [tensor() for tensor in weights] == [None]
    finally:
        gc.enable()
    assert mlp(Attempt(params=PARAMS)) > 0.5
