"""A script that holds an objective: a study knows it by its file name and content, and each machine by its own path.

So the same study runs wherever the same content lies, and nothing that the database stores chooses a file.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shlex
import symtable
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from studies.errors import ObjectiveError, nearest

#: Statements that may bind names which only running the code shows.
_DYNAMIC: Final = frozenset({"exec", "globals", "locals", "setattr", "vars"})
#: Trial attribute: the hash of the script that ran it, if it differs from the study's.
CHANGED_SCRIPT: Final = "script_sha256"
#: Trial attributes that workers set, not objectives.
OWN_ATTRIBUTES: Final = ("error", "traceback", CHANGED_SCRIPT)


@dataclass(frozen=True, kw_only=True)
class Script:
    """A callable in a Python file of this machine, with the file's hash."""

    file: Path
    """The real path."""
    attribute: str
    """The callable's name in it."""
    sha256: str
    """Of the content, in hexadecimal."""

    @classmethod
    def read(cls, path: str) -> Self:
        """The script of ``path/to/file.py:callable``; raises :exc:`ObjectiveError` if it cannot be read."""
        name, _, attribute = path.rpartition(":")
        try:
            file = Path(os.path.realpath(name))
            return cls(file=file, attribute=attribute, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
        except (OSError, ValueError):  # of a NUL, or half a surrogate pair
            raise ObjectiveError(
                f"no file {name!r} for the objective; give the path of a Python file on this machine"
            ) from None

    def require_attribute(self) -> None:
        """Raise :exc:`ObjectiveError` where the file is no Python, or cannot have the callable's name.

        The file is parsed, and not run: a study may be created where its objective cannot be imported.
        """
        source = self.file.read_bytes()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the workers show warnings about the script's text
                tree = ast.parse(source)
                # The symbol table knows every way to bind a name (with, for, import, :=).
                table = symtable.symtable(source, self.file.name, "exec")  # type: ignore[arg-type]  # bytes, too
        except (SyntaxError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            at = f", line {line}" if line else ""
            what = error.msg if isinstance(error, SyntaxError) else "too deeply nested"
            raise ObjectiveError(f"{self.file.name}{at}: {what}; correct the file, then try again") from None
        bound = {each.get_name(): each for each in table.get_symbols() if each.is_assigned() or each.is_imported()}
        name = self.attribute.partition(".")[0]  # of Class.method the class: only running it shows what it has
        if name not in bound and "__getattr__" not in bound and not any(map(_binds_unseen, ast.walk(tree))):
            own = [each for each, symbol in bound.items() if not symbol.is_imported() and not each.startswith("_")]
            raise ObjectiveError(f"{self.file.name} has no {name!r}; {nearest(name, own)}")

    @property
    def path(self) -> str:
        """What names the callable on this machine."""
        return f"{self.file}:{self.attribute}"

    @property
    def name(self) -> str:
        """What names the callable in a study."""
        return f"{self.file.name}:{self.attribute}"

    @property
    def shown(self) -> str:
        """What names the callable in the current folder, for people to type."""
        here = Path.cwd().resolve()
        return f"{self.file.relative_to(here)}:{self.attribute}" if self.file.is_relative_to(here) else self.path


def _binds_unseen(node: ast.AST) -> bool:
    """Whether a part of a module may bind names that are not in its text."""
    return (
        (isinstance(node, ast.ImportFrom) and node.names[0].name == "*")
        or (isinstance(node, ast.Name) and node.id in _DYNAMIC)
        or isinstance(node, ast.Global)
    )


def is_script(path: str) -> bool:
    """Whether an objective's path names a file, and not a module."""
    return path.rpartition(":")[0].endswith(".py")


def lies_anywhere(path: str) -> bool:
    """Whether an objective is a script by its bare name. Older studies have an absolute path."""
    return is_script(path) and not path.startswith("/")


def short(sha256: str) -> str:
    """A content's hash, for people."""
    return f"{sha256[:12]}…"


def find(
    path: str, sha256: str | None, scripts: Sequence[Script], study: str, *, allow_changed: bool = False
) -> Script | None:
    """The one of ``scripts`` that a study runs: by its content, else by its file name.

    Args:
        path: the study's, as it is stored.
        sha256: of the content with which the study was made; ``None`` where an older studyhall made it.
        scripts: what the operator of this machine gives.
        study: its name.
        allow_changed: take another content, too.

    Returns:
        The script, or ``None`` where none of ``scripts`` is it.

    Raises:
        ObjectiveError: the content is another one.
    """
    if not is_script(path):
        return None
    file, _, attribute = path.rpartition(":")
    candidates = [script for script in scripts if script.attribute == attribute]
    same = [script for script in candidates if script.sha256 == sha256]
    named = [script for script in candidates if script.file.name == Path(file).name]
    script = next(iter([*same, *named]), None)
    if script and sha256 not in (None, script.sha256) and not allow_changed:
        raise ObjectiveError(
            f"study {study!r} was made with {Path(file).name} of SHA-256 {short(str(sha256))}, and {script.file} has "
            f"{short(script.sha256)}: bring the same file here, or add --allow-changed, which each trial "
            "records"
        )
    return script


def hint(path: str) -> str:
    """``--objective`` for a study's script, as it can be typed where the script lies in the current folder."""
    return shlex.join(["--objective", found_as(path)])


def found_as(path: str) -> str:
    """A study's script as it is in the current folder; a path to be filled in where it is not there."""
    return path if Path(path.rpartition(":")[0]).is_file() else f"path/to/{path}"
