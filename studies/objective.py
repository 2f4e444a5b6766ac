"""Objectives: importing one by its path, and building it from the spec's ``args``.

An objective is a callable ``f(trial) -> float``, or a class that is built with ``args`` and whose
instances are such callables. Beyond that a class may have

- a constructor parameter ``data_dir``: it is given this machine's data directory (the spec holds
  nothing that differs between machines);
- an attribute ``parameters``: the names of all parameters it understands; a space with another
  name is refused before anything is written;
- an attribute ``direction``: ``minimize`` or ``maximize``, of several objectives a list of these; a study with another
  one is refused, and one that says none takes it;
- an attribute ``metrics``: the names of all metrics it reports; a constraint on another one is refused;
- a method ``check_params(params)``, which raises :exc:`ValueError` where no trial can have these, be they some or all:
  a space that allows them is refused before anything is written;
- an attribute ``epochs``: how many steps each trial trains; a scheduler with a rung at that step or beyond is refused
  before anything is written;
- a method ``finalize`` (see :mod:`studies.finalize`);
- methods ``slots`` and ``train``, to train several trials at once (see ``docs/objectives.md``).

What ``trial`` can do is in :mod:`studies.trial`.
"""

from __future__ import annotations

import functools
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

from studies.checkpoint_stores import PERMISSION
from studies.errors import ObjectiveError, command, nearest, one_line
from studies.importing import import_file, import_module
from studies.spec import script
from studies.values import to_text

Objective = Callable[[Any], Any]

#: The function of an objective's module by which MLflow loads a final model.
LOADER = "_load_pyfunc"
#: The prefix that is always allowed: the objectives that ship with Studyhall.
BUILT_IN_PREFIX = "objectives."


def is_allowed(path: str, prefixes: Sequence[str]) -> bool:
    """Whether an operator who allows ``prefixes`` lets a study choose the objective ``path``.

    ``lab`` and ``lab.`` allow the package ``lab`` and its modules, ``/srv/script.py`` and ``/srv/`` files, links
    and ``..`` resolved; a prefix with a colon allows the one object that it names.

    Raises:
        ObjectiveError: ``path`` is no legal path.
    """
    source, _ = _parse(path)
    return _is_named(path, prefixes) or _covers(source, prefixes)


def require_allowed(path: str, prefixes: Sequence[str], study: str) -> None:
    """Raise :exc:`ObjectiveError` unless the operator lets ``study`` choose the objective ``path``.

    Checks the path only; :func:`build` checks the object.
    """
    if script.lies_anywhere(path):
        raise ObjectiveError(
            f"study {study!r} runs the script {path}; say where it lies on this machine: {script.hint(path)}"
        )
    if not is_allowed(path, prefixes):
        raise ObjectiveError(
            f"study {study!r} runs {path!r}, which this machine does not allow; "
            f"if you trust it: --allow {shlex.quote(path)}"
        )


def work_command(study: str, path: str | None, store: str | None, *, at: str | None = None) -> str:
    """The `work` command of a study, to paste, with the options that it needs.

    Args:
        study: its name.
        path: of its objective; ``None`` where stock Optuna made the study.
        store: where its checkpoints lie; a directory may be anywhere on another machine.
        at: where this machine has the script, if that is known.
    """
    words = ["work", study]
    if path and script.lies_anywhere(path):
        words += ["--objective", at or script.found_as(path)]
    elif path:
        words += way_to_allow(path)
    if store not in (None, "postgresql"):
        words += ["--allow", f"{PERMISSION}{store}"]
    return command(*words)


def way_to_allow(path: str) -> list[str]:
    """The options that allow ``path``; none if it needs none, or is illegal, which `work` reports."""
    try:
        return [] if is_allowed(path, ()) else ["--allow", path]
    except ObjectiveError:
        return []


def build(
    path: str,
    args: Mapping[str, Any],
    *,
    allow: Sequence[str],
    space: tuple[str, ...] = (),
    data_dir: Path,
    sha256: str | None = None,
) -> Objective:
    """Import the objective ``path`` and build it.

    Args:
        path: ``package.module:callable`` or ``path/to/file.py:callable``.
        args: keyword arguments of a class; empty for a function.
        allow: what may be chosen beside the built-in objectives, as :func:`is_allowed` takes it.
        space: the names that the study samples.
        data_dir: where this machine keeps data sets.
        sha256: of a script's content, in hexadecimal; ``None`` for any.

    Raises:
        ObjectiveError: it is not allowed, has another content, does not import, is not callable, refuses
            ``args``, or does not understand a name of ``space``.
    """
    target = import_objective(path, allow, sha256)
    if not callable(target):
        raise ObjectiveError(f"objective {path!r} is not callable (it is {_kind(target)}); name a function or a class")
    objective: Any = target
    if inspect.isclass(target):
        # Before it is built: building may have effects.
        if not any("__call__" in vars(base) for base in target.__mro__):
            raise ObjectiveError(
                f"instances of objective {path!r} are not callable; give the class a __call__(self, trial)"
            )
        objective = _construct(path, target, args, data_dir)
    elif args:
        raise ObjectiveError(
            f"objective {path!r} is a function, which takes no objective.args ({', '.join(args)}); "
            "remove them, or make it a class built with them"
        )
    known = getattr(objective, "parameters", None)
    _check_takes_trial(path, objective)
    for name in space:
        if known is not None and name not in known:
            raise ObjectiveError(f"objective {path!r} has no parameter {name!r} (space.{name}); {nearest(name, known)}")
    built: Objective = objective
    return built


def directions_of(path: str, objective: Any) -> list[str] | None:
    """Whether each value that an objective returns is to be minimized or maximized; ``None`` where it does not say.

    Raises:
        ObjectiveError: it says something else.
    """
    direction = getattr(objective, "direction", None)
    if direction is None:
        return None
    directions = list(direction) if isinstance(direction, list | tuple) else [direction]
    if not directions or any(each not in ("minimize", "maximize") for each in directions):
        raise ObjectiveError(
            f"objective {path!r} has direction = {direction!r:.80}; it must be 'minimize' or 'maximize', or a list of "
            "these, by which Studyhall checks a study, or have another name"
        )
    return directions


def check_constraints(path: str, objective: Any, names: Sequence[str]) -> None:
    """Check that an objective reports what a study constrains.

    Args:
        path: of the objective.
        objective: as it was built.
        names: of the constraints that are on no value that the objective returns.

    Raises:
        ObjectiveError: it says what it reports, and that lacks one.
    """
    known = getattr(objective, "metrics", None)
    for name in names:
        if known is not None and name not in known:
            raise ObjectiveError(
                f"objective {path!r} reports no metric {name!r} (constraints.{name}); {nearest(name, known)}"
            )


def check_space(path: str, objective: Any, space: Mapping[str, Any]) -> None:
    """Ask an objective for what it can't train of a space: for its extremes, each alone and every two together.

    Args:
        path: of the objective.
        objective: as it was built.
        space: of a study, as JSON has it.

    Raises:
        ObjectiveError: it refuses some.
    """
    if not hasattr(objective, "check_params"):
        return
    from studies.spec.space import corners, read_space

    for params in corners(read_space(space)):
        try:
            objective.check_params(params)
        except ValueError as error:
            shown = " ".join(f"{name}={to_text(value)}" for name, value in params.items())
            raise ObjectiveError(f"objective {path!r} refuses {shown} of the space: {one_line(error)}") from error


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


def import_objective(path: str, allow: Sequence[str], sha256: str | None = None) -> Any:
    """The object that ``path`` names.

    The path leads from the module through classes alone, never into another module. Where ``allow`` names just
    a prefix, the study chooses the object, which then must be defined in what the prefix covers. Where it names
    the object itself, its operator has chosen it, wherever it was defined.

    Raises:
        ObjectiveError: it is not allowed, has another content than ``sha256``, does not import, or is not there.
    """
    source, names = _parse(path)
    is_named = _is_named(path, allow)
    if not is_named and not _covers(source, allow):
        raise ObjectiveError(f"objective {path!r} is not allowed here; if you trust it: --allow {shlex.quote(path)}")
    module = import_file(source, sha256) if isinstance(source, Path) else import_module(source)
    target: Any = module
    for depth, name in enumerate(names):
        is_other_module = isinstance(target, ModuleType) and target is not module
        if is_other_module or not (is_named or target is module or inspect.isclass(target)):
            raise ObjectiveError(
                f"objective {path!r} leads through {'.'.join(names[:depth])!r}, which is {_kind(target)}; "
                "a path leads through classes alone: name a function or a class by its own module"
            )
        try:
            target = getattr(target, name) if is_named else _member(target, name)
        except AttributeError:
            public = [name for name in vars(target) if not name.startswith("_")]
            raise ObjectiveError(
                f"{path.rpartition(':')[0]!r} has no {'.'.join(names)!r}; {nearest(name, public)}"
            ) from None
    definition = _definition(target)
    if not is_named and callable(target) and not _is_defined_in(module, definition, allow):
        raise ObjectiveError(
            f"objective {path!r} is defined in {definition.__module__!r}, which this machine does not allow; "
            f"if you trust it: --allow {shlex.quote(path)}"
        )
    return target


def _parse(path: str) -> tuple[str | Path, list[str]]:
    """A module's name, or a file's real path; and the names that lead from there to the object."""
    source, _, attribute = path.rpartition(":")
    names = attribute.split(".")
    # Names such as __globals__ lead out of the module, to anything.
    if all(name.isidentifier() and not name.startswith("__") for name in names):
        if all(part.isidentifier() for part in source.split(".")) and not source.endswith(".py"):
            return source, names
        try:
            if source.endswith(".py"):
                return Path(os.path.realpath(source)), names
        except ValueError:
            pass  # NUL, or a surrogate
    raise ObjectiveError(
        f"objective {path!r} is not package.module:callable or path/to/file.py:callable, without names like __this__"
    )


def _is_named(path: str, prefixes: Sequence[str]) -> bool:
    named = [prefix for prefix in prefixes if ":" in prefix and not prefix.startswith(PERMISSION)]
    return any(_parse(prefix) == _parse(path) for prefix in named)


def _covers(source: str | Path, prefixes: Sequence[str]) -> bool:
    """Whether one of ``prefixes`` covers a module of that name, or a file of that real path."""
    for prefix in (BUILT_IN_PREFIX, *prefixes):
        if isinstance(source, Path):
            is_path = ("/" in prefix or prefix.endswith(".py")) and ":" not in prefix
            if is_path and not prefix.startswith(PERMISSION) and source.is_relative_to(os.path.realpath(prefix)):
                return True
        # With the point: lab must not allow labyrinth.
        elif (package := prefix.removesuffix(".")) and (source == package or source.startswith(f"{package}.")):
            return True
    return False


def _member(holder: ModuleType | type, name: str) -> Any:
    """What ``holder`` binds to ``name``, found without running code: neither __getattr__ nor a property."""
    found = inspect.getattr_static(holder, name)
    if isinstance(found, staticmethod):
        return found.__func__
    return MethodType(found.__func__, holder) if isinstance(found, classmethod) else found


def _definition(target: Any) -> FunctionType | type:
    """The function or the class that says what a call of ``target`` does."""
    # By their own types these would be defined in Python, whatever they call.
    while isinstance(target, functools.partial | MethodType):
        target = target.func if isinstance(target, functools.partial) else target.__func__
    return target if isinstance(target, FunctionType | type) else type(target)


def _is_defined_in(module: ModuleType, definition: FunctionType | type, prefixes: Sequence[str]) -> bool:
    name: object = definition.__module__
    if not isinstance(name, str):
        return False
    if _covers(name, prefixes):
        return True
    home = module if name == module.__name__ else sys.modules.get(name)
    file = getattr(home, "__file__", None)
    return isinstance(file, str) and _covers(Path(os.path.realpath(file)), prefixes)


def _construct(path: str, cls: type, args: Mapping[str, Any], data_dir: Path) -> Any:
    signature = inspect.signature(cls)
    given = dict(args)
    if "data_dir" in signature.parameters:
        if "data_dir" in args:  # a study would choose where this machine writes
            raise ObjectiveError(
                f"objective {path!r} is given this machine's data directory: leave out objective.args.data_dir, "
                "and give --data-dir DIR"
            )
        given["data_dir"] = data_dir
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


def _kind(value: Any) -> str:
    # Not the value: that may be a secret of its module.
    return f"a module ({value.__name__})" if isinstance(value, ModuleType) else f"of type {type(value).__name__}"


def require_loader(path: str, allow: Sequence[str]) -> ModuleType:
    """The module by which MLflow loads the models of an objective.

    Raises:
        ObjectiveError: it is not allowed here, or has no such module.
    """
    if script.is_script(path):
        raise ObjectiveError(
            f"objective {path!r} is a script, and a registered model needs a module: put it into a package"
        )
    import_objective(path, allow)
    module = sys.modules[path.partition(":")[0]]
    if not hasattr(module, LOADER):
        raise ObjectiveError(
            f"module {module.__name__!r} has no function {LOADER}(directory), by which MLflow loads a model; "
            "give it one, as objectives.mlp has"
        )
    return module


def trains_several(objective: Any) -> bool:
    """Whether an objective, as it was built, may train several trials at once.

    Not a subclass of one that may, with a ``__call__`` of its own: that would never be called.
    """
    for cls in type(objective).__mro__:
        if "train" in vars(cls):
            return True
        if "__call__" in vars(cls):
            return False
    return False


def steps_of(objective: Any) -> int | None:
    """How many steps an objective trains: its attribute ``epochs``; ``None`` where it does not say."""
    epochs = getattr(objective, "epochs", None)
    return epochs if isinstance(epochs, int) and epochs > 0 else None


def slots_of(objective: Any, device: str, wanted: int | None = None) -> int:
    """How many trials an objective trains at once: ``wanted`` or what it chooses, or fewer, as it says; else one."""
    return max(1, int(objective.slots(device, wanted))) if trains_several(objective) else 1
