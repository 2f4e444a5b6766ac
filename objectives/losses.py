"""Losses of G slots with hand-written gradients, and the metrics of a whole part of the data.

A step needs the gradient alone. What depends on the labels alone, or is only measured, is computed for K steps at once,
since a small operator takes as long to call as to compute.

Axes: K steps, G slots, B examples of a batch, N of a part, C outputs: classes, or 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Loss(Protocol):
    """A loss per slot; slots share nothing."""

    def targets(self, y_KG1B: Tensor) -> tuple[Tensor, ...]:
        """What the gradients of K steps need of their classes (int64) or numbers; each has K in front."""

    def gradient(self, outputs_GCB: Tensor, targets: Sequence[Tensor], d_GCB: Tensor) -> None:
        """Write the mean loss's gradient.

        Args:
            outputs_GCB: of the network; overwritten with what :meth:`record` reads.
            targets: of this step.
            d_GCB: gets the gradient of each slot's mean over its batch.
        """

    def record(self, outputs_KGCB: Tensor, y_KG1B: Tensor, record: tuple[Tensor, Tensor]) -> None:
        """Fill the two records, each K × G × 1 × B, that :meth:`measure` reads, from what ``gradient`` has left."""

    def measure(self, record_GN: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Means over the records of an epoch, each of shape G: ``loss`` and one more metric."""


class CrossEntropy:
    """Softmax cross-entropy; the gradient with label smoothing (arXiv 1512.00567) and class weights, as PyTorch's.

    The recorded loss has neither: trials with different settings stay comparable.

    Args:
        n_classes: C.
        smoothing_G11: the share of each label that is spread over the classes; ``None`` if no slot smooths.
        weights_GC: of the classes; ``None`` if no slot has weights.
    """

    def __init__(
        self, n_classes: int, smoothing_G11: Tensor | None, weights_GC: Tensor | None, device: torch.device
    ) -> None:
        self._n_classes = n_classes
        self._smoothing = smoothing_G11
        self._weights = torch.ones(n_classes, 1, device=device) if weights_GC is None else weights_GC.unsqueeze(2)
        self._is_plain = smoothing_G11 is None and weights_GC is None

    def targets(self, y_KG1B: Tensor) -> tuple[Tensor, ...]:
        """The label's distribution as it counts in the mean, negative, and its sum over the classes."""
        slots, n = y_KG1B.shape[1], y_KG1B.shape[3]
        zeros_KGCB = self._weights.new_zeros(len(y_KG1B), slots, self._n_classes, n)
        # The usual case: every label weighs the same, and no sum is needed.
        if self._is_plain:
            return zeros_KGCB.scatter_(2, y_KG1B, -1 / n), torch.full_like(zeros_KGCB[:, :, :1], 1 / n)
        smoothing = 0.0 if self._smoothing is None else self._smoothing
        sharp_KGCB = zeros_KGCB.scatter_(2, y_KG1B, 1) * self._weights
        soft_KGCB = sharp_KGCB * (1 - smoothing) + self._weights * (smoothing / self._n_classes)
        # As PyTorch: by the weights of the labels, not by those of what smoothing makes of them.
        soft_KGCB /= sharp_KGCB.sum((2, 3), keepdim=True)
        return -soft_KGCB, soft_KGCB.sum(2, keepdim=True)

    def gradient(self, outputs_GCB: Tensor, targets: Sequence[Tensor], d_GCB: Tensor) -> None:
        """See :class:`Loss`. Leaves log p."""
        target_GCB, weight_G1B = targets
        # The private form of it writes into a buffer.
        log_p_GCB = torch._log_softmax(outputs_GCB, 1, False, out=outputs_GCB)
        # p · weight − target in one operator, as the target is negative.
        torch.addcmul(target_GCB, torch.exp(log_p_GCB, out=d_GCB), weight_G1B, out=d_GCB)

    def record(self, outputs_KGCB: Tensor, y_KG1B: Tensor, record: tuple[Tensor, Tensor]) -> None:
        """See :class:`Loss`. Records log p(label), and 1 where that is the first of the largest ones, else 0."""
        torch.gather(outputs_KGCB, 2, y_KG1B, out=record[0])
        # The indices of max: argmax takes ten times as long.
        torch.eq(outputs_KGCB.max(2, keepdim=True).indices, y_KG1B, out=record[1])

    def measure(self, record_GN: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Loss and accuracy."""
        return {"loss": -record_GN[0].mean(1), "accuracy": record_GN[1].mean(1)}


class SquaredError:
    """(output − target)²; linear beyond ``delta`` (Huber 1964), as in PyTorch.

    Args:
        delta_G11: in standard deviations of the target; ``None`` for the square alone.
        unit: the target's standard deviation, for the metrics.
    """

    def __init__(self, delta_G11: Tensor | None, unit: float) -> None:
        self._delta = delta_G11
        self._unit = unit

    def targets(self, y_KG1B: Tensor) -> tuple[Tensor, ...]:
        """The numbers themselves."""
        return (y_KG1B,)

    def gradient(self, outputs_GCB: Tensor, targets: Sequence[Tensor], d_GCB: Tensor) -> None:
        """See :class:`Loss`. Leaves the error."""
        n = outputs_GCB.shape[2]
        error_G1B = torch.sub(outputs_GCB, targets[0], out=outputs_GCB)
        if self._delta is None:
            torch.mul(error_G1B, 2 / n, out=d_GCB)  # PyTorch halves the square of huber alone
        else:
            torch.mul(self._clipped(error_G1B, self._delta), 1 / n, out=d_GCB)

    def record(self, outputs_KGCB: Tensor, _y_KG1B: Tensor, record: tuple[Tensor, Tensor]) -> None:
        """See :class:`Loss`. Records the loss and the squared error."""
        error_KG1B = outputs_KGCB
        torch.square(error_KG1B, out=record[1])
        if self._delta is None:
            record[0].copy_(record[1])
        else:
            clipped_KG1B = self._clipped(error_KG1B, self._delta)
            # Half the square within delta, and the line beyond it, in one expression.
            torch.mul(clipped_KG1B, error_KG1B - clipped_KG1B / 2, out=record[0])

    @staticmethod
    def _clipped(error: Tensor, delta_G11: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(error, -delta_G11), delta_G11)

    def measure(self, record_GN: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Loss, and the root of the mean squared error in the target's unit."""
        return {"loss": record_GN[0].mean(1), "rmse": record_GN[1].mean(1).sqrt() * self._unit}


def classification_metrics(logits_GCN: Tensor, y_GN: Tensor) -> dict[str, Tensor]:
    """Of a whole part, each of shape G: loss (log-loss), accuracy, balanced accuracy (mean recall), macro-F1.

    A class without examples in the part counts for neither mean.
    """
    # By scatter_add over all slots at once: a matrix of confusion for each slot would grow with the square of C.
    n = logits_GCN.shape[2]
    log_p_GCN = torch.log_softmax(logits_GCN, 1)
    predicted_GN = logits_GCN.argmax(1)
    hit_GN = (predicted_GN == y_GN).to(logits_GCN.dtype)
    zeros_GC = torch.zeros_like(logits_GCN[:, :, 0])
    hits_GC = zeros_GC.scatter_add(1, y_GN, hit_GN)
    there_GC = zeros_GC.scatter_add(1, y_GN, torch.ones_like(hit_GN))
    predicted_GC = zeros_GC.scatter_add(1, predicted_GN, torch.ones_like(hit_GN))
    is_there_GC = (there_GC > 0).to(there_GC.dtype)
    classes_G = is_there_GC.sum(1)
    return {
        "loss": -log_p_GCN.gather(1, y_GN.unsqueeze(1)).squeeze(1).mean(1),
        "accuracy": hits_GC.sum(1) / n,
        "balanced_accuracy": (hits_GC / there_GC.clamp_min(1)).sum(1) / classes_G,
        "macro_f1": (2 * hits_GC / (there_GC + predicted_GC).clamp_min(1) * is_there_GC).sum(1) / classes_G,
    }


def regression_metrics(outputs_GN: Tensor, y_GN: Tensor, *, unit: float) -> dict[str, Tensor]:
    """Of a whole part, each of shape G: the standardised mean squared error; RMSE and MAE in the target's unit; R²."""
    error_GN = outputs_GN - y_GN
    squared_G = error_GN.square().mean(1)
    return {
        "loss": squared_G,
        "rmse": squared_G.sqrt() * unit,
        "mae": error_GN.abs().mean(1) * unit,
        "r2": 1 - squared_G / y_GN.var(1, unbiased=False),
    }
