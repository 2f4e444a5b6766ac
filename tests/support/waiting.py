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
    while True:
        began = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        assert now < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(min(max(0.05, 4 * (now - began)), 1))  # costly looks would slow down what they wait for
