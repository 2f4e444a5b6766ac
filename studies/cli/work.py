"""The command work: join existing studies with the workers of this machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from studies.cli.common import (
    Common,
    allow_option,
    common_options,
    complete_studies,
    data_dir_or_default,
    objective_options,
    time_value,
)
from studies.cli.mirror import checked
from studies.cli.workers import conclude, run_workers, worker_options
from studies.text import counted

if TYPE_CHECKING:
    from studies.spec.script import Script
    from studies.spec.study import StudySpec


def _shares(_ctx: click.Context, _param: click.Parameter, text: str | None) -> list[float] | None:
    """``2:1`` → [2.0, 1.0]."""
    if text is None:
        return None
    try:
        shares = [float(part) for part in text.split(":")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share < math.inf for share in shares):
        raise click.BadParameter(f"{text!r} is not numbers above 0 with colons between them, such as 2:1")
    return shares


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_studies)
@click.option(
    "--share",
    "shares",
    metavar="N:N",
    callback=_shares,
    help="With several studies: 2:1 runs two trials of the first for each trial of the second.",
)
@click.option(
    "--until-idle",
    metavar="TIME",
    callback=time_value,
    help="Stay when a study is over, as it may be extended; exit after so long without a trial: 10m.",
)
@worker_options
@allow_option
@objective_options
@common_options
def work(
    common: Common,
    names: tuple[str, ...],
    shares: list[float] | None,
    until_idle: float | None,
    workers: int | None,
    slots: int | None,
    data_dir: Path | None,
    lease: float,
    notify_url: str | None,
    mlflow: bool,
    tracking_uri: str | None,
    allow: tuple[str, ...],
    scripts: tuple[Script, ...],
    allow_changed: bool,
) -> None:
    """Join existing studies with this machine's workers.

    The study names its objective; the code must be on this machine. The database must not choose
    code: only objectives.* is imported, unless --allow permits more, and a script runs only if
    --objective names it and its content is that of the study.
    """
    if len(set(names)) < len(names):
        raise click.UsageError(f"a study is named twice: {' '.join(names)}")
    if shares and len(shares) != len(names):
        raise click.UsageError(
            f"--share has {counted(len(shares), 'number')} for {counted(len(names), 'study')}; give one number for each"
        )
    from studies.session import find_scripts, require_runnable

    mirrors = [checked(tracking_uri)] if mlflow else []
    with common.open() as storage:
        served: list[tuple[StudySpec, float]] = []
        records = [storage.find_study(name) for name in names]
        found = find_scripts(records, scripts, allow_changed=allow_changed)
        # All studies are checked before a worker starts: it would serve some of them and fail at the next.
        for record, share in zip(records, shares or [1.0] * len(names), strict=True):
            has_script = record.name in found
            spec = require_runnable(record, allow, data_dir_or_default(data_dir), has_script=has_script)
            # With --until-idle workers stay for a study that has ended: a person may extend it.
            if until_idle is None and storage.status(record).ended:
                conclude(storage, record, None)
            else:
                served.append((spec, share))
        if served:
            run_workers(
                storage,
                served,
                scripts=found,
                allow=allow,
                workers=workers,
                slots=slots,
                data_dir=data_dir,
                lease=lease,
                notify_url=notify_url,
                mirrors=mirrors,
                until_idle=until_idle,
            )
