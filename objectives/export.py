"""A final model as ONNX, raw rows in: ``python -m objectives.export FOLDER`` writes ``model.onnx`` into the folder.

- Of a table each column is an input of its own name, N × 1: numbers as float64, NaN where a cell is missing. An array
  is one input ``rows``, N × F.
- Outputs: ``prediction``, N (text or float64); and of classes ``probabilities``, N × C.

The graph is compared with PyTorch before the file appears.

Axes: N rows, K columns, F features, C classes.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from objectives.model import Model, load_model
from objectives.predict import exit_in_one_line

FILE = "model.onnx"
OPSET = 20
#: The largest difference of a probability, or of a number relative to the target's standard deviation.
TOLERANCE = 1e-5


class Prepared(nn.Module):
    """A model with its preprocessing as tensors: numbers with NaN for missing cells, N × K, in."""

    fill_K: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        preprocessing = model.preprocessing
        self.model = model
        self.register_buffer("fill_K", torch.from_numpy(preprocessing.fill_K))
        self.register_buffer("mean", torch.from_numpy(preprocessing.scaling.mean_F))
        self.register_buffer("std", torch.from_numpy(preprocessing.scaling.std_F))

    def forward(self, x_NK: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(Places of the predicted classes, probabilities), or numbers."""
        filled_NK = torch.where(x_NK.isnan(), self.fill_K, x_NK).to(self.mean.dtype)
        outputs_NC: Tensor = self.model(((filled_NK - self.mean) / self.std).float())
        if self.model.classes:
            return outputs_NC.argmax(1), outputs_NC.exp()
        return outputs_NC[:, 0].double()


def export(folder: Path) -> Path:
    """Write ``model.onnx`` beside the model.

    Returns:
        The file.

    Raises:
        ImportError: the packages for ONNX are not installed.
        ValueError: the folder holds no model; or the graph predicts something else than PyTorch.
    """
    import onnx

    model = load_model(folder)
    graph = _with_columns(_exported(model), model)
    onnx.checker.check_model(graph)
    rows = _trial_rows(model)
    difference = _difference(model, graph.SerializeToString(), rows)
    if not difference <= TOLERANCE:  # also for nan
        raise ValueError(f"the ONNX graph differs from PyTorch by {difference:.2g}; at most {TOLERANCE:g} is accepted")
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{FILE}-", delete=False) as beside:
        beside.write(graph.SerializeToString())
    Path(beside.name).chmod(0o644)
    return Path(beside.name).rename(folder / FILE)


def inputs_of(model: Model, rows: Mapping[str, Any] | np.ndarray) -> dict[str, np.ndarray]:
    """Raw rows as the graph takes them; of a table ``rows`` are columns of numbers."""
    if not model.preprocessing.columns:
        return {"rows": np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)}
    assert not isinstance(rows, np.ndarray)
    return {name: np.asarray(rows[name], dtype=np.float64).reshape(-1, 1) for name in model.preprocessing.names}


def _exported(model: Model) -> Any:
    names = ["place", "probabilities"] if model.classes else ["prediction"]
    x_NK = torch.zeros(2, len(model.preprocessing.names), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies
        program = torch.onnx.export(
            Prepared(model).eval(),
            (x_NK,),
            input_names=["rows"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as it is without a file
    return program.model_proto


def _with_columns(graph: Any, model: Model) -> Any:
    """An input for each column of a table, and text for the predicted classes."""
    from onnx import TensorProto, helper

    main = graph.graph
    if model.preprocessing.columns:
        names = list(model.preprocessing.names)
        del main.input[:]
        main.input.extend(helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["N", 1]) for name in names)
        main.node.insert(0, helper.make_node("Concat", names, ["rows"], axis=1))
    if model.classes:
        named = helper.make_node(
            "LabelEncoder", ["place"], ["prediction"], domain="ai.onnx.ml",
            keys_int64s=list(range(len(model.classes))), values_strings=list(model.classes),
        )  # fmt: skip
        main.node.append(named)
        (place,) = [output for output in main.output if output.name == "place"]
        main.output.remove(place)
        main.output.insert(0, helper.make_tensor_value_info("prediction", TensorProto.STRING, ["N"]))
        graph.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    return graph


def _trial_rows(model: Model) -> Any:
    """Rows like those of the training, with missing cells."""
    rng, preprocessing = np.random.default_rng(0), model.preprocessing
    std = np.where(np.isinf(preprocessing.scaling.std_F), 0, preprocessing.scaling.std_F)
    x_NK = preprocessing.fill_K + std * rng.normal(size=(64, len(preprocessing.names)))
    x_NK[rng.random(x_NK.shape) < 0.1] = np.nan
    return dict(zip(preprocessing.names, x_NK.T, strict=True)) if preprocessing.columns else x_NK


def _difference(model: Model, graph: bytes, rows: Any) -> float:
    """The largest one between PyTorch and onnxruntime."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs_of(model, rows)), strict=True))
    expected = model.predict(rows)
    if model.classes:
        shares_NC = expected.drop(columns="prediction").to_numpy()
        return float(np.abs(found["probabilities"] - shares_NC).max())
    return float(np.abs(found["prediction"] - expected["prediction"].to_numpy()).max() / (model.target_std or 1))


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
