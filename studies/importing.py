"""Importing the module that an objective is in, by its name or from a file.

What the user has beside a script or in the current folder comes after Python's modules and the installed ones: a
``copy.py`` there takes nobody's place.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from studies.errors import ObjectiveError, described


def import_module(name: str) -> ModuleType:
    """The module of that name; raises :exc:`ObjectiveError` where there is none, or it does not import."""
    try:
        # As for `python script.py`, modules beside the user are importable, but after Python's and the installed
        # ones; and only for this module: an optional import elsewhere must not find a file of this folder.
        if importlib.util.find_spec(name.partition(".")[0]) is None and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        with _collecting_rarely():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ObjectiveError(
                f"no module {error.name!r} for objective {name!r}; install it here, "
                "or start in the folder that holds it"
            ) from None
        raise _import_failure(name, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failure(name, error) from error


def import_file(file: Path, sha256: str | None = None) -> ModuleType:
    """The module in ``file``, a real path; raises :exc:`ObjectiveError` as :func:`import_module`, and where its
    content is not that of the hash ``sha256``."""
    if not os.path.isfile(file):  # noqa: PTH113  # unlike Path's, it never raises
        raise ObjectiveError(f"no file {str(file)!r} for the objective; give the path of a Python file on this machine")
    name = _module_name(file)
    if name in sys.modules:
        return sys.modules[name]  # for another study of this worker
    source = file.read_bytes()
    if sha256 not in (None, hashlib.sha256(source).hexdigest()):
        raise ObjectiveError(f"{file} has changed since its workers were started; start them again")
    loader = SourceFileLoader(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None  # it has a loader
    module = importlib.util.module_from_spec(spec)
    # The modules beside the script are importable, but a copy.py there must not take the place of Python's.
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    sys.modules[name] = module  # pickle finds the script's classes there
    try:
        with _collecting_rarely():
            exec(loader.source_to_code(source, file), module.__dict__)  # what was hashed, and no bytecode of before
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        if isinstance(error, ImportError) and "no known parent package" in str(error):
            raise ObjectiveError(
                f"objective {str(file)!r} is part of a package: {described(error)}; name it by its module, "
                f"in the folder that holds the package: {_name_in_package(file)}:callable"
            ) from error
        raise _import_failure(str(file), error) from error
    return module


@contextmanager
def _collecting_rarely() -> Iterator[None]:
    """Collect garbage rarely: modules stay, and to walk over them again and again is a sixth of ``import torch``."""
    before = gc.get_threshold()
    rarely = (1_000_000, *before[1:])
    gc.set_threshold(*rarely)
    try:
        yield
    finally:
        if gc.get_threshold() == rarely:  # else the module has chosen one
            gc.set_threshold(*before)


def _module_name(file: Path) -> str:
    """The file's stem; with a suffix where that is the name of another module, such as one of Python's."""
    with suppress(ValueError):  # a module without a spec, such as __main__
        found = importlib.util.find_spec(file.stem) if file.stem.isidentifier() else None
        if found is None or os.path.realpath(found.origin or "") == str(file):
            return file.stem
    return f"{file.stem}_{hashlib.sha256(bytes(file)).hexdigest()[:8]}"


def _name_in_package(file: Path) -> str:
    """The name by which a file's package imports it: ``lab.nets`` for ``…/lab/nets.py``."""
    parts = [file.stem]
    while (file := file.parent / "__init__.py").is_file():
        file = file.parent
        parts.append(file.name)
    return ".".join(reversed(parts))


def _import_failure(name: str, error: BaseException) -> ObjectiveError:
    if isinstance(error, SystemExit):
        return ObjectiveError(
            f"objective {name!r} calls sys.exit({error.code!r}) when it is imported; "
            'put what is a program under: if __name__ == "__main__":'
        )
    return ObjectiveError(f"objective {name!r} does not import: {described(error)}")
