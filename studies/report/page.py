"""The HTML page. It makes no requests, and its policy lets only our own scripts run."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Final

from studies.report import sections, subset
from studies.report.plot_kinds import PLOTS
from studies.report.plotly_figures import figure
from studies.report.snapshot import compared, importances

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from studies.report.data import StudyData

#: plotly.js with the trace types that we draw, a third of the whole: the report of a small study fits into a mail.
#: From npm, plotly.js-cartesian-dist-min, of the major version that the Python package plotly writes for.
_PLOTLY: Final = "plotly-cartesian.min.js.gz"
#: Slice plots per row.
_SLICES: Final = 4

_REMARKS: Final = {
    "curves": "Training beside validation, one line for each trial. A pruned one ends at its cross. "
    "Click on the legend to hide a group.",
    "importances": "By PED-ANOVA over the complete trials: what each parameter has to do with being among the best.",
    "contour": "Of the parameters that matter most. Numbers with many values are rounded to a grid.",
    "workers": "One row for each worker; a trial that was begun again stands with its last one.",
}


@dataclass(kw_only=True)
class _Figures:
    """The plots of a page, as JSON that a script may hold."""

    json: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, drawn: go.Figure) -> str:
        """Add a plot; returns the HTML of its place in the page."""
        name = f"plot-{kind}-{len(self.json)}"
        # plotly escapes <, > and /: no text in it can end the script.
        self.json[name] = drawn.to_json()
        return f'<div class="plot" id="{name}" style="height:{drawn.layout.height}px"></div>'


def report(data: StudyData) -> bytes:
    """The report of a study as one HTML file."""
    figures = _Figures()
    plots = {kind: _plot(data, kind, figures) for kind in _plots_of(data)}
    first, rest = ("history",), [kind for kind in plots if kind != "history"]
    body = [
        sections.header(data),
        sections.tiles(data),
        _section("best", "Best parameters" if len(data.directions) == 1 else "Best trials", sections.best(data)),
        *(_section(kind, PLOTS[kind].title, plots[kind]) for kind in (*first, *rest)),
        sections.failures(data),
        _section("all", "Trials", sections.trials(data)),
        _section("spec", "Study file", sections.spec(data)),
    ]
    return _page(data.name, body, figures.json)


def single(data: StudyData, kind: str, params: Sequence[str] | None = None) -> bytes:
    """One plot, of these ``params``, as an HTML file; raises :exc:`StudyhallError` where the study can't have it."""
    figures = _Figures()
    place = figures.add(kind, figure(data, kind, params))
    content = _paragraph(subset.remark(data, kind)) + place
    body = [f"<header><h1>{sections.text(data.name)}</h1></header>", _section(kind, PLOTS[kind].title, content)]
    return _page(f"{data.name}: {PLOTS[kind].title.lower()}", body, figures.json)


def _plots_of(data: StudyData) -> list[str]:
    """The plots of a report, whether the study can have them or not."""
    several = ["pareto", "hypervolume"] if len(data.directions) > 1 else []
    workers = "workers" if data.attempts or PLOTS["timeline"].obstacle(data) else "timeline"
    return ["history", *several, "curves", "importances", "slice", "parallel", "contour", workers]


def _plot(data: StudyData, kind: str, figures: _Figures) -> str:
    # The reason stands in the plot's place: a report without the plot would leave its reader searching.
    reason = PLOTS[kind].obstacle(data)
    if reason:
        return sections.reason(reason)
    remark = _paragraph(_REMARKS.get(kind)) + _paragraph(subset.remark(data, kind))
    # Rows of a few: a page is narrow, and Optuna would squeeze all parameters into one row.
    if kind == "slice":
        order = [*importances(data), *data.params]
        names = sorted(data.params, key=order.index)
        rows = [names[i : i + _SLICES] for i in range(0, len(names), _SLICES)]
        return remark + "".join(figures.add(kind, figure(data, kind, row)) for row in rows)
    drawn = remark + figures.add(kind, figure(data, kind, compared(data) if kind == "contour" else None))
    return drawn + sections.ablation(data) if kind == "importances" else drawn


def _paragraph(words: str | None) -> str:
    return f"<p>{sections.text(words)}</p>" if words else ""


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{sections.text(title)}</h2>{content}</section>'


def _page(title: str, body: Sequence[str], figures: Mapping[str, str]) -> bytes:
    assets = files("studies.report") / "assets"
    script = (assets / "page.js").read_text(encoding="utf-8")
    packed = (assets / _PLOTLY).read_bytes() if figures else b""
    # Names and errors come from objectives and whoever may write to the database. They are escaped, and should one slip
    # through, the browser runs no script but these two and loads nothing.
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {_hash(script.encode())} {_hash(gzip.decompress(packed))}"
    )
    page = Template((assets / "page.html").read_text(encoding="utf-8")).substitute(
        title=sections.text(title),
        policy=policy,
        style=(assets / "page.css").read_text(encoding="utf-8"),
        body="\n".join(body),
        figures="{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in figures.items()) + "}",
        plotly=base64.b64encode(packed).decode(),
        script=script,
    )
    # A lone surrogate in a name must not cost the report.
    return page.encode(errors="replace")


def _hash(script: bytes) -> str:
    """The source of ``script`` in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
