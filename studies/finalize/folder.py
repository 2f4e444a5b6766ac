"""New folders that are whole or not there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from studies.errors import StudyhallError


def require_new(directory: Path, option: str) -> None:
    """Check that ``directory`` can be written. A link is replaced.

    Args:
        directory: the new folder.
        option: the option that names another one.

    Raises:
        StudyhallError: it exists, or is not accessible.
    """
    try:
        exists = directory.exists() and not directory.is_symlink()
    except OSError as error:
        raise _cannot_write(directory, option, error) from error
    if exists:
        raise StudyhallError(f"{str(directory)!r} exists; name another folder with {option}")


@contextmanager
def new_directory(directory: Path, option: str) -> Iterator[Path]:
    """A folder to write into, beside ``directory``, whose name it takes when it is complete; else it goes.

    Raises:
        StudyhallError: as :func:`require_new`; or it cannot be written.
    """
    require_new(directory, option)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise _cannot_write(directory, option, error) from error
    try:
        yield beside
        beside.chmod(0o755)
        if directory.is_symlink():
            directory.unlink()  # what it leads to is not ours
        beside.rename(directory)
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # gone already where all went well


def _cannot_write(directory: Path, option: str, error: OSError) -> StudyhallError:
    return StudyhallError(f"cannot write {str(directory)!r}: {error.strerror}; name another folder with {option}")
