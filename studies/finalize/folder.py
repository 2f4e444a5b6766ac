"""New folders that are whole or not there."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from studies.errors import StudyhallError

#: The file by which a process has a folder that is not complete yet.
_LOCK: Final = ".lock"


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

    What a process that was killed has left is removed first.

    Raises:
        StudyhallError: as :func:`require_new`; or it cannot be written, or another process is writing it.
    """
    require_new(directory, option)
    # In the same parent: a rename is atomic within a file system alone.
    beside = directory.with_name(f".{directory.name}.part")
    try:
        lock = _begin(directory, beside, option)
    except OSError as error:
        raise _cannot_write(directory, option, error) from error
    with lock:
        try:
            yield beside
            _finish(directory, beside, option)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def _begin(directory: Path, beside: Path, option: str) -> IO[str]:
    """The empty folder ``beside``, for as long as its lock is open."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    # It may be there, of a process that was killed or of one that is at work: the lock tells which.
    beside.mkdir(mode=0o700, exist_ok=True)
    lock = (beside / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last owner may have removed or renamed it between the two lines before.
        if not os.path.samestat(os.fstat(lock.fileno()), (beside / _LOCK).stat()):
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        lock.close()
        raise StudyhallError(
            f"another process is writing {str(directory)!r}; wait for it, or name another folder with {option}"
        ) from None
    # All but the lock: on a new file the next process would get a lock of its own.
    for left in beside.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left.name != _LOCK:
            left.unlink()
    return lock


def _finish(directory: Path, beside: Path, option: str) -> None:
    try:
        beside.chmod(0o755)
        if directory.is_symlink():
            directory.unlink()  # what it leads to is not ours
        beside.rename(directory)
        # After the rename: before it, another process could take the folder as abandoned, and empty it.
        (directory / _LOCK).unlink()
    except OSError as error:
        raise _cannot_write(directory, option, error) from error


def _cannot_write(directory: Path, option: str, error: OSError) -> StudyhallError:
    return StudyhallError(f"cannot write {str(directory)!r}: {error.strerror}; name another folder with {option}")
