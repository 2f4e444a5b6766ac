"""What stands beside a final model in its folder: the details of its test, its curves, and its part of the card."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from objectives.hyperparameters import Hyperparameters
from objectives.model import Model

#: With more classes a confusion matrix is for programs.
MAX_CLASSES = 20


def describe(
    directory: Path,
    model: Model,
    hyperparameters: Hyperparameters,
    details: Mapping[str, Any],
    curves: Sequence[Mapping[str, float]],
    *,
    examples: int,
) -> None:
    """Write ``test.json``, ``curves.csv`` and ``README.md``.

    Args:
        directory: of the model.
        model: as it is kept.
        hyperparameters: its.
        details: of the test, as :func:`objectives.evaluation.evaluate` returns them.
        curves: the metrics of each epoch.
        examples: on how many it was trained.
    """
    (directory / "test.json").write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
    with (directory / "curves.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["epoch", *curves[0]])
        writer.writerows([epoch, *metrics.values()] for epoch, metrics in enumerate(curves, start=1))
    (directory / "README.md").write_text("\n\n".join(_card(model, hyperparameters, details, examples)) + "\n", "utf-8")


def _card(model: Model, hyperparameters: Hyperparameters, details: Mapping[str, Any], examples: int) -> list[str]:
    net = " → ".join(
        map(str, (len(model.preprocessing.feature_names), *hyperparameters.widths, len(model.classes) or 1))
    )
    # Every text below may be a user's: names of columns and classes. _plain() takes their markup away.
    count = len(model.members)
    what = "A perceptron" if count == 1 else f"The average of {count} perceptrons, each"
    size = sum(parameter.numel() for parameter in model.parameters())
    interval, (kind, rows) = details["interval"], ("npy", "an array")
    if model.preprocessing.columns:
        kind, rows = "csv", "a data frame"
    parts = [
        "## Model",
        f"{what} with layers of {net} units, activation {hyperparameters.activation}; {size:,} weights and biases in "
        f"all. Trained on {examples:,} examples.",
        f"```bash\npython -m objectives.predict . rows.{kind}   # raw rows, as in training; predictions as CSV\n"
        "python -m objectives.export .             # model.onnx, checked against PyTorch\n```",
        f'```python\nfrom objectives import load_model\n\nload_model(".").predict(rows)   # {rows}\n```',
    ]
    if columns := model.preprocessing.columns:
        read_as = "class" if model.classes else "number"  # the target
        roles = [(column.name, column.role, read_as if column.role == "target" else column.kind) for column in columns]
        parts += ["## Columns", _table(("column", "role", "read as"), roles)]
    parts += [
        "## Errors",
        f"On {details['examples']:,} test examples; {interval['confidence']:.0%} confidence interval of "
        f"{interval['metric']} ({interval['method']}): {interval['low']:.4g} to {interval['high']:.4g}.",
    ]
    if "residuals" in details:
        quantiles = [(f"{float(share):.0%}", f"{value:.4g}") for share, value in details["residuals"].items()]
        return [*parts, "Residuals, predicted − true:", _table(("quantile", "residual"), quantiles)]
    names = model.classes
    if len(names) <= MAX_CLASSES:
        matrix = [(name, *map(str, row)) for name, row in zip(names, details["confusion"], strict=True)]
        parts += ["Rows are true classes, columns predicted ones:", _table(("", *names), matrix)]
    bins = details["calibration"]
    shares = [(f"{each['confidence']:.3f}", f"{each['accuracy']:.3f}", str(each["examples"])) for each in bins]
    return [*parts, "Calibration:", _table(("probability of the prediction", "accuracy", "examples"), shares)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    """Text in one line in which Markdown sees no markup and no further cell."""
    # The twin of the one in studies.finalize.card: objectives import nothing of studies.
    return re.sub(r"[\\`*<>\[\]#|&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))
