"""MLflow's location: a server, or a database of its own beside the studies, created when needed."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import os
import re
import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psycopg2
import psycopg2.errors

from studies.errors import TrackingError, TrackingUnreachable, one_line
from studies.storage.url import StorageURL, connection_error

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: "mlflow" in ASCII: the key of the advisory lock under which one process makes the tables.
_LOCK: Final = 0x6D6C_666C_6F77
_SUFFIX: Final = "_mlflow"
#: Bytes in the name of a database.
MAX_IDENTIFIER: Final = 63
#: MLflow's own timeout and retries. Low: the callers retry with a backoff of their own.
_HTTP: Final = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # No telemetry.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
#: Texts in errors of MLflow's client and the libraries below it: of outages, which are retried; and of answers of
#: something that is not MLflow.
_UNREACHABLE: Final = re.compile(
    r"Max retries exceeded|timed out|Connection|error code (429|50[0234])|OperationalError"
)
_DENIED: Final = ("UNAUTHENTICATED", "PERMISSION_DENIED")
_FOREIGN: Final = re.compile(r"error code (400|404|405|501)|valid JSON|JSONDecode")


def configure() -> None:
    """Set environment variables of MLflow that the user has not set. Must run before its import."""
    for name, value in _HTTP.items():
        os.environ.setdefault(name, value)


def database_of(storage: StorageURL) -> StorageURL:
    """The database of MLflow that belongs to a storage: its neighbour on the same server.

    It has the storage's options, with them its schema: where studies lie in a schema of their own, MLflow's tables do.
    """
    name = storage.database or "studyhall"
    if len(f"{name}{_SUFFIX}".encode()) > MAX_IDENTIFIER:
        # PostgreSQL would cut it, in the worst case down to the name of the studies' own database.
        tail = f"_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        room = MAX_IDENTIFIER - len(f"{tail}{_SUFFIX}")
        name = name.encode()[:room].decode(errors="ignore") + tail
    return dataclasses.replace(storage, database=f"{name}{_SUFFIX}")


def folder_of(home: Path) -> Path:
    """The folder of MLflow's artifacts, created if missing. Only its owner may enter it."""
    folder = home / "mlflow"
    home.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if (
        status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != 0o700
    ):  # an earlier version created it open to others
        folder.chmod(0o700)
    return folder


def check_uri(uri: str) -> str:
    """``uri`` if it may be MLflow's; raises :exc:`TrackingError`."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.hostname:
        return uri.rstrip("/")
    if parts.scheme in ("postgresql", "postgresql+psycopg2", "sqlite", "mysql+pymysql"):
        return uri
    raise TrackingError(
        f"the tracking URI {display(uri)!r} cannot be used: write http://HOST:PORT of an MLflow server, "
        "or leave it out for the database beside the studies"
    )


def display(uri: str) -> str:
    """A tracking URI without its password."""
    scheme, separator, rest = uri.partition("://")
    login, at, address = rest.rpartition("@")
    address = address.partition("?")[0]
    return f"{scheme}{separator}***@{address}" if at and login else f"{scheme}{separator}{address}"


def prepare_database(storage: StorageURL) -> str:
    """Create MLflow's database beside the studies with its tables, if missing.

    Returns:
        Its tracking URI, password included.

    Raises:
        TrackingError: it cannot be made, or its tables are of another MLflow.
        TrackingUnreachable: the server does not answer.
    """
    url = database_of(storage)
    try:
        with _locked(storage) as is_there:
            if not is_there(url.database):
                _create_database(storage, url)
            _create_schema(storage, url)
            # Under the lock: MLflow can't create its tables in two processes at once.
            _open_store(url.sqlalchemy)
    except psycopg2.OperationalError as error:
        raise TrackingUnreachable(str(connection_error(storage, error))) from error
    return url.sqlalchemy


def probe(uri: str) -> None:
    """Whether anything answers, without MLflow's own client; raises :exc:`TrackingUnreachable`."""
    if not uri.startswith("http"):
        return
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=float(_HTTP["MLFLOW_HTTP_REQUEST_TIMEOUT"])):
            pass
    except urllib.error.HTTPError:
        pass  # something answers; MLflow's client checks what it is
    except (OSError, http.client.HTTPException) as error:
        raise _no_answer(uri) from error


def connect(uri: str) -> MlflowClient:
    """A client of the MLflow at ``uri``, which has answered.

    Raises:
        TrackingError: what is there is not MLflow, or of another version.
        TrackingUnreachable: nothing answers.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
    try:
        if not uri.startswith("http"):
            _open_store(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, ValueError, KeyError, TypeError) as error:
        raise explained(uri, error) from error
    return client


def trouble(client: MlflowClient, error: Exception) -> TrackingError:
    """An error of MLflow's client as one of ours. An outage is told from a refusal by asking something else.

    The error itself does not tell: a server answers 500 when its database refuses a value, and the text may quote it.
    """
    if getattr(error, "error_code", "") in _DENIED:
        return explained(client.tracking_uri, error)
    try:
        client.search_experiments(max_results=1)
    except Exception as now:  # of MLflow or any library below it
        return explained(client.tracking_uri, now)
    return _refusal(client.tracking_uri, error)


def explained(uri: str, error: Exception) -> TrackingError:
    """Our error for one of MLflow's client; its class says whether to retry."""
    text = one_line(error)
    code = getattr(error, "error_code", "")
    where = f"MLflow at {display(uri)}"
    if "out-of-date database schema" in text:
        return TrackingError(
            f"the tables of {where} are another MLflow's: stop what uses them and bring them up to date with: "
            'mlflow db upgrade "$(studyhall mirror --print-uri)"'
        )
    if code in _DENIED or "error code 401" in text or "error code 403" in text:
        return TrackingError(
            f"{where} refuses us: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
            "of somebody who may write"
        )
    if _UNREACHABLE.search(text) or code == "TEMPORARILY_UNAVAILABLE":
        return _no_answer(uri)
    if uri.startswith("http") and _is_foreign(error, text):
        return TrackingError(f"what answers at {display(uri)} is not MLflow: give the address of an MLflow server")
    return _refusal(uri, error)


def _refusal(uri: str, error: Exception) -> TrackingError:
    text = one_line(error)
    return TrackingError(f"MLflow at {display(uri)} refuses a request: {_without(uri, text)[:300]}")


def _no_answer(uri: str) -> TrackingUnreachable:
    return TrackingUnreachable(
        f"no answer from MLflow at {display(uri)}: is it running, and does the address match it?"
    )


def _is_foreign(error: Exception, text: str) -> bool:
    return not hasattr(error, "error_code") or bool(_FOREIGN.search(text))


def _without(uri: str, text: str) -> str:
    password = urlsplit(uri).password
    return text.replace(uri, display(uri)).replace(password, "***") if password else text


def _open_store(uri: str) -> None:
    """Make MLflow's tables in a database where there are none; refuse those of another version."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.exc import SQLAlchemyError

    try:
        SqlAlchemyStore(uri, default_artifact_root="mlflow-artifacts:/").engine.dispose()  # type: ignore[no-untyped-call]
    except (MlflowException, SQLAlchemyError) as error:
        raise explained(uri, error) from error


@contextmanager
def _locked(storage: StorageURL) -> Iterator[Callable[[str | None], bool]]:
    """Hold MLflow's advisory lock; yields a function that says whether a database exists."""
    with closing(psycopg2.connect(**storage.libpq)) as connection, connection, connection.cursor() as cursor:
        # A lock of the transaction, not of the session: behind PgBouncer a session is not ours.
        cursor.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))

        def is_there(name: str | None) -> bool:
            cursor.execute("select exists (select from pg_database where datname = %s)", (name,))
            return bool(cursor.fetchone() == (True,))

        yield is_there


def _create_database(storage: StorageURL, url: StorageURL) -> None:
    from psycopg2 import sql

    with closing(psycopg2.connect(**storage.libpq)) as connection:
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql.SQL("create database {}").format(sql.Identifier(url.database or "")))
        except psycopg2.errors.InsufficientPrivilege:
            raise TrackingError(
                f"cannot make the database {url.database!r} for MLflow at {storage.where}: let an administrator "
                f"create it (createdb -O {storage.user or 'USER'} {url.database}), or give --tracking-uri"
            ) from None


def _create_schema(storage: StorageURL, url: StorageURL) -> None:
    """Make the schema of the studies in MLflow's database, where its search path names none that is there."""
    from psycopg2 import sql

    with closing(psycopg2.connect(**url.libpq)) as connection, connection, connection.cursor() as cursor:
        if _current_schema(cursor) is None:
            with closing(psycopg2.connect(**storage.libpq)) as beside, beside.cursor() as studies:
                schema = _current_schema(studies)
            cursor.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(schema or "public")))


def _current_schema(cursor: psycopg2.extensions.cursor) -> str | None:
    cursor.execute("select current_schema()")
    row = cursor.fetchone()
    return row[0] if row else None
