"""What a trial may choose: every technique with its key, its default and what is legal.

``docs/objectives.md`` has the table for people; a test walks it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from objectives.data import Dataset

MAX_DEPTH = 6
ACTIVATIONS = ("relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu")
NORMALIZATIONS = ("none", "batch", "layer")
OPTIMIZERS = ("adamw", "adam", "sgd", "gd", "rmsprop")
SCHEDULES = ("cosine", "constant", "step", "onecycle")
INITIALIZATIONS = ("auto", "he_normal", "he_uniform", "glorot_normal", "glorot_uniform", "orthogonal")
LOSSES = {"classification": ("cross_entropy",), "regression": ("mse", "huber")}
#: Of the validation data, by task; those of ``MINIMIZED`` are better the smaller they are.
METRICS = {
    "classification": ("accuracy", "balanced_accuracy", "macro_f1", "loss"),
    "regression": ("rmse", "mae", "r2", "loss"),
}
MINIMIZED = frozenset({"loss", "rmse", "mae"})


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What a trial may choose. Each is checked: :exc:`ValueError` names it, its value and what is legal."""

    depth: int = 2
    """Hidden layers; 0 is linear or logistic regression."""
    width: int = 256
    """Hidden units of each layer (H)."""
    width_1: int | None = None
    """Of the first hidden layer, where it is not ``width``; likewise the others. Those beyond ``depth`` are ignored."""
    width_2: int | None = None
    width_3: int | None = None
    width_4: int | None = None
    width_5: int | None = None
    width_6: int | None = None
    activation: str = "relu"
    normalization: str = "none"
    """Between a hidden layer and its activation, over the batch or over the units."""
    skip: bool = False
    """Add a hidden layer's input to its output where both have the same width."""
    initialization: str = "auto"
    """``auto``: Glorot's for sigmoid, tanh and the last layer, else He's."""

    dropout: float = 0.0
    """Share of hidden units dropped in training."""
    input_dropout: float = 0.0
    """Share of features dropped in training."""
    input_noise: float = 0.0
    """Standard deviation of normal noise on the standardised features, in training."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    l1: float = 0.0
    """l1 · Σ|w| is added to the loss, over weights but not biases."""
    l2: float = 0.0
    """l2 / 2 · Σw² is added to the loss, likewise."""
    weight_decay: float = 1e-2
    """As PyTorch's optimizers take it: decoupled in adamw, added to the gradient in the others; biases included."""
    max_norm: float | None = None
    """The most that the norm of a hidden unit's incoming weights may be."""

    optimizer: str = "adamw"
    """``gd`` is plain gradient descent: one batch of all examples."""
    lr: float = 1e-3
    """Learning rate at its highest."""
    batch_size: int = 128
    momentum: float = 0.9
    """Of optimizer sgd; the others ignore it."""
    nesterov: bool = True
    """Of optimizer sgd."""
    beta1: float = 0.9
    """Of adam and adamw."""
    beta2: float = 0.999
    """Of adam and adamw; of rmsprop it is the smoothing constant."""
    eps: float = 1e-8
    """Of adam, adamw and rmsprop."""
    clip_norm: float | None = None
    """The most that the norm of the whole gradient may be."""
    schedule: str = "cosine"
    """Of the learning rate over all steps: to zero along half a cosine; as it is; ``gamma`` times every ``step_size``
    epochs; or up and down (one cycle)."""
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises; of onecycle 0.3 where this is 0."""
    gamma: float = 0.1
    step_size: int = 10

    loss: str = "auto"
    """``auto``: cross_entropy for classes, mse for numbers."""
    huber_delta: float = 1.0
    """Where huber turns from a square into a line, in standard deviations of the target."""
    class_weights: str | Mapping[str, float] = "none"
    """``balanced``: the rarer a class, the more an example of it weighs; or a number for each class, 1 where none."""
    patience: int | None = None
    """End the trial when so many epochs in a row were no better than the best; its weights are then the result."""
    min_delta: float = 0.0
    """What counts as better."""
    monitor: str = "loss"
    """The metric of the validation data by which ``patience`` judges."""

    def __post_init__(self) -> None:
        # Samplers, study files and stored models all come through here: whatever trains has been checked.
        share, count = "a number of at least 0 and below 1", "a whole number above 0"
        amount, positive = "a number of at least 0", "a number above 0"
        rules: list[tuple[str, bool, str]] = [
            ("depth", _is_count(self.depth, 0) and self.depth <= MAX_DEPTH, f"a whole number from 0 to {MAX_DEPTH}"),
            ("width", _is_count(self.width), count),
            *((name, value is None or _is_count(value), count) for name, value in self._given_widths()),
            *_among("activation", self.activation, ACTIVATIONS),
            *_among("normalization", self.normalization, NORMALIZATIONS),
            ("skip", isinstance(self.skip, bool), "true or false"),
            *_among("initialization", self.initialization, INITIALIZATIONS),
            *((name, _is_share(getattr(self, name)), share) for name in _SHARES),
            *((name, _is_number(getattr(self, name)) and getattr(self, name) >= 0, amount) for name in _AMOUNTS),
            *((name, _is_number(getattr(self, name)) and getattr(self, name) > 0, positive) for name in _POSITIVE),
            *((name, getattr(self, name) is None or _is_positive(getattr(self, name)), positive) for name in _LIMITS),
            *_among("optimizer", self.optimizer, OPTIMIZERS),
            ("batch_size", _is_count(self.batch_size), count),
            ("nesterov", isinstance(self.nesterov, bool), "true or false"),
            *_among("schedule", self.schedule, SCHEDULES),
            ("step_size", _is_count(self.step_size), count),
            *_among("loss", self.loss, ("auto", *LOSSES["classification"], *LOSSES["regression"])),
            ("class_weights", _are_weights(self.class_weights), '"none", "balanced", or { class = a number above 0 }'),
            ("patience", self.patience is None or _is_count(self.patience), count),
            *_among("monitor", self.monitor, sorted({*METRICS["classification"], *METRICS["regression"]})),
        ]
        for name, is_legal, legal in rules:
            if not is_legal:
                raise ValueError(f"{name} = {getattr(self, name)!r}; it must be {legal}")
        if self.normalization == "batch" and self.batch_size == 1 and self.optimizer != "gd":
            raise ValueError('normalization = "batch" needs more than one example; give batch_size above 1, or "layer"')

    def _given_widths(self) -> list[tuple[str, int | None]]:
        return [(f"width_{i}", getattr(self, f"width_{i}")) for i in range(1, MAX_DEPTH + 1)]

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the hidden layers, the first one first."""
        return tuple(given or self.width for _, given in self._given_widths()[: self.depth])

    def resolved_loss(self, task: str) -> str:
        """The loss, where ``auto`` is the task's first."""
        return LOSSES[task][0] if self.loss == "auto" else self.loss

    def check_for(self, data: Dataset) -> None:
        """Raise :exc:`ValueError` where a technique is not for this task, or these classes."""
        task = data.task
        if self.loss != "auto" and self.loss not in LOSSES[task]:
            raise ValueError(f"loss = {self.loss!r} is not for {task}; it must be one of {', '.join(LOSSES[task])}")
        if self.patience is not None and self.monitor not in METRICS[task]:
            legal = ", ".join(METRICS[task])
            raise ValueError(f"monitor = {self.monitor!r} is not for {task}; it must be one of {legal}")
        for name, off in (("label_smoothing", 0), ("class_weights", "none")):
            given = getattr(self, name)
            if task == "regression" and given != off:
                raise ValueError(f"{name} = {given!r} is for classes, and the target has numbers; leave it out")
        if isinstance(self.class_weights, Mapping):
            absent = [name for name in self.class_weights if name not in data.classes]
            if absent:
                known = f"{', '.join(data.classes[:12])}{', …' if len(data.classes) > 12 else ''}"
                raise ValueError(f"class_weights names the class {absent[0]!r}, which is not there; known: {known}")

    def plain(self) -> dict[str, Any]:
        """The fields, as JSON has them: samplers give NumPy's numbers and strings."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return fields


_SHARES = ("dropout", "input_dropout", "label_smoothing", "momentum", "beta1", "beta2", "warmup")
_AMOUNTS = ("input_noise", "l1", "l2", "weight_decay", "min_delta")
_POSITIVE = ("lr", "eps", "gamma", "huber_delta")
_LIMITS = ("max_norm", "clip_norm")


def _among(name: str, value: object, legal: Any) -> list[tuple[str, bool, str]]:
    return [(name, isinstance(value, str) and value in legal, f"one of {', '.join(legal)}")]


def _is_count(value: object, least: int = 1) -> bool:
    # A bool is an int in Python, and true is no number of layers.
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _are_weights(value: object) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(key, str) and _is_positive(weight) for key, weight in value.items())
    return value in ("none", "balanced")


def learning_rates(hyperparameters: Hyperparameters, *, steps: int, per_epoch: int) -> np.ndarray:
    """The learning rate before each step, and after the last: shape steps + 1.

    As PyTorch's ``LinearLR``, ``CosineAnnealingLR``, ``StepLR`` and ``OneCycleLR`` (cosine, over 25 and 10⁴): the
    schedule begins when the warm-up, from lr / steps of it, is over.
    """
    h = hyperparameters
    step = np.arange(steps + 1, dtype=np.float64)
    if h.schedule == "onecycle":
        # PyTorch's peak may lie before the first step of a short training; then nothing rises.
        peak = (h.warmup or 0.3) * steps - 1
        low, lowest = h.lr / 25, h.lr / 25e4
        rising = low + (h.lr - low) * _half_cosine(step / max(peak, 1e-9))
        falling = h.lr + (lowest - h.lr) * _half_cosine((step - peak) / max(steps - 1 - peak, 1e-9))
        return np.where(step <= peak, rising, falling)
    warm = round(h.warmup * steps)
    after = np.maximum(step - warm, 0)
    factor = np.ones_like(step)
    if h.schedule == "cosine":
        # A warm-up may take every step of a short training: nothing is left to fall.
        factor = 1 - _half_cosine(after / max(steps - warm, 1))
    elif h.schedule == "step":
        factor = h.gamma ** (after // (h.step_size * per_epoch))
    rates: np.ndarray = h.lr * np.where(step < warm, (step + 1) / max(warm, 1), factor)
    return rates


def _half_cosine(share: np.ndarray) -> np.ndarray:
    """From 0 to 1 (SGDR, arXiv 1608.03983)."""
    shape: np.ndarray = (1 - np.cos(math.pi * np.clip(share, 0, 1))) / 2
    return shape
