"""The multilayer perceptron and its hyperparameters: an objective to tune.

Axes: B examples of a batch, F features, H hidden units, C classes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from objectives.data import ROLES, Dataset, Part, Role, load
from objectives.training import OPTIMIZERS, EpochMetrics, OptimizerSettings, Training, evaluate, restore, save

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What a trial may choose. Each is checked: :exc:`ValueError` names it, its value and what is legal."""

    width: int = 256
    """Hidden units of each layer (H)."""
    depth: int = 2
    """Hidden layers."""
    dropout: float = 0.0
    """Share of hidden units dropped in training."""
    weight_decay: float = 1e-2
    lr: float = 1e-3
    """Learning rate at the first step."""
    batch_size: int = 128
    optimizer: str = "adamw"
    activation: str = "relu"
    momentum: float = 0.9
    """Of optimizer sgd; the others do not look at it."""

    def __post_init__(self) -> None:
        rules: list[tuple[str, bool, str]] = [
            ("width", _is_count(self.width), "a whole number above 0"),
            ("depth", _is_count(self.depth), "a whole number above 0"),
            ("dropout", _is_number(self.dropout) and 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("weight_decay", _is_number(self.weight_decay) and self.weight_decay >= 0, "at least 0"),
            ("lr", _is_number(self.lr) and self.lr > 0, "above 0"),
            ("batch_size", _is_count(self.batch_size), "a whole number above 0"),
            ("optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            ("activation", self.activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
            ("momentum", _is_number(self.momentum) and 0 <= self.momentum < 1, "at least 0 and below 1"),
        ]
        for name, is_legal, legal in rules:
            if not is_legal:
                raise ValueError(f"{name} = {getattr(self, name)!r}; it must be {legal}")

    @property
    def optimizer_settings(self) -> OptimizerSettings:
        """The part of them that training needs."""
        return OptimizerSettings(
            name=self.optimizer, lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum
        )


def _check_roles(columns: object) -> None:
    legal = 'it must name columns and their roles, such as { id = "ignore", year = "feature" }'
    if columns is not None and not isinstance(columns, Mapping):
        raise ValueError(f"columns = {columns!r}; {legal}")
    for name, role in (columns or {}).items():
        if role not in ROLES:
            raise ValueError(f"columns.{name} = {role!r}; it must be one of {', '.join(ROLES)}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Perceptron(nn.Sequential):
    """``depth`` times (linear, activation, dropout), then linear: B × F → B × C.

    Weights are drawn from the global generator: He's normal distribution for relu and its smooth kin
    (arXiv 1502.01852), Glorot's for tanh and the last layer; biases are 0.
    """

    def __init__(self, n_features: int, n_classes: int, hyperparameters: Hyperparameters) -> None:
        layers: list[nn.Module] = []
        size = n_features
        for _ in range(hyperparameters.depth):
            linear = nn.Linear(size, hyperparameters.width)
            if hyperparameters.activation == "tanh":
                nn.init.xavier_normal_(linear.weight)
            else:
                nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            layers += [linear, ACTIVATIONS[hyperparameters.activation](), nn.Dropout(hyperparameters.dropout)]
            size = hyperparameters.width
        last = nn.Linear(size, n_classes)
        nn.init.xavier_normal_(last.weight)
        super().__init__(*layers, last)
        for module in self:
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


class Standardize(nn.Module):
    """(x − mean) / std of each feature, B × F → B × F: with it a model takes data as they are on disk.

    Computed in the type of ``mean_F``: of a table in float64, in which times in seconds since 1970 should
    also come; as float32 they are two minutes apart.
    """

    mean_F: Tensor
    std_F: Tensor

    def __init__(self, mean_F: Tensor, std_F: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_F", mean_F)
        self.register_buffer("std_F", std_F)

    def forward(self, x_BF: Tensor) -> Tensor:
        """Standardise a batch."""
        return ((x_BF.to(self.mean_F.dtype) - self.mean_F) / self.std_F).float()


class Saved(Protocol):
    """A checkpoint, of this attempt at the trial or an earlier one."""

    step: int
    """How many epochs were complete."""
    state: bytes


class Trial(Protocol):
    """What the objective asks of a trial."""

    params: dict[str, Any]
    seed: int
    device: str
    stop_requested: bool
    Pruned: type[BaseException]
    Interrupted: type[BaseException]

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        """As in Optuna."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """As in Optuna."""

    def report(self, value: float, step: int, **metrics: float) -> None:
        """Report a step."""

    def should_prune(self) -> bool:
        """Whether to give up."""

    def checkpoint(self, step: int, state: Callable[[], bytes]) -> None:
        """Save ``state()`` if a checkpoint is due; costs nothing otherwise."""

    def restore(self) -> Saved | None:
        """The checkpoint to go on from; ``None`` on a fresh start."""


class MLP:
    """The objective: the validation accuracy of a perceptron after ``epochs`` epochs.

    The last epoch's, not the best one's: the maximum over epochs is an optimistic estimate, the more so
    the longer and noisier a trial, and is not what retraining would give. One epoch is one step, counted
    from 1. The test data are not looked at.

    A trial goes on from its checkpoint, on a CPU with the same bits as if it had never been left. An
    instance keeps nothing of a trial: its tensors go when its call ends, be it for want of memory.

    Args:
        dataset: a name or file, see :func:`objectives.data.load`.
        epochs: of each trial.
        target: the label column of a table.
        columns: roles of its other columns, ``feature`` or ``ignore``; those without are told by what is
            in them.
        split_seed: of the split into training, validation and test data.
        data_dir: where this machine keeps data sets; a worker gives it.

    Raises:
        DataError: the data cannot be had or used.
        ValueError: an argument is not legal.
    """

    #: The names that a study's space may use.
    parameters = frozenset(field.name for field in dataclasses.fields(Hyperparameters))

    def __init__(
        self,
        dataset: str,
        epochs: int = 20,
        target: str | None = None,
        split_seed: int = 0,
        columns: Mapping[str, Role] | None = None,
        *,
        data_dir: str | Path,
    ) -> None:
        if not isinstance(dataset, str):
            raise ValueError(f"dataset = {dataset!r}; it must be a name or a path")
        if not _is_count(epochs):
            raise ValueError(f"epochs = {epochs!r}; it must be a whole number above 0")
        if not isinstance(split_seed, int) or not 0 <= split_seed < 2**32:
            raise ValueError(f"split_seed = {split_seed!r}; it must be a whole number from 0 to 2**32 - 1")
        if target is not None and not isinstance(target, str):
            raise ValueError(f"target = {target!r}; it must be the name of a column")
        _check_roles(columns)
        self.epochs = epochs
        self._data = load(dataset, data_dir=Path(data_dir), target=target, columns=columns, split_seed=split_seed)
        self._on_device: dict[str, Dataset] = {}

    def __call__(self, trial: Trial) -> float:
        """Train with the trial's parameters; returns the last validation accuracy.

        Raises:
            StateError: the trial's checkpoint is damaged, or not of these parameters.
        """
        if not trial.params:
            self._suggest(trial)
        data, hyperparameters = self._data_on(trial.device), Hyperparameters(**trial.params)
        saved = trial.restore()
        training = self._training(hyperparameters, data.train, trial.seed)
        if saved is not None:
            restore(training, saved.state, of=hyperparameters)
        state = partial(save, training, of=hyperparameters)
        val_accuracy = math.nan
        for epoch in range(training.epoch + 1, self.epochs + 1):
            # Asked before an epoch, not after one: whoever goes on from a checkpoint asks again, since its
            # writer may have died before it had the answer.
            if epoch > 1 and trial.should_prune():
                raise trial.Pruned
            trained = training.run_epoch(lambda: trial.stop_requested)
            if trained is None:
                trial.checkpoint(training.epoch, state)
                raise trial.Interrupted
            val_loss, val_accuracy = evaluate(training.model, data.validation)
            metrics = EpochMetrics(
                train_loss=trained[0],
                train_accuracy=trained[1],
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                scheduled_lr=training.lr,
            )
            trial.report(val_accuracy, epoch, **dataclasses.asdict(metrics))
            # After the report: a checkpoint never holds an epoch whose report is missing. None after the
            # last epoch, so that every checkpoint leaves an epoch to run, which gives the value.
            if epoch < self.epochs:
                trial.checkpoint(epoch, state)
        return val_accuracy

    def finalize(
        self,
        params: Mapping[str, Any],
        *,
        seed: int,
        device: str,
        directory: Path,
        progress: Callable[[int, int], None],
    ) -> dict[str, float]:
        """Retrain on training and validation data, look at the test data once, and keep the model.

        Args:
            params: the hyperparameters.
            seed: of weights, dropout and order.
            device: the PyTorch name of the device.
            directory: gets ``weights.pt`` and ``model.json``, which :func:`load_model` reads.
            progress: is called with (epochs done, epochs in all).

        Returns:
            test_accuracy, test_loss, train_accuracy, train_loss.
        """
        data, hyperparameters = self._data_on(device), Hyperparameters(**params)
        both = Part(
            x_NF=torch.cat([data.train.x_NF, data.validation.x_NF]),
            y_N=torch.cat([data.train.y_N, data.validation.y_N]),
        )
        training = self._training(hyperparameters, both, seed)
        trained = (math.nan, math.nan)
        for epoch in range(1, self.epochs + 1):
            trained = training.run_epoch(lambda: False) or trained
            progress(epoch, self.epochs)
        test_loss, test_accuracy = evaluate(training.model, data.test)
        _save(training.model, hyperparameters, data, directory)
        return {
            "test_accuracy": test_accuracy,
            "test_loss": test_loss,
            "train_accuracy": trained[1],
            "train_loss": trained[0],
        }

    def _suggest(self, trial: Trial) -> None:
        """The space of a study that has none."""
        trial.suggest_int("width", 32, 512, log=True)
        trial.suggest_float("dropout", 0.0, 0.6)
        trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)
        trial.suggest_float("lr", 1e-4, 1e-1, log=True)

    def _training(self, hyperparameters: Hyperparameters, train: Part, seed: int) -> Training:
        torch.manual_seed(seed)
        model = Perceptron(self._data.n_features, len(self._data.classes), hyperparameters)
        return Training(
            model.to(train.x_NF.device),
            train,
            settings=hyperparameters.optimizer_settings,
            batch_size=hyperparameters.batch_size,
            epochs=self.epochs,
            seed=seed,
        )

    def _data_on(self, device: str) -> Dataset:
        """The data on ``device``, moved there once."""
        if device not in self._on_device:
            self._on_device[device] = self._data.to(torch.device(device))
        return self._on_device[device]


def _save(model: nn.Module, hyperparameters: Hyperparameters, data: Dataset, directory: Path) -> None:
    whole = nn.Sequential(Standardize(data.mean_F, data.std_F), model.cpu())
    description = {
        "hyperparameters": dataclasses.asdict(hyperparameters),
        "n_features": data.n_features,
        "classes": data.classes,
        "columns": [dataclasses.asdict(column) for column in data.columns],
    }
    torch.save(whole.state_dict(), directory / "weights.pt")
    (directory / "model.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_model(directory: str | Path) -> nn.Module:
    """The model that :meth:`MLP.finalize` kept, ready to use.

    Returns:
        A module in evaluation mode: features as they are on disk (B × F, float64 if they are large) →
        logits (B × C). The names of the classes are in ``model.json``, and of a table its columns.
    """
    directory = Path(directory)
    description = json.loads((directory / "model.json").read_text(encoding="utf-8"))
    state = torch.load(directory / "weights.pt", weights_only=True, map_location="cpu")
    model = nn.Sequential(
        Standardize(state["0.mean_F"], state["0.std_F"]),
        Perceptron(
            description["n_features"],
            len(description["classes"]),
            Hyperparameters(**description["hyperparameters"]),
        ),
    )
    model.load_state_dict(state)
    return model.eval()
