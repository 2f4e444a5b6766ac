"""Trials and studies as data: for scripts in several formats, for people in columns."""

from __future__ import annotations

import csv
import io
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from studies.cli.common import number
from studies.errors import StudyhallError
from studies.values import finite, to_json, to_text

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

BEST_FORMATS = ("table", "json", "yaml", "toml", "env", "args")


def best_as(kind: str, study: str, trial: FrozenTrial, metric: str, metrics: Mapping[str, float]) -> str:
    """The best trial in the format ``kind``, one of :data:`BEST_FORMATS`."""
    data = {
        "study": study,
        "number": trial.number,
        "value": finite(trial.value),
        "params": trial.params,
        "metrics": {name: finite(value) for name, value in metrics.items()},
    }
    if kind == "json":
        return to_json(data)
    if kind == "yaml":
        import yaml

        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip()
    if kind == "toml":
        import tomli_w

        return tomli_w.dumps(_for_toml(data)).rstrip()
    if kind == "env":
        return "\n".join(f"{name}={shlex.quote(to_text(v))}" for name, v in _variables(trial.params).items())
    if kind == "args":
        given = {f"--{name}": to_text(value) for name, value in trial.params.items() if value is not None}
        return shlex.join(part for pair in given.items() for part in pair)
    lines = [f"best of {study}: trial {trial.number} with {metric} = {number(trial.value)}", ""]
    width = max((len(name) for name in [*trial.params, *metrics]), default=0)
    lines += [f"  {name:<{width}}  {readable(value)}" for name, value in trial.params.items()]
    if metrics:
        lines += ["", "at its last step:", *(f"  {name:<{width}}  {number(value)}" for name, value in metrics.items())]
    return "\n".join(lines)


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV as RFC 4180 has it, but with line feeds alone."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return buffer.getvalue().rstrip("\n")


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[str] = ()) -> None:
    """Print a table without lines to standard output; in a terminal no wider than that."""
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
            max_width=32 if name == header[0] and sys.stdout.isatty() else None,
            overflow="fold" if last else "ellipsis",
        )
    for row in rows:
        table.add_row(*row)
    # Through a pipe every line is whole: nothing is wrapped for a terminal that is not there.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(table)
    echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def readable(value: Any) -> str:
    """A parameter's value, for people: real numbers to four significant digits, odd text in quotes."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return shlex.quote(value) if isinstance(value, str) else to_text(value)


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


def _for_toml(data: Any) -> Any:
    """``data`` without None, which TOML cannot say: its key is left out, a list that holds it becomes a string."""
    if isinstance(data, dict):
        return {key: _for_toml(value) for key, value in data.items() if value is not None}
    return to_json(data) if isinstance(data, list) and _holds_none(data) else data


def _holds_none(data: Any) -> bool:
    parts = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return data is None or any(map(_holds_none, parts))
