"""The plots as PNG and SVG: matplotlib's figures, Optuna's own and two by hand."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
import numpy as np
import optuna.visualization.matplotlib

from studies.report.curves import Line, Panel, is_pair, panels
from studies.report.optuna_plots import COLORS, STATES, optuna_plot
from studies.report.plot_kinds import PLOTS, require, varied
from studies.report.snapshot import MOST_COMPARED, quiet
from studies.report.subset import remark
from studies.report.timeline import Row, rows
from studies.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from studies.report.data import StudyData

#: Optuna's legend of intermediate values has an entry for each trial; one of more than these is left out.
MOST_IN_LEGEND: Final = 12


def image(data: StudyData, kind: str, format_: str, params: Sequence[str] | None = None) -> bytes:
    """Draw the plot ``kind`` as ``png`` or ``svg``, of these ``params``; nothing of it stays in pyplot.

    Raises:
        StudyhallError: the study can't have this plot.
    """
    require(data, kind)
    if mpl.get_backend(auto_select=False) is None:
        mpl.use("Agg")  # nothing is shown on a screen; a notebook's own backend stays
    from matplotlib import pyplot as plt

    # pyplot keeps every figure until it is closed, and the caller may have figures of its own.
    before = set(plt.get_fignums())
    with quiet(), plt.rc_context():
        try:
            drawn = _draw(data, kind, params)
            drawn.suptitle(f"{_escape(data.name)}: {PLOTS[kind].title.lower()}")
            words = f"{drawn.get_suptitle()}\n{textwrap.fill(remark(data, kind), 80)}"
            drawn.suptitle(words, y=1.0, va="bottom", fontsize="medium")
            written = io.BytesIO()
            drawn.savefig(written, format=format_, dpi=150, bbox_inches="tight")
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
    return written.getvalue()


def _escape(text: str) -> str:
    """Matplotlib reads mathematics between dollars."""
    return printable(text).replace("$", r"\$")


def _draw(data: StudyData, kind: str, params: Sequence[str] | None) -> Figure:
    if kind == "curves":
        return _curves(data)
    if kind == "workers":
        return _workers(rows(data))
    axes: Sequence[Axes] = np.ravel(optuna_plot(optuna.visualization.matplotlib, data, kind, _escape, params)).tolist()
    for ax in axes:
        for place in ("left", "center"):
            ax.set_title("", loc=place)
    drawn = axes[0].get_figure(root=True)
    assert drawn is not None  # it was drawn on one
    drawn.suptitle("")
    legend = axes[0].get_legend()
    if legend and len(legend.get_texts()) > MOST_IN_LEGEND:
        legend.remove()
    if kind == "parallel":
        drawn.set_size_inches(max(6.4, 2.4 + 1.1 * len(params or data.params)), 4.8)
    if kind in ("contour", "rank"):
        side = 2.6 * max(2, len(params) if params else min(MOST_COMPARED, len(varied(data))))
        drawn.set_size_inches(side * 1.15, side)
    return drawn


def _curves(data: StudyData) -> Figure:
    from matplotlib import pyplot as plt

    found = panels(data)
    columns = max(len(row) for row in found.rows)
    drawn, grid = plt.subplots(
        len(found.rows), columns, squeeze=False, figsize=(1 + 5 * columns, 0.6 + 3 * len(found.rows)),
        layout="constrained",
    )  # fmt: skip
    legend: dict[str, Any] = {}
    for row, places in zip(found.rows, grid, strict=True):
        for panel, ax in zip(row, places, strict=False):
            legend = _panel(ax, panel) | legend
        for ax in places[len(row) :]:
            ax.set_axis_off()
        if is_pair(row):
            places[1].sharey(places[0])
            places[0].autoscale_view()
    drawn.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend), frameon=False)
    return drawn


def _panel(ax: Axes, panel: Panel) -> dict[str, Any]:
    """Draw a metric; returns what stands in the legend."""
    from matplotlib.collections import LineCollection

    ax.set_title(_escape(panel.name.replace("_", " ")), fontsize="medium")
    ax.set_xlabel("step")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    legend: dict[str, Any] = {}
    for group in ("complete", "failed", "unfinished", "pruned"):
        lines = panel.lines.get(group, ())
        if not lines:
            continue
        # The more lines, the fainter: many would be one blot, in which the pruned ones hide.
        color, alpha = COLORS[group], max(0.12, min(0.8, 12 / len(lines)))
        style = {"pruned": "dotted", "failed": "dashed"}.get(group, "solid")
        # One collection: a thousand calls of plot() take seconds.
        segments = [np.column_stack([line.steps, line.values]) for line in lines]
        ax.add_collection(LineCollection(segments, colors=color, alpha=alpha, linewidths=1, linestyles=style))
        legend[group] = ax.plot([], [], color=color, linestyle=style)[0]
        if group != "complete" or max(len(line.steps) for line in lines) == 1:
            ends = np.array([(line.steps[-1], line.values[-1]) for line in lines])
            ax.plot(*ends.T, "x" if group != "complete" else ".", color=color, markersize=3, alpha=min(1, 3 * alpha))
    for name, line, style in (("best, training", panel.best_train, ":"), ("best", panel.best, "-")):
        if line:
            legend[name] = _emphasised(ax, line, style)
    ax.autoscale_view()
    return legend


def _emphasised(ax: Axes, line: Line, style: str) -> Any:
    marker = "o" if len(line.steps) == 1 else None
    return ax.plot(line.steps, line.values, style, color=COLORS["best"], linewidth=2.2, marker=marker)[0]


def _workers(found: Sequence[Row]) -> Figure:
    from matplotlib import dates
    from matplotlib import pyplot as plt

    drawn, ax = plt.subplots(figsize=(10, 1.4 + 0.3 * len(found)), layout="constrained")
    for state, color in COLORS.items():
        bars = [(y, bar) for y, row in enumerate(found) for bar in row.bars if STATES.get(bar.state.name) == state]
        if bars:
            places = [y for y, _ in bars]
            begins, lengths = [bar.begin for _, bar in bars], [bar.end - bar.begin for _, bar in bars]
            # Dates are legal there, but not by matplotlib's types.
            ax.barh(places, lengths, left=begins, height=0.7, color=color, label=state)  # type: ignore[arg-type]
    ax.set_yticks(range(len(found)), [_escape(row.label) for row in found])
    ax.invert_yaxis()
    ax.xaxis_date()
    locator = dates.AutoDateLocator()  # type: ignore[no-untyped-call]
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    ax.spines[["top", "right"]].set_visible(False)
    drawn.legend(loc="outside lower left", ncols=5, frameon=False)
    return drawn
