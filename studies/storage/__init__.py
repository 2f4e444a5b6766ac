"""Where studies live: PostgreSQL, embedded or named by a URL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studies.storage.postgres import PostgresStorage

__all__ = ["PostgresStorage", "open_storage"]


def open_storage(
    url: str | None = None, *, home: Path | None = None, create: bool = True, patience: float = 30.0
) -> PostgresStorage:
    """The storage at ``url``, or the one of the embedded server.

    Args:
        url: a PostgreSQL URL; ``None`` for the embedded server, which is started if need be and is
            used until :meth:`PostgresStorage.close` or the end of the process.
        home: where the embedded server keeps its data; default: the user's data directory.
        create: make the tables where they are missing.
        patience: seconds for which a lost server is waited for, once it was there.

    Raises:
        StorageURLError: the URL cannot be understood.
        StorageUnreachable: the server does not answer, or refuses us.
        StorageError: the tables are missing, or of another version.
        EmbeddedServerError: the embedded server cannot start.
    """
    import os

    from studies.storage.postgres import PostgresStorage
    from studies.storage.url import StorageURL

    if url is not None:
        return PostgresStorage(StorageURL.parse(url), create=create, patience=patience)
    from studies.storage.embedded import EmbeddedServer, default_home

    server = EmbeddedServer(home or default_home(is_root=os.geteuid() == 0))
    try:
        return PostgresStorage(server.start(), create=create, server=server, patience=patience)
    except BaseException:
        server.close()
        raise


def __getattr__(name: str) -> Any:
    # Imported when asked for: Optuna takes its time.
    if name == "PostgresStorage":
        from studies.storage.postgres import PostgresStorage

        return PostgresStorage
    raise AttributeError(f"module 'studies.storage' has no attribute {name!r}")
