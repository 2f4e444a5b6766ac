"""The commands that steer a study while it runs: pause, resume, stop, cancel, enqueue, retry."""

from __future__ import annotations

from collections.abc import Callable

import click

from studies import control
from studies.cli.common import Common, F, common_options, complete_trials, counted, say, study_argument, who_goes_on
from studies.cli.formats import readable
from studies.cli.look import status_line
from studies.errors import command


def _number_argument(*states: str) -> Callable[[F], F]:
    return click.argument("number", metavar="NUMBER", type=int, shell_complete=complete_trials(*states))


@click.command()
@study_argument
@common_options
def pause(common: Common, name: str) -> None:
    """Let no trial run for now; workers wait.

    Running trials are given back at their next step, on every machine.
    """
    with common.open() as storage:
        record = storage.find_study(name)
        is_new = control.pause(storage, record)
        running = storage.status(record).trials["running"]
    _say_halted(name, "paused", is_new, running)


@click.command()
@study_argument
@common_options
def stop(common: Common, name: str) -> None:
    """End a study's workers until it is resumed.

    Running trials are given back at their next step, on every machine. `studyhall resume` or
    `studyhall extend` lets the study go on.
    """
    with common.open() as storage:
        record = storage.find_study(name)
        is_new = control.stop(storage, record)
        running = storage.status(record).trials["running"]
    _say_halted(name, "stopped", is_new, running)


@click.command()
@study_argument
@common_options
def resume(common: Common, name: str) -> None:
    """Let a paused or stopped study go on."""
    with common.open() as storage:
        record = storage.find_study(name)
        is_new = control.resume(storage, record)
        now = storage.status(record)
    if now.ended:
        say(f"{status_line(now, record)}; go on with: {control.way_on(name, now.ended)}")
        return
    how = "goes on" if is_new else "is neither paused nor stopped"
    say(f"study {name!r} {how}{who_goes_on(now, record)}")


@click.command()
@study_argument
@_number_argument("RUNNING", "WAITING")
@common_options
def cancel(common: Common, name: str, number: int) -> None:
    """End one waiting or running trial.

    It is FAILed with the error "cancelled", and counts toward neither the budget nor
    budget.max_failures.
    """
    with common.open() as storage:
        record = storage.find_study(name)
        has_ended = control.cancel(storage, record, number)
        workers = [worker for worker in storage.status(record).workers if worker.trial == number]
    if has_ended:
        say(f"trial {number} of study {name!r} is cancelled")
    else:
        where = f", on {workers[0].host} ({workers[0].device})" if workers else ""
        say(f"trial {number} of study {name!r} is cancelled: it ends at its next step{where}")


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
        enqueued = control.enqueue(storage, storage.find_study(name), params)
    shown = " ".join(f"{key}={readable(value)}" for key, value in enqueued.params.items())
    say(f"trial {enqueued.number} of study {name!r} waits for a worker: {shown}")
    if not enqueued.is_checked:
        say(
            "names and values are not checked: no trial has begun, and the objective suggests for itself; "
            f"take it back with: {command('cancel', name, enqueued.number)}"
        )
    for param, condition in enqueued.conditions.items():
        say(f"{param} is used only if {condition}; set that too, or the sampler decides")
    if not enqueued.has_room:
        say(
            "the budget has no room for it beside the trials that run and wait; "
            f"make some with: {control.way_on(name, 'complete')}"
        )


@click.command()
@study_argument
@_number_argument("FAIL")
@common_options
def retry(common: Common, name: str, number: int) -> None:
    """Run a failed trial's parameters once more.

    That is a new trial; the failed one stays, and counts toward budget.max_failures.
    """
    with common.open() as storage:
        new = control.retry(storage, storage.find_study(name), number)
    say(f"trial {new} of study {name!r} waits for a worker, with the parameters of trial {number}")


def _say_halted(name: str, word: str, is_new: bool, running: int) -> None:
    given_back = f"; {counted(running, 'running trial')} will be given back at the next step" if running else ""
    say(f"study {name!r} is {word}{'' if is_new else ' already'}{given_back}; go on with: {command('resume', name)}")
