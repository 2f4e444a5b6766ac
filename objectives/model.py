"""The perceptron as a PyTorch module: what is kept of a training, ready to use anywhere.

Axes: B examples of a batch, F features, C outputs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from objectives.data import Dataset
from objectives.hyperparameters import Hyperparameters

_ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
_NORMALIZATIONS: Mapping[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class Block(nn.Module):
    """Linear → normalization → activation → dropout, plus the input with ``skip``: B × inputs → B × width."""

    def __init__(self, inputs: int, width: int, hyperparameters: Hyperparameters) -> None:
        super().__init__()
        kind = hyperparameters.normalization
        self.linear = nn.Linear(inputs, width, bias=kind != "batch")
        self.norm = nn.Identity() if kind == "none" else _NORMALIZATIONS[kind](width)
        self.activation = _ACTIVATIONS[hyperparameters.activation]()
        self.dropout = nn.Dropout(hyperparameters.dropout)
        self._skip = hyperparameters.skip and inputs == width

    def forward(self, x: Tensor) -> Tensor:
        """Of a batch."""
        y: Tensor = self.dropout(self.activation(self.norm(self.linear(x))))
        return x + y if self._skip else y


class Perceptron(nn.Module):
    """``depth`` blocks, then linear: B × F → B × C.

    Its weights are PyTorch's own until a state is loaded: :func:`objectives.training.initial` draws a training's.
    """

    def __init__(self, n_features: int, n_outputs: int, hyperparameters: Hyperparameters) -> None:
        super().__init__()
        inputs = (n_features, *hyperparameters.widths)
        self.input_dropout = nn.Dropout(hyperparameters.input_dropout)
        self.blocks = nn.ModuleList(
            Block(inputs[i], width, hyperparameters) for i, width in enumerate(hyperparameters.widths)
        )
        self.output = nn.Linear(inputs[-1], n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or standardised numbers, of a batch."""
        x = self.input_dropout(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.output(x)
        return y


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


class InUnit(nn.Module):
    """y · std + mean, B × C → B × C: the numbers of a regression in the target's unit."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, y_BC: Tensor) -> Tensor:
        """Of a batch."""
        return y_BC * self.std + self.mean


def save_model(tensors: Mapping[str, Tensor], hyperparameters: Hyperparameters, data: Dataset, directory: Path) -> None:
    """Write ``weights.pt`` and ``model.json``, which :func:`load_model` reads.

    Args:
        tensors: of the perceptron, by the names of its ``state_dict``.
        hyperparameters: its.
        data: what it was trained on.
        directory: exists.
    """
    description = {
        "hyperparameters": hyperparameters.plain(),
        "n_features": data.n_features,
        "classes": data.classes,
        "columns": [dataclasses.asdict(column) for column in data.columns],
    }
    whole = _whole(
        data.n_features,
        len(data.classes),
        hyperparameters,
        Standardize(data.mean_F, data.std_F),
        InUnit(*(torch.tensor(number, dtype=torch.float32) for number in (data.target_mean, data.target_std))),
    )
    whole[1].load_state_dict({**whole[1].state_dict(), **tensors})
    torch.save(whole.state_dict(), directory / "weights.pt")
    (directory / "model.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_model(directory: str | Path) -> nn.Module:
    """The model that :meth:`objectives.mlp.MLP.finalize` kept, ready to use.

    Returns:
        A module in evaluation mode: features as they are on disk (B × F, float64 if they are large) →
        logits (B × C), or numbers in the target's unit (B × 1). The names of the classes are in ``model.json``, and of
        a table its columns.
    """
    directory = Path(directory)
    description = json.loads((directory / "model.json").read_text(encoding="utf-8"))
    state = torch.load(directory / "weights.pt", weights_only=True, map_location="cpu")
    whole = _whole(
        description["n_features"],
        len(description["classes"]),
        Hyperparameters(**description["hyperparameters"]),
        Standardize(state["0.mean_F"], state["0.std_F"]),
        InUnit(state["2.mean"], state["2.std"]) if "2.mean" in state else nn.Identity(),
    )
    whole.load_state_dict(state)
    return whole.eval()


def _whole(
    n_features: int, n_classes: int, hyperparameters: Hyperparameters, before: nn.Module, after: nn.Module
) -> nn.Sequential:
    perceptron = Perceptron(n_features, n_classes or 1, hyperparameters)
    return nn.Sequential(before, perceptron, nn.Identity() if n_classes else after)
