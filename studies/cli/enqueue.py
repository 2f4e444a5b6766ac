"""The command enqueue: run a trial with given parameters next."""

from __future__ import annotations

import click

from studies import lifecycle
from studies.cli.common import Common, common_options, say, study_argument
from studies.cli.formats import readable
from studies.errors import command
from studies.stop_reasons import way_on


@click.command()
@study_argument
@click.argument("params", metavar="PARAM=VALUE...", nargs=-1, required=True)
@common_options
def enqueue(common: Common, name: str, params: tuple[str, ...]) -> None:
    """Run a trial with parameters of your choice next.

    What is not given is sampled: studyhall enqueue digits lr=1e-3 width=256

    Names and values are checked against the study's space; where the objective suggests for itself,
    against the trials that have begun.
    """
    with common.open() as storage:
        enqueued = lifecycle.enqueue(storage, storage.find_study(name), params)
    shown = " ".join(f"{key}={readable(value)}" for key, value in enqueued.params.items())
    say(f"trial {enqueued.number} of study {name!r} waits for a worker: {shown}")
    if not enqueued.is_checked:
        say(
            "names and values are not checked: the study has no [space], and no trial has started; "
            f"undo it with: {command('cancel', name, enqueued.number)}"
        )
    for param, condition in enqueued.conditions.items():
        say(f"{param} is used only if {condition}; set that too, or the sampler decides")
    if not enqueued.has_room:
        say(f"the budget has no room for another trial; raise it with: {way_on(name, 'complete')}")
