"""Database users who may not do everything."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from studies.storage.url import StorageURL

if TYPE_CHECKING:
    from studies.storage.postgres import PostgresStorage

READER: Final = "studyhall_reader"


def reader(storage: PostgresStorage) -> StorageURL:
    """The storage for one who can only read.

    In the embedded server that is a user of its own, who needs no password on its socket. On another server
    users are its administrator's: there the given one's sessions are made read-only.
    """
    if storage.server is None:
        options = dict(storage.location.options)
        options["options"] = f"{options.get('options', '')} -c default_transaction_read_only=on".strip()
        return dataclasses.replace(storage.location, options=tuple(sorted(options.items())))
    storage.database.execute(
        f"do $$ begin create role {READER} login; exception when duplicate_object then null; end $$"
    )
    storage.database.execute(f"grant pg_read_all_data to {READER}")
    return dataclasses.replace(storage.location, user=READER)
