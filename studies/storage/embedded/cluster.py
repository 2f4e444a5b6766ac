"""One PostgreSQL cluster of our own: its directory, its binaries and the server process over it.

Nothing here is safe against a second process doing the same: :mod:`studies.storage.embedded.server` holds its start
lock around every call that changes something.

We start the wheel's binaries ourselves, not through pg_ctl: pg_ctl hands paths to a shell unquoted.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from studies.errors import EmbeddedServerError
from studies.storage.embedded.binaries import INSTEAD, MAJOR, Account, account_for, check_reach, find_binaries
from studies.storage.url import StorageURL

PORT: Final = 5432
NAME: Final = "studyhall"
"""The database and its user."""
PATIENCE: Final = 60.0
"""Seconds to wait for a server that recovers from a crash, or writes its last checkpoint."""

_LINUX = sys.platform == "linux"
_SOCKET_PATH_BYTES = 103  # macOS; Linux has 107


class Cluster:
    """The cluster in ``directory/18``, and its server if that runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / MAJOR
        self.log = directory / "postgresql.log"
        self._server_lock = directory / "server.lock"
        self._socket_record = directory / "socket-directory"

    # -- state -----------------------------------------------------------------------------------------

    @property
    def url(self) -> StorageURL:
        """Where clients connect: the socket that the running server has recorded, else the usual one."""
        directory = self._recorded(4) or str(self.directory / "run")
        return StorageURL(user=NAME, hosts=((directory, PORT),), database=NAME)

    def alive(self) -> bool:
        """Whether any process of the server is left, a killed server's last backends included.

        The server inherits a lock and holds it until its last process ends. Unlike the number in
        postmaster.pid, that survives neither a kill -9 nor a reboot, and means the same in every container.
        """
        with open_lock(self._server_lock) as lock:
            return not try_lock(lock, fcntl.LOCK_SH)

    def settled(self) -> bool:
        """Wait until the server accepts connections (``True``) or has ended (``False``).

        Raises:
            EmbeddedServerError: neither within :data:`PATIENCE` seconds.
        """
        deadline = time.monotonic() + PATIENCE
        while self.alive():
            if self._recorded(7) == "ready" and self._peer() is not None:
                return True
            if time.monotonic() > deadline:
                raise self._failure(f"it is not ready after {PATIENCE:.0f} s; try again in a while")
            time.sleep(0.01)
        return False

    def _recorded(self, line: int) -> str | None:
        """A line of postmaster.pid: 0 process, 4 socket directory, 7 state."""
        with suppress(FileNotFoundError):
            lines = os.fsdecode((self.data / "postmaster.pid").read_bytes()).split("\n")
            return lines[line].strip() if line < len(lines) else None
        return None

    def _peer(self) -> int | None:
        """The process that listens on the socket, 0 if it is in another container; None if none does.

        A process that a killed server had just forked may still hold its socket, on which nobody answers.
        """
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.settimeout(5)
            client.connect(f"{self._recorded(4)}/.s.PGSQL.{PORT}")
            if _LINUX:
                peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                pid = int(struct.unpack("3i", peer)[0])
                with suppress(PermissionError):  # another user's
                    Path(f"/proc/{pid or 'self'}/cwd").readlink()  # raises where it is dead, or a zombie
                return pid
            return int(self._recorded(0) or 0)
        return None

    def _recorded_postmaster(self) -> int | None:
        """The process named in postmaster.pid, if it lives and really is a server over our directory."""
        recorded = self._recorded(0)
        if not recorded or not recorded.isdigit():
            return None
        if _LINUX:
            with suppress(OSError):  # gone, a zombie, or another user's: not ours
                if Path(f"/proc/{recorded}/cwd").readlink() == self.data.resolve():
                    return int(recorded)
            return None
        argv = ["ps", "-o", "command=", "-p", recorded]
        shown = subprocess.run(argv, capture_output=True, check=False).stdout
        return int(recorded) if b"postgres" in shown else None

    # -- create, start, stop ---------------------------------------------------------------------------

    def prepare(self) -> None:
        """Create missing directories."""
        if self.directory.is_dir():
            return
        if "\n" in str(self.directory):
            raise EmbeddedServerError(f"a home's path cannot hold a line break: {str(self.directory)!r}")
        gid = account_for(self.data).gid
        missing = [path for path in self.directory.parents if not path.exists()]
        for path in [*reversed(missing), self.directory]:
            new = Path(tempfile.mkdtemp(prefix=".studyhall-", dir=path.parent))
            if os.geteuid() == 0:  # only the server's account needs access
                os.chown(new, 0, gid)
                new.chmod(0o710)
            try:
                new.rename(path)  # renamed into place when complete; replaces an empty one only
            except OSError:
                new.rmdir()
                if not path.is_dir():
                    raise

    def launch(self, start_lock: int) -> None:
        """Start the server, after creating the cluster if there is none; returns when it accepts connections."""
        account = account_for(self.data)
        check_reach(account, self.directory)
        binaries = find_binaries(account, self.directory)
        with self.log.open("ab") as log:
            account.own(self.log).chmod(0o600)
            said = log.tell()
            if not (self.data / "PG_VERSION").exists():
                self._create(account, binaries, log, start_lock)
            self._check_version()
            self._clear_pid_file()
            self._spawn(account, binaries, log)
        if not self.settled():
            raise self._failure(self._last_words(said))

    def stop(self) -> None:
        """End all sessions and stop the server cleanly; returns when its last process has ended."""
        pid, since = None, time.monotonic()
        while self.alive():
            waited = time.monotonic() - since
            if pid is None and (pid := self._peer() or self._recorded_postmaster()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)  # PostgreSQL's "fast shutdown"
            elif pid is None and waited > 5:  # a server that just started may not have recorded its number yet
                raise self._failure("its process is not visible from here (another container?)", "stop")
            elif waited > PATIENCE:
                raise self._failure(f"process {pid} is still writing after {PATIENCE:.0f} s", "stop")
            time.sleep(0.01)
        with suppress(OSError):
            Path(self._socket_record.read_text()).rmdir()
            self._socket_record.unlink()

    def _create(self, account: Account, binaries: Path, log: IO[bytes], start_lock: int) -> None:
        if self.data.exists() and any(self.data.iterdir()):
            raise EmbeddedServerError(
                f"{self.data} exists but is no PostgreSQL cluster:", fix=f"move it away, or {INSTEAD}"
            )
        said = log.tell()
        for torn in self.directory.glob("new-*"):  # of a killed process: we hold the start lock
            shutil.rmtree(torn, ignore_errors=True)
        new = account.own(Path(tempfile.mkdtemp(prefix="new-", dir=self.directory)))
        # If we are killed, these children hold the start lock until they end: no other starter meets them.
        run = {"stdout": log, "stderr": log, "pass_fds": [start_lock], **account.surroundings}
        # The builtin locale sorts by code point on every machine, for ever: no upgrade of libc or ICU ever
        # breaks an index, and upper() and regular expressions still know Unicode.
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        access = [f"--username={NAME}", "--auth-local=trust", "--auth-host=reject"]
        sizes = ["--set=max_connections=100", "--set=shared_buffers=64MB"]
        zone = ["--no-instructions", "--set=timezone=UTC", "--set=log_timezone=UTC"]
        steps: list[tuple[list[str | Path], str]] = [
            ([binaries / "initdb", "-D", new, *locale, *access, *sizes, *zone, "--no-sync"], ""),
            ([binaries / "postgres", "--single", "-D", new, "postgres"], f"CREATE DATABASE {NAME}\n"),
            ([binaries / "initdb", "-D", new, "--sync-only"], ""),
        ]
        try:
            for argv, text in steps:
                if subprocess.run(argv, input=text.encode(), check=False, **run).returncode:
                    raise self._failure(self._last_words(said), "be set up")
            new.rename(self.data)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _spawn(self, account: Account, binaries: Path, log: IO[bytes]) -> None:
        directory = self._socket_directory(account)
        for left in directory.glob(".s.PGSQL.*"):  # a killed server's, whose number may live on as a zombie
            left.unlink()
        sockets = str(directory).replace('"', '""')
        argv = [
            *(str(binaries / "postgres"), "-D", str(self.data)),
            # Not in postgresql.conf, where somebody might open the trusting server to the network.
            "--listen_addresses=",
            f"--port={PORT}",
            f'--unix_socket_directories="{sockets}"',
            "--unix_socket_permissions=0700",
        ]
        with open_lock(self._server_lock) as lock:
            if not try_lock(lock, fcntl.LOCK_EX):
                raise self._failure("processes of a killed server still hold the cluster; try again in a while")
            # The shell leaves the server to init: we never have to reap it, and it outlives us. In a session of its
            # own it gets neither Ctrl-C nor the hangup of a closing terminal.
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "sh", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                start_new_session=True,
                check=True,
                **account.surroundings,
            )

    def _socket_directory(self, account: Account) -> Path:
        inside = self.directory / "run"
        if _fits(inside):
            inside.mkdir(mode=0o700, exist_ok=True)
            return account.own(inside)
        # Not XDG_RUNTIME_DIR or TMPDIR: both may go with the session or job that started the server.
        with suppress(OSError, UnicodeDecodeError):
            before = Path(self._socket_record.read_text())
            found = before.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == account.uid and not found.st_mode & 0o077:
                return before  # of a server that was killed
        new = account.own(Path(tempfile.mkdtemp(prefix="studyhall-", dir="/tmp")))
        self._socket_record.write_text(str(new))
        return new

    def _clear_pid_file(self) -> None:
        """Remove a postmaster.pid whose process number now belongs to another program: PostgreSQL would not start."""
        if self._recorded_postmaster():
            raise self._failure(f"process {self._recorded(0)}, started by other means, serves it: stop that one")
        with suppress(FileNotFoundError, ValueError, TypeError, ProcessLookupError, PermissionError):
            os.kill(int(self._recorded(0) or ""), 0)
            # Only if that process lives: else PostgreSQL itself checks and removes the file.
            (self.data / "postmaster.pid").unlink()

    def _check_version(self) -> None:
        version = (self.data / "PG_VERSION").read_text().strip()
        if version != MAJOR:
            told = f"{self.data} is a cluster of PostgreSQL {version}, and this Studyhall has {MAJOR}"
            raise EmbeddedServerError(f"{told}:", fix=f"move it away, or {INSTEAD}")

    def _failure(self, reason: str, what: str = "start") -> EmbeddedServerError:
        return EmbeddedServerError(f"the embedded PostgreSQL cannot {what}: {reason} (log: {self.log})")

    def _last_words(self, said: int) -> str:
        """The line of the log after byte ``said`` that gives the reason."""
        with self.log.open("rb") as log:
            log.seek(said)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        # The first failure is the cause. Clients that connect too early are refused, which is none.
        failure = re.compile(r"^.*?(?:FATAL|PANIC|error): +(?!the database system is)(.*)")
        causes = [found[1] for line in lines if (found := failure.search(line))]
        return (causes[:1] or lines[-1:] or ["it says nothing"])[0]


def _fits(directory: Path) -> bool:
    """Whether a socket in it has a legal address. libpq would read a comma as the separator of a list."""
    path = str(directory / f".s.PGSQL.{PORT}")
    try:
        return len(path.encode()) <= _SOCKET_PATH_BYTES and "," not in path
    except UnicodeEncodeError:  # a name that is not UTF-8 cannot be written into a URL
        return False


@contextmanager
def open_lock(path: Path) -> Iterator[int]:
    """A new descriptor of a lock file: flock belongs to the descriptor, not to the process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, kind: int) -> bool:
    """Take a shared or exclusive flock without waiting."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
