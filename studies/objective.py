"""Objectives: importing one by its path, and building it from the spec's ``args``.

An objective is a callable ``f(trial) -> float``, or a class that is built with ``args`` and whose
instances are such callables. Beyond that a class may have

- a constructor parameter ``data_dir``: it is given this machine's data directory (the spec holds
  nothing that differs between machines);
- an attribute ``parameters``: the names of all parameters it understands; a space with another
  name is refused before anything is written;
- a method ``finalize`` (see :mod:`studies.finalize`).

What ``trial`` can do is in :mod:`studies.trial`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from studies.errors import ObjectiveError, nearest

Objective = Callable[[Any], Any]

#: What a worker may import without being told: the objectives that ship with Studyhall.
BUILT_IN_PREFIX = "objectives."


def is_allowed(path: str, prefixes: tuple[str, ...]) -> bool:
    """Whether an operator who allows ``prefixes`` lets a study choose the objective ``path``.

    A prefix ends at a boundary: ``lab`` allows ``lab.nets:Net`` and ``lab:Net``, not ``labour:f``.
    """
    return any(
        path == prefix or (path.startswith(prefix) and (prefix[-1:] in ".:/" or path[len(prefix)] in ".:/"))
        for prefix in filter(None, (BUILT_IN_PREFIX, *prefixes))
    )


def require_allowed(path: str, prefixes: tuple[str, ...], study: str) -> None:
    """Raise :exc:`ObjectiveError` unless the operator lets ``study`` choose the objective ``path``."""
    if not is_allowed(path, prefixes):
        raise ObjectiveError(
            f"study {study!r} runs {path!r}, which this machine does not allow; "
            f"if you trust it: --allow {shlex.quote(path)}"
        )


def build(path: str, args: Mapping[str, Any], *, space: tuple[str, ...] = (), data_dir: Path) -> Objective:
    """Import the objective ``path`` and build it.

    Args:
        path: ``package.module:callable`` or ``path/to/file.py:callable``.
        args: keyword arguments of a class; empty for a function.
        space: the names that the study samples.
        data_dir: where this machine keeps data sets.

    Raises:
        ObjectiveError: it does not import, is not callable, refuses ``args``, or does not
            understand a name of ``space``.
    """
    target = import_objective(path)
    if not callable(target):
        raise ObjectiveError(f"objective {path!r} is not callable (it is {_kind(target)}); name a function or a class")
    objective: Any = target
    if inspect.isclass(target):
        objective = _construct(path, target, args, data_dir)
    elif args:
        raise ObjectiveError(
            f"objective {path!r} is a function, which takes no objective.args ({', '.join(args)}); "
            "remove them, or make it a class built with them"
        )
    if not callable(objective):
        raise ObjectiveError(
            f"instances of objective {path!r} are not callable; give the class a __call__(self, trial)"
        )
    known = getattr(objective, "parameters", None)
    _check_takes_trial(path, objective)
    for name in space:
        if known is not None and name not in known:
            raise ObjectiveError(f"objective {path!r} has no parameter {name!r} (space.{name}); {nearest(name, known)}")
    built: Objective = objective
    return built


def _check_takes_trial(path: str, objective: Any) -> None:
    try:
        signature = inspect.signature(objective)
    except ValueError:
        return  # some built-in callables have none
    try:
        signature.bind(None)
    except TypeError as error:
        raise ObjectiveError(
            f"objective {path!r} cannot be called with one trial: {one_line(error)}; it should be f(trial)"
        ) from None


def import_objective(path: str) -> Any:
    """The object that ``path`` names; raises :exc:`ObjectiveError` where there is none."""
    source, _, attribute = path.rpartition(":")
    module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    target: Any = module
    for part in attribute.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            public = [name for name in vars(target) if not name.startswith("_")]
            raise ObjectiveError(f"{source!r} has no {attribute!r}; {nearest(part, public)}") from None
    return target


def _import_module(name: str) -> ModuleType:
    # As for `python script.py`, modules beside the user are importable; an installed script has
    # only its own folder on the path.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ObjectiveError(
                f"no module {error.name!r} for objective {name!r}; install it here, "
                f"or name a file: path/to/file.py:callable"
            ) from None
        raise _import_failure(name, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failure(name, error) from error


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise ObjectiveError(f"no file {str(file)!r} for the objective; give the path of a Python file on this machine")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None  # a .py file always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As for `python script.py`: the modules beside the script come first, and pickle finds the script's own.
    sys.path.insert(0, str(file.parent))
    sys.modules.setdefault(file.stem, module)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _import_failure(str(file), error) from error
    return module


def _import_failure(name: str, error: BaseException) -> ObjectiveError:
    if isinstance(error, SystemExit):
        return ObjectiveError(
            f"objective {name!r} calls sys.exit({error.code!r}) when it is imported; "
            'put what is a program under: if __name__ == "__main__":'
        )
    return ObjectiveError(f"objective {name!r} does not import: {type(error).__name__}: {one_line(error)}")


def _construct(path: str, cls: type, args: Mapping[str, Any], data_dir: Path) -> Any:
    signature = inspect.signature(cls)
    given = dict(args)
    if "data_dir" in signature.parameters:
        given.setdefault("data_dir", data_dir)
    try:
        signature.bind(**given)
    except TypeError as error:
        legal = [name for name in signature.parameters if name != "data_dir"]
        unknown = [name for name in args if name not in legal]
        hint = nearest(unknown[0], legal) if unknown else f"it takes: {', '.join(legal)}"
        raise ObjectiveError(f"objective {path!r} does not accept objective.args: {one_line(error)}; {hint}") from None
    try:
        return cls(**given)
    except Exception as error:
        # ValueError and its kind are the objective's own words about its arguments or data.
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ObjectiveError(f"objective {path!r}: {name}{one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The message of ``error`` without line breaks; its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _kind(value: Any) -> str:
    return f"a module ({value.__name__})" if isinstance(value, ModuleType) else f"{value!r:.60}"
