"""Losses of G slots with hand-written gradients, and the metrics of a whole part of the data.

Axes: G slots, B examples of a batch, N of a part, C outputs: classes, or 1.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Loss(Protocol):
    """A loss per slot; slots share nothing."""

    def gradient(self, logits_GCB: Tensor, y_G1B: Tensor, d_GCB: Tensor, record: tuple[Tensor, Tensor]) -> None:
        """Write the mean loss's gradient.

        Args:
            logits_GCB: outputs; may be overwritten.
            y_G1B: classes (int64), or numbers.
            d_GCB: gets the gradient of each slot's mean over its batch.
            record: two G × 1 × B, overwritten with what :meth:`measure` reads.
        """

    def measure(self, record_GN: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Means over the records of an epoch, each of shape G: ``loss`` and one more metric."""


class CrossEntropy:
    """Softmax cross-entropy; the gradient with label smoothing (arXiv 1512.00567) and class weights, as PyTorch's.

    The recorded loss has neither: trials with different settings stay comparable.

    Args:
        smoothing_G11: the share of each label that is spread over the classes; ``None`` if no slot smooths.
        weights_GC: of the classes; ``None`` if no slot has weights.
    """

    def __init__(self, smoothing_G11: Tensor | None, weights_GC: Tensor | None, device: torch.device) -> None:
        self._smoothing = smoothing_G11
        self._weights = weights_GC
        self._minus_one = torch.empty(0, device=device)

    def gradient(self, logits_GCB: Tensor, y_G1B: Tensor, d_GCB: Tensor, record: tuple[Tensor, Tensor]) -> None:
        """See :class:`Loss`. Records log p(label) and the largest log p."""
        n_classes, n = logits_GCB.shape[1:]
        log_p_GCB = torch._log_softmax(logits_GCB, 1, False, out=d_GCB)
        torch.gather(log_p_GCB, 1, y_G1B, out=record[0])
        torch.amax(log_p_GCB, 1, keepdim=True, out=record[1])
        p_GCB = d_GCB.exp_()
        if self._smoothing is None and self._weights is None:
            # p − 1 at the label alone: no one-hot matrix is made.
            if self._minus_one.shape != y_G1B.shape:
                self._minus_one = torch.full_like(record[0], -1.0)
            p_GCB.scatter_add_(1, y_G1B, self._minus_one).mul_(1 / n)
            return
        smoothing = 0.0 if self._smoothing is None else self._smoothing
        weight_GC1 = torch.ones_like(p_GCB[:, :, :1]) if self._weights is None else self._weights.unsqueeze(2)
        label_GCB = torch.zeros_like(p_GCB).scatter_(1, y_G1B, 1)
        weight_G1B = (label_GCB * weight_GC1).sum(1, keepdim=True)
        sharp_GCB = (p_GCB - label_GCB) * weight_G1B
        flat_GCB = (p_GCB * weight_GC1.sum(1, keepdim=True) - weight_GC1) / n_classes
        torch.div(sharp_GCB * (1 - smoothing) + flat_GCB * smoothing, weight_G1B.sum(2, keepdim=True), out=d_GCB)

    def measure(self, record_GN: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Loss and accuracy."""
        # Correct where no class has a larger log p than the label: no argmax over the classes.
        return {
            "loss": -record_GN[0].mean(1),
            "accuracy": (record_GN[0] >= record_GN[1]).to(record_GN[0].dtype).mean(1),
        }


class SquaredError:
    """(output − target)²; linear beyond ``delta`` (Huber 1964), as in PyTorch.

    Args:
        delta_G11: in standard deviations of the target; ``None`` for the square alone.
        unit: the target's standard deviation, for the metrics.
    """

    def __init__(self, delta_G11: Tensor | None, unit: float) -> None:
        self._delta = delta_G11
        self._unit = unit

    def gradient(self, logits_GCB: Tensor, y_G1B: Tensor, d_GCB: Tensor, record: tuple[Tensor, Tensor]) -> None:
        """See :class:`Loss`. Records the loss and the squared error."""
        n = logits_GCB.shape[2]
        error_G1B = torch.sub(logits_GCB, y_G1B, out=d_GCB)
        squared_G1B = torch.square(error_G1B, out=record[1])
        if self._delta is None:
            record[0].copy_(squared_G1B)
            error_G1B.mul_(2 / n)
        else:
            clipped_G1B = torch.minimum(torch.maximum(error_G1B, -self._delta), self._delta)
            record[0].copy_(clipped_G1B * (error_G1B - clipped_G1B / 2))
            torch.mul(clipped_G1B, 1 / n, out=d_GCB)

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
