"""What a perceptron costs where it is used: parameters, operations, time. By these a study may be constrained."""

from __future__ import annotations

import statistics
import time

import torch

from objectives.hyperparameters import Hyperparameters
from objectives.model import Perceptron

#: All costs by name. The less, the better.
COSTS = ("parameters", "flops", "latency_ms")
#: Passes before the measured ones, and the measured ones: the median of so many outlasts a short load of the machine.
WARM_UP, PASSES = 5, 31


def costs(
    hyperparameters: Hyperparameters, n_features: int, n_outputs: int, device: str, *, timed: bool
) -> dict[str, float]:
    """The costs of a perceptron of these hyperparameters, whatever its weights are.

    Args:
        hyperparameters: its.
        n_features: F.
        n_outputs: C.
        device: the PyTorch name of the device to measure on.
        timed: whether to measure ``latency_ms``, which no two measurements find equal.

    Returns:
        ``parameters``: how many are trained; ``flops``: additions and multiplications of the matrix products for one
        row; ``latency_ms``: milliseconds of a forward pass of one row on ``device``, the median of :data:`PASSES`.
    """
    with torch.device("meta"):  # neither draws weights nor takes memory
        module = Perceptron(n_features, n_outputs, hyperparameters)
    layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    found = {
        "parameters": float(sum(parameter.numel() for parameter in module.parameters())),
        "flops": float(sum(2 * layer.in_features * layer.out_features for layer in layers)),
    }
    return {**found, "latency_ms": 1e3 * _seconds_of_a_row(module, n_features, device)} if timed else found


def _seconds_of_a_row(module: torch.nn.Module, n_features: int, device: str) -> float:
    module = module.to_empty(device=device).eval()
    x_1F = torch.zeros(1, n_features, device=device)
    # The median: one pass in thirty meets another process, and the mean would report that.
    times = []
    with torch.inference_mode():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()  # what lay in the memory may be denormal numbers, which are slow
        for _ in range(WARM_UP + PASSES):
            began = time.perf_counter()
            module(x_1F).cpu()  # waits for the device
            times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UP:])
