"""The command run: create or join a study, and run it on this machine until its budget is spent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from studies.cli.common import (
    Common,
    allow_changed_option,
    common_options,
    complete_studies,
    say,
)
from studies.cli.formats import split_names
from studies.cli.mirror import checked
from studies.cli.target import Target, spec_options
from studies.cli.workers import conclude, run_workers, worker_options
from studies.errors import StudyhallError, StudyNotFound, command
from studies.stop_reasons import BY_HAND


@click.command()
@spec_options
@worker_options
@click.option(
    "--warm-start",
    "sources",
    metavar="OTHER[,…]",
    multiple=True,
    callback=lambda _ctx, _param, texts: _sources(texts),
    shell_complete=complete_studies,
    help="Let the sampler learn from trials of other studies, which count toward no budget.",
)
@allow_changed_option
@common_options
def run(
    common: Common,
    target: Target,
    workers: int | None,
    slots: int | None,
    data_dir: Path | None,
    lease: float,
    notify_url: str | None,
    mlflow: bool,
    tracking_uri: str | None,
    sources: list[str],
    allow_changed: bool,
) -> None:
    """Run a study on this machine until its budget is spent.

    TARGET is a preset (digits, diabetes, mnist, …), a study file (my.toml), or any Optuna
    objective (script.py:objective, package.module:objective). An existing study of that name is
    joined. Ctrl-C requeues the running trials; the same command continues.
    """
    from studies.session import permissions

    mirrors = [checked(tracking_uri)] if mlflow else []
    spec, script = target.read()
    with common.open(create=True) as storage:
        # Before the workers start, which takes seconds: most studies that can't run are refused here.
        try:
            record = storage.find_study(spec.name)
        except StudyNotFound:
            record = None
        if record:
            if allow_changed:
                spec = spec.with_script_of(record.spec)
            storage.require_same(record, spec)
            ended = storage.status(record).ended
            # An error, and no quiet end: a script that runs this must not take an unfinished study for a finished one.
            if ended == BY_HAND:
                raise StudyhallError(
                    f"study {record.name!r} was stopped by hand, and no trial is run; "
                    f"go on with: {command('resume', record.name)}, then the same command"
                )
            if ended:
                for source in set(sources) - storage.evidence.counts(record).keys():
                    other = storage.find_study(source)
                    say(f"study {record.name!r} has ended, and learns nothing from {other.name!r} any more")
                conclude(storage, record, None)
                return

        evidence = []
        if sources:
            from studies.warm_start import collect

            # Before the study is created: a source that does not exist must leave nothing behind.
            evidence = collect(storage, spec, sources)
        run_workers(
            storage,
            [(spec, 1.0)],
            evidence=evidence,
            # Typing TARGET allows its script, its objective and its checkpoint store.
            scripts={spec.name: script} if script else {},
            allow=permissions(spec, script),
            workers=workers,
            slots=slots,
            data_dir=data_dir,
            lease=lease,
            notify_url=notify_url,
            mirrors=mirrors,
        )


def _sources(texts: Sequence[str]) -> list[str]:
    """The names in values of --warm-start."""
    for text in texts:
        if not split_names(text, ()):
            raise click.BadParameter(f"{text!r} names no study; give one, or leave the option out")
    return list(dict.fromkeys(name for text in texts for name in split_names(text, ())))
