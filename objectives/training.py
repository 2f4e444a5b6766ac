"""Training: tensors and epochs. Knows nothing of trials.

- AdamW, Adam or SGD with momentum on cross-entropy, the learning rate falling to zero along a cosine.
- The order of the examples comes from a generator of its own, initial weights and dropout from the
  global one; both are seeded, so that a training is the same on any worker.
- It can be left between any two batches, and its state saved there: a training that loads it goes on
  with the same bits on a CPU.

Axes: B examples of a batch, N of a part, F features, C classes.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.data import Part

OPTIMIZERS = ("adamw", "adam", "sgd")
#: Examples in one forward pass where no gradient is needed: bounds the memory.
EVALUATION_BATCH = 8192


class Diverged(ArithmeticError):
    """The training loss is no longer a finite number."""


class StateError(ValueError):
    """A saved state is damaged or another training's. One line: what was found, what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # what was found may have lines


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How the weights are moved."""

    name: str = "adamw"
    lr: float = 1e-3
    """At the first step; falls to zero along half a cosine."""
    weight_decay: float = 1e-2
    momentum: float = 0.9
    """Of SGD; the others have their own."""


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One epoch."""

    train_loss: float
    """The mean over the epoch's batches as they were trained on: dropout on, weights changing."""
    train_accuracy: float
    """Likewise."""
    val_loss: float
    """After the epoch, dropout off."""
    val_accuracy: float
    """Likewise."""
    scheduled_lr: float
    """The learning rate as the epoch left it, 0 after the last; the parameter ``lr`` is what it begins with."""


class Training:
    """A model being trained.

    Args:
        model: takes B × F, gives logits B × C; already on the device of ``train``.
        train: what is trained on.
        settings: of the optimizer.
        batch_size: B; the last batch of an epoch may be smaller.
        epochs: over which the learning rate falls.
        seed: of the order of the examples.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Part,
        *,
        settings: OptimizerSettings,
        batch_size: int,
        epochs: int,
        seed: int,
    ) -> None:
        self.model = model
        self.train = train
        self.batch_size = batch_size
        self.settings = settings
        self.optimizer = _optimizer(model, settings)
        self.order = torch.Generator().manual_seed(seed)
        self.step = 0
        self.steps_per_epoch = math.ceil(len(train) / batch_size)
        self.total_steps = epochs * self.steps_per_epoch
        # Of the running epoch. Summed on the device and read once: reading each batch's loss would wait
        # for a GPU each time.
        self._loss_sum = torch.zeros((), device=self._device)
        self._correct = torch.zeros((), device=self._device)
        self._of = {"batch_size": batch_size, "examples": len(train), "epochs": epochs, "seed": seed}

    @property
    def epoch(self) -> int:
        """How many epochs are complete."""
        return self.step // self.steps_per_epoch

    def run_epoch(self, stop: Callable[[], bool]) -> tuple[float, float] | None:
        """Train on every example once; an epoch that was left goes on at its next batch.

        Args:
            stop: is asked before each batch.

        Returns:
            (loss, accuracy), means over the epoch's batches; ``None`` if it was left.

        Raises:
            Diverged: the loss is no longer finite.
        """
        self.model.train()
        # Drawn from a copy: until the epoch is complete, whoever goes on with it draws the same order.
        order = self.order.clone_state()
        order_N = torch.randperm(len(self.train), generator=order).to(self._device)
        for index_B in torch.split(order_N, self.batch_size)[self.step % self.steps_per_epoch :]:
            if stop():
                return None
            self._train_on(index_B)
        self.order = order
        mean_loss, accuracy = self._loss_sum.item() / len(self.train), self._correct.item() / len(self.train)
        self._loss_sum.zero_()
        self._correct.zero_()
        if not math.isfinite(mean_loss):
            raise Diverged(f"the training loss is {mean_loss} after {self.step} steps (lr = {self.settings.lr:.3g})")
        return mean_loss, accuracy

    def _train_on(self, index_B: Tensor) -> None:
        self._set_lr()
        logits_BC = self.model(self.train.x_NF[index_B])
        y_B = self.train.y_N[index_B]
        loss = F.cross_entropy(logits_BC, y_B)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        self._loss_sum += loss.detach() * len(index_B)
        self._correct += (logits_BC.detach().argmax(1) == y_B).sum()

    def state_dict(self) -> dict[str, Any]:
        """All that the next batch depends on: plain values, and the training's own tensors, not copies.

        ``step`` is the whole position: of the schedule, the epoch and the batch. ``order`` is the
        generator at the epoch's beginning, the other generators are as they are now.
        """
        state = {
            "of": _plain(self.settings) | self._of,
            "step": self.step,
            "loss_sum": self._loss_sum,
            "correct": self._correct,
            "model": dict(self.model.state_dict()),
            # Without its settings, which are those of this training.
            "optimizer": self.optimizer.state_dict()["state"],
            "order": self.order.get_state(),
            "rng": torch.get_rng_state(),
        }
        if self._device.type == "cuda":
            state["rng_cuda"] = torch.cuda.get_rng_state(self._device)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the training that gave ``state`` was; sets the global generators too.

        A state may come from another kind of device; dropout then goes on with other random numbers.

        Raises:
            StateError: it is damaged, of another training, or nothing is left to train. This training
                may have changed and is of no more use.
        """
        step = state.get("step")
        if type(step) is not int or not 0 <= step < self.total_steps:
            raise StateError(f"the checkpoint has step = {step!r:.80}; expected 0 to {self.total_steps - 1}")
        if step > 0:
            self._make_moments()
        varying = {"step": step, "rng_cuda": None}
        _expect_same({**state, **varying}, {**self.state_dict(), **varying})
        self.step = step
        self._loss_sum.copy_(state["loss_sum"])
        self._correct.copy_(state["correct"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["optimizer"]})
        try:
            self.order.set_state(state["order"])
            torch.set_rng_state(state["rng"])
            if self._device.type == "cuda" and "rng_cuda" in state:
                torch.cuda.set_rng_state(state["rng_cuda"], self._device)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise StateError("the checkpoint's random numbers are damaged; expected a generator's state") from error

    def _make_moments(self) -> None:
        """Let the optimizer make what it keeps of each parameter, which it does at its first step."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def _device(self) -> torch.device:
        return self.train.y_N.device

    @property
    def lr(self) -> float:
        """Of the next step: half a cosine from the first step to the last (SGDR, arXiv 1608.03983)."""
        return self.settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.total_steps)))

    def _set_lr(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr


@torch.inference_mode()
def evaluate(model: nn.Module, part: Part) -> tuple[float, float]:
    """(mean loss, accuracy) of ``model`` on every example of ``part``."""
    model.eval()
    loss_sum, correct = 0.0, 0
    for x_BF, y_B in zip(
        torch.split(part.x_NF, EVALUATION_BATCH), torch.split(part.y_N, EVALUATION_BATCH), strict=True
    ):
        logits_BC: Tensor = model(x_BF)
        loss_sum += F.cross_entropy(logits_BC, y_B, reduction="sum").item()
        correct += int((logits_BC.argmax(1) == y_B).sum().item())
    return loss_sum / len(part), correct / len(part)


def save(training: Training, *, of: Any) -> bytes:
    """The state of ``training``: tensors and plain values, about three times the model with Adam.

    Args:
        training: left between two batches.
        of: the hyperparameters, a dataclass; the model's shapes do not tell its dropout or activation.
    """
    buffer = io.BytesIO()
    torch.save({"hyperparameters": _plain(of), **training.state_dict()}, buffer)
    return buffer.getvalue()


def restore(training: Training, data: bytes, *, of: Any) -> None:
    """Let ``training`` go on where the one that :func:`save` was given was left. Runs no code of ``data``.

    Raises:
        StateError: these bytes are something else, or of other hyperparameters. Flipped bits inside of a
            tensor are not seen: a checksum is for who keeps the bytes.
    """
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    # Damaged bytes raise nearly anything; torch's own text is long and advises to let them run code.
    except Exception as error:
        state = type(error).__name__
    if not isinstance(state, dict):
        found = f"{len(data)} bytes that torch cannot use ({state!s:.80})"
        raise StateError(f"the checkpoint is {found}; expected the saved state of a training")
    _expect_same(state.pop("hyperparameters", {}), _plain(of))
    training.load_state_dict(state)


def _plain(record: Any) -> dict[str, Any]:
    """The fields of a dataclass of numbers and strings. Samplers give NumPy's, which ``weights_only`` refuses."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(record)))
    return fields


def _expect_same(found: object, expected: object) -> None:
    """Compare two states, tensors by type and shape, everything else by value; names the first difference."""
    found_leaves, expected_leaves = dict(_leaves(found)), dict(_leaves(expected))
    for path in [*expected_leaves, *found_leaves]:
        there, here = (leaves.get(path, "nothing") for leaves in (found_leaves, expected_leaves))
        if there != here:
            name = ".".join(map(str, path))
            raise StateError(f"the checkpoint has {name:.80} = {there!s:.80}; expected {here}")


def _leaves(state: object, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], object]]:
    """What nested dictionaries hold, by path; of a tensor its type and shape."""
    if isinstance(state, dict) and state:
        for key, value in state.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(state, Tensor):
        shape = " × ".join(map(str, state.shape)) or "scalar"
        yield path, f"{str(state.dtype).removeprefix('torch.')} {shape}"
    else:
        yield path, state


def _optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    # fused: on one CPU core an epoch of MNIST took 0.68 s with it, 0.90 s with foreach, 0.87 s with
    # neither (medians of 5, width 128, 2026-11).
    if settings.name == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
            fused=True,
        )
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
