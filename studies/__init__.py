"""Studyhall: an Optuna study service. Many workers, one PostgreSQL, exact budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studies.spec.study import StudySpec
    from studies.storage import PostgresStorage, open_storage

__all__ = ["PostgresStorage", "StudySpec", "open_storage"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the command line imports this package too, and must not wait for Optuna.
    if name == "StudySpec":
        from studies.spec.study import StudySpec

        return StudySpec
    if name in ("PostgresStorage", "open_storage"):
        from studies import storage

        return getattr(storage, name)
    raise AttributeError(f"module 'studies' has no attribute {name!r}")
