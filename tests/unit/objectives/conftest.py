"""A trial that only records, for training without a study."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


class Pruned(Exception):
    """The trial was pruned."""


class Interrupted(BaseException):
    """The trial was left."""


@dataclass
class RecordingTrial:
    """Does what the objective's ``Trial`` protocol says, and remembers it."""

    params: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    prune_at: int | None = None
    stop_after: int | None = None
    """How often ``stop_requested`` is false."""
    constrained: Collection[str] = ()
    reports: list[tuple[int, float, dict[str, float]]] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    asked: int = 0
    Pruned = Pruned
    Interrupted = Interrupted

    @property
    def stop_requested(self) -> bool:
        self.asked += 1
        return self.stop_after is not None and self.asked > self.stop_after

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:  # noqa: ARG002
        return self.params.setdefault(name, low)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:  # noqa: ARG002
        return self.params.setdefault(name, low)

    def report(self, value: float, step: int, **metrics: float) -> None:
        self.reports.append((step, value, metrics))

    def set_user_attr(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def should_prune(self) -> bool:
        return self.prune_at is not None and self.reports[-1][0] >= self.prune_at

    def checkpoint(self, step: int, state: Callable[[], bytes]) -> None:
        """Never due."""

    def restore(self) -> None:
        """A fresh start."""


@pytest.fixture(scope="session")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objectives")


@pytest.fixture(scope="module", autouse=True)
def _in_a_folder_of_the_tests(_folder: Path) -> Iterator[None]:
    """What data directories such as "unused" get stays out of the sources; digits are prepared once for all tests."""
    with contextlib.chdir(_folder):
        yield
