"""A database with its tables for a whole module, and a proxy before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from studies import PostgresStorage
from studies.storage.url import StorageURL
from tests.conftest import Server
from tests.support.proxy import Proxy
from tests.support.stage import Stages


@pytest.fixture(scope="module")
def database(separate_server: Server) -> Iterator[StorageURL]:
    with separate_server.database() as url:
        PostgresStorage(url).close()
        yield url


@pytest.fixture(scope="module")
def stages(database: StorageURL) -> Iterator[Stages]:
    with closing(Stages(database)) as stages:
        yield stages


@pytest.fixture
def proxy(database: StorageURL) -> Iterator[Proxy]:
    with Proxy(database) as running:
        yield running
