"""Trials and studies as data: for scripts in several formats, for people in columns."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from studies.errors import StudyhallError
from studies.spec.constraints import Constraint
from studies.spec.script import CHANGED_SCRIPT, OWN_ATTRIBUTES
from studies.text import number, printable
from studies.values import finite, to_text
from studies.values import to_json as strict_json

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from studies.spec.study import StudySpec
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord

BEST_FORMATS = ("table", "json", "yaml", "toml", "env", "args")
DATA_FORMATS = ("json", "yaml", "toml")
# What some reader, of YAML 1.1 or 1.2, takes for a number, a date, a boolean or null unless it is quoted.
_NO_TEXT_IN_YAML = re.compile(r"[-+.]*\d|[-+]?\.(inf|nan)$|(y|n|yes|no|on|off|true|false|null|~|)$", re.IGNORECASE)


def data_as(kind: str, data: Mapping[str, Any]) -> str:
    """``data`` in the format ``kind``, one of :data:`DATA_FORMATS`."""
    if kind == "json":
        return to_json(data)
    if kind == "toml":
        said, missing = _for_toml(data)
        return "".join(f"# left out, as TOML has no null: {key}\n" for key in missing) + to_toml(said)
    # PyYAML writes letters beyond ASCII either all as they are, or all escaped.
    shown = _to_yaml(data, allow_unicode=True)
    return shown if _is_plain(shown) else _to_yaml(data, allow_unicode=False)


def _to_yaml(data: Mapping[str, Any], *, allow_unicode: bool) -> str:
    import yaml

    # A subclass: add_representer changes the class, which other users of PyYAML in this process share.
    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(
        str,
        lambda dumper, text: dumper.represent_scalar(
            "tag:yaml.org,2002:str", text, style="'" if _NO_TEXT_IN_YAML.match(text) else None
        ),
    )
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=allow_unicode).rstrip()


def best_data(trial: FrozenTrial, metrics: Mapping[str, float]) -> dict[str, Any]:
    """The best trial as data; of several objectives there are ``values`` instead of a ``value``."""
    values = list(map(finite, trial.values or [None]))
    constraints = {name: finite(value) for name, value in trial.constraints.items()}
    return {
        "number": trial.number,
        **({"value": values[0]} if len(values) == 1 else {"values": values}),
        "params": trial.params,
        "metrics": {name: finite(value) for name, value in metrics.items()},
        "user_attrs": user_attrs(trial),
        # Optuna's numbers: at most 0 where the trial keeps the constraint.
        **({"constraints": constraints} if constraints else {}),
        **({CHANGED_SCRIPT: changed} if (changed := trial.user_attrs.get(CHANGED_SCRIPT)) else {}),
    }


def best_lines(storage: PostgresStorage, record: StudyRecord, trial: FrozenTrial) -> list[str]:
    """The best trial for people."""
    metric = storage.objective_names(record)[0]
    how = storage.get_study_directions(record.study_id)[0].name.lower()
    return [
        f"best of {record.name}: trial {trial.number} with {metric} = {number(trial.value)} ({how}d)",
        *detail_lines(trial, storage.metrics.last([trial])[trial.number]),
        *constraint_lines(record.spec, trial),
    ]


def constraint_lines(spec: StudySpec | None, trial: FrozenTrial) -> list[str]:
    """How far a trial keeps the constraints of its spec, below an empty line; nothing without any."""
    bounds = {name: Constraint.parse(text) for name, text in spec.constraints.items()} if spec else {}
    shown = [
        (name, f"{number(bound.value_of(by))} ({bound}{' is broken' if by > 0 else ''})")
        for name, bound in bounds.items()
        if (by := trial.constraints.get(name)) is not None
    ]
    return ["", "constraints:", *aligned(shown)] if shown else []


def detail_lines(trial: FrozenTrial, metrics: Mapping[str, float]) -> list[str]:
    """A trial's parameters, last metrics and attributes for people, each below an empty line."""
    params = [(name, readable(value)) for name, value in trial.params.items()]
    shown = aligned([*params, *((name, number(value)) for name, value in metrics.items())])
    lines: list[str] = []
    if params:
        lines += ["", *shown[: len(params)]]
    if metrics:
        lines += ["", "at its last step:", *shown[len(params) :]]
    return lines + attribute_lines(trial)


def attribute_lines(trial: FrozenTrial) -> list[str]:
    """What was noted of a trial, for people: the objective's attributes, and whether a changed script ran it."""
    noted = [(name, readable(value)) for name, value in user_attrs(trial).items()]
    lines = ["", "attributes:", *aligned(noted)] if noted else []
    changed = trial.user_attrs.get(CHANGED_SCRIPT)
    return lines + (["", f"run by a changed script, not the study's: SHA-256 {changed}"] if changed else [])


def user_attrs(trial: FrozenTrial) -> dict[str, Any]:
    """What an objective noted of its trial; what a worker did, as its error, has places of its own."""
    return {name: value for name, value in trial.user_attrs.items() if name not in OWN_ATTRIBUTES}


def split_names(text: str, known: Sequence[str]) -> list[str]:
    """The names in ``text``, which has commas between them; a known name may hold a comma itself."""
    return [text] if text in known else [name for part in text.split(",") if (name := part.strip())]


def to_json(data: Any) -> str:
    """``data`` as one line of JSON, in which every number is finite and every character printable."""
    # Only its texts hold such characters, and there an escape means the same.
    return _escaped(strict_json(data), lambda c: json.dumps(c)[1:-1])


def to_toml(data: Mapping[str, Any]) -> str:
    """``data`` as TOML, in which every character is printable.

    Raises:
        StudyhallError: it holds half a character, which TOML cannot say.
    """
    import tomli_w

    def escape(character: str) -> str:
        if "\ud800" <= character <= "\udfff":
            raise StudyhallError("a value holds half a character (a lone surrogate), which TOML can't; use json")
        return f"\\U{ord(character):08X}"

    return _escaped(tomli_w.dumps(data).rstrip(), escape)


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    """``text``, in which each character that standard output cannot show is escaped."""
    return text if _is_plain(text) else "".join(c if _is_plain(c) else escape(c) for c in text)


def _is_plain(text: str) -> bool:
    # A pipe in the C locale is ASCII: what it lacks is escaped in the way of the format.
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return text.replace("\n", "").isprintable() and (encoding in ("utf-8", "utf8") or text.isascii())


def echo_json(pages: Iterable[Sequence[Any]]) -> None:
    """Print the items of all pages as one JSON array in one line, a page at a time."""
    before = "["
    for page in pages:
        echo_data(before + ", ".join(map(to_json, page)), end="")
        before = ", "
    echo_data("[]" if before == "[" else "]")


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """CSV as RFC 4180 has it, but with line feeds alone, and none at the end; an empty cell for None."""
    written: list[str] = []
    # With a line's end of RFC 4180's, so that a cell that holds either half of it is quoted.
    csv.writer(_Lines(written.append)).writerows(rows)
    return "\n".join(line.removesuffix("\r\n") for line in written)


class _Lines(NamedTuple):
    """What :func:`csv.writer` writes to, a line at a time."""

    write: Callable[[str], None]


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[str] = ()) -> None:
    """Print a table without lines to standard output. Through a pipe every cell is whole; in a terminal the table is
    no wider than that, and the longest cells end in an ellipsis."""
    from rich.cells import cell_len

    lines = [list(map(printable, line)) for line in (header, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    is_terminal = sys.stdout.isatty()
    if is_terminal:
        widths = _fitted(widths, shutil.get_terminal_size().columns - 2 * (len(widths) - 1))
    found = []
    for line in lines:
        cells = []
        for name, cell, width in zip(header, line, widths, strict=True):
            cut = _cut(cell, width)
            space = " " * (width - cell_len(cut))
            cells.append(space + cut if name in numeric else cut + space)
        found.append("  ".join(cells).rstrip())
    first, *others = found
    echo(click.style(first, dim=True) if is_terminal else first, *others, styled=True)


def aligned(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Names and values for people, a line each; in a terminal a long name ends in an ellipsis."""
    from rich.cells import cell_len

    names = [printable(name) for name, _ in pairs]
    width = max(map(cell_len, names), default=0)
    if sys.stdout.isatty():
        width = min(width, shutil.get_terminal_size().columns // 2)
    cut = [_cut(name, width) for name in names]
    return [f"  {name}{' ' * (width - cell_len(name))}  {value}" for name, (_, value) in zip(cut, pairs, strict=True)]


def _fitted(widths: Sequence[int], room: int) -> list[int]:
    """The widths of columns, of which the widest give way until all fit."""
    fitted = list(widths)
    while sum(fitted) > room and max(fitted) > 1:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def _cut(text: str, width: int) -> str:
    """``text`` in so many columns of a terminal, of which a character may take two."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def readable(value: Any) -> str:
    """A parameter's value, for people: real numbers to four significant digits, odd text in quotes."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return shlex.quote(value) if isinstance(value, str) else to_text(value)


def echo(*lines: str, styled: bool = False) -> None:
    """Print lines for people to standard output. ``styled``: with colours of ours around printable text."""
    click.echo("\n".join(lines if styled else map(printable, lines)))


def echo_data(data: str, end: str = "\n") -> None:
    """Print data to standard output: unchanged for programs, escaped in a terminal."""
    if sys.stdout.isatty():
        data = "\n".join(map(printable, data.split("\n")))
    click.echo(data + end, nl=False, color=True)  # else click takes what looks like colours out of data


def _for_toml(data: Mapping[str, Any], within: str = "") -> tuple[dict[str, Any], list[str]]:
    """``data`` without the keys that hold null, or a list with null in it; and those keys, as TOML writes them."""
    said: dict[str, Any] = {}
    missing: list[str] = []
    for name, value in data.items():
        key = within + (name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name))
        if isinstance(value, dict):
            said[name], more = _for_toml(value, f"{key}.")
            missing += more
        elif _holds_none(value):
            missing.append(key)
        else:
            said[name] = value
    return said, missing


def _holds_none(data: Any) -> bool:
    parts = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return data is None or any(map(_holds_none, parts))
