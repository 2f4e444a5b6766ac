"""The test of a final model: intervals, calibration and confusion against known figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from objectives.evaluation import bootstrap, calibration, evaluate, wilson
from objectives.member import Task

CLASSES = Task(n_features=1, classes=("a", "b", "c"))


def test_the_interval_of_an_accuracy_is_wilson_s() -> None:
    # Brown, Cai and DasGupta, Statistical Science 2001; and a proportion of 1, which Wald's interval has no width for.
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_classes_have_a_confusion_matrix_and_a_calibration() -> None:
    y_N = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
    predicted_N = torch.tensor([0, 1, 1, 1, 2, 2, 2, 0])
    share_NC = torch.full((8, 3), 0.1)
    share_NC[torch.arange(8), predicted_N] = 0.8
    metrics, details = evaluate(share_NC.log(), y_N, CLASSES, "accuracy")
    assert details["confusion"] == [[1, 1, 0], [0, 2, 0], [1, 0, 3]]
    assert metrics["accuracy"] == 0.75
    assert (metrics["accuracy_low"], metrics["accuracy_high"]) == wilson(6, 8)
    assert details["calibration"] == [{"examples": 8, "confidence": pytest.approx(0.8), "accuracy": 0.75}]
    assert metrics["ece"] == pytest.approx(0.05)
    assert details["interval"]["method"] == "Wilson"


def test_bins_hold_every_example_and_certainty_is_in_the_last() -> None:
    share_NC = np.array([[1.0, 0.0], [0.5, 0.5], [0.93, 0.07], [0.4, 0.6]])
    bins = calibration(share_NC, np.array([0, 1, 1, 1]))
    assert [(each["examples"], each["accuracy"]) for each in bins] == [(1, 0.0), (1, 1.0), (1, 0.0), (1, 1.0)]


def test_the_interval_of_another_metric_is_the_bootstrap_s_and_the_same_each_time() -> None:
    seed = 3
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    y_N = torch.randn(400, generator=generator)
    outputs_NC = (y_N + 0.5 * torch.randn(400, generator=generator))[:, None]
    task = Task(n_features=1, unit=10.0)
    metrics, details = evaluate(outputs_NC, y_N, task, "rmse")
    residual_N = (outputs_NC[:, 0] - y_N).numpy() * 10
    # The standard error of a root mean square of n normal numbers is about rmse / √(2 n).
    half = 1.96 * metrics["rmse"] / np.sqrt(2 * 400)
    assert metrics["rmse_low"] == pytest.approx(metrics["rmse"] - half, abs=0.3 * half)
    assert metrics["rmse_high"] == pytest.approx(metrics["rmse"] + half, abs=0.3 * half)
    assert bootstrap(outputs_NC.T[None], y_N[None], task, "rmse") == (metrics["rmse_low"], metrics["rmse_high"])
    assert details["residuals"]["0.5"] == pytest.approx(float(np.median(residual_N)), rel=1e-4)
    assert "ece" not in metrics
