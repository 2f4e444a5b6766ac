"""Training: tensors, steps and epochs. Knows nothing of trials.

- A :class:`Member` is one perceptron being trained: its parameters, its moments and its place in the schedule. Whatever
  it does is a function of (seed, step): the order of the examples, each mask, each rate. So it trains the same alone
  or in any company, and goes on anywhere from its state, on a CPU with the same bits.
- A :class:`Stack` trains members of one shape in step. On a CPU each member is a stack of its own: 2, 4 or 8 of width
  32 to 128 in one stack took from 0.9 to 1.2 times the time per step and member (2026-11-27), and padding on top.
- What no weights decide, masks and targets, is made for K steps at once, and losses are recorded so: of a narrow net
  these operators take about as long for one step as for eight (bench_training.py).
- Within an epoch nothing waits for the device: losses are recorded there, and read once.

Axes: K steps that are prepared together, G slots, B examples of a batch, N of a part, F features, H hidden units, C
outputs, P parameters, S steps of an epoch, L numbers of 64 bits.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from objectives import randomness
from objectives.data import Part
from objectives.hyperparameters import MINIMIZED, Hyperparameters, learning_rates
from objectives.losses import CrossEntropy, Loss, SquaredError, classification_metrics, regression_metrics
from objectives.network import Layout, Network
from objectives.optimizers import MOMENTS, Optimizer

#: Examples in one forward pass of an evaluation. On one core 128 to 512 take half the time per example of 6,000.
EVALUATION_BATCH = 512
#: The numbers of a slot that are prepared together stay below so many: 512 kB of 64 bits, which a cache holds.
PREPARED = 2**16
# A stack has an operator or has not: its members agree on whether each of these is on, not on how much.
_WITHIN_STACK = ("dropout", "input_dropout", "input_noise", "label_smoothing", "l1", "l2", "max_norm", "clip_norm")


class Diverged(ArithmeticError):
    """The training loss is no longer a finite number."""


class StateError(ValueError):
    """A saved state is damaged or another training's. One line: what was found, what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # what was found may have lines


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


def steps_together(numbers: int, available: int) -> int:
    """K: how many of the ``available`` steps to prepare together, when each slot needs so many numbers for one."""
    return max(1, min(available, PREPARED // numbers))


@dataclass(frozen=True, kw_only=True)
class Steps:
    """K consecutive steps of an epoch with batches of one size, prepared."""

    first: int
    """The number of the first, as the optimizer has planned it."""
    batch: Batch
    """What they write into; their masks are there."""
    rows: Sequence[Tensor]
    """Of each step: G·B rows of the part, int64."""
    targets: Sequence[Sequence[Tensor]]
    """Of each step: what the loss wants."""
    y_KG1B: Tensor
    record: tuple[Tensor, Tensor]
    """Two K × G × 1 × B, for the loss's record."""

    def __len__(self) -> int:
        return len(self.rows)


class Stack:
    """Members of one :attr:`Member.key` that train in step; from now on their tensors are views of the stack's."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        first = members[0]
        self._device = first.train.part.device
        self._settings = [member.hyperparameters for member in members]
        self._theta = _stacked([member.theta_P for member in members])
        self._gradient = torch.zeros_like(self._theta)
        moments = [_stacked(list(of_each)) for of_each in zip(*(member.moments for member in members), strict=True)]
        statistics = _stacked([member.statistics_Q for member in members])
        self._record = (
            _stacked([member.record[0] for member in members]),
            _stacked([member.record[1] for member in members]),
        )
        for g, member in enumerate(members):
            member.theta_P, member.statistics_Q = self._theta[g], statistics[g]
            member.moments = [moment[g] for moment in moments]
            member.record = (self._record[0][g], self._record[1][g])
        h = first.hyperparameters
        self._network = Network(
            [member.layout for member in members],
            self._theta, self._gradient, statistics, activation=h.activation, skip=h.skip,
        )  # fmt: skip
        self._optimizer = Optimizer(self._settings, self._theta, self._gradient, moments)
        self._loss = self._make_loss()
        self._n_weights = first.layout.n_weights
        self._batches: dict[tuple[int, bool, bool], Batch] = {}
        self._l1, self._l2 = self._column("l1"), self._column("l2")
        self._max_norm, self._clip_norm = self._column("max_norm"), self._column("clip_norm")

    def _column(self, name: str) -> Tensor | None:
        """G × 1, of a hyperparameter; ``None`` where it is off in all."""
        values = [getattr(h, name) or 0.0 for h in self._settings]
        return torch.tensor(values, device=self._device)[:, None] if any(values) else None

    def _make_loss(self) -> Loss:
        task, h = self.members[0].task, self._settings[0]
        if task.classes:
            smoothing = self._column("label_smoothing")
            weights = None
            if h.class_weights != "none":
                weights = torch.stack([class_weights(member) for member in self.members])
            return CrossEntropy(
                task.n_outputs, None if smoothing is None else smoothing[:, :, None], weights, self._device
            )
        delta = self._column("huber_delta") if h.resolved_loss("regression") == "huber" else None
        return SquaredError(None if delta is None else delta[:, :, None], task.unit)

    def run_epoch(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to the end of the epoch, from wherever the members are in it.

        Args:
            stop: is asked before each batch.

        Returns:
            Whether the epoch is complete; if not, its members can be saved where they are.
        """
        first = self.members[0]
        for steps in self.plan(first.step % first.steps_per_epoch):
            for k in range(len(steps)):
                if stop():
                    self.record(steps, k)
                    return False
                self.train_on(steps, k)
                for member in self.members:
                    member.step += 1
            self.record(steps, len(steps))
        return True

    def plan(self, begun: int) -> Iterator[Steps]:
        """The steps left in the epoch, of which ``begun`` are done; each few are prepared when it is their turn."""
        members, first = self.members, self.members[0]
        seeds = [member.seed for member in members]
        n_steps = first.steps_per_epoch - begun
        epoch_G1 = torch.tensor([[member.epoch] for member in members], device=self._device)
        order_GN = randomness.orders(randomness.keys(seeds, epoch_G1, randomness.ORDER), len(first.train))
        if first.train.rows_N is not None:
            rows_GN = torch.stack([m.train.rows_N for m in members if m.train.rows_N is not None])
            order_GN = rows_GN.gather(1, order_GN)
        y_GN = first.train.part.y_N.index_select(0, order_GN.flatten()).view_as(order_GN)
        at = [member.epoch * first.steps_per_epoch + begun for member in members]
        rates = np.stack([m.rates[start : start + n_steps] for m, start in zip(members, at, strict=True)])
        self._optimizer.plan(rates, at)
        step_GS = torch.tensor(at, device=self._device)[:, None] + torch.arange(n_steps, device=self._device)
        return self._prepared(begun, order_GN, y_GN, randomness.keys(seeds, step_GS, randomness.STEP))

    def _prepared(self, begun: int, row_GN: Tensor, y_GN: Tensor, key_GS: Tensor) -> Iterator[Steps]:
        size, n_examples = self.members[0].batch_size, row_GN.shape[1]
        key_SG1, done = key_GS.T.unsqueeze(2), 0
        n_full = n_examples // size
        # The last batch may be smaller.
        for n, begin, count in ((size, begun * size, n_full - begun), (n_examples % size, n_full * size, 1)):
            if not n or count < 1:
                continue
            batch = self.batch(n, training=True)
            end = begin + n * count
            row_SGB, y_SGB, *record_SGB = (
                of_GN[:, begin:end].view(-1, count, n).transpose(0, 1) for of_GN in (row_GN, y_GN, *self._record)
            )
            rows, y_SG1B = row_SGB.flatten(1).unbind(), y_SGB.unsqueeze(2)
            record = [of_SGB.unsqueeze(2) for of_SGB in record_SGB]
            for i in range(0, count, batch.n_steps):
                some = slice(i, i + batch.n_steps)
                batch.draw(key_SG1[done + i : done + min(i + batch.n_steps, count)])
                y_KG1B = y_SG1B[some]
                yield Steps(
                    first=done + i,
                    batch=batch,
                    rows=rows[some],
                    targets=list(zip(*(target.unbind() for target in self._loss.targets(y_KG1B)), strict=True)),
                    y_KG1B=y_KG1B,
                    record=(record[0][some], record[1][some]),
                )
            done += count

    def train_on(self, steps: Steps, k: int) -> None:
        """Take number ``k`` of these steps, from 0."""
        batch = steps.batch
        self.members[0].train.part.gather(steps.rows[k], batch.x_LF, batch.stored_LF)
        batch.disturb(k)
        outputs = batch.outputs[k]
        self._network.forward(batch.x_GBF, batch.buffers, outputs, training=True)
        self._loss.gradient(outputs, steps.targets[k], batch.d_outputs)
        self._network.backward(batch.x_GBF, batch.d_outputs, batch.d_outputs_t, batch.buffers)
        self._penalize()
        self._optimizer.step(steps.first + k)
        if self._max_norm is not None:
            self._limit_norms(self._max_norm)

    def record(self, steps: Steps, count: int) -> None:
        """Record the losses of the first ``count`` of these steps, before others are prepared."""
        first, second = steps.record
        self._loss.record(steps.batch.outputs_KGCB[:count], steps.y_KG1B[:count], (first[:count], second[:count]))

    def batch(self, n: int, *, training: bool, gathers: bool = True) -> Batch:
        """What batches of n examples are written into."""
        key = (n, training, gathers)
        if key not in self._batches:
            self._batches[key] = Batch(self._network, self.members, n, training=training, gathers=gathers)
        return self._batches[key]

    def _penalize(self) -> None:
        if self._l1 is None and self._l2 is None and self._clip_norm is None:
            return
        weights, gradient = self._theta[:, : self._n_weights], self._gradient[:, : self._n_weights]
        if self._l2 is not None:
            gradient.addcmul_(weights, self._l2)
        if self._l1 is not None:
            gradient.addcmul_(weights.sign(), self._l1)
        # After the penalties: the whole gradient is bounded.
        if self._clip_norm is not None:  # as torch.nn.utils.clip_grad_norm_
            norm_G1 = torch.linalg.vector_norm(self._gradient, dim=1, keepdim=True)
            self._gradient.mul_((self._clip_norm / (norm_G1 + 1e-6)).clamp_max_(1))

    def _limit_norms(self, most_G1: Tensor) -> None:
        """Srivastava et al., JMLR 2014, as ``torch.renorm``."""
        for weight_GHF in self._network.weights:
            norm_GH1 = torch.linalg.vector_norm(weight_GHF, dim=2, keepdim=True)
            weight_GHF.mul_((most_G1[:, :, None] / (norm_GH1 + 1e-7)).clamp_max_(1))

    def measure(self) -> list[dict[str, float]]:
        """The metrics of the epoch that has just been completed, of each member; waits for the device once.

        ``train_…`` are means over the epoch's batches as they were trained on, dropout on and weights changing;
        ``val_…`` are after it. A training loss that is no finite number means that the member has diverged.
        """
        found = {f"train_{name}": of_G for name, of_G in self._loss.measure(self._record).items()}
        validation = [member.validation for member in self.members if member.validation is not None]
        if validation:
            found |= {f"val_{name}": of_G for name, of_G in self.evaluate(validation).items()}
        rows = torch.stack(list(found.values()), dim=1).tolist()
        return [
            {
                name: value
                for name, value in zip(found, row, strict=True)
                if name.startswith("train_") or not member.wanted or name.removeprefix("val_") in member.wanted
            }
            for member, row in zip(self.members, rows, strict=True)
        ]

    def evaluate(self, examples: Sequence[Examples]) -> dict[str, Tensor]:
        """Metrics of each slot on its examples, each of shape G."""
        task, n = self.members[0].task, len(examples[0])
        part = examples[0].part
        rows = [each.rows_N for each in examples if each.rows_N is not None]
        rows_GN = torch.stack(rows) if rows else None
        outputs_GCN = torch.empty(len(self.members), task.n_outputs, n, device=self._device)
        for start in range(0, n, EVALUATION_BATCH):
            outputs = outputs_GCN[:, :, start : start + EVALUATION_BATCH]
            batch = self.batch(outputs.shape[2], training=False, gathers=rows_GN is not None)
            if rows_GN is None:
                # One view for all slots: their examples are the same.
                x_GBF = part.features(start, start + EVALUATION_BATCH).expand(len(self.members), -1, -1)
            else:
                index_L = rows_GN[:, start : start + EVALUATION_BATCH].flatten()
                part.gather(index_L, batch.x_LF, batch.stored_LF)
                x_GBF = batch.x_GBF
            self._network.forward(x_GBF, batch.buffers, batch.outputs[0], training=False)
            outputs.copy_(batch.outputs[0])
        y_GN = torch.stack([each.y_N for each in examples])
        if task.classes:
            return classification_metrics(outputs_GCN, y_GN)
        return regression_metrics(outputs_GCN.squeeze(1), y_GN, unit=task.unit)


class Batch:
    """What batches of n examples are written into, and the masks of as many steps as are prepared together.

    Args:
        network: of the members.
        members: of the stack.
        n: how many examples.
        training: or evaluation.
        gathers: whether the examples are gathered, and not consecutive rows of the part.
    """

    def __init__(self, network: Network, members: Sequence[Member], n: int, *, training: bool, gathers: bool) -> None:
        part, task = members[0].train.part, members[0].task
        settings = [member.hyperparameters for member in members]
        device, slots, n_features = part.device, len(members), task.n_features
        self.x_LF = torch.empty(slots * n if gathers else 0, n_features, device=device)
        self.x_GBF = self.x_LF.view(slots, -1, n_features)
        are_bytes = part.stored_NF.dtype == torch.uint8
        self.stored_LF = torch.empty_like(self.x_LF, dtype=torch.uint8) if are_bytes else self.x_LF
        has_dropout = training and any(h.dropout for h in settings)
        self.buffers = network.buffers(n, training=training, dropout=has_dropout)
        # Layer 0 is the input, 1 the first hidden one; -1 the noise.
        layers = [(0, n_features)] * (training and any(h.input_dropout for h in settings))
        layers += [(i + 1, width) for i, width in enumerate(network.widths) if has_dropout]
        regions = [randomness.positions(i, n, units, lanes=randomness.LANES, device=device) for i, units in layers]
        self._has_noise = training and any(h.input_noise for h in settings)
        if self._has_noise:
            regions.append(randomness.positions(-1, n, n_features, lanes=2, device=device))
        self._position_L = torch.cat(regions) if regions else torch.empty(0, dtype=torch.int64, device=device)
        n_random = len(self._position_L)
        #: K, at most; the last batch of an epoch may be smaller, and is one.
        available = len(members[0].train) // n if training and n == members[0].batch_size else 1
        self.n_steps = steps_together(n_random + task.n_outputs * n, available)
        self.outputs_KGCB = torch.empty(self.n_steps, slots, task.n_outputs, n, device=device)
        self.outputs = self.outputs_KGCB.unbind()
        self.d_outputs = torch.empty_like(self.outputs[0])
        self.d_outputs_t = self.d_outputs.mT
        self._random_KGL = torch.empty(self.n_steps, slots, n_random, dtype=torch.int64, device=device)
        self._scratch_KGL = torch.empty_like(self._random_KGL)
        splits = torch.split(self._random_KGL, [len(region) for region in regions], dim=2) if regions else ()
        self._noise_KGL = splits[-1] if self._has_noise else None
        self._noise_G11 = torch.tensor([h.input_noise for h in settings], device=device)[:, None, None]
        self._masks = {
            i: _Mask(random_KGL, [h.dropout if i else h.input_dropout for h in settings], n, units)
            for (i, units), random_KGL in zip(layers, splits, strict=False)
        }

    def draw(self, key_KG1: Tensor) -> None:
        """Draw the random numbers and the masks of the steps with these keys."""
        if not len(self._position_L):
            return
        count = len(key_KG1)
        random_KGL = torch.add(self._position_L, key_KG1, out=self._random_KGL[:count])
        randomness.mix_(random_KGL, self._scratch_KGL[:count])
        for mask in self._masks.values():
            mask.draw(count)

    def disturb(self, k: int) -> None:
        """Give the hidden layers the masks of step ``k``; add noise to the input, and drop some of it."""
        if self._noise_KGL is not None:
            slots, n, n_features = self.x_GBF.shape
            normal_GL = randomness.normal(self._noise_KGL[k])
            self.x_GBF.addcmul_(normal_GL.view(slots, n, -1)[:, :, :n_features], self._noise_G11)
        for i, mask in self._masks.items():
            if i:
                self.buffers[i - 1].mask = mask.of_steps[k]
            else:
                self.x_GBF.mul_(mask.of_steps[k])


class _Mask:
    """Of dropout (Srivastava et al., JMLR 2014): 1 / (1 − p) where a unit is kept, else 0; p in steps of 2⁻¹⁶."""

    def __init__(self, random_KGL: Tensor, shares: Sequence[float], n: int, units: int) -> None:
        # At most one below all levels: the bound is a signed number of 16 bits.
        kept = [min(round((1 - share) * randomness.LEVELS), randomness.LEVELS - 1) for share in shares]
        device = random_KGL.device
        below = [max(count, 1) - randomness.LEVELS // 2 for count in kept]  # lanes begin at −2¹⁵
        self._below_G11 = torch.tensor(below, dtype=torch.int16, device=device)[:, None, None]
        self._scale_G11 = torch.tensor([randomness.LEVELS / max(count, 1) for count in kept], device=device)[
            :, None, None
        ]
        self._lanes_KGBH = random_KGL.view(torch.int16).view(*random_KGL.shape[:2], n, -1)[..., :units]
        self._out_KGBH = torch.empty(self._lanes_KGBH.shape, device=device)
        #: G × B × H of each step.
        self.of_steps = self._out_KGBH.unbind()

    def draw(self, count: int) -> None:
        """Of the first ``count`` steps, from the random numbers as they are now."""
        out_KGBH = torch.lt(self._lanes_KGBH[:count], self._below_G11, out=self._out_KGBH[:count])
        out_KGBH.mul_(self._scale_G11)


def class_weights(member: Member) -> Tensor:
    """C weights: by the classes' counts in the training rows, or as given."""
    given, classes = member.hyperparameters.class_weights, member.task.classes
    if isinstance(given, Mapping):
        return torch.tensor([given.get(name, 1.0) for name in classes], device=member.theta_P.device)
    # As "balanced" in scikit-learn; the rows of a fold may lack a class.
    counts_C = member.train.y_N.bincount(minlength=len(classes))
    return len(member.train) / (len(classes) * counts_C.clamp_min(1))


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """A view of a single row, a copy of several."""
    return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(list(rows))


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """A state of tensors and plain values."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    """What :func:`to_bytes` was given. Runs no code of ``data``.

    Raises:
        StateError: these bytes are something else. Flipped bits inside of a tensor are not seen: a checksum is for
            who keeps the bytes.
    """
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    # Damaged bytes raise nearly anything; torch's own text is long and advises to let them run code.
    except Exception as error:
        state = type(error).__name__
    if not isinstance(state, dict):
        found = f"{len(data)} bytes that torch cannot use ({state!s:.80})"
        raise StateError(f"the checkpoint is {found}; expected the saved state of a training")
    return state


def expect_same(found: object, expected: object) -> None:
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
