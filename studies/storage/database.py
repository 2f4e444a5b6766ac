"""Connections to PostgreSQL, over which the named statements of ``sql/`` are sent.

- Every statement is a transaction of its own, and idempotent: one that would do something twice carries a token or a
  claim, by which the database recognizes it. A statement whose answer was lost is simply sent again.
- No statement depends on its session, so PgBouncer's transaction pooling works.
"""

from __future__ import annotations

import os
import random
import re
import select
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Final

import psycopg2
import psycopg2.errors
from psycopg2.extensions import POLL_OK, POLL_READ

from studies.errors import BudgetSpent, LeaseLost, Refused, StorageError, StorageUnreachable, TooManyConnections
from studies.storage import roles
from studies.storage.sqlstate import ADVICE, INSUFFICIENT_PRIVILEGE, Verdict, breaks_connection, verdict
from studies.storage.url import StorageURL, connection_error

Row = dict[str, Any]

MAX_CONNECTIONS: Final = 2
"""One for a worker's trials, one for its heartbeats."""
ANSWER_SECONDS: Final = 60.0
"""Seconds without an answer after which a connection counts as broken."""
STOPPING_SECONDS: Final = 1.5
"""The same while the process is stopping."""
CROWD_SECONDS: Final = 60.0
"""Seconds for which idle connections are closed after the server ran short of them."""


class NotThere(StorageError):
    """No study or trial of that id."""


class AlreadyFinished(StorageError):
    """The trial is finished and can't change."""


class WritesLost(StorageError):
    """The server crashed and lost acknowledged writes, which must be sent again."""


class _Timeout(psycopg2.OperationalError):
    """The server did not answer in time."""


# SQLSTATEs that our own functions raise (see the migrations).
_ERRORS: dict[str | None, type[StorageError]] = {
    "P0002": NotThere,
    "SH001": LeaseLost,
    "SH002": AlreadyFinished,
    "SH003": BudgetSpent,
}


@cache
def statements() -> dict[str, str]:
    """The text of each statement in ``sql/*.sql``, by name."""
    return read_statements((resources.files("studies.storage") / "sql").iterdir())


def read_statements(files: Iterable[Traversable]) -> dict[str, str]:
    """The text of each statement in SQL files, by the name in the line ``-- name: …`` before it.

    Raises:
        ValueError: two statements have one name.
    """
    found: dict[str, str] = {}
    file_of: dict[str, str] = {}
    for file in files:
        parts = re.split(r"^-- name: (\w+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            if name in found:
                raise ValueError(f"statement {name!r} is in {file_of[name]} and again in {file.name}: rename one")
            found[name], file_of[name] = text, file.name
    return found


def new_token() -> str:
    """A token by which the database recognizes a request that is sent twice."""
    return str(uuid.uuid4())


class Database:
    """Up to two connections, opened when needed and reopened when lost. Safe for threads, and after a fork: the child
    opens its own.

    Args:
        url: of the database.
        patience: seconds for which a statement is retried while the server is unreachable. A connection that broke
            while idle is replaced at once in any case.
        stop: once set, no retry is waited for, and a server that did not answer is not asked again.
    """

    def __init__(self, url: StorageURL, *, patience: float = 0.0, stop: threading.Event | None = None) -> None:
        self.url = url
        self.patience = patience
        #: How many connections were lost. Each may mean a crash of the server, which loses asynchronous commits.
        self.losses = 0
        self._spare_until = 0.0
        self.stop = stop or threading.Event()
        self._is_given_up = False
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._free: list[Any] = []
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def rows(
        self, name: str, /, *, within: float = ANSWER_SECONDS, patience: float | None = None, **parameters: Any
    ) -> list[Row]:
        """Send the statement ``name``.

        Args:
            name: its name in ``sql/``.
            within: seconds without an answer after which the connection counts as broken.
            patience: instead of the attribute.
            parameters: of the statement.

        Returns:
            Its rows, each a dict by column; empty for a statement that returns none.

        Raises:
            StorageUnreachable: no answer, or the server can't execute it now.
            Refused: the server refuses a value for its content.
            NotPermitted: we lack a right.
            StorageError: any other error; :exc:`LeaseLost`, :exc:`BudgetSpent`,
                :exc:`NotThere`, :exc:`AlreadyFinished` where our own functions raise it.
        """
        return self.execute(statements()[name], parameters, within=within, patience=patience)

    def row(self, name: str, /, **parameters: Any) -> Row | None:
        """The first row of the statement ``name``, if any."""
        return next(iter(self.rows(name, **parameters)), None)

    def execute(
        self,
        sql: str,
        parameters: dict[str, Any] | None = None,
        *,
        within: float = ANSWER_SECONDS,
        patience: float | None = None,
    ) -> list[Row]:
        """Send ``sql``, like :meth:`rows`."""
        patience = self.patience if patience is None else patience
        began, pause, tried = time.monotonic(), 0.02, 0
        while True:
            if self._is_given_up:
                raise StorageUnreachable(f"the server at {self.url.where} did not answer when this process was to stop")
            with self._connection() as (connection, is_fresh):
                try:
                    connection = connection or self._connect(within)
                    rows = self._ask(connection, sql, parameters, within)
                    self._put_back(connection)
                    return rows
                except psycopg2.Error as error:
                    failure, is_broken = error, breaks_connection(error)
                    if is_broken:
                        _close(connection)
                    else:
                        self._put_back(connection)
                except BaseException:
                    _close(connection)  # Ctrl-C in the middle of a statement: the session is in an unknown state
                    raise
            reason = self._explain(failure)
            if not isinstance(reason, StorageUnreachable):
                raise reason from failure
            tried += 1
            is_crowded = isinstance(reason, TooManyConnections)
            if is_crowded:
                self.spare_connections()
            elif is_broken:
                self.losses += 1
            if is_crowded or verdict(failure) is Verdict.RETRY:  # others finish first; the wait is worth it
                patience = max(patience, min(within, CROWD_SECONDS))
            # Once is enough: each further statement would wait for STOPPING_SECONDS.
            if isinstance(failure, _Timeout) and self.stop.is_set():
                self._is_given_up = True
                raise reason from failure
            if tried == 1 and is_broken and not is_fresh and time.monotonic() - began < within:
                self._drop()  # a restarted server broke all idle connections: do not lose a retry to each
                continue
            pause = min(1.0, pause * 2)
            if time.monotonic() - began + pause > patience or self.stop.is_set():
                raise reason from failure
            # With jitter: a fleet that returns all at once would overload a server that just started.
            self.stop.wait(pause * random.uniform(0.5, 1))

    def _explain(self, error: psycopg2.Error) -> StorageError:
        """The exception for ``error``: a :exc:`StorageUnreachable` if the statement may be sent again."""
        code = error.pgcode
        is_by_choice = code == "25006" and self.url.is_read_only
        judged = Verdict.UNEXPECTED if is_by_choice else verdict(error)
        if judged in (Verdict.UNREACHABLE, Verdict.RETRY):
            if code in ADVICE:
                what, fix = ADVICE[code]
                return StorageUnreachable(what.format(where=self.url.where), fix=fix)
            return connection_error(self.url, error)
        if judged is Verdict.REFUSED:
            return Refused(_first_line(error))
        if code == INSUFFICIENT_PRIVILEGE:
            return roles.denied(self)
        return _ERRORS.get(code, StorageError)(f"{self.url.display}: {_first_line(error)}")

    def spare_connections(self) -> None:
        """Leave connections to others: close ours after each statement, for :data:`CROWD_SECONDS`."""
        self._spare_until = time.monotonic() + CROWD_SECONDS
        self._drop()

    def close(self) -> None:
        """Close the idle connections."""
        self._drop()

    def _put_back(self, connection: Any) -> None:
        if time.monotonic() < self._spare_until:
            _close(connection)
        else:
            self._free.append(connection)

    @contextmanager
    def _connection(self) -> Iterator[tuple[Any, bool]]:
        """An idle connection, or ``None`` for the caller to open one; and whether that is so."""
        if os.getpid() != self._pid:
            self._begin()  # after a fork: psycopg2 does not close the parent's connections
        with self._slots:
            try:
                connection = self._free.pop()
            except IndexError:
                connection = None
            yield connection, connection is None

    def _drop(self) -> None:
        with suppress(IndexError):  # none is left: another thread may take the last one
            while True:
                _close(self._free.pop())

    def _connect(self, within: float) -> Any:
        # Asynchronous, for a timeout of our own: a blocking call in libpq would not even see Ctrl-C.
        connection = psycopg2.connect(**self.url.libpq, async_=True)
        try:
            self._wait(connection, min(within, float(self.url.libpq["connect_timeout"])))
        except BaseException:
            _close(connection)
            raise
        return connection

    def _ask(self, connection: Any, sql: str, parameters: dict[str, Any] | None, within: float) -> list[Row]:
        with connection.cursor() as cursor:
            try:
                cursor.execute(sql, parameters)
            except ValueError as error:  # from psycopg2, for a NUL or a lone surrogate, before anything is sent
                raise psycopg2.DataError(f"cannot be sent: {error}") from error
            self._wait(connection, within)
            if not cursor.description:
                return []
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _wait(self, connection: Any, within: float) -> None:
        """Wait for the connection's answer; ``within`` seconds without any byte break it."""
        heard = time.monotonic()
        while (state := connection.poll()) != POLL_OK:
            ready = select.poll()  # a new one: libpq tries several addresses, each with its own socket
            ready.register(connection.fileno(), select.POLLIN if state == POLL_READ else select.POLLOUT)
            while not ready.poll(250):
                patience = min(within, STOPPING_SECONDS) if self.stop.is_set() else within
                if time.monotonic() - heard > patience:
                    raise _Timeout("timed out: the server does not answer")
            heard = time.monotonic()


def _close(connection: Any) -> None:
    if connection is not None:
        with suppress(psycopg2.Error):  # closing a broken connection may fail
            connection.close()


def _first_line(error: psycopg2.Error) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
