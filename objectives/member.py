"""One perceptron being trained: its parameters, its moments and its place in the schedule. Knows nothing of trials.

Whatever a member does is a function of (seed, step): the order of the examples, each mask, each rate. So it trains the
same alone or in any company, and goes on anywhere from its state, on a CPU with the same bits.

Axes: N examples of a part, C outputs, P parameters, Q running statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from objectives import randomness
from objectives.data import Part
from objectives.hyperparameters import MINIMIZED, Hyperparameters, learning_rates
from objectives.network import Layout
from objectives.optimizers import MOMENTS
from objectives.states import StateError, expect_same

# A stack has an operator or has not: its members agree on whether each of these is on, not on how much.
_WITHIN_STACK = ("dropout", "input_dropout", "input_noise", "label_smoothing", "l1", "l2", "max_norm", "clip_norm")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be learned: all that the data say of the outputs."""

    n_features: int
    classes: tuple[str, ...] = ()
    """Empty in regression."""
    unit: float = 1.0
    """The standard deviation of a regression's target."""

    @property
    def n_outputs(self) -> int:
        """C, or 1."""
        return len(self.classes) or 1


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Some rows of a part."""

    part: Part
    rows_N: Tensor | None = None
    """int64, on the part's device; ``None`` for all."""

    def __len__(self) -> int:
        return len(self.part if self.rows_N is None else self.rows_N)

    @property
    def y_N(self) -> Tensor:
        """Their classes or numbers."""
        return self.part.y_N if self.rows_N is None else self.part.y_N[self.rows_N]


@dataclass
class Best:
    """The best epoch so far of a member that may stop early."""

    epoch: int
    metrics: dict[str, float]
    theta_P: Tensor
    statistics_Q: Tensor


class Member:
    """One perceptron being trained: a trial, or a fold or seed of one.

    Args:
        hyperparameters: of its trial.
        task: what it learns.
        train: what it is trained on.
        validation: what it is measured on; ``None`` to train alone.
        epochs: over which the learning rate goes.
        seed: of weights, orders, masks and noise.
        metrics: of the validation data that are wanted; all by default.
        pad: what a hidden width becomes in the stacks of its device.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        task: Task,
        train: Examples,
        validation: Examples | None,
        *,
        epochs: int,
        seed: int,
        metrics: Collection[str] = (),
        pad: Callable[[int], int] = lambda width: width,
    ) -> None:
        h = hyperparameters
        device = train.part.device
        self.hyperparameters, self.task, self.train, self.validation, self.seed = h, task, train, validation, seed
        self.layout = Layout(
            task.n_features, h.widths, task.n_outputs, h.normalization, tuple(pad(width) for width in h.widths)
        )
        self.theta_P = self.layout.pack(initial(self.layout, h, seed)).to(device)
        self.moments = [torch.zeros_like(self.theta_P) for _ in range(MOMENTS[h.optimizer])]
        # As in PyTorch, a running mean begins at 0 and a variance at 1.
        ones = {name: torch.full(shape, float("var" in name)) for name, (_, shape) in self.layout.statistics.items()}
        self.statistics_Q = self.layout.pack(ones, "statistics").to(device)
        self.batch_size = len(train) if h.optimizer == "gd" else min(h.batch_size, len(train))
        self.steps_per_epoch = math.ceil(len(train) / self.batch_size)
        self.total_steps = epochs * self.steps_per_epoch
        self.rates = learning_rates(h, steps=self.total_steps, per_epoch=self.steps_per_epoch)
        self.step = 0
        # Of the running epoch's examples, in their order: what the loss records.
        self.record = (torch.zeros(len(train), device=device), torch.zeros(len(train), device=device))
        self.wanted = frozenset(metrics)
        #: Of its last complete epoch.
        self.metrics: dict[str, float] = {}
        self.best: Best | None = None
        self._of = {"examples": len(train), "epochs": epochs, "seed": seed}

    @property
    def epoch(self) -> int:
        """How many epochs are complete."""
        return self.step // self.steps_per_epoch

    @property
    def lr(self) -> float:
        """Of the next step."""
        return float(self.rates[self.step])

    @property
    def n_done(self) -> int:
        """How many examples of the running epoch have been trained on."""
        return self.step % self.steps_per_epoch * self.batch_size

    @property
    def has_stopped(self) -> bool:
        """Whether it has stopped early."""
        patience = self.hyperparameters.patience
        return self.best is not None and patience is not None and self.epoch - self.best.epoch >= patience

    @property
    def is_over(self) -> bool:
        """Whether it has no step left to take."""
        return self.has_stopped or self.step == self.total_steps

    @property
    def key(self) -> tuple[object, ...]:
        """Members with equal ones can be in one stack."""
        h = self.hyperparameters
        return (
            *(self.layout.shape, h.activation, h.skip, h.optimizer, h.resolved_loss(self._kind)),
            # One tensor of examples, and one place in the epoch: a restored member may be in the middle of one.
            *(self.batch_size, len(self.train), id(self.train.part), self.step % self.steps_per_epoch),
            *((len(self.validation), id(self.validation.part)) if self.validation else ()),
            *(bool(getattr(h, name)) for name in _WITHIN_STACK),
            h.class_weights == "none",
        )

    @property
    def _kind(self) -> str:
        return "classification" if self.task.classes else "regression"

    def tensors(self) -> dict[str, Tensor]:
        """The parameters and running statistics by name, as :class:`objectives.model.Perceptron` has them: views."""
        return self.layout.unpack(self.theta_P) | self.layout.unpack(self.statistics_Q, "statistics")

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Keep the metrics of the epoch just done; with ``patience`` also the weights if they are the best so far."""
        self.metrics = metrics
        h = self.hyperparameters
        if h.patience is None or self.validation is None:
            return
        name, sign = f"val_{h.monitor}", -1 if h.monitor in MINIMIZED else 1
        if self.best is None or sign * metrics[name] > sign * self.best.metrics[name] + h.min_delta:
            self.best = Best(self.epoch, metrics, self.theta_P.clone(), self.statistics_Q.clone())

    def take_best(self) -> None:
        """Go back to the weights of the best epoch, if there is one."""
        if self.best is not None:
            self.theta_P.copy_(self.best.theta_P)
            self.statistics_Q.copy_(self.best.statistics_Q)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on: plain values, and copies of tensors in their own shapes."""

        def named(flat: Tensor, kind: str = "parameters") -> dict[str, Tensor]:
            # Copies: of a view torch.save writes the whole vector behind it.
            return {name: view.to("cpu", copy=True) for name, view in self.layout.unpack(flat, kind).items()}

        best = self.best
        return {
            "of": self._of,
            "step": self.step,
            "metrics": self.metrics,
            "model": named(self.theta_P),
            "statistics": named(self.statistics_Q, "statistics"),
            "moments": dict(enumerate(map(named, self.moments))),
            "record": {i: kept_N[: self.n_done].to("cpu", copy=True) for i, kept_N in enumerate(self.record)},
            "best": best
            and {
                "epoch": best.epoch,
                "metrics": best.metrics,
                "model": named(best.theta_P),
                "statistics": named(best.statistics_Q, "statistics"),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the member that gave ``state`` was, on whatever device.

        Raises:
            StateError: it is damaged, of another training, or nothing is left to train. This member may have
                changed and is of no more use.
        """
        step = state.get("step")
        if type(step) is not int or not 0 <= step <= self.total_steps:
            raise StateError(f"the checkpoint has step = {step!r:.80}; expected 0 to {self.total_steps}")
        # First of all: what else to expect depends on it.
        self.step = step
        metrics, best = state.get("metrics"), state.get("best")
        if not isinstance(metrics, dict):
            raise StateError(f"the checkpoint has metrics = {metrics!r:.80}; expected those of an epoch")
        self.metrics = metrics
        if isinstance(best, dict) and self.hyperparameters.patience is not None:
            metrics = best.get("metrics")
            if type(best.get("epoch")) is not int or not isinstance(metrics, dict):
                raise StateError(f"the checkpoint has best = {best!r:.80}; expected an epoch and its metrics")
            self.best = Best(best["epoch"], metrics, self.theta_P.clone(), self.statistics_Q.clone())
        expect_same(state, self.state_dict())
        self._fill(self.theta_P, state["model"])
        self._fill(self.statistics_Q, state["statistics"], "statistics")
        for i, moment_P in enumerate(self.moments):
            self._fill(moment_P, state["moments"][i])
        for i, kept_N in enumerate(self.record):
            kept_N[: self.n_done] = state["record"][i]
        if self.best is not None:
            self._fill(self.best.theta_P, state["best"]["model"])
            self._fill(self.best.statistics_Q, state["best"]["statistics"], "statistics")

    def _fill(self, flat: Tensor, tensors: Mapping[str, Tensor], kind: str = "parameters") -> None:
        flat.copy_(self.layout.pack(tensors, kind))


def initial(layout: Layout, hyperparameters: Hyperparameters, seed: int) -> dict[str, Tensor]:
    """Drawn on the CPU, so that they are the same for any device: weights by the scheme, biases 0, gains 1.

    He et al., arXiv 1502.01852; Glorot and Bengio, AISTATS 2010; Saxe et al., arXiv 1312.6120.
    """
    h = hyperparameters
    generator = torch.Generator().manual_seed(randomness.seed_of(seed, 0, randomness.INITIAL))
    scheme = h.initialization
    hidden = ("glorot_normal" if h.activation in ("tanh", "sigmoid") else "he_normal") if scheme == "auto" else scheme
    tensors = {}
    for name, shape in layout.own_shapes.items():
        tensors[name] = torch.full(shape, float(name.endswith("norm.weight")))
        if len(shape) == 2:
            # He's are for what a rectifier follows, and none follows the last layer.
            last = "glorot_normal" if scheme in ("auto", "he_normal") else scheme.replace("he_", "glorot_")
            draw = _INITIALIZATIONS[last if name.startswith("output") else hidden]
            draw(tensors[name], generator=generator)
    return tensors


_INITIALIZATIONS: Mapping[str, Callable[..., Tensor]] = {
    "he_normal": lambda w, generator: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=generator),
    "he_uniform": lambda w, generator: nn.init.kaiming_uniform_(w, nonlinearity="relu", generator=generator),
    "glorot_normal": nn.init.xavier_normal_,
    "glorot_uniform": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
}
