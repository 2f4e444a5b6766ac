"""The embedded server: one PostgreSQL for all processes of a user on a machine, started when one needs it.

Three lock files, all flock, which the kernel drops when a process dies, however it dies:

``start.lock``   exclusive, held for moments: to start, stop or join the server, or to count its users, one after
                 the other.
``users.lock``   shared, held by every process that uses the server, for as long as it does.
``server.lock``  held by the server's own processes.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from studies.errors import EmbeddedServerError
from studies.storage.embedded.binaries import INSTEAD, default_home
from studies.storage.embedded.cluster import PATIENCE, Cluster, open_lock, try_lock
from studies.storage.url import StorageURL

__all__ = ["EmbeddedServer", "default_home"]

_TURN: Final = 2 * PATIENCE
"""Seconds to wait for other starters: one of them may be recovering, after one that was stopping."""
_log = logging.getLogger(__name__)


class EmbeddedServer:
    """A share in the server whose data is in ``home``; thread-safe.

    The server runs as long as one process uses it, or until :meth:`stop` once it is kept. A user that is
    killed no longer counts, but does not stop the server either: it stays until the next user ends.
    """

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        directory = self.home / "postgresql"
        self._cluster = Cluster(directory)
        self._start_lock = directory / "start.lock"
        self._users_lock = directory / "users.lock"
        self._kept = directory / "kept"
        self._host = directory / "host"
        self._mutex = threading.Lock()
        self._share: int | None = None  # a descriptor with a shared lock on users.lock
        #: When this object joined a server that nobody used, in seconds since 1970; ``None`` where somebody did.
        #: Workers keep a server in use, so that whoever had begun a trial before is gone.
        self.alone_at: float | None = None
        self._pid = os.getpid()

    def start(self) -> StorageURL:
        """Join the running server, or start it. A second call restarts a killed server.

        Raises:
            EmbeddedServerError: it cannot start, or runs on another host.
        """
        with self._mutex, self._explained("start"):
            self._cluster.prepare()
            with self._turn() as turn:
                self._refuse_other_host()
                joins = self._share is None
                alone = joins and not self._kept.exists() and self._unused()
                try:
                    # Joined only after: a child that was forked and not yet executed would hold a copy of the share,
                    # and an interrupted start would find the server in use and leave it.
                    self._ensure(turn)
                    if alone and not _connections(self._cluster.url):
                        self.alone_at = time.time()
                    self._join()
                except BaseException as exc:
                    if joins:
                        self._leave()
                    if not isinstance(exc, Exception):
                        self._stop_unused()  # Ctrl-C: the server may be on its way up
                    raise
        return self._cluster.url

    def keep(self) -> StorageURL:
        """Start the server if it does not run, and keep it running without users until :meth:`stop`."""
        url = self.start()
        with self._explained("be kept"), self._turn():
            self._kept.touch(mode=0o600)
        return url

    def close(self) -> None:
        """Give up the share; the last user stops the server, unless it is kept. Also done at exit."""
        if os.getpid() != self._pid:
            # A forked child: its copy of the share goes, the parent's stays. No mutex, which a thread of
            # the parent may have held at the fork.
            self._drop()
            return
        with self._mutex:
            if self._share is None:
                return
            with self._explained("stop"):
                self._leave()
                with self._turn():
                    self._stop_unused()

    def stop(self, force: bool = False) -> bool:
        """Stop the server, kept or not; this object's own share does not count.

        Returns:
            Whether it was running.

        Raises:
            EmbeddedServerError: it is in use and ``force`` is false, or it runs on another host.
        """
        with self._mutex, self._explained("stop"):
            if not self._start_lock.parent.is_dir():
                return False
            with self._turn():
                self._refuse_other_host()
                shared = self._share is not None
                self._leave()
                running = self._cluster.alive()
                if running and not force and (who := self._users()):
                    if shared:
                        self._join()
                    raise EmbeddedServerError(
                        f"the embedded server is in use by {who}:", fix="end them first, or stop it with --force"
                    )
                self._kept.unlink(missing_ok=True)
                if running:
                    self._shut_down()
                return running

    def fileno(self) -> int:
        """The share's descriptor: a child process that inherits it (``pass_fds``) is a user of its own."""
        if self._share is None:
            raise EmbeddedServerError("the embedded server is not in use here: call start() first")
        return self._share

    def __enter__(self) -> StorageURL:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- with the start lock held ----------------------------------------------------------------------

    def _ensure(self, turn: int) -> None:
        # The process that started or stopped the server may have been killed: wait for what the server does.
        if not self._cluster.settled():
            self._host.write_text(f"{socket.gethostname()}\n{_boot_id()}\n")
            _log.debug("starting PostgreSQL in %s", self.home)
            self._cluster.launch(turn)

    def _join(self) -> None:
        if self._share is None:
            descriptor = os.open(self._users_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # at once: an exclusive lock on it needs the start lock too
            self._share, self._pid = descriptor, os.getpid()
            atexit.register(self._close_at_exit)

    def _leave(self) -> None:
        if self._share is not None:
            atexit.unregister(self._close_at_exit)
            self._drop()

    def _drop(self) -> None:
        # Closed, not unlocked: unlocking would take the lock from children that inherited it, too.
        descriptor, self._share = self._share, None
        if descriptor is not None:
            os.close(descriptor)

    def _unused(self) -> bool:
        # Through a new descriptor, so that a child with an inherited share counts as a user.
        with open_lock(self._users_lock) as lock:
            return try_lock(lock, fcntl.LOCK_EX)

    def _stop_unused(self) -> None:
        if self._unused() and not self._kept.exists() and self._cluster.alive():
            _log.debug("stopping PostgreSQL in %s: it has no more users", self.home)
            self._shut_down()

    def _shut_down(self) -> None:
        self._cluster.stop()
        self._host.unlink(missing_ok=True)

    def _users(self) -> str:
        """The users of the server in words; empty without any."""
        if self._unused():
            return _connections(self._cluster.url)
        held = self._users_lock.resolve()
        pids = set()
        for descriptors in Path("/proc").glob("[0-9]*/fd"):
            with suppress(OSError):  # ended meanwhile, or another user's
                if any(link.readlink() == held for link in descriptors.iterdir()):
                    pids.add(int(descriptors.parent.name))
        if not pids:
            return "another process"
        return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, sorted(pids)))}"

    def _refuse_other_host(self) -> None:
        # flock may not reach other machines of a shared home directory, and process numbers never do.
        if not (self._cluster.data / "postmaster.pid").exists():
            return
        with suppress(FileNotFoundError):
            name, boot = (self._host.read_text() + "\n").split("\n")[:2]
            # The same kernel under another name is another container here: flock reaches there.
            if name != socket.gethostname() and not (boot and boot == _boot_id()):
                raise EmbeddedServerError(
                    f"the embedded server of {self.home} runs on host {name!r}, and serves only that one:",
                    fix=f"{INSTEAD}, or set STUDYHALL_HOME to a local disk; if {name!r} is gone, remove {self._host}",
                )

    # -- around ----------------------------------------------------------------------------------------

    def _close_at_exit(self) -> None:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C while the program ends must not leave the server
        try:
            self.close()
        except EmbeddedServerError as exc:  # the program is over: a warning, no traceback
            _log.warning("%s", exc)

    @contextmanager
    def _turn(self) -> Iterator[int]:
        with open_lock(self._start_lock) as lock:
            deadline = time.monotonic() + _TURN
            while not try_lock(lock, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise EmbeddedServerError(
                        f"another process has been starting or stopping the embedded server for {_TURN:.0f} s:",
                        fix=f"see {self._cluster.log}",
                    )
                time.sleep(0.005)
            try:
                yield lock
            finally:
                # Unlocked, not only closed: a process that another thread forked meanwhile has a copy.
                fcntl.flock(lock, fcntl.LOCK_UN)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            reason = f"{exc.strerror} ({exc.filename})" if exc.filename else str(exc.strerror)
            if exc.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                reason = "its file system has no file locks"
            raise EmbeddedServerError(
                f"the embedded server in {self.home} cannot {what}: {reason};",
                fix=f"set STUDYHALL_HOME to a local directory that you can write, or {INSTEAD}",
            ) from exc


def _connections(url: StorageURL) -> str:
    """The clients without a share, such as psql, in words. Waits half a second for those that are disconnecting."""
    import psycopg2

    count, names = 0, ""
    with suppress(psycopg2.Error), closing(psycopg2.connect(**url.libpq)) as connection:
        connection.autocommit = True
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(*), string_agg(DISTINCT application_name, ', ')"
                    " FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
                count, names = cursor.fetchone() or (0, "")
            if not count:
                return ""
            time.sleep(0.02)
    return f"{count} connection{'s' if count > 1 else ''} ({names})" if count else ""


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
