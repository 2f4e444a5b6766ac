"""A worker in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from studies import PostgresStorage
from studies.storage.records import StudyRecord
from studies.worker.loop import Worker
from studies.worker.served_study import Service


def worker_on(
    storage: PostgresStorage,
    record: StudyRecord,
    objective: Callable[[Any], Any],
    results: Path,
    *,
    script_sha256: str | None = None,
    environment: Mapping[str, Any] | None = None,
    **options: Any,
) -> Worker:
    """A worker on one study.

    Args:
        storage: where the study is.
        record: the study.
        objective: what it runs.
        results: the directory where results wait while the database is away.
        script_sha256: of the script that holds the objective.
        environment: of the worker.
        options: of :class:`Worker`, where they differ from worker ``w`` on a CPU with a lease of 30 s.
    """
    usual = {"worker_id": "w", "device": "cpu", "lease_seconds": 30, "stop": threading.Event()}
    service = Service(record=record, objective=objective, script_sha256=script_sha256, environment=environment or {})
    return Worker(storage, [service], results=results, **usual | options)
