"""The command resume: continue a paused or stopped study."""

from __future__ import annotations

import click

from studies import lifecycle
from studies.cli.common import Common, common_options, say, study_argument, who_goes_on
from studies.cli.status import status_line
from studies.stop_reasons import way_on


@click.command()
@study_argument
@common_options
def resume(common: Common, name: str) -> None:
    """Continue a paused or stopped study."""
    with common.open() as storage:
        record = storage.find_study(name)
        is_new = lifecycle.resume(storage, record)
        now = storage.status(record)
    if now.ended:
        say(f"{status_line(now, record)}; go on with: {way_on(name, now.ended)}")
        return
    how = "goes on" if is_new else "is neither paused nor stopped"
    say(f"study {name!r} {how}{who_goes_on(now, record)}")
