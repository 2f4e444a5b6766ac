"""TARGET: a preset, a study file or a callable; and ``--set`` on top of it.

All of it becomes a plain dict, which :meth:`studies.spec.study.StudySpec.from_dict` validates.
"""

from __future__ import annotations

import ast
import os
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from studies.errors import SpecError, nearest
from studies.spec.script import Script, is_script


def preset_names() -> list[str]:
    """The presets that ship with the package, sorted."""
    folder = resources.files("studies.spec") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_target(target: str) -> dict[str, Any]:
    """The unvalidated spec that ``target`` stands for.

    A preset's name, a path ending in ``.toml``, or a callable (``file.py:callable``,
    ``package.module:callable``) that suggests its parameters for itself and is named after it.

    Raises:
        SpecError: no such preset or file, or TOML that does not parse.
    """
    if target in preset_names():
        return _parse_toml((resources.files("studies.spec") / "presets" / f"{target}.toml").read_text(), target)
    if target.endswith(".toml"):
        try:
            data = _parse_toml(Path(target).read_text(encoding="utf-8"), target)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise SpecError(f"cannot read the study file {target!r}: {reason}") from None
        _resolve_script(data, Path(target).parent)
        return data
    file, colon, attribute = target.rpartition(":")
    if colon and file:
        if file.endswith(".py"):
            # The absolute path: the same script gives the same study from any directory.
            return {
                "name": f"{Path(file).stem}-{attribute}",
                "objective": {"path": f"{Path(file).resolve()}:{attribute}"},
            }
        return {"name": f"{file.rpartition('.')[2]}-{attribute}", "objective": {"path": target}}
    if target.endswith(".py"):
        raise SpecError(f"{target!r} is a file; name the callable in it too: did you mean {_callable_in(target)!r}?")
    for file, attribute in ((f"{target}.py", ""), (f"{target.rpartition('.')[0]}.py", target.rpartition(".")[2])):
        if os.path.isfile(file):  # noqa: PTH113  # unlike Path's, it never raises
            meant = f"{file}:{attribute}" if attribute else _callable_in(file)
            raise SpecError(f"{target!r} is no callable; did you mean {meant!r}?")
    raise SpecError(
        f"{target!r} is neither a preset ({', '.join(preset_names())}), nor a study file (….toml), "
        f"nor a callable (file.py:callable, package.module:callable); {nearest(target, preset_names())}"
    )


def _callable_in(file: str) -> str:
    """The callable to suggest for a bare file: ``objective``, else its last function of one argument. The file is
    parsed, and never run."""
    names = []
    with suppress(OSError, SyntaxError, ValueError):  # an unreadable file: suggest the usual name
        for node in ast.parse(Path(file).read_bytes()).body:
            # As an objective of Optuna, which takes the trial alone.
            if isinstance(node, ast.FunctionDef) and len(node.args.args) - len(node.args.defaults) == 1:
                names.append(node.name)
    return f"{file}:{'objective' if 'objective' in names or not names else names[-1]}"


def override(data: dict[str, Any], setting: str) -> None:
    """Apply ``--set KEY=VALUE`` to ``data`` in place.

    The value is read by :func:`read_value`.

    Raises:
        SpecError: no ``=``, an empty part of the key, or a key below something that is no table.
    """
    key, equals, text = setting.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise SpecError(f"--set {setting!r} is not KEY=VALUE; for example --set budget.trials=20")
    table: Any = data
    for depth, part in enumerate(parts[:-1], start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise SpecError(f"--set {setting!r}: {'.'.join(parts[:depth])} is a value, not a table of keys")
    put(table, parts, read_value(text))


def read_value(text: str) -> Any:
    """A value as typed: TOML (``3``, ``1e-3``, ``true``, ``[1, 2]``, ``"text"``), else text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # no TOML, or an integer that is too long
        return text


def put(table: dict[str, Any], key: Sequence[str], value: Any) -> None:
    """Set ``key``, whose last part is in ``table``, and delete what it excludes: the options of another sampler,
    pruner or scheduler, the other one of ``direction`` and ``directions``."""
    if tuple(key) in (("sampler", "name"), ("pruner", "name"), ("scheduler", "name")) and table.get("name") != value:
        table.pop("options", None)
    if tuple(key) in (("direction",), ("directions",)):
        table.pop("direction", None)
        table.pop("directions", None)
    table[key[-1]] = value


def take_script(data: dict[str, Any]) -> Script | None:
    """Replace a script's path, which other machines do not have, by its name and hash.

    Returns:
        The script; ``None`` where ``data`` names none.

    Raises:
        ObjectiveError: it cannot be read, is no Python, or has no such name.
        SpecError: ``data`` gives the hash of another content.
    """
    objective = data.get("objective")
    if not isinstance(objective, dict):
        return None
    path = objective.get("path")
    if not isinstance(path, str) or not is_script(path):
        return None
    script = Script.read(path)
    script.require_attribute()
    # A study file that `studyhall show` wrote has the hash.
    given = objective.get("sha256", script.sha256)
    if given != script.sha256:
        raise SpecError(
            f"objective.sha256 = {given!r:.80}: {script.file} has {script.sha256}; "
            "leave the key out, or bring the script that it was"
        )
    data["objective"] = {**objective, "path": script.name, "sha256": script.sha256}
    return script


def _parse_toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{source}: not TOML: {error}") from None
    except ValueError:  # from 4,300 digits on Python reads none
        raise SpecError(f"{source}: not TOML: it holds a whole number of thousands of digits") from None


def _resolve_script(data: dict[str, Any], folder: Path) -> None:
    """Resolve a script relative to its study file, not to the current directory."""
    objective = data.get("objective")
    path = objective.get("path") if isinstance(objective, dict) else None
    file, colon, attribute = path.rpartition(":") if isinstance(path, str) else ("", "", "")
    if colon and file.endswith(".py"):
        data["objective"] = {**data["objective"], "path": f"{(folder / file).resolve()}:{attribute}"}
