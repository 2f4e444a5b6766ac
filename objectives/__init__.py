"""Objectives in PyTorch, and the models that are kept of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objectives.model import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    if name == "load_model":  # when it is asked for: PyTorch takes a second
        from objectives.model import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
