"""Writes docs/study-file.md and docs/command-line.md from the code. Run it with: python -m docs.generate

Each page keeps what is above its line ``MARK``; below it are the keys of the study file, from the models of
``studies.spec``, or the commands, from click. ``tests/unit/test_docs.py`` compares.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel

from studies.cli import studyhall
from studies.spec.samplers import PRUNERS, SAMPLERS, SCHEDULERS
from studies.spec.space import CategoricalParameter, FloatParameter, IntParameter
from studies.spec.study import StudySpec

HERE = Path(__file__).parent
MARK = "<!-- Generated from here on. Change the code, then run: python -m docs.generate -->\n"
SPACE = {"float": FloatParameter, "int": IntParameter, "categorical": CategoricalParameter}
#: What the validators of a key accept, where its type alone does not tell.
LEGAL = {
    "objective.path": "`package.module:callable` or `file.py:callable`",
    "constraints": '`{ METRIC = "<= NUMBER" }`, with `<=` or `>=`',
    "objective.sha256": "64 hexadecimal digits",
    "sampler.name": ", ".join(f"`{name}`" for name in SAMPLERS),
    "pruner.name": ", ".join(f"`{name}`" for name in PRUNERS),
    "scheduler.name": ", ".join(f"`{name}`" for name in SCHEDULERS),
    "checkpoints.store": "`postgresql`, a path, or `s3://bucket/prefix`",
    "notify.url": "an `http://` or `https://` URL",
    "space.NAME.when": "`{ PARENT = [VALUE, …] }`",
}
TYPES = {
    "boolean": "`true` or `false`",
    "integer": "whole number",
    "number": "number",
    "object": "table",
    "string": "text",
}


def study_file() -> str:
    """A table of the keys for each table of the study file."""
    fields = StudySpec.model_fields
    tables = {name: table for name, field in fields.items() if (table := _table(field.annotation))}
    plain = {name for name in fields if name not in tables and name != "space"}
    parts = ["## The study", "", *_keys(StudySpec, "", only=plain)]
    for name, model in tables.items():
        parts += ["", f"## [{name}]", "", _sentence(model), "", *_keys(model, f"{name}.")]
    parts += [
        "",
        "## [space]",
        "",
        "One table for each parameter, by its name. Without a space the objective suggests for itself.",
    ]
    for name, model in SPACE.items():
        parts += ["", f'### type = "{name}"', "", _sentence(model), "", *_keys(model, "space.NAME.")]
    return "\n".join(parts) + "\n"


def _table(annotation: Any) -> type[BaseModel] | None:
    """The model of a table, required or not; ``None`` of another key."""
    kinds = get_args(annotation) or (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _sentence(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "").replace("``", "`")


def _keys(model: type[BaseModel], prefix: str, only: set[str] | None = None) -> Iterator[str]:
    schema = model.model_json_schema()
    yield "| key | legal | default | |"
    yield "|---|---|---|---|"
    for name, key in schema["properties"].items():
        if name == "type" or (only is not None and name not in only):
            continue
        if "description" not in key:
            raise LookupError(f"{prefix}{name} has no description; add Field(description=…) to {model.__name__}")
        default = "required" if name in schema.get("required", []) else _default(key["default"])
        yield _row(f"`{name}`", LEGAL.get(f"{prefix}{name}") or _legal(key), default, key["description"])


def _default(value: Any) -> str:
    return "" if value in (None, {}) else f"`{json.dumps(value)}`"


def _legal(key: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in key:
        return " or ".join(_legal(kind) for kind in key["anyOf"] if kind["type"] != "null")
    if "enum" in key:
        return ", ".join(f"`{value}`" for value in key["enum"])
    if key["type"] == "array":
        kinds = _legal(key["items"])
        return f"list of {kinds}" if "anyOf" not in key["items"] else "list of texts, numbers, `true`, `false`"
    if key.get("format") == "duration":
        return _bounded("seconds, or text such as `45s`, `30m`, `2h`, `1d`, `1h30m`", key)
    return _bounded(TYPES[key["type"]], key)


def _bounded(words: str, key: Mapping[str, Any]) -> str:
    """``words`` with the bounds of the schema, by the names of JSON schema or, within a union, of pydantic."""
    names = (("above", "exclusiveMinimum", "gt"), ("from", "minimum", "ge"), ("below", "exclusiveMaximum", "lt"))
    bounds = [f"{word} {key[name]:,}" for word, *either in names for name in either if name in key]
    bounds += [f"to {round(key[name]):,}" for name in ("maximum", "le") if name in key]
    return f"{words}, {' '.join(bounds)}" if bounds else words


def command_line() -> str:
    """The help of every command, as the command prints it."""
    commands = list(_commands(click.Context(studyhall, info_name="studyhall", **studyhall.context_settings)))
    parts = ["| command | |", "|---|---|"]
    for context in commands:
        path, short = context.command_path, context.command.get_short_help_str(limit=1000)
        parts.append(_row(f"[`{path}`](#{path.replace(' ', '-')})", short))
    for context in commands:
        parts += ["", f"## {context.command_path}", "", "```text", context.get_help(), "```"]
    return "\n".join(parts) + "\n"


def _commands(context: click.Context) -> Iterator[click.Context]:
    """The contexts of all commands below a group's."""
    assert isinstance(context.command, click.Group)
    for name, command in context.command.commands.items():
        below = click.Context(command, info_name=name, parent=context, terminal_width=78)
        if isinstance(command, click.Group):
            yield from _commands(below)
        else:
            yield below


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


PAGES = {"study-file.md": study_file, "command-line.md": command_line}


def page(name: str) -> str:
    """The page ``name`` of docs/ as it should be."""
    above, mark, _ = (HERE / name).read_text().partition(MARK)
    if not mark:
        raise LookupError(f"docs/{name} has no line {MARK!r}")
    return f"{above}{mark}\n{PAGES[name]()}"


if __name__ == "__main__":
    for name in PAGES:
        (HERE / name).write_text(page(name))
