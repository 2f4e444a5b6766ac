"""Where checkpoints lie outside of PostgreSQL: in a directory that the machines share, or in an S3 bucket.

PostgreSQL is the index of all checkpoints, with their size and SHA-256, and by default holds the bytes too. A
store holds opaque bytes under names such as ``12/3-7``: trial number, epoch of the lease, a number that grows
within the lease. So no two workers write the same name, and what the index does not know may be deleted.
"""

from __future__ import annotations

import errno
import math
import os
import random
import re
import secrets
import shlex
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Protocol

from studies.errors import CheckpointError, one_line
from studies.spec.locations import validate_location

#: Begins what an operator allows as a place for checkpoints: ``store=/shared/checkpoints``, ``store=s3://bucket``.
PERMISSION: Final = "store="
_NAME = re.compile(r"([0-9]+)/([0-9]+-[0-9]+)")
_LITTER_SECONDS: Final = 3600.0
"""A half-written file as old as this was left by a writer that was killed."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY


def require_allowed(location: str, allow: Sequence[str], data_dir: Path, study: str) -> None:
    """Raise :exc:`CheckpointError` unless a machine's operator lets ``study`` keep checkpoints at ``location``.

    Args:
        location: a valid one.
        allow: what is allowed; of it, what begins with :data:`PERMISSION`.
        data_dir: of this machine, below which every study may; links and ``..`` are resolved.
        study: for the message.
    """
    places = [place for entry in allow if (place := entry.removeprefix(PERMISSION)) and place != entry]
    if location == "postgresql":
        return
    if location.startswith("s3://"):
        is_allowed = any(f"{location}/".startswith(f"{place.rstrip('/')}/") for place in places)
    else:
        folders = [str(data_dir), *(place for place in places if not place.startswith("s3://"))]
        is_allowed = any(Path(os.path.realpath(location)).is_relative_to(os.path.realpath(each)) for each in folders)
    if not is_allowed:
        raise CheckpointError(
            f"study {study!r} keeps checkpoints in {location!r}, which this machine does not allow; "
            f"if you trust it: --allow {shlex.quote(PERMISSION + location)}"
        )


class CheckpointStore(Protocol):
    """The bytes of one study's checkpoints, by name; safe to use from several threads and processes.

    Every method raises :exc:`CheckpointError` if the store cannot be used, :exc:`ValueError` for an illegal name.
    """

    location: str
    """For messages."""

    def write(self, name: str, data: bytes) -> None:
        """Store all of ``data``, or change nothing; durable when it returns."""

    def read(self, name: str) -> bytes | None:
        """The bytes of a checkpoint; ``None`` if there is none."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete checkpoints. Idempotent."""

    def names(self) -> list[str]:
        """The names of all complete checkpoints, sorted. Deletes files that killed writers left an hour ago."""

    def clear(self) -> None:
        """Delete everything of the study. No worker may be running."""
        self.delete(self.names())

    def check(self) -> None:
        """Write, read and delete a test object; raise if that fails."""
        name, data = f"{secrets.randbits(60)}/0-0", secrets.token_bytes(64)  # no lease has epoch 0
        self.write(name, data)
        try:
            kept = self.read(name) == data
        finally:
            self.delete([name])
        if not kept or self.read(name) is not None:
            raise CheckpointError(f"{self.location} does not keep or delete what it is told to: see to its server")


def open_store(location: str, study: str) -> CheckpointStore:
    """The store for the study with the unique id ``study``, at a valid location other than ``postgresql``.

    Raises:
        CheckpointError: the directory is not there and cannot be made, or boto3 is not there.
    """
    study = str(uuid.UUID(study))  # part of a path: only a UUID is safe
    location = validate_location(location)
    if location == "postgresql":
        raise ValueError("PostgreSQL holds its checkpoints without a store")
    return S3Store(location, study) if location.startswith("s3://") else DirectoryStore(location, study)


class DirectoryStore(CheckpointStore):
    """Checkpoints as files ``root/study/trial/epoch-sequence``.

    Below the root no link is followed: each directory is opened relative to the one above, so that nobody who
    can write there leads us elsewhere. The root itself may be a link: that is its operator's choice.
    """

    def __init__(self, root: str, study: str) -> None:
        self.location = root
        self._study = study
        # Not its parents, and not later: where a share is not mounted, or goes away in the midst of a run, a
        # local directory must not take its place.
        with self._explained("used"):
            if not Path(root).is_dir():
                with suppress(FileNotFoundError), _opened(Path(root).parent) as parent:
                    _make(Path(root).name, parent)
            with self._open():
                pass

    def write(self, name: str, data: bytes) -> None:
        trial, file = _split(name)
        with self._explained("written", name):
            for tries_left in reversed(range(20)):
                try:
                    with self._open(self._study, trial, make=True) as directory:
                        self._refuse_link(directory, self._study, trial, file)
                        _replace(file, data, directory)
                    return
                except OSError as exc:
                    self._remove_empty(trial)
                    if not tries_left or exc.errno not in (errno.ENOENT, errno.ESTALE):
                        raise
                    time.sleep(random.uniform(0, 0.01))  # another process has just deleted the empty folder

    def read(self, name: str) -> bytes | None:
        trial, file = _split(name)
        with self._explained("read", name), suppress(FileNotFoundError), self._open(self._study, trial) as directory:
            self._refuse_link(directory, self._study, trial, file)
            with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory), "rb") as stream:
                return stream.read()
        return None

    def delete(self, names: Iterable[str]) -> None:
        for trial, group in groupby(sorted(map(_split, names)), key=lambda pair: pair[0]):
            with self._explained("deleted", trial):
                with suppress(FileNotFoundError), self._open(self._study, trial) as directory:
                    for _, file in group:
                        with suppress(FileNotFoundError):
                            os.unlink(file, dir_fd=directory)
                    # With the last checkpoint of a trial, delete the files of killed writers; a live one retries.
                    _tidied(directory, trial, 0) or _tidied(directory, trial, math.inf)
                self._remove_empty(trial)

    def names(self) -> list[str]:
        return self._names(litter_before=time.time() - _LITTER_SECONDS)

    def clear(self) -> None:
        self.delete(self._names(litter_before=math.inf))

    def _names(self, litter_before: float) -> list[str]:
        found: list[str] = []
        with self._explained("read"), suppress(FileNotFoundError), self._open(self._study) as study:
            trials = [entry.name for entry in os.scandir(study) if re.fullmatch("[0-9]+", entry.name)]
            for trial in trials:
                with suppress(FileNotFoundError), self._open(self._study, trial) as directory:
                    found += _tidied(directory, trial, litter_before)
            self._remove_empty(*trials)
        return sorted(found)

    @contextmanager
    def _open(self, *path: str, make: bool = False) -> Iterator[int]:
        """A descriptor of the directory ``path`` below the root.

        Raises:
            FileNotFoundError: there is none.
        """
        with ExitStack() as stack:
            try:
                here = stack.enter_context(_opened(self.location))
            except FileNotFoundError:
                told = f"there is no directory {self.location} on this machine: mount its share, or create it"
                raise CheckpointError(told) from None
            for depth, name in enumerate(path, start=1):
                if make:
                    _make(name, here)
                self._refuse_link(here, *path[:depth])
                here = stack.enter_context(_opened(name, here))
            yield here

    def _refuse_link(self, directory: int, *path: str) -> None:
        """Explain a refused link. The protection itself is O_NOFOLLOW, as a link may be made at any time."""
        with suppress(OSError):  # not a link
            target = os.readlink(path[-1], dir_fd=directory)
            link = "/".join((self.location, *path))
            raise CheckpointError(f"{link} is a link to {target}, and no link is followed there: remove it")

    def _remove_empty(self, *trials: str) -> None:
        with suppress(OSError), self._open() as root:
            with suppress(OSError), self._open(self._study) as study:
                for trial in trials:
                    with suppress(OSError):  # not empty, already deleted, or another user's
                        os.rmdir(trial, dir_fd=study)
            os.rmdir(self._study, dir_fd=root)

    @contextmanager
    def _explained(self, done: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            what = f"{self.location}/{self._study}/{name}" if name else self.location
            told = f"{what} cannot be {done} ({exc.strerror})"
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                told = f"{self.location} is full ({exc.strerror}): free some space there, or raise the quota"
            elif exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                told += f": mount it writable, and let user {os.geteuid()} read and write there"
            raise CheckpointError(told) from exc


class S3Store(CheckpointStore):
    """Checkpoints as objects ``prefix/study/trial/epoch-sequence``, of at most 5 GiB.

    Server, region and credentials are those of boto3's environment variables and files.
    """

    def __init__(self, location: str, study: str) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise CheckpointError(f"checkpoints in {location} need boto3: pip install 'studyhall[s3]'") from None
        self.location = location
        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        self._bucket = {"Bucket": bucket}
        self._prefix = f"{prefix}/{study}/".removeprefix("/")
        # Many compatible servers lack S3's new checksums; the database has a SHA-256 anyway.
        checksums = dict.fromkeys(("request_checksum_calculation", "response_checksum_validation"), "when_required")
        config = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard"}, **checksums)
        with self._explained():
            self._s3: Any = boto3.session.Session().client("s3", config=config)

    def write(self, name: str, data: bytes) -> None:
        key = self._key(name)
        with self._explained():
            self._s3.put_object(**self._bucket, Key=key, Body=data)

    def read(self, name: str) -> bytes | None:
        key = self._key(name)
        with self._explained(), suppress(self._s3.exceptions.NoSuchKey):
            return bytes(self._s3.get_object(**self._bucket, Key=key)["Body"].read())
        return None

    def delete(self, names: Iterable[str]) -> None:
        from botocore.exceptions import ClientError

        keys = [{"Key": self._key(name)} for name in names]
        with self._explained():
            for start in range(0, len(keys), 1000):  # S3's limit
                batch = {"Objects": keys[start : start + 1000], "Quiet": True}
                for error in self._s3.delete_objects(**self._bucket, Delete=batch).get("Errors", ()):
                    raise ClientError({"Error": error}, "DeleteObjects")

    def names(self) -> list[str]:
        with self._explained():
            pages = self._s3.get_paginator("list_objects_v2").paginate(**self._bucket, Prefix=self._prefix)
            keys = [item["Key"].removeprefix(self._prefix) for page in pages for item in page.get("Contents", ())]
        return sorted(filter(_NAME.fullmatch, keys))

    def _key(self, name: str) -> str:
        return self._prefix + "/".join(_split(name))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, ValueError) as exc:  # the last: AWS_ENDPOINT_URL is no URL
            told = re.sub(r"\S*@", "***@", one_line(exc)).rstrip(".")  # that URL may hold a password
            advice = "check the bucket's name, the credentials and what they allow, AWS_ENDPOINT_URL, the network"
            raise CheckpointError(f"{self.location} cannot be used: {told}; {advice}") from exc


def _split(name: str) -> tuple[str, str]:
    if not (found := _NAME.fullmatch(name)):
        raise ValueError(f"{name!r} is no name of a checkpoint; legal: TRIAL/EPOCH-SEQUENCE, such as 12/3-7")
    return found[1], found[2]


@contextmanager
def _opened(path: str | Path, above: int | None = None) -> Iterator[int]:
    """A descriptor of a directory, which may be a link only where it is not opened from the one ``above``."""
    descriptor = os.open(path, _DIRECTORY | (0 if above is None else os.O_NOFOLLOW), dir_fd=above)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# What we make is closed to other users. To the group it is as open as the umask and default ACLs say, so that
# people share a study in the usual way: chmod g+ws on the root, and umask 007.


def _make(name: str, above: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, 0o770, dir_fd=above)
    os.fsync(above)  # also if another process created it: it may have been killed before its fsync


def _replace(file: str, data: bytes, directory: int) -> None:
    part = f".{file}.{secrets.token_hex(8)}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o660, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        os.replace(part, file, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(part, dir_fd=directory)
        raise
    os.fsync(directory)


def _tidied(directory: int, trial: str, litter_before: float) -> list[str]:
    """The names of complete files. Deletes half-written ones from before a time, in seconds since 1970."""
    files = [entry.name for entry in os.scandir(directory)]
    for file in files:
        if file.startswith(".") and file.endswith(".part"):
            with suppress(OSError):  # deleted meanwhile, or another user's
                if os.stat(file, dir_fd=directory, follow_symlinks=False).st_mtime < litter_before:
                    os.unlink(file, dir_fd=directory)
    return [name for file in files if _NAME.fullmatch(name := f"{trial}/{file}")]
