"""The command delete: a study with its trials and checkpoints."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from studies.cli.common import (
    Common,
    common_options,
    say,
    study_argument,
)
from studies.errors import CheckpointError, SpecError, StudyBusy, StudyhallError, command
from studies.text import counted

if TYPE_CHECKING:
    from studies.storage.records import StudyRecord


@click.command()
@study_argument
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Delete it even while workers run its trials, which they then drop.")
@common_options
def delete(common: Common, name: str, yes: bool, force: bool) -> None:
    """Delete a study with all its trials."""
    with common.open() as storage:
        try:
            record = storage.find_study(name)
        except SpecError:  # which keeps nobody from deleting it
            record = storage.find_study(name, reads_spec=False)
        now = storage.status(record)
        if now.workers and not force:
            raise StudyBusy(
                f"study {name!r} has {counted(len(now.workers), 'worker')}, seen in the last two minutes; "
                f"stop them, or delete it all the same with --force; see: {command('status', name)}"
            )
        trials = sum(now.trials.values())
        total = f"its {counted(trials, 'trial')}" if trials else "no trials"
        count = len(now.workers)
        if not yes:
            under = f", while {counted(count, 'worker')} may run them" if count else ""
            _confirm(f"Delete study {name!r} with {total}{under}?")
        storage.delete(record)
    losers = "its worker drops its trial" if count == 1 else f"its {count} workers drop their trials"
    say(f"deleted study {name!r} with {total}{f'; {losers} at the next step' if count else ''}")
    # After the study: a worker that is left may still write one, and a failure here must not keep the study.
    _delete_checkpoints(record)


def _delete_checkpoints(record: StudyRecord) -> None:
    """Delete the checkpoints of a deleted study that are outside of the database."""
    from studies.checkpoint_stores import open_store

    if record.spec is None or record.uid is None or record.spec.checkpoints.store == "postgresql":
        return
    try:
        open_store(record.spec.checkpoints.store, record.uid).clear()
    except CheckpointError as error:
        say(f"warning: its checkpoints are left in {record.spec.checkpoints.store}, under {record.uid}: {error}")


def _confirm(question: str) -> None:
    """Ask for confirmation.

    Raises:
        StudyhallError: the answer is no, or there is no terminal.
    """
    # A script that forgot --yes must not wait for an answer that never comes.
    if sys.stdin is None or not sys.stdin.isatty():
        raise StudyhallError("nothing deleted: there is no terminal to ask at; give --yes")
    if not click.confirm(question, err=True):
        raise StudyhallError("nothing deleted")
