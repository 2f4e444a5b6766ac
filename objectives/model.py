"""The model that is kept of a training: raw rows in, predictions out, ready to use anywhere.

- ``weights.safetensors`` has the tensors of each perceptron.
- ``model.json`` has all else: the hyperparameters, the classes, and the preprocessing of raw rows.

Axes: N examples, B of a batch, F features, C outputs, M members of an ensemble.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from objectives.data import Dataset, Part, Preprocessing
from objectives.hyperparameters import Hyperparameters
from objectives.stack import EVALUATION_BATCH

if TYPE_CHECKING:  # a worker, which keeps no model, need not wait for them
    import pandas as pd

    from objectives.data.table import Rows

WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"
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
        # Batch normalization takes the mean away, and a bias with it.
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

    Its weights are PyTorch's own until a state is loaded: :func:`objectives.member.initial` draws a training's.
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


class Model(nn.Module):
    """One perceptron, or the average of several, with the preprocessing of its rows.

    The average is that of the probabilities, or of the numbers (Lakshminarayanan et al., arXiv 1612.01474).

    Args:
        description: what ``model.json`` holds.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.preprocessing = Preprocessing.from_data(description["preprocessing"])
        self.classes = tuple(description["classes"])
        """Empty in regression."""
        self.target_mean: float = description["target_mean"]
        self.target_std: float = description["target_std"]
        # As tensors, too: a graph of ONNX has its plain numbers in float32.
        for name, value in (("_mean", self.target_mean), ("_std", self.target_std)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64), persistent=False)
        n_features, hyperparameters = description["n_features"], Hyperparameters(**description["hyperparameters"])
        self.members = nn.ModuleList(
            Perceptron(n_features, len(self.classes) or 1, hyperparameters) for _ in range(description["members"])
        )
        self.eval()

    def forward(self, x_BF: Tensor) -> Tensor:
        """Features, as the preprocessing makes them → the logarithms of the classes' probabilities (B × C), or numbers
        in the target's unit (B × 1, float64)."""
        outputs_MBC = torch.stack([member(x_BF) for member in self.members])
        if self.classes:
            # The logarithm of the mean probability, without leaving logarithms: small probabilities would become 0.
            return outputs_MBC.log_softmax(-1).logsumexp(0) - math.log(len(self.members))
        # In double precision: float32 knows a time of today, in seconds since 1970, to two minutes.
        return outputs_MBC.mean(0).double() * self._std + self._mean

    def outputs(self, part: Part) -> Tensor:
        """Of all examples of a part of the data, N × C, to the digits of :meth:`predict`: the logarithms of
        probabilities; or numbers, standardised as those of the part, float64."""
        outputs_NC = _in_batches(self, part.features, len(part))
        return outputs_NC if self.classes else (outputs_NC - self.target_mean) / self.target_std

    def predict(self, rows: Rows | np.ndarray) -> pd.DataFrame:
        """What the model says of raw rows.

        Args:
            rows: of a model of a table a pandas or pyarrow table or a mapping of columns, in which cells may be
                missing; else an array, examples first.

        Returns:
            A row for each: ``prediction``, and of classes ``probability_CLASS`` of each.

        Raises:
            ValueError: columns are missing, unknown or of another type, by name; the array has another shape.
        """
        import pandas as pd

        x_NF = torch.from_numpy(self.preprocessing.transform(rows))
        outputs_NC = _in_batches(self, lambda start, stop: x_NF[start:stop], len(x_NF)).double().numpy()
        if not self.classes:
            return pd.DataFrame({"prediction": outputs_NC[:, 0]})
        labels = np.array(self.classes, dtype=object)[outputs_NC.argmax(1)]
        shares = {f"probability_{name}": np.exp(outputs_NC[:, i]) for i, name in enumerate(self.classes)}
        return pd.DataFrame({"prediction": labels, **shares})

    @property
    def example(self) -> pd.DataFrame | np.ndarray:
        """A raw row as :meth:`predict` takes it: medians of the training data, and nobody's own.

        A cell is missing where its column may hold cells of several types, such as true and ``yes``.
        """
        import pandas as pd

        preprocessing = self.preprocessing
        if not preprocessing.columns:
            return np.array([preprocessing.fill])
        typed = {column.name for column in preprocessing.columns if column.kind == "number"}
        typed |= {category.name for category in preprocessing.categories if category.is_text}
        return pd.DataFrame({n: cells if n in typed else [None] for n, cells in preprocessing.example.items()})


def _in_batches(function: Callable[[Tensor], Tensor], features: Callable[[int, int], Tensor], n: int) -> Tensor:
    """``function`` of n examples' features."""
    with torch.inference_mode():
        # Of no rows one empty batch, whose output has the right number of columns.
        starts = range(0, max(n, 1), EVALUATION_BATCH)
        return torch.cat([function(features(start, start + EVALUATION_BATCH)) for start in starts])


def save_model(
    members: Sequence[Mapping[str, Tensor]], hyperparameters: Hyperparameters, data: Dataset, directory: Path
) -> Model:
    """Write ``weights.safetensors`` and ``model.json``, which :func:`load_model` reads.

    Args:
        members: the tensors of each perceptron, by the names of its ``state_dict``.
        hyperparameters: of all.
        data: what they were trained on.
        directory: exists.
    """
    description = {
        "members": len(members),
        "classes": data.classes,
        "target_mean": data.target_mean,
        "target_std": data.target_std,
        "n_features": data.n_features,
        "hyperparameters": hyperparameters.plain(),
        "preprocessing": data.preprocessing.to_data(),
    }
    model = Model(description)
    tensors = {f"{i}.{name}": tensor for i, member in enumerate(members) for name, tensor in member.items()}
    # Loaded and saved again: a folder whose description and weights do not fit is never written.
    model.members.load_state_dict({**model.members.state_dict(), **tensors})
    # Not by save_file, whose files nobody else may read: a model is for others as well.
    weights = save({name: tensor.contiguous() for name, tensor in model.members.state_dict().items()})
    (directory / WEIGHTS).write_bytes(weights)
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return model


def load_model(directory: str | Path) -> Model:
    """The model that :meth:`objectives.mlp.MLP.finalize` kept.

    Raises:
        ValueError: the folder holds none, or a damaged one.
    """
    directory = Path(directory)
    try:
        model = Model(json.loads((directory / DESCRIPTION).read_text(encoding="utf-8")))
        model.members.load_state_dict(load_file(directory / WEIGHTS))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{str(directory)!r} holds no model that can be read ({' '.join(str(error).split())[:200]}); name a folder "
            "that studyhall finalize wrote"
        ) from None
    return model
