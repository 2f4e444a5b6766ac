"""Numbers and times as text in a report."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from studies.values import to_text


def count(value: int) -> str:
    """``12,345``."""
    return f"{value:,}"


def moment(at: datetime | None) -> str:
    """``2030-01-31 12:00:00``, in local time."""
    return "–" if at is None else at.strftime("%Y-%m-%d %H:%M:%S")


def param(value: Any) -> str:
    """A parameter's value: real numbers to five significant digits."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return to_text(value)
