"""Studyhall: an Optuna study service. Many workers, one PostgreSQL, exact budgets."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studies.spec import StudySpec
    from studies.storage import PostgresStorage, open_storage
    from studies.study import Study

__all__ = ["PostgresStorage", "Study", "StudySpec", "open_storage"]

_MODULES = {"PostgresStorage": "storage", "Study": "study", "StudySpec": "spec", "open_storage": "storage"}


def __getattr__(name: str) -> Any:
    # Imported when asked for: the command line imports this package too, and must not wait for Optuna.
    if name in _MODULES:
        return getattr(import_module(f"studies.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'studies' has no attribute {name!r}")
