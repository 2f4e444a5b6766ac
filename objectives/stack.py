"""Members of one shape that train in step.

- On a CPU each member is a stack of its own: 2, 4 or 8 of width 32 to 128 in one stack took from 0.9 to 1.2 times the
  time per step and member (2026-11-27), and padding on top.
- Within an epoch nothing waits for the device: losses are recorded there, and read once.

Axes: K steps that are prepared together, G slots, B examples of a batch, N of a part, F features, H hidden units, C
outputs, P parameters, S steps of an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from objectives import randomness
from objectives.batch import Batch
from objectives.losses import CrossEntropy, Loss, SquaredError, classification_metrics, regression_metrics
from objectives.member import Examples, Member
from objectives.network import Network
from objectives.optimizers import Optimizer

#: Examples in one forward pass of an evaluation. On one core 128 to 512 take half the time per example of 6,000.
EVALUATION_BATCH = 512


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
        self._network.backward(batch.x_GBF, batch.d_outputs, batch.buffers)
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
                x_BF = part.features(start, start + EVALUATION_BATCH, batch.x_LF)
                x_GBF = x_BF.expand(len(self.members), -1, -1)
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
