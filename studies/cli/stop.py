"""The command stop; :func:`studies.lifecycle.stop` says what happens to running trials."""

from __future__ import annotations

import click

from studies import lifecycle
from studies.cli.common import Common, common_options, study_argument
from studies.cli.pause import say_halted


@click.command()
@study_argument
@common_options
def stop(common: Common, name: str) -> None:
    """Stop a study: its workers exit until it is resumed.

    Running trials are requeued at their next step, on every machine. `studyhall resume` or
    `studyhall extend` continues the study.
    """
    with common.open() as storage:
        record = storage.find_study(name)
        is_new = lifecycle.stop(storage, record)
        running = storage.status(record).trials["running"]
    say_halted(name, "stopped", is_new, running)
