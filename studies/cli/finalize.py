"""The command finalize."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from studies.cli.common import (
    Common,
    allow_option,
    choose_trial,
    common_options,
    data_dir_option,
    data_dir_or_default,
    objective_options,
    say,
    study_argument,
    trial_option,
)
from studies.cli.formats import echo
from studies.errors import StudyhallError
from studies.report.files import file_name
from studies.text import number

if TYPE_CHECKING:
    from studies.spec.script import Script


@click.command()
@study_argument
@trial_option
@click.option("--out", type=click.Path(path_type=Path), help="The folder to make; default: NAME-final.")
@click.option("--again", is_flag=True, help="Look at the test data once more; the number of looks is stored.")
@data_dir_option
@allow_option
@objective_options
@common_options
def finalize(
    common: Common,
    name: str,
    trial_number: int | None,
    out: Path | None,
    again: bool,
    data_dir: Path | None,
    allow: tuple[str, ...],
    scripts: tuple[Script, ...],
    allow_changed: bool,
) -> None:
    """Retrain the best trial, and test it once.

    Trains on all but the test data, writes weights, configuration and metrics to a folder, and
    stores the metrics in the study. Test data answer honestly once: a second look is refused
    without --again.
    """
    from studies import finalize as final
    from studies.objective import build, require_allowed
    from studies.session import find_scripts
    from studies.worker import devices

    directory = (out or Path(file_name(name, "-final"))).absolute()
    with common.open() as storage:
        record = storage.find_study(name)
        trial = choose_trial(storage, record, trial_number)
        spec = record.require_spec("its objective is not known")
        final.require_complete(record, trial)
        before = final.stored(storage, record)
        if before and not again:
            shown = ", ".join(f"{key} {number(value)}" for key, value in before["metrics"].items())
            raise StudyhallError(
                f"study {name!r} was finalized with trial {before['trial']} ({shown}); "
                "test data that choose become training data; if you must: --again"
            )
        storage.require("worker")  # not after hours of training
        script = find_scripts([record], scripts, allow_changed=allow_changed).get(name)
        if script is None:
            require_allowed(spec.objective.path, allow, name)
        final.require_new(directory, "--out")
        device = devices.choose(1, os.environ.get("CUDA_VISIBLE_DEVICES"))[0]
        os.environ.update(device.environment)  # before the objective imports PyTorch
        objective = build(
            script.path if script else spec.objective.path,
            spec.objective.args,
            allow=[*allow, *([script.path] if script else [])],
            space=tuple(spec.space),
            data_dir=data_dir_or_default(data_dir),
            sha256=script.sha256 if script else None,
        )
        retraining = f"retraining trial {trial.number} of {name} on training and validation data ({device.label})"
        metrics = final.finalize(
            storage, record, spec, trial, objective,
            device=device.torch, directory=directory, begin=lambda: say(retraining), progress=_show,
        )  # fmt: skip
    echo(*(f"{key} {number(value)}" for key, value in metrics.items()))
    say(f"wrote {directory}" + (f"; this was look {before['looks'] + 1} at the test data" if before else ""))


def _show(done: int, total: int) -> None:
    """A line that counts in a terminal, and is silent elsewhere."""
    if sys.stderr.isatty():
        click.echo(f"\r{done} of {total}" + ("\n" if done == total else ""), err=True, nl=False)
