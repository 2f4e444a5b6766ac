"""A study's progress on standard error: two live lines in a terminal, else a plain line from time to time."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from studies.errors import command
from studies.storage import REMIND
from studies.text import coloured, number, printable, time_left

if TYPE_CHECKING:
    from collections.abc import Sequence

    from studies.errors import StorageUnreachable
    from studies.session import Seen

#: Seconds between two plain lines.
PLAIN_EVERY = 5.0


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Ignore a closed standard error: it must not end a run."""


class Progress:
    """Shows the status of studies. A context manager, which restores the terminal."""

    def __init__(self) -> None:
        # No markup: a name such as [bold] is data. No wrapping: a line in a log stays one line.
        self._console = _Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._live: Live | None = None
        self._paused: set[str] = set()
        self._printed: dict[str, tuple[tuple[int, int, int], float]] = {}
        self._reminded = 0.0

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Show in a terminal, during the block only, that the command is busy with ``what``."""
        return self._console.status(what) if self._console.is_terminal else nullcontext()

    def print(self, line: str) -> None:
        """Print a line above the live ones; from any thread."""
        self._console.print(printable(line), style="dim")

    def relay(self, line: str) -> None:
        """Print a line of a worker, with its colours."""
        self._console.print(Text.from_ansi(coloured(line), style="dim"))

    def unreachable(self, error: StorageUnreachable) -> None:
        """Print that the database is unreachable, repeatedly until the next :meth:`update`."""
        if time.monotonic() - self._reminded > REMIND:
            self.print(f"waiting for the database: {error}")
            self._reminded = time.monotonic()

    def update(self, studies: Sequence[Seen]) -> None:
        """Show how the studies stand."""
        self._reminded = 0.0  # the database answers: another outage is told at once
        if self._live:
            self._live.update(Group(*map(self._picture, studies)))
            return
        for seen in studies:
            now, record, _ = seen
            if now.paused != (record.name in self._paused):
                self._paused ^= {record.name}
                self._say(
                    f"{record.name} is paused; go on with: {command('resume', record.name)}"
                    if now.paused
                    else f"{record.name} goes on"
                )
            shown = now.finished, now.epochs, now.trials["paused"]
            before, at = self._printed.get(record.name, ((0, 0, 0), 0.0))
            if shown != before and time.monotonic() - at > PLAIN_EVERY:
                self._printed[record.name] = (shown, time.monotonic())
                self._say(f"{record.name}: {now.done} done, {self._facts(seen)}")

    def _say(self, line: str) -> None:
        self._console.print(printable(line))

    def _picture(self, seen: Seen) -> Group:
        now, record, _ = seen
        share = now.share_done
        line = Table.grid(padding=(0, 1))
        line.add_column(no_wrap=True, max_width=30)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(
            Text(printable(record.name), "bold"),
            ProgressBar(
                total=None if share is None else 1.0,
                completed=share or 0.0,
                width=max(10, min(40, self._console.width - 45)),
            ),
            Text(now.done),
        )
        return Group(line, Text(f"  {printable(self._facts(seen))}", overflow="ellipsis", no_wrap=True))

    def _facts(self, seen: Seen) -> str:
        """What people look for first, as a narrow terminal cuts off the rest."""
        now, _, left = seen
        facts = [f"best {number(now.best.value)} (trial {now.best.number})"] if now.best else []
        if now.paused:
            facts.append(f"paused; go on with: {command('resume', now.study)}")
        elif left is not None:
            facts.append(time_left(left))
        facts.append(f"{now.trials['running']} running")
        words = {"pruned": "pruned", "waiting": "waiting", "paused": "paused by the scheduler", "fail": "failed"}
        return ", ".join([*facts, *(f"{now.trials[key]} {word}" for key, word in words.items() if now.trials[key])])
