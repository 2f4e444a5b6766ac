"""Training: tensors and epochs. Knows nothing of trials.

- AdamW, Adam or SGD with momentum on cross-entropy, the learning rate falling to zero along a cosine.
- The order of the examples comes from a generator of its own, initial weights and dropout from the
  global one; both are seeded, so that a training is the same on any worker.
- It can be left between any two batches.

Axes: B examples of a batch, N of a part, F features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.data import Part

OPTIMIZERS = ("adamw", "adam", "sgd")
#: Examples in one forward pass where no gradient is needed: bounds the memory.
EVALUATION_BATCH = 8192


class Diverged(ArithmeticError):
    """The training loss is no longer a finite number."""


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
    lr: float
    """As the epoch left it."""


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
        self.total_steps = epochs * math.ceil(len(train) / batch_size)

    def run_epoch(self, stop: Callable[[], bool]) -> tuple[float, float] | None:
        """Train on every example once.

        Args:
            stop: is asked before each batch.

        Returns:
            (loss, accuracy), means over the epoch's batches; ``None`` if it was left.

        Raises:
            Diverged: the loss is no longer finite.
        """
        self.model.train()
        device = self.train.y_N.device
        order_N = torch.randperm(len(self.train), generator=self.order).to(device)
        # Summed on the device and read once: reading each batch's loss would wait for a GPU each time.
        loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
        for index_B in torch.split(order_N, self.batch_size):
            if stop():
                return None
            self._set_lr()
            logits_BC = self.model(self.train.x_NF[index_B])
            y_B = self.train.y_N[index_B]
            loss = F.cross_entropy(logits_BC, y_B)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.step += 1
            loss_sum += loss.detach() * len(index_B)
            correct += (logits_BC.detach().argmax(1) == y_B).sum()
        mean_loss = loss_sum.item() / len(self.train)
        if not math.isfinite(mean_loss):
            raise Diverged(f"the training loss is {mean_loss} after {self.step} steps (lr = {self.settings.lr:.3g})")
        return mean_loss, correct.item() / len(self.train)

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
