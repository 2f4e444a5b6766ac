"""Waiting for what another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

GUARD: Final = 300.0
"""Seconds after which something hangs. That it takes long says nothing: a test's machine may be busy."""


def eventually(condition: Callable[[], object], what: str = "it", *, seconds: float = GUARD) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
