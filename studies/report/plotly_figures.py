"""The plots for a browser: plotly's figures, Optuna's own and two by hand."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import optuna.visualization
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from studies.report.curves import Line, Panel, is_pair, panels
from studies.report.optuna_plots import COLORS, STATES, optuna_plot
from studies.report.plot_kinds import require
from studies.report.snapshot import quiet
from studies.report.timeline import Bar, Row, rows
from studies.text import printable

if TYPE_CHECKING:
    from studies.report.data import StudyData

#: From so many trials on, Optuna's lines are drawn together.
_MANY: Final = 60
#: The complete trials are drawn in so many shades, by their values.
_SHADES: Final = (0.22, 0.34, 0.5, 0.75)
_HEIGHTS: Final = {"contour": 720, "rank": 720, "parallel": 460}
#: The groups of trials among the curves, as the legend names them in this order.
_GROUPS: Final = {
    "complete": "complete, the better the darker",
    "pruned": "pruned",
    "failed": "failed",
    "unfinished": "unfinished",
    "best": "best",
    "best_train": "best, on the training data",
}
_DASHES: Final = {"pruned": "dot", "failed": "dash"}


def figure(data: StudyData, kind: str, params: Sequence[str] | None = None) -> go.Figure:
    """Draw the plot ``kind``; without colours of its own for paper and text, which the page gives.

    Args:
        data: the study.
        kind: one of ``PLOTS``.
        params: those to show, in a plot of parameters; by default all, or those that matter most.

    Raises:
        StudyhallError: the study can't have this plot.
    """
    require(data, kind)
    if kind == "curves":
        drawn = _curves(data)
    elif kind == "workers":
        drawn = _workers(rows(data))
    else:
        with quiet():
            drawn = optuna_plot(optuna.visualization, data, kind, _escape, params)
        drawn.update_layout(height=_HEIGHTS.get(kind, 400))
        if kind in ("slice", "contour", "rank"):
            _unclutter(drawn, data)
        if kind == "parallel":
            drawn = _together(drawn)
    # The page has the title above and decides the width. Optuna's colours suit a white page; ours may be dark.
    drawn.update_layout(template=go.layout.Template(), title=None, width=None, plot_bgcolor=None)
    drawn.update_annotations(font_color=None)
    return drawn


def _escape(text: str) -> str:
    """Plotly reads a little HTML in every text."""
    return html.escape(printable(text), quote=False)


def _unclutter(drawn: go.Figure, data: StudyData) -> None:
    """Ticks that don't run into each other; contours without lines, and without dots where they are many."""
    is_many = len(data.valued) > 4 * _MANY
    if any(trace.type == "contour" for trace in drawn.data):
        drawn.update_traces(line_width=0, selector={"type": "contour"})
        dots = {"marker": {"size": 4, "line": {"width": 0.5}}, "hoverinfo": "x+y"}
        drawn.update_traces(**({"visible": False} if is_many else dots), selector={"type": "scatter"})
    decades = {_escape(name): math.log10(max(values) / min(values)) for name, values in data.log_params.items()}
    for axis in (*drawn.select_xaxes(), *drawn.select_yaxes()):
        if decades.get(axis.title.text, 0) >= 2:
            axis.update(dtick=math.ceil(decades[axis.title.text] / 4), tickfont={"size": 10})


def _together(drawn: go.Figure) -> go.Figure:
    """Draw lines of the same colour as one: a browser is slow with a thousand of them."""
    lines = [trace for trace in drawn.data if trace.mode == "lines" and not trace.showlegend]
    if len(lines) < _MANY:
        return drawn
    groups: dict[tuple[str, str], list[go.Scatter]] = {}
    for trace in lines:
        groups.setdefault((_rounded_color(trace.line.color), trace.line.dash), []).append(trace)
    merged = []
    # None between two lines lifts the pen.
    for (color, dash), traces in groups.items():
        first = traces[0]
        merged.append(
            go.Scatter(
                x=[x for trace in traces for x in (*trace.x, None)],
                y=[y for trace in traces for y in (*trace.y, None)],
                customdata=[row for trace in traces for row in (*map(list, trace.customdata), ["", ""])],
                mode="lines",
                line={"color": color, "dash": dash, "width": first.line.width},
                opacity=first.opacity,
                showlegend=False,
                hovertemplate=first.hovertemplate,
            )
        )
    rest = [trace for trace in drawn.data if not any(trace is line for line in lines)]
    return go.Figure(data=[*merged, *rest], layout=drawn.layout)


def _rounded_color(color: str) -> str:
    """``rgb(8, 48, 107)`` to one of a few colours."""
    parts = [float(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    return "rgb({:.0f}, {:.0f}, {:.0f})".format(*(min(255, round(part / 12) * 12) for part in parts))


def _curves(data: StudyData) -> go.Figure:
    found = panels(data)
    count, columns = len(found.rows), max(map(len, found.rows))
    # A row of one leaves its second place empty, and without a name.
    names = [
        _escape(panel.name.replace("_", " ")) if panel else ""
        for row in found.rows
        for panel in (*row, *[None] * (columns - len(row)))
    ]
    drawn = make_subplots(
        rows=count,
        cols=columns,
        subplot_titles=names,
        horizontal_spacing=0.07,
        vertical_spacing=min(0.12, 0.3 / count),
    )
    in_legend: dict[str, Any] = {}
    for i, row in enumerate(found.rows, 1):
        for j, panel in enumerate(row, 1):
            for group, trace in _traces(panel):
                trace.update(legendgroup=group, showlegend=False, name=_GROUPS[group])
                drawn.add_trace(trace, row=i, col=j)
                in_legend[group] = drawn.data[-1]
        # One scale for both: the gap between training and validation is what people look for.
        if is_pair(row):
            drawn.update_yaxes(matches=drawn.get_subplot(i, 1).yaxis.plotly_name.replace("axis", ""), row=i, col=2)
    for group, trace in in_legend.items():
        trace.update(showlegend=True, legendrank=list(_GROUPS).index(group))
    drawn.update_xaxes(title_text="step", row=count)
    drawn.update_layout(
        height=90 + 270 * count, margin={"t": 70}, legend={"yref": "container", "y": 1, "yanchor": "top"}
    )
    if found.left_out:
        drawn.add_annotation(
            text=_escape(f"also reported: {', '.join(found.left_out[:12])}"),
            x=0, y=-0.08, xref="paper", yref="paper", showarrow=False, xanchor="left",
        )  # fmt: skip
    return drawn


def _traces(panel: Panel) -> Iterator[tuple[str, go.Scatter]]:
    """A trace for each group of trials, the best one last, on top."""
    complete = panel.lines.get("complete", [])
    for k, shade in enumerate(_SHADES):
        part = complete[k * len(complete) // len(_SHADES) : (k + 1) * len(complete) // len(_SHADES)]
        if part:
            trace = _trace(part, COLORS["complete"], shade if len(complete) > 8 else 0.8, 1.2)
            if max(len(line.steps) for line in part) == 1:
                trace.update(mode="markers", marker={"size": 4})
            yield "complete", trace
    for group in ("failed", "unfinished", "pruned"):
        if lines := panel.lines.get(group):
            is_few = len(lines) < _MANY
            trace = _trace(lines, COLORS[group], 0.6 if is_few else 0.3, 1, dash=_DASHES.get(group))
            # Where it ended, which is all there is to see of a single step.
            marks = {
                "size": _ends(lines, 5),
                "symbol": "x-thin-open",
                "color": COLORS[group],
                "opacity": 0.8 if is_few else 0.5,
            }
            yield group, trace.update(mode="lines+markers", marker=marks)
    if panel.best_train:
        yield "best_train", _trace([panel.best_train], COLORS["best"], 1, 2, dash="dot")
    if panel.best:
        yield "best", _trace([panel.best], COLORS["best"], 1, 3).update(mode="lines+markers", marker={"size": 4})


def _trace(lines: Sequence[Line], color: str, opacity: float, width: float, dash: str | None = None) -> go.Scatter:
    """Several lines as one trace, with gaps between them."""
    return go.Scatter(
        # Narrow types: the page holds these arrays as base64, and they are most of its size.
        x=np.array([x for line in lines for x in (*line.steps, line.steps[-1])], dtype=np.int32),
        y=np.array([y for line in lines for y in (*line.values, math.nan)], dtype=np.float32),
        customdata=np.array([line.number for line in lines for _ in range(len(line.steps) + 1)], dtype=np.int32),
        mode="lines",
        line={"color": _see_through(color, opacity), "width": width, "dash": dash or "solid"},
        hovertemplate="trial %{customdata}<br>step %{x}: %{y:.5g}<extra></extra>",
    )


def _see_through(color: str, opacity: float) -> str:
    red, green, blue = hex_to_rgb(color)
    return f"rgba({red}, {green}, {blue}, {opacity})"


def _ends(lines: Sequence[Line], size: int) -> Any:
    """Of markers: one at the end of each line."""
    ends = [mark for line in lines for mark in (*[0] * (len(line.steps) - 1), size, 0)]
    return np.array(ends, dtype=np.int8)


def _trials_of(bar: Bar) -> str:
    if bar.trials > 1:
        return f"{bar.trials} trials from {bar.number} on"
    return f"trial {bar.number}" + (f", {bar.times} attempts" if bar.times > 1 else "")


def _workers(found: Sequence[Row]) -> go.Figure:
    drawn = go.Figure()
    labels = [_escape(row.label) for row in found]
    for state, color in COLORS.items():
        bars = [
            (label, bar)
            for label, row in zip(labels, found, strict=True)
            for bar in row.bars
            if STATES.get(bar.state.name) == state
        ]
        if bars:
            drawn.add_bar(
                name=state,
                orientation="h",
                y=[label for label, _ in bars],
                base=[bar.begin.isoformat(timespec="milliseconds") for _, bar in bars],
                x=[(bar.end - bar.begin).total_seconds() * 1000 for _, bar in bars],
                customdata=[_trials_of(bar) for _, bar in bars],
                hovertemplate="%{customdata}: " + state + "<br>%{base|%H:%M:%S} – %{x|%H:%M:%S}<extra>%{y}</extra>",
                marker={"color": color, "line": {"width": 0}},
            )
    drawn.update_layout(
        barmode="overlay", bargap=0.25, height=max(180, 110 + 26 * len(found)), showlegend=True,
        xaxis={"type": "date"},
        yaxis={"categoryorder": "array", "categoryarray": labels[::-1], "type": "category", "automargin": True},
    )  # fmt: skip
    return drawn
