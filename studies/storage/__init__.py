"""Where studies live: PostgreSQL, embedded or named by a URL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from studies.storage.postgres import PostgresStorage

__all__ = ["PostgresStorage", "chosen_home", "open_storage"]

#: The default storage, for the command line and for Python.
STORAGE_VARIABLE: Final = "STUDYHALL_STORAGE"
HOME_VARIABLE: Final = "STUDYHALL_HOME"

#: Seconds between two lines about waiting for the database.
REMIND: Final = 30.0


def chosen_home() -> Path:
    """The folder of Studyhall on this machine: ``STUDYHALL_HOME``, else the user's data directory."""
    from studies.storage.embedded.binaries import default_home

    chosen = os.environ.get(HOME_VARIABLE)
    return Path(chosen).absolute() if chosen else default_home(is_root=os.geteuid() == 0)


def open_storage(
    url: str | None = None, *, home: str | Path | None = None, create: bool = True, patience: float = 30.0
) -> PostgresStorage:
    """The storage at ``url``, or the one of the embedded server.

    Args:
        url: a PostgreSQL URL; default: that of ``STUDYHALL_STORAGE``, as on the command line, else the embedded
            server, which is started if need be and is used until :meth:`PostgresStorage.close` or the end of the
            process.
        home: use the embedded server that keeps its data there; default: ``STUDYHALL_HOME``, else the user's data
            directory.
        create: make the tables where they are missing.
        patience: seconds for which a lost server is waited for, once it was there.

    Raises:
        StorageURLError: the URL cannot be understood.
        StorageUnreachable: the server does not answer, or refuses us.
        StorageError: the tables are missing, or of another version.
        EmbeddedServerError: the embedded server cannot start.
    """
    from studies.storage.postgres import PostgresStorage
    from studies.storage.url import StorageURL

    if url is not None and home is not None:
        raise TypeError("open_storage() takes a url or a home, not both")
    if home is None:
        url = url or os.environ.get(STORAGE_VARIABLE)
    if url:
        return PostgresStorage(StorageURL.parse(url), create=create, patience=patience)
    from studies.storage.embedded.server import EmbeddedServer

    server = EmbeddedServer(Path(home) if home else chosen_home())
    try:
        return PostgresStorage(server.start(), create=create, server=server, patience=patience)
    except BaseException:
        server.close()
        raise


def __getattr__(name: str) -> Any:
    # Imported on first use: importing Optuna is slow.
    if name == "PostgresStorage":
        from studies.storage.postgres import PostgresStorage

        return PostgresStorage
    raise AttributeError(f"module 'studies.storage' has no attribute {name!r}")
