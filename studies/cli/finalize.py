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
@click.option("--again", is_flag=True, help="Use the test data again; how often is stored.")
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

    Trains on training and validation data, writes weights, configuration and metrics to a folder,
    and stores the metrics in the study. Reusing test data biases the result: a second test is
    refused without --again.
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
        # All checks come before the training, which may take hours.
        final.require_complete(record, trial)
        before = final.stored(storage, record)
        if before and not again:
            shown = ", ".join(f"{key} {number(value)}" for key, value in before["metrics"].items())
            raise StudyhallError(
                f"study {name!r} was finalized with trial {before['trial']} ({shown}); "
                "reusing test data biases the result; pass --again to do it anyway"
            )
        storage.require("worker")  # before hours of training, whose result a viewer could not store
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
    say(f"wrote {directory}" + (f"; this was test {before['looks'] + 1} on the same test data" if before else ""))


def _show(done: int, total: int) -> None:
    """Show a counter in a terminal, and nothing in a file."""
    if sys.stderr.isatty():
        click.echo(f"\r{done} of {total}" + ("\n" if done == total else ""), err=True, nl=False)
