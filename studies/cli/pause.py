"""The command pause; :func:`studies.lifecycle.pause` says what happens to running trials."""

from __future__ import annotations

import click

from studies import lifecycle
from studies.cli.common import Common, common_options, say, study_argument
from studies.errors import command
from studies.text import counted


@click.command()
@study_argument
@common_options
def pause(common: Common, name: str) -> None:
    """Pause a study: workers stay and wait.

    Running trials are requeued at their next step, on every machine.
    """
    with common.open() as storage:
        record = storage.find_study(name)
        is_new = lifecycle.pause(storage, record)
        running = storage.status(record).trials["running"]
    say_halted(name, "paused", is_new, running)


def say_halted(name: str, word: str, is_new: bool, running: int) -> None:
    """Print that a study is paused or stopped, what happens to running trials, and how to resume."""
    requeued = f"; {counted(running, 'running trial')} will be requeued at the next step" if running else ""
    say(f"study {name!r} is {word}{'' if is_new else ' already'}{requeued}; go on with: {command('resume', name)}")
