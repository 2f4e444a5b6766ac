"""A final model as ONNX, raw rows in: ``python -m objectives.export FOLDER`` writes ``model.onnx`` into the folder.

- Of a table each column is an input of its own name, N × 1: a number as float64, NaN where its cell is missing; a
  category as text, empty where its cell is missing. An array is one input ``rows``, N × F.
- Outputs: ``prediction``, N (text or float64); and of classes ``probabilities``, N × C.

The graph is compared with PyTorch before the file appears.

Axes: N rows, M numbers, K categories, L levels, F features, C classes.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from objectives.model import Model, load_model
from objectives.predict import exit_in_one_line

if TYPE_CHECKING:
    from objectives.data.table import Rows

FILE = "model.onnx"
OPSET = 20
#: Before every name within the graph, so that none is a column's.
PREFIX = "net/"
#: The largest difference of a probability, or of a number relative to the target's standard deviation.
TOLERANCE = 1e-5


class Prepared(nn.Module):
    """A model with its preprocessing as tensors, but for the texts of categories."""

    fill_M: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        preprocessing = model.preprocessing
        self.model = model
        self.register_buffer("fill_M", torch.tensor(preprocessing.fill, dtype=torch.float64))
        self.register_buffer("mean", torch.from_numpy(preprocessing.scaling.mean_F))
        self.register_buffer("std", torch.from_numpy(preprocessing.scaling.std_F))
        self._scored = [preprocessing.numbers.index(score.name) for score in preprocessing.normal_scores]
        for j, score in zip(self._scored, preprocessing.normal_scores, strict=True):
            self.register_buffer(f"values_{j}", torch.tensor(score.values, dtype=torch.float64))
            self.register_buffer(f"scores_{j}", torch.tensor(score.scores, dtype=torch.float64))
        self._indicators = [preprocessing.numbers.index(name) for name in preprocessing.indicators]
        self._categories = [(len(c.levels), len(c.levels) + c.has_other) for c in preprocessing.categories]

    def forward(self, number_NM: Tensor, code_NK: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(Places of the predicted classes, probabilities), or numbers.

        Args:
            number_NM: float64, NaN where a cell is missing.
            code_NK: int64, the place of each category's level; behind them for any other.
        """
        is_missing_NM = number_NM.isnan()
        filled_NM = torch.where(is_missing_NM, self.fill_M, number_NM)
        if self._scored:
            columns = [
                _interpolated(column_N, getattr(self, f"values_{j}"), getattr(self, f"scores_{j}"))
                if j in self._scored
                else column_N
                for j, column_N in enumerate(filled_NM.unbind(1))
            ]
            filled_NM = torch.stack(columns, dim=1)
        # As Scaling.apply: in the preprocessing's own type, and rounded once at the end.
        features = [((filled_NM.to(self.mean.dtype) - self.mean) / self.std).float()]
        if self._indicators:
            features.append(is_missing_NM[:, self._indicators].float())
        for k, (other, width) in enumerate(self._categories):
            # Without a level for others, their code is a row of zeros.
            features.append(torch.eye(other + 1)[:, :width][code_NK[:, k]])
        outputs_NC: Tensor = self.model(torch.cat(features, dim=1))
        if self.model.classes:
            return outputs_NC.argmax(1), outputs_NC.exp()
        return outputs_NC[:, 0]


def _interpolated(x_N: Tensor, value_L: Tensor, score_L: Tensor) -> Tensor:
    """As :func:`numpy.interp`, of which ONNX has no operator; L points."""
    # A constant column has one point, and no interval to interpolate in.
    if len(value_L) == 1:
        return torch.zeros_like(x_N) + score_L
    x_N = x_N.clamp(value_L[0], value_L[-1])
    left_N = ((x_N[:, None] >= value_L).sum(1) - 1).clamp(0, len(value_L) - 2)
    share_N = (x_N - value_L[left_N]) / (value_L[left_N + 1] - value_L[left_N])
    return score_L[left_N] + share_N * (score_L[left_N + 1] - score_L[left_N])


def export(folder: Path) -> Path:
    """Write ``model.onnx`` beside the model.

    Returns:
        The file.

    Raises:
        ImportError: the packages for ONNX are not installed.
        ValueError: the folder holds no model; a column has the name of an output; or the graph predicts something else
            than PyTorch.
    """
    import onnx

    model = load_model(folder)
    graph = _with_raw_rows(_exported(model), model)
    onnx.checker.check_model(graph)
    difference = _difference(model, graph.SerializeToString(), _trial_rows(model))
    if not difference <= TOLERANCE:  # also for nan
        raise ValueError(f"the ONNX graph differs from PyTorch by {difference:.2g}; at most {TOLERANCE:g} is accepted")
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{FILE}-", delete=False) as beside:
        beside.write(graph.SerializeToString())
    # Temporary files are their maker's alone; a model is for others as well.
    Path(beside.name).chmod(0o644)
    return Path(beside.name).rename(folder / FILE)


def inputs_of(model: Model, rows: Rows | np.ndarray) -> dict[str, np.ndarray]:
    """Raw rows, as :meth:`objectives.model.Model.predict` takes them, as the graph does."""
    if isinstance(rows, np.ndarray):
        return {"rows": rows.reshape(len(rows), -1).astype(np.float64)}
    preprocessing = model.preprocessing
    found: dict[str, list[np.ndarray]] = {name: [] for name in preprocessing.names}
    for block_NK, levels in preprocessing.read(rows):
        for name, cell_N in zip(preprocessing.names, block_NK.T, strict=True):
            found[name].append(np.array(levels[name], dtype=object)[cell_N.astype(int)] if name in levels else cell_N)
    return {name: np.concatenate(blocks)[:, None] for name, blocks in found.items()}


def _exported(model: Model) -> Any:
    """The graph from numbers and codes."""
    preprocessing = model.preprocessing
    # Two rows: torch.export takes a size of 1 for a constant.
    number_NM = torch.zeros(2, len(preprocessing.numbers), dtype=torch.float64)
    code_NK = torch.zeros(2, len(preprocessing.categories), dtype=torch.int64)
    n = torch.export.Dim("N")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies
        program = torch.onnx.export(
            Prepared(model).eval(),
            (number_NM, code_NK),
            input_names=["numbers", "codes"],
            output_names=["place", "probabilities"] if model.classes else ["prediction"],
            dynamic_shapes=({0: n}, {0: n}),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as it is without a file
    return program.model_proto


def _with_raw_rows(graph: Any, model: Model) -> Any:
    """An input for each column of a table, or one for an array; and text for the predicted classes."""
    import onnx
    from onnx import TensorProto, helper

    preprocessing = model.preprocessing
    graph = onnx.compose.add_prefix(graph, PREFIX)
    main = graph.graph
    del main.input[:]
    before, after = [], []
    if preprocessing.columns:
        numbers, inputs = list(preprocessing.numbers), []
        for name in numbers:
            inputs.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["N", 1]))
        for category in preprocessing.categories:
            inputs.append(helper.make_tensor_value_info(category.name, TensorProto.STRING, ["N", 1]))
            before.append(_encoder(category.name, f"{PREFIX}code of {category.name}", category.levels))
        if numbers:
            before.append(helper.make_node("Concat", numbers, [f"{PREFIX}numbers"], axis=1))
        if preprocessing.categories:
            codes = [f"{PREFIX}code of {category.name}" for category in preprocessing.categories]
            before.append(helper.make_node("Concat", codes, [f"{PREFIX}codes"], axis=1))
        main.input.extend(inputs)
    else:
        main.input.append(helper.make_tensor_value_info("rows", TensorProto.DOUBLE, ["N", len(preprocessing.names)]))
        before.append(helper.make_node("Identity", ["rows"], [f"{PREFIX}numbers"]))
    del main.output[:]
    if model.classes:
        place, n_classes = f"{PREFIX}place", len(model.classes)
        after.append(
            helper.make_node(
                "LabelEncoder", [place], ["prediction"], domain="ai.onnx.ml",
                keys_int64s=list(range(n_classes)), values_strings=list(model.classes),
            )
        )  # fmt: skip
        after.append(helper.make_node("Identity", [f"{PREFIX}probabilities"], ["probabilities"]))
        main.output.append(helper.make_tensor_value_info("prediction", TensorProto.STRING, ["N"]))
        main.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", n_classes]))
    else:
        after.append(helper.make_node("Identity", [f"{PREFIX}prediction"], ["prediction"]))
        main.output.append(helper.make_tensor_value_info("prediction", TensorProto.DOUBLE, ["N"]))
    nodes = [*before, *main.node, *after]
    del main.node[:]
    main.node.extend(nodes)
    graph.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    for output in main.output:
        if output.name in preprocessing.names:
            raise ValueError(
                f"the column {output.name!r} has the name of an output of the graph; rename it and train anew"
            )
    return graph


def _encoder(text: str, code: str, levels: Sequence[str]) -> Any:
    """The node that turns the texts of a category into the places of its levels."""
    from onnx import helper

    return helper.make_node(
        "LabelEncoder", [text], [code], domain="ai.onnx.ml",
        # The operator wants a key even where there is no level; its code is then that of any other text.
        keys_strings=list(levels) or [""], values_int64s=list(range(len(levels))) or [0], default_int64=len(levels),
    )  # fmt: skip


def _trial_rows(model: Model, n: int = 64) -> Mapping[str, Any] | np.ndarray:
    """Rows like those of the training, with missing cells and unknown levels."""
    rng, preprocessing = np.random.default_rng(0), model.preprocessing
    # A constant column is scaled by an infinite one, which makes it zero.
    std = np.where(np.isinf(preprocessing.std), 0, preprocessing.std)
    number_NM = preprocessing.fill + std * rng.normal(size=(n, len(preprocessing.numbers)))
    for score in preprocessing.normal_scores:
        number_NM[:, preprocessing.numbers.index(score.name)] = rng.choice(score.values, n) + rng.normal(size=n)
    # A column of yes and no takes 0 and 1 alone.
    booleans = {column.name for column in preprocessing.columns if column.kind == "boolean"}
    is_boolean_M = np.array([name in booleans for name in preprocessing.numbers], dtype=bool)
    number_NM[:, is_boolean_M] = number_NM[:, is_boolean_M] > np.array(preprocessing.fill)[is_boolean_M]
    number_NM[rng.random(number_NM.shape) < 0.1] = np.nan
    if not preprocessing.columns:
        return number_NM
    rows: dict[str, Any] = dict(zip(preprocessing.numbers, number_NM.T, strict=True))
    for category in preprocessing.categories:
        rows[category.name] = rng.choice([*category.levels, "", "unknown level"], n).tolist()
    return rows


def _difference(model: Model, graph: bytes, rows: Any) -> float:
    """The largest one between PyTorch and onnxruntime."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # errors
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    expected = model.predict(rows)
    if model.classes:
        (share_NC,) = session.run(["probabilities"], inputs_of(model, rows))
        return float(np.abs(share_NC - expected.drop(columns="prediction").to_numpy()).max())
    (number_N,) = session.run(["prediction"], inputs_of(model, rows))
    return float(np.abs(number_N - expected["prediction"].to_numpy()).max() / (model.target_std or 1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a model; exits with 1 and one line where that fails."""
    parser = argparse.ArgumentParser(prog="python -m objectives.export", description="A final model as ONNX.")
    parser.add_argument("folder", type=Path, help="what studyhall finalize wrote")
    given = parser.parse_args(arguments)
    exit_in_one_line(lambda: print(_export_or_explain(given.folder)))


def _export_or_explain(folder: Path) -> Path:
    try:
        return export(folder)
    except ImportError as error:
        raise ValueError(f"{error}; install what ONNX needs: pip install 'studyhall[onnx]'") from None


if __name__ == "__main__":
    main()
