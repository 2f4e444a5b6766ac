"""Start the mirror's process, read its events, and end it without waiting for an unreachable MLflow."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

from studies.mirror.process import Setup
from studies.mirror.server import folder_of
from studies.processes import Child

if TYPE_CHECKING:
    from studies.storage.postgres import PostgresStorage

#: Seconds without an answer of MLflow after which a command that is about to exit stops waiting: for a server, and for
#: the database beside the studies, which may have to be created first.
SILENCE: Final = 5.0
SILENCE_OF_DATABASE: Final = 60.0


@dataclass(frozen=True)
class _Finish:
    finish: bool = True


class MirrorProcess(Child):
    """The mirror of some studies, or of all.

    Args:
        storage: where they are.
        tracking: MLflow's address; ``None`` for its database beside the studies.
        home: where artifacts go in the latter case.
        studies: by name; none: all there are, and those to come.
        once: catch up and end.
        environment: of the process.
        output: is given each line that it writes to standard error.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        *,
        tracking: str | None,
        home: Path,
        studies: tuple[str, ...] = (),
        once: bool = False,
        environment: Mapping[str, str],
        output: Callable[[str], None],
    ) -> None:
        #: Whether MLflow or the database was unreachable at the last event.
        self.is_waiting = False
        self._heard = time.monotonic()
        self._is_loading = True
        self._silence = SILENCE if tracking else SILENCE_OF_DATABASE
        super().__init__(
            "studies.mirror.process",
            Setup(
                storage=storage.location.sqlalchemy,
                tracking=tracking,
                artifacts=None if tracking and tracking.startswith("http") else artifacts_of(home),
                studies=studies,
                once=once,
            ),
            environment=environment,
            output=output,
            inherit=[storage.server.fileno()] if storage.server else [],
        )

    def new_events(self) -> Iterator[dict[str, Any]]:
        """The events since the last call, without mere heartbeats; see :mod:`studies.mirror.process`."""
        with suppress(Empty):
            while True:
                event = self.events.get_nowait()
                self.is_waiting = event["event"] == "waiting"
                self._is_loading = event["event"] == "loading"
                if not self.is_waiting:
                    self._heard = time.monotonic()
                if event["event"] not in ("asking", "beat", "loading"):
                    yield event

    def finish(self) -> bool:
        """Let the mirror catch up while MLflow answers, then end it. Returns whether it caught up."""
        self.send(_Finish())
        began = time.monotonic()
        # Loading takes long beside busy workers, and sends no heartbeat.
        while time.monotonic() - (began if self._is_loading else self._heard) < self._silence:
            with suppress(subprocess.TimeoutExpired):
                return self.wait(timeout=0.05) == 0
            for _ in self.new_events():
                pass  # any event shows that MLflow answers
        self.kill()
        return False


def artifacts_of(home: Path) -> str:
    """The artifact folder for an MLflow that is a database without a server."""
    return (folder_of(home) / "artifacts").as_uri()
