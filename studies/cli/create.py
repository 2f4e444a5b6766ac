"""The command create: create a study without running it."""

from __future__ import annotations

import click

from studies.cli.common import (
    Common,
    common_options,
    goal,
    say,
)
from studies.cli.status import spendable
from studies.cli.target import Target, say_grid, spec_options


@click.command()
@spec_options
@common_options
def create(
    common: Common,
    target: Target,
) -> None:
    """Create a study without running it.

    The objective is not imported: its data and GPUs may be on other machines, where
    `studyhall work NAME` joins.
    """
    from studies.objective import work_command
    from studies.storage.url import LEGAL

    spec, script = target.read()
    with common.open(create=True) as storage:
        record, created = storage.create_study(spec)
        of = next(iter(spendable(record.budget or spec.budget)), "any number of trials")
        state = f"created study {record.name!r}" if created else f"study {record.name!r} already exists with this spec"
        say(f"{state}: {of}; {goal(record.spec or spec, is_new=created)}")
        say_grid(spec)
        at = script.shown if script else None
        say(f"run it with: {work_command(record.name, spec.objective.path, spec.checkpoints.store, at=at)}")
        if storage.server:
            say(
                f"{storage.where} serves this machine alone; for workers on others, create the study in a PostgreSQL "
                f"server that all of them reach: --storage {LEGAL}"
            )
        elif script:
            say(f"on another machine, give the path of its own copy of {script.file.name}")
