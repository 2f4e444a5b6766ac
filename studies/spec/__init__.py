"""The study file: what a study runs, over which space, with which sampler, pruner and budget."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studies.spec.study import StudySpec

__all__ = ["StudySpec"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: names of presets need no pydantic.
    if name in __all__:
        return getattr(import_module("studies.spec.study"), name)
    raise AttributeError(f"module 'studies.spec' has no attribute {name!r}")
