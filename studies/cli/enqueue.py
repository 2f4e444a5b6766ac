"""The command enqueue: run a trial with given parameters next."""

from __future__ import annotations

import click

from studies import lifecycle
from studies.cli.common import Common, common_options, complete_studies, say, study_argument
from studies.cli.formats import readable
from studies.errors import command
from studies.stop_reasons import way_on


@click.command()
@study_argument
@click.argument("params", metavar="[PARAM=VALUE]...", nargs=-1)
@click.option(
    "--from", "source", metavar="OTHER", shell_complete=complete_studies, help="The best trials of another study."
)
@click.option("--top", type=click.IntRange(1, 1000), metavar="N", help="With --from: how many; default: 1.")
@common_options
def enqueue(common: Common, name: str, params: tuple[str, ...], source: str | None, top: int | None) -> None:
    """Run a trial with parameters of your choice next.

    What is not given is sampled: studyhall enqueue digits lr=1e-3 width=256

    Names and values are checked against the study's space; where the objective suggests for itself,
    against the trials that have begun. With --from OTHER they are those of the best trials of
    another study, as far as this one's space has them.
    """
    if bool(params) == bool(source):
        raise click.UsageError("give either PARAM=VALUE, or --from OTHER, for example: lr=1e-3")
    if top and not source:
        raise click.UsageError("--top is for the trials of another study; add --from OTHER")
    with common.open() as storage:
        record = storage.find_study(name)
        if source is None:
            made = [lifecycle.enqueue(storage, record, params)]
        else:
            from studies.warm_start import enqueue_top

            made = []
            for copied in enqueue_top(storage, record, source, top or 1):
                made.append(copied.enqueued)
                if copied.left_out:
                    left = ", ".join(copied.left_out)
                    say(f"trial {copied.number} of {source!r}: not in the space of {name!r}, and sampled: {left}")
    for enqueued in made:
        shown = " ".join(f"{key}={readable(value)}" for key, value in enqueued.params.items())
        say(f"trial {enqueued.number} of study {name!r} waits for a worker: {shown}")
    # Of the last one alone: the checks are the same for all, and the last one is the first without room.
    if not made[-1].is_checked:
        say(
            "names and values are not checked: the study has no [space], and no trial has started; "
            f"undo it with: {command('cancel', name, made[-1].number)}"
        )
    for param, condition in made[-1].conditions.items():
        say(f"{param} is used only if {condition}; set that too, or the sampler decides")
    if not made[-1].has_room:
        say(f"the budget has no room for another trial; raise it with: {way_on(name, 'complete')}")
