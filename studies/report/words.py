"""Numbers and times as a report says them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from studies.values import to_text


def number(value: float | None) -> str:
    """Six significant digits."""
    return "–" if value is None else f"{value:.6g}"


def count(value: int) -> str:
    """``12,345``."""
    return f"{value:,}"


def duration(seconds: float) -> str:
    """``0.12 s``, ``48 s``, ``3 min 20 s``, ``2 h 3 min``, ``4 d 2 h``."""
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def moment(at: datetime | None) -> str:
    """``2030-01-31 12:00:00``, in local time."""
    return "–" if at is None else at.strftime("%Y-%m-%d %H:%M:%S")


def param(value: Any) -> str:
    """A parameter's value: real numbers to five significant digits."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return to_text(value)
