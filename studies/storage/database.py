"""Connections to PostgreSQL, over which the named statements of ``sql/`` are sent.

Every statement commits by itself and may be sent twice: what would do something twice carries a token
or an epoch by which the database knows it again. So a statement whose answer was lost is simply sent
once more. No statement relies on anything that an earlier one left in its session.
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
"""One for a worker's trial, one for its signs of life."""
ANSWER_SECONDS: Final = 60.0
"""How long a server may be silent on a statement before the connection counts as broken."""
STOPPING_SECONDS: Final = 1.5
"""Likewise when the process is asked to stop."""
CROWD_SECONDS: Final = 60.0
"""How long after a sign of scarce connections none is kept between two statements."""


class NotThere(StorageError):
    """No study or trial of that id."""


class AlreadyFinished(StorageError):
    """The trial is finished and can't change."""


class Forgotten(StorageError):
    """The server crashed, and has lost what it had acknowledged: it is to be told again."""


class _Silent(psycopg2.OperationalError):
    """The server took longer to answer than we wait."""


# The SQLSTATEs that our functions raise (see the migrations).
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
    """By which the database knows a request again that is sent twice."""
    return str(uuid.uuid4())


class Database:
    """Up to two connections, made when needed and made again when lost. For any number of threads, and
    safe after a fork: the child makes its own.

    Args:
        url: where to.
        patience: seconds for which a statement is tried again while the server can't be had. A
            connection that broke while nobody used it is replaced at once in any case.
        stop: once set, nothing is waited for any longer, and a server that is silent is not asked again.
    """

    def __init__(self, url: StorageURL, *, patience: float = 0.0, stop: threading.Event | None = None) -> None:
        self.url = url
        self.patience = patience
        #: How many connections were lost: with one, what was committed asynchronously may be lost, too.
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
            name: as it stands in ``sql/``.
            within: seconds of silence after which the server counts as gone.
            patience: instead of the database's own.
            parameters: of the statement.

        Returns:
            Its rows, each a dict by column; empty for a statement that returns none.

        Raises:
            StorageUnreachable: the server does not answer, refuses us, or can't do it now.
            Refused: it will never take a value, for what it is.
            NotPermitted: we lack a right.
            StorageError: it answers with an error; :exc:`LeaseLost`, :exc:`BudgetSpent`,
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
                    _close(connection)  # in the middle of something
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
            if is_crowded or verdict(failure) is Verdict.TRY_AGAIN:  # it is others' turn; ours comes
                patience = max(patience, min(within, CROWD_SECONDS))
            if isinstance(failure, _Silent) and self.stop.is_set():
                self._is_given_up = True
                raise reason from failure
            if tried == 1 and is_broken and not is_fresh and time.monotonic() - began < within:
                self._drop()  # what broke one connection has broken the others
                continue
            pause = min(1.0, pause * 2)
            if time.monotonic() - began + pause > patience or self.stop.is_set():
                raise reason from failure
            # With jitter: a fleet must not come back all at once.
            self.stop.wait(pause * random.uniform(0.5, 1))

    def _explain(self, error: psycopg2.Error) -> StorageError:
        """What to raise for ``error``; a :exc:`StorageUnreachable` where the statement may be sent again."""
        code = error.pgcode
        is_by_choice = code == "25006" and self.url.is_read_only
        judged = Verdict.UNEXPECTED if is_by_choice else verdict(error)
        if judged in (Verdict.AWAY, Verdict.TRY_AGAIN):
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
        """Connections are scarce: keep none between two statements for a while."""
        self._spare_until = time.monotonic() + CROWD_SECONDS
        self._drop()

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._drop()

    def _put_back(self, connection: Any) -> None:
        if time.monotonic() < self._spare_until:
            _close(connection)
        else:
            self._free.append(connection)

    @contextmanager
    def _connection(self) -> Iterator[tuple[Any, bool]]:
        """A connection that nobody uses, and whether it must be made (it is None then)."""
        if os.getpid() != self._pid:
            self._begin()  # psycopg2 leaves alone the connections that another process made
        with self._slots:
            try:
                connection = self._free.pop()
            except IndexError:
                connection = None
            yield connection, connection is None

    def _drop(self) -> None:
        with suppress(IndexError):  # none is left; another thread may have taken the last one
            while True:
                _close(self._free.pop())

    def _connect(self, within: float) -> Any:
        # Asynchronous, so that a wait can end: a blocking call would not even see a signal.
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
            except ValueError as error:  # psycopg2's own, of a NUL or half a surrogate pair: nothing was sent
                raise psycopg2.DataError(f"cannot be sent: {error}") from error
            self._wait(connection, within)
            if not cursor.description:
                return []
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _wait(self, connection: Any, within: float) -> None:
        """Wait until the connection has done what it was asked for; ``within`` seconds of silence break it."""
        heard = time.monotonic()
        while (state := connection.poll()) != POLL_OK:
            ready = select.poll()  # a new one: while it connects, the socket may be another each time
            ready.register(connection.fileno(), select.POLLIN if state == POLL_READ else select.POLLOUT)
            while not ready.poll(250):
                patience = min(within, STOPPING_SECONDS) if self.stop.is_set() else within
                if time.monotonic() - heard > patience:
                    raise _Silent("timed out: the server does not answer")
            heard = time.monotonic()


def _close(connection: Any) -> None:
    if connection is not None:
        with suppress(psycopg2.Error):  # closing a broken connection may fail; it is gone either way
            connection.close()


def _first_line(error: psycopg2.Error) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
