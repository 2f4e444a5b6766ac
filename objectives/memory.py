"""The memory that trainings need on a CPU, predicted: what does not fit raises no error there, its worker is killed.

Counted is what a step writes to: the vectors of :class:`objectives.stack.Stack` and the buffers of its batches. A
test compares it with what processes really take.

Axes: B examples of a batch, N of the training part, F features, H hidden units, C outputs, P parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from objectives.batch import steps_together
from objectives.hyperparameters import Hyperparameters
from objectives.member import Task
from objectives.network import Layout
from objectives.optimizers import MOMENTS
from objectives.stack import EVALUATION_BATCH

log = logging.getLogger(__name__)

FLOAT, INT = 4, 8
#: Of one member in Python's objects and in gaps of the heap, about.
OVERHEAD = 2**19


@dataclass(frozen=True, kw_only=True)
class Shape:
    """All of a data set that the need for memory depends on."""

    task: Task
    n_train: int
    """N."""
    n_validation: int
    are_bytes: bool
    """Whether the features are stored as bytes."""


def needed(hyperparameters: Hyperparameters, shape: Shape, members: int = 1) -> int:
    """Bytes that trainings take at their peak, beside the data set, which the workers of a machine share.

    Args:
        hyperparameters: of all of them.
        shape: of their data.
        members: how many train side by side, each a stack of its own; their epochs take turns.
    """
    return members * _kept(hyperparameters, shape) + _passing(hyperparameters, shape)


def _kept(h: Hyperparameters, shape: Shape) -> int:
    """Of one member, from its first epoch to its end."""
    vectors = 2 + MOMENTS[h.optimizer]  # parameters and their gradients
    vectors += h.optimizer == "rmsprop"  # scratch, which the other fused kernels do without
    vectors += h.patience is not None  # the best so far
    record = 2 * FLOAT * shape.n_train
    batch_size = _batch_size(h, shape)
    batches = sum(_batch(n, h, shape) for n in _sizes(shape.n_train, batch_size))
    evaluated = sum(_evaluated(n, h, shape) for n in _sizes(shape.n_validation, EVALUATION_BATCH))
    return FLOAT * vectors * _parameters(h, shape) + record + batches + evaluated + OVERHEAD


def _passing(h: Hyperparameters, shape: Shape) -> int:
    """Of whichever member has its turn: the largest of what its epoch, its evaluation and its checkpoint take."""
    order = 5 * INT * shape.n_train
    # The signs of the weights are a new tensor at each step.
    penalty = FLOAT * _parameters(h, shape) * (h.l1 > 0)
    noise = 24 * _batch_size(h, shape) * shape.task.n_features * (h.input_noise > 0)
    metrics = 4 * FLOAT * shape.task.n_outputs * shape.n_validation
    # Copies of the parameters and the moments, and the bytes of these.
    checkpoint = 2 * FLOAT * (1 + MOMENTS[h.optimizer] + (h.patience is not None)) * _parameters(h, shape)
    return max(order + penalty + noise, metrics, checkpoint)


def _parameters(h: Hyperparameters, shape: Shape) -> int:
    """P."""
    return Layout(shape.task.n_features, h.widths, shape.task.n_outputs, h.normalization).n_parameters


def _batch_size(h: Hyperparameters, shape: Shape) -> int:
    return shape.n_train if h.optimizer == "gd" else min(h.batch_size, shape.n_train)


def _sizes(n: int, batch_size: int) -> set[int]:
    """Of the batches of n examples: the last one may be smaller, and has buffers of its own."""
    return {min(n, batch_size), n % batch_size} - {0}


def _batch(n: int, h: Hyperparameters, shape: Shape) -> int:
    """Buffers of training."""
    n_features, n_outputs = shape.task.n_features, shape.task.n_outputs
    x = (FLOAT + shape.are_bytes) * n_features
    # The linear part, its activation, the gradients of both, and what dropout leaves.
    layers = FLOAT * (4 + (h.normalization != "none") + (h.dropout > 0)) * sum(h.widths)
    skips = FLOAT * sum(h.widths[1:]) if h.skip else 0
    masked = sum(h.widths) * (h.dropout > 0) + n_features * (h.input_dropout > 0)
    # Numbers of 64 bits, each for four units or two features' noise: positions, and of K steps hashes and scratch.
    numbers = masked // 4 + n_features // 2 * (h.input_noise > 0)
    available = shape.n_train // n if n == _batch_size(h, shape) else 1
    steps = steps_together(n * (numbers + n_outputs), available)
    prepared = INT * numbers * (1 + 2 * steps) + FLOAT * masked * steps
    outputs = FLOAT * n_outputs * (1 + 2 * steps)  # their gradient, and of K steps themselves and the targets
    return n * (x + layers + skips + prepared + outputs)


def _evaluated(n: int, h: Hyperparameters, shape: Shape) -> int:
    """Buffers of evaluation: no mask, no gradient."""
    layers = (2 + (h.normalization != "none") + h.skip) * sum(h.widths)
    return n * FLOAT * (shape.task.n_features * shape.are_bytes + layers + shape.task.n_outputs)


def check(hyperparameters: Hyperparameters, shape: Shape, members: int, left: int) -> int:
    """The bytes that a trial of so many members needs.

    Raises:
        torch.OutOfMemoryError: they are more than ``left``.
    """
    h, bytes_ = hyperparameters, needed(hyperparameters, shape, members)
    if bytes_ > left:
        fits = _largest_batch_that_fits(h, shape, members, left)
        together = max(0, (left - _passing(h, shape)) // _kept(h, shape))
        if fits:
            advice = f"batch_size = {fits} would fit"
        elif together:
            advice = f"no more than {together} would fit: give fewer seeds or folds"
        else:
            advice = "fewer or narrower layers need less"
        if fits and h.optimizer == "gd":
            advice = f"gd takes all examples at once; another optimizer with {advice}"
        trainings = f" for {members} trainings, one for each seed and fold," if members > 1 else ""
        raise torch.OutOfMemoryError(
            f"widths {list(h.widths)} and batches of {_batch_size(h, shape)} need {_in_words(bytes_)} of memory"
            f"{trainings or ','} and there are {_in_words(left)}; {advice}"
        )
    return bytes_


def most_slots(hyperparameters: Hyperparameters, shape: Shape, members: int, wanted: int) -> int:
    """How many trials of so many members fit side by side, at most ``wanted`` and at least 1; warns if it is fewer."""
    each, left = needed(hyperparameters, shape, members), available()
    most = max(1, left // each)
    if most >= wanted:
        return wanted
    log.warning(
        "slots reduced from %d to %d: a trial of widths %s needs %s of memory, and there are %s",
        wanted, most, list(hyperparameters.widths), _in_words(each), _in_words(left),
    )  # fmt: skip
    return most


def _largest_batch_that_fits(h: Hyperparameters, shape: Shape, members: int, left: int) -> int | None:
    """A power of 2."""
    # The largest: a smaller batch changes the training more than it needs to.
    for power in reversed(range(shape.n_train.bit_length())):
        with suppress(ValueError):  # batch normalization needs two examples
            smaller = replace(h, batch_size=2**power, optimizer="adamw" if h.optimizer == "gd" else h.optimizer)
            if needed(smaller, shape, members) <= left:
                return smaller.batch_size
    return None


def _in_words(bytes_: int) -> str:
    """1.5 GB, 23 MB."""
    return f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e9 else f"{max(bytes_, 0) / 1e6:.0f} MB"


def total() -> int:
    """Bytes of this machine, or of the least limit on this process."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _limits())])


def available() -> int:
    """Bytes that this process can still take."""
    return min([int(psutil.virtual_memory().available), *(limit - used for limit, used in _limits())])


def _limits(root: Path = Path("/sys/fs/cgroup")) -> Iterator[tuple[int, int]]:
    """(limit, bytes used) of this process's control groups (version 2): containers, Slurm and systemd limit by them."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        own = root / next(line for line in lines if line.startswith("0::/")).removeprefix("0::/")
        for group in (own, *own.parents):
            if not group.is_relative_to(root):
                return
            with suppress(OSError, ValueError, KeyError):  # the root has no files, and "max" is no number
                limit, current = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
                counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield limit, current - int(counts["inactive_file"])  # what is cached goes when it is needed
