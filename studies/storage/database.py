"""One connection to PostgreSQL, over which the named statements of ``queries.sql`` are sent."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from functools import cache
from importlib import resources
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extras

from studies.errors import StorageError
from studies.storage.url import StorageURL, connection_error

Row = dict[str, Any]


@cache
def statements() -> dict[str, str]:
    """The text of each statement in ``queries.sql``, by name."""
    text = (resources.files("studies.storage") / "queries.sql").read_text()
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


class Database:
    """A connection that is made when first needed and made again when it was lost.

    Every statement commits by itself. Threads may share it: they take turns.
    """

    def __init__(self, url: StorageURL) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._connection: Any = None

    def rows(self, name: str, /, **parameters: Any) -> list[Row]:
        """Send the statement ``name``.

        Returns:
            Its rows, each a dict by column; empty for a statement that returns none.

        Raises:
            StorageUnreachable: the server does not answer, or refuses us.
            StorageError: it answers with an error.
        """
        return self.execute(statements()[name], parameters)

    def row(self, name: str, /, **parameters: Any) -> Row | None:
        """The first row of the statement ``name``, if any."""
        return next(iter(self.rows(name, **parameters)), None)

    def execute(self, sql: str, parameters: dict[str, Any] | None = None) -> list[Row]:
        """Send ``sql``, like :meth:`rows`."""
        with self._lock:
            try:
                with self._connect().cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                    cursor.execute(sql, parameters)
                    return [dict(row) for row in cursor.fetchall()] if cursor.description else []
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                self._drop()
                raise connection_error(self.url, error) from error
            except psycopg2.Error as error:
                raise StorageError(f"{self.url.display}: {_first_line(error)}") from error

    def close(self) -> None:
        """Close the connection, if there is one."""
        with self._lock:
            self._drop()

    def _connect(self) -> Any:
        if self._connection is None:
            self._connection = psycopg2.connect(**self.url.libpq)
            self._connection.autocommit = True
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(psycopg2.Error):  # closing a broken connection may fail; it is gone either way
                self._connection.close()
        self._connection = None


def _first_line(error: psycopg2.Error) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
