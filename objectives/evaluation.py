"""The test of a final model: its metrics with a confidence interval, where it errs, and whether it is calibrated.

Axes: N examples, C outputs (classes, or 1), R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives.losses import classification_metrics, regression_metrics
from objectives.member import Task

CONFIDENCE = 0.95
RESAMPLES = 1_000
#: Numbers that resamples hold at a time: bounds the memory.
RESAMPLED = 2**23
BINS = 15
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def evaluate(outputs_NC: Tensor, y_N: Tensor, task: Task, metric: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Test a model on examples that it has not seen.

    Args:
        outputs_NC: logits or their logarithms of probabilities; in regression N × 1, standardised.
        y_N: classes, or standardised numbers.
        task: what was learned.
        metric: gets a confidence interval.

    Returns:
        Every metric, with ``METRIC_low`` and ``METRIC_high`` and in classification ``ece``; and what explains them: the
        confusion matrix and the calibration, or the residuals.
    """
    outputs_1CN, y_1N = outputs_NC.T.unsqueeze(0).cpu(), y_N.unsqueeze(0).cpu()
    metrics = {name: float(value) for name, value in _metrics(outputs_1CN, y_1N, task).items()}
    n = y_1N.shape[1]
    # A proportion has an exact model; near 100 % a bootstrap of few errors would be too narrow.
    if metric == "accuracy":
        low, high = wilson(round(metrics["accuracy"] * n), n)
        method = "Wilson"
    else:
        low, high = bootstrap(outputs_1CN, y_1N, task, metric)
        method = f"bootstrap, {RESAMPLES} resamples"
    metrics |= {f"{metric}_low": low, f"{metric}_high": high}
    interval = {"metric": metric, "low": low, "high": high, "confidence": CONFIDENCE, "method": method}
    details: dict[str, Any] = {"examples": n, "interval": interval}
    if task.classes:
        p_NC = outputs_1CN[0].T.softmax(1).numpy()
        bins = calibration(p_NC, y_1N[0].numpy())
        metrics["ece"] = sum(each["examples"] / n * abs(each["accuracy"] - each["confidence"]) for each in bins)
        from sklearn.metrics import confusion_matrix  # takes 1 s of CPU

        matrix_CC = confusion_matrix(y_1N[0], p_NC.argmax(1), labels=range(len(task.classes)))
        details |= {"classes": list(task.classes), "confusion": matrix_CC.tolist(), "calibration": bins}
    else:
        residual_N = (outputs_1CN[0, 0] - y_1N[0]).double().numpy() * task.unit
        details["residuals"] = dict(zip(map(str, QUANTILES), np.quantile(residual_N, QUANTILES).tolist(), strict=True))
    return metrics, details


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, JASA 1927), at :data:`CONFIDENCE`."""
    from scipy import stats  # takes 0.7 s of CPU

    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap(outputs_1CN: Tensor, y_1N: Tensor, task: Task, metric: str) -> tuple[float, float]:
    """The percentile interval of a metric over examples drawn with replacement (Efron, Annals of Statistics 1979)."""
    # A fixed seed: testing the same model on the same data twice gives the same interval.
    rng, n = np.random.default_rng(0), y_1N.shape[1]
    at_a_time = max(1, min(RESAMPLES, RESAMPLED // outputs_1CN.numel()))
    found: list[float] = []
    while len(found) < RESAMPLES:
        index_RN = torch.from_numpy(rng.integers(n, size=(at_a_time, n)))
        outputs_RCN = outputs_1CN[0][:, index_RN].transpose(0, 1)
        found += _metrics(outputs_RCN, y_1N[0][index_RN], task)[metric].tolist()
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(found[:RESAMPLES], (tail, 1 - tail))
    return float(low), float(high)


def calibration(p_NC: np.ndarray, y_N: np.ndarray) -> Sequence[dict[str, float]]:
    """The reliability diagram, whose mean distance from the diagonal is the expected calibration error (ECE).

    Guo et al., arXiv 1706.04599: :data:`BINS` equal bins of the probability of the predicted class; those with
    examples.
    """
    confidence_N, hit_N = p_NC.max(1), p_NC.argmax(1) == y_N
    # A probability of 1 belongs to the last bin.
    bin_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    return [
        {
            "examples": int(there_N.sum()),
            "confidence": float(confidence_N[there_N].mean()),
            "accuracy": float(hit_N[there_N].mean()),
        }
        for i in range(BINS)
        if (there_N := bin_N == i).any()
    ]


def _metrics(outputs_RCN: Tensor, y_RN: Tensor, task: Task) -> dict[str, Tensor]:
    if task.classes:
        return classification_metrics(outputs_RCN, y_RN)
    return regression_metrics(outputs_RCN.squeeze(1), y_RN, unit=task.unit)
