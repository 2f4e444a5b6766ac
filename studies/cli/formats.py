"""Trials and studies as data: for scripts in several formats, for people in columns."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from studies.cli.common import number
from studies.errors import StudyhallError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

BEST_FORMATS = ("table", "json", "yaml", "toml", "env", "args")


def best_as(kind: str, study: str, trial: FrozenTrial, metric: str, metrics: Mapping[str, float]) -> str:
    """The best trial in the format ``kind``, one of :data:`BEST_FORMATS`."""
    data = {
        "study": study,
        "number": trial.number,
        "value": plain(trial.value),
        "params": trial.params,
        "metrics": {name: plain(value) for name, value in metrics.items()},
    }
    if kind == "json":
        return to_json(data)
    if kind == "yaml":
        import yaml

        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip()
    if kind == "toml":
        import tomli_w

        return tomli_w.dumps(_without_none(data)).rstrip()
    if kind == "env":
        return "\n".join(f"{name}={shlex.quote(text(v))}" for name, v in _variables(trial.params).items())
    if kind == "args":
        given = {f"--{name}": text(value) for name, value in trial.params.items() if value is not None}
        return shlex.join(part for pair in given.items() for part in pair)
    lines = [f"best of {study}: trial {trial.number} with {metric} = {number(trial.value)}", ""]
    width = max((len(name) for name in [*trial.params, *metrics]), default=0)
    lines += [f"  {name:<{width}}  {readable(value)}" for name, value in trial.params.items()]
    if metrics:
        lines += ["", "at its last step:", *(f"  {name:<{width}}  {number(value)}" for name, value in metrics.items())]
    return "\n".join(lines)


def to_json(data: Any) -> str:
    """``data`` as one line of JSON, in which every number is finite."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def echo_json(pages: Iterable[Sequence[Any]]) -> None:
    """Print the items of all pages as one JSON array in one line, a page at a time."""
    before = "["
    for page in pages:
        click.echo(before + ", ".join(map(to_json, page)), nl=False)
        before = ", "
    echo("[]" if before == "[" else "]")


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """CSV as RFC 4180 has it, but with line feeds alone, and none at the end; an empty cell for None."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().removesuffix("\n")


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[str] = ()) -> None:
    """Print a table without lines to standard output; in a terminal no wider than that, through a pipe every line
    whole: nothing is wrapped for a terminal that is not there."""
    if sys.stdout.isatty():
        _print_fitted(header, rows, numeric)
        return
    from rich.cells import cell_len

    lines = [header, *rows]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    found = []
    for line in lines:
        cells = []
        for name, cell, width in zip(header, line, widths, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if name in numeric else cell + space)
        found.append("  ".join(cells).rstrip())
    echo("\n".join(found))


def _print_fitted(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in header:
        last = name == header[-1]
        table.add_column(
            name,
            justify="right" if name in numeric else "left",
            no_wrap=not last,
            # A long name gives way to the numbers beside it.
            max_width=32 if name == header[0] else None,
            overflow="fold" if last else "ellipsis",
        )
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    with console.capture() as capture:
        console.print(table)
    echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def text(value: Any) -> str:
    """A parameter's exact value, for scripts."""
    return value if isinstance(value, str) else json.dumps(value)


def readable(value: Any) -> str:
    """A parameter's value, for people: real numbers to four significant digits, odd text in quotes."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return shlex.quote(value) if isinstance(value, str) else text(value)


def plain(value: float | None) -> float | None:
    """``value``, or ``None`` where JSON has no number for it."""
    return value if value is not None and math.isfinite(value) else None


def echo(data: str) -> None:
    """Print data to standard output."""
    click.echo(data)


def _variables(params: Mapping[str, Any]) -> dict[str, Any]:
    """Shell variables named after the parameters: ``weight_decay`` → ``WEIGHT_DECAY``; empty for None."""
    names: dict[str, str] = {}
    for name in params:
        variable = re.sub(r"\W", "_", name, flags=re.ASCII).upper()
        variable = f"_{variable}" if variable[:1].isdigit() else variable
        if variable in names:
            raise StudyhallError(
                f"parameters {names[variable]!r} and {name!r} would both be the variable {variable}; use --format json"
            )
        names[variable] = name
    return {variable: "" if params[name] is None else params[name] for variable, name in names.items()}


def _without_none(data: Any) -> Any:
    """``data`` without the values that TOML cannot say."""
    if isinstance(data, dict):
        return {key: _without_none(value) for key, value in data.items() if value is not None}
    return data
