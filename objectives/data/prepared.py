"""Data sets that are prepared once per machine, and mapped by every process that needs them.

- Preparing takes seconds of CPU and imports scikit-learn and pyarrow; mapping a file takes milliseconds, and the
  processes share its pages. Eight workers that start together prepare once: the others wait for the first.
- A file's name is a hash of everything that its content depends on, the code included, so no file is ever out of date:
  it is just no longer asked for, and goes after a while.
- A file is written beside its place and renamed. One whose checksums do not fit is made again.
- Where nothing can be written, each process prepares for itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import torch

from objectives.data.parts import Dataset, Part
from objectives.data.preprocessing import Category, NormalScore, Preprocessing
from objectives.data.raw import Column, one_line

log = logging.getLogger(__name__)

#: Files that nobody has asked for in so many seconds are deleted; and the longest unused ones where all take more
#: than so many bytes.
UNUSED_SECONDS, MOST_BYTES = 30 * 24 * 3600.0, 20 * 2**30
#: The file in which processes take turns.
_TURNS = ".lock"
#: What a file may hold beside tensors and plain values; nothing else in it is built, and none of it is run.
CLASSES = (Dataset, Part, Preprocessing, Category, NormalScore, Column)


def prepared(folder: Path, key: Callable[[], str], make: Callable[[], Dataset]) -> Dataset:
    """The data set of a key, mapped from its file; made first if there is none.

    Args:
        folder: where the files are.
        key: of the data set as it is now, see :func:`key_of`. Asked again after ``make``: what has changed meanwhile
            is used, and not kept.
        make: prepares the data set.
    """
    name = key()
    file = folder / name
    if kept := _read(file):
        return _told(kept)
    with _turn(folder, name) as may_write:
        # Another process may have prepared it while this one waited for its turn.
        if may_write and (kept := _read(file, warn=True)):
            return _told(kept)
        with _notices() as said:
            data = make()
        if may_write and key() == name:
            _write(file, {"data": data, "said": said})
            kept = _read(file)  # mapped as by the others: one copy in memory for all workers
    return kept["data"] if kept else data


def key_of(arguments: Mapping[str, object], files: Sequence[Path]) -> str:
    """A name for the data set that these arguments and files give.

    Args:
        arguments: JSON's.
        files: what is read; told apart by their times and sizes, since hashing them would take as long as reading.
    """
    states = [(str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
              for file in files for status in [file.stat()]]  # fmt: skip
    text = json.dumps([_code(), dict(arguments), states], sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.pt"


@cache
def _code() -> str:
    """What the content depends on beside the arguments: this package, and the libraries that parse and split."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    versions = [version(library) for library in ("numpy", "pyarrow", "scikit-learn")]
    return hashlib.sha256(
        b"\0".join([*(file.read_bytes() for file in sources), *map(str.encode, versions)])
    ).hexdigest()


class _Kept(TypedDict):
    """What a file holds."""

    data: Dataset
    said: list[tuple[int, str]]
    """(level, message) of what was logged of how the data were read: whoever maps them is told, too."""


def _told(kept: _Kept) -> Dataset:
    for level, message in kept["said"]:
        log.log(level, "%s", message)
    return kept["data"]


def _read(file: Path, *, warn: bool = False) -> _Kept | None:
    """``None`` where there is no such file, or a damaged one."""
    try:
        # torch.load checks no sums of mapped data: a flipped bit would train in silence.
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        with torch.serialization.safe_globals(list(CLASSES)):
            kept: _Kept = torch.load(file, mmap=True, weights_only=True)
        with suppress(OSError):
            os.utime(file)  # when it was last asked for
        return kept
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # damaged bytes raise nearly anything
        if warn:
            log.warning("%s cannot be used (%s); the data set is prepared again", file, one_line(error)[:200])
    return None


def _write(file: Path, kept: _Kept) -> None:
    beside = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        _clean(file.parent)
        torch.save(kept, beside)  # by its name: to a stream it would write copies
        # Else a power cut may leave the name without its bytes.
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.rename(file)
    except (OSError, RuntimeError) as error:  # torch's own of a full disk
        _say_unwritable(file.parent, error)
        with suppress(OSError):
            beside.unlink()


def _clean(folder: Path) -> None:
    """Deletes names only: whoever has mapped such a file keeps it."""
    unused: list[tuple[float, int, Path]] = []
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another data set's process cleans up as well
            status = file.stat()
            unused.append((time.time() - status.st_mtime, status.st_size, file))
    total = 0
    # The last used first: what comes after MOST_BYTES goes.
    for seconds, size, file in sorted(unused):
        total += size
        if file.name != _TURNS and (seconds > UNUSED_SECONDS or total > MOST_BYTES):
            file.unlink(missing_ok=True)


@contextmanager
def _turn(folder: Path, name: str) -> Iterator[bool]:
    """One process at a time prepares a data set; gives whether its file can be written."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            turns = stack.enter_context((folder / _TURNS).open("a"))
            # One byte of one file for each name: nothing to clean up, and other data sets need not wait.
            fcntl.lockf(turns, fcntl.LOCK_EX, 1, int(name[:8], 16))
            may_write = True
        except OSError as error:
            _say_unwritable(folder, error)
            may_write = False
        yield may_write


def _say_unwritable(folder: Path, error: Exception) -> None:
    log.warning(
        "prepared data cannot be kept in %s (%s); each worker prepares its own, in memory of its own",
        folder, one_line(error)[:200],
    )  # fmt: skip


@contextmanager
def _notices() -> Iterator[list[tuple[int, str]]]:
    """What is logged within of how the data were read: (level, message) each."""
    said: list[tuple[int, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((record.levelno, record.getMessage()))

    handler = Keep(logging.INFO)
    logger = logging.getLogger(__package__)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
