"""The picture that `train` shows: a chart of each metric, training beside validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from studies.overview import chart
from studies.report.curves import in_rows
from studies.text import number, printable

#: Columns of a chart with its scale, so that two fit beside each other; and the most lines of one.
WIDTH, HEIGHT = 39, 6
#: Columns of the scale.
SCALE = 10


def picture(curves: Sequence[Mapping[str, float]], console: Console) -> Group:
    """The metrics of all steps so far, in as many columns and lines as the terminal has, if that is at all possible.

    Args:
        curves: metrics by name, of each step.
        console: where it will be shown.
    """
    names = list(dict.fromkeys(name for metrics in curves for name in metrics))
    rows = in_rows(names)
    if console.width < 2 * WIDTH:
        rows = [[name] for row in rows for name in row]
    # The step has a line; each chart has its name above.
    height = max(1, min(HEIGHT, (console.height - 2) // max(1, len(rows)) - 1))
    grid = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        grid.add_row(*(_chart(name, [metrics[name] for metrics in curves if name in metrics], height) for name in row))
    return Group(Text(f"step {len(curves)}"), grid)


def _chart(name: str, values: Sequence[float], height: int) -> Text:
    lines = chart(values, WIDTH - SCALE - 1, height)
    finite = list(filter(math.isfinite, values))
    scale = [f"{max(finite):.4g}" if finite else "", *[""] * (height - 1)]
    if finite and height > 1:
        scale[-1] = f"{min(finite):.4g}"
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(printable(name.replace("_", " ")), "bold").append(f"  {number(values[-1])}")
    for label, line in zip(scale, lines, strict=True):
        text.append(f"\n{label:>{SCALE}} ", "dim").append(line, "cyan")
    return text
