"""Optuna's own suite for storages, complete, on PostgresStorage."""

from __future__ import annotations

import pytest
from optuna.testing.pytest_storages import StorageTestCase

pytestmark = pytest.mark.both_servers


@pytest.mark.filterwarnings("default")  # what Optuna's suite itself brings about is Optuna's
class TestOptunasOwnSuite(StorageTestCase):
    """On the embedded and on the separate server in turn (fixture ``storage``)."""
