"""The command reproduce: a stored trial once more, and how closely it matches."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from studies.cli.common import (
    Common,
    allow_option,
    common_options,
    complete_trials,
    data_dir_option,
    data_dir_or_default,
    objective_options,
    say,
    study_argument,
)
from studies.cli.formats import echo, echo_data, print_columns, to_json
from studies.text import counted, number
from studies.values import finite

if TYPE_CHECKING:
    from studies.reproduce import Difference, Reproduction
    from studies.spec.script import Script


@click.command()
@study_argument
@click.argument("trial_number", metavar="NUMBER", type=int, shell_complete=complete_trials("COMPLETE", "PRUNED"))
@click.option("--device", "label", metavar="DEVICE", help="cpu, cuda:0, …; default: the first GPU, else the CPU.")
@click.option("--format", "kind", type=click.Choice(["table", "json"]), default="table", show_default=True)
@data_dir_option
@allow_option
@objective_options
@common_options
def reproduce(
    common: Common,
    name: str,
    trial_number: int,
    label: str | None,
    kind: str,
    data_dir: Path | None,
    allow: tuple[str, ...],
    scripts: tuple[Script, ...],
    allow_changed: bool,
) -> None:
    """Run a stored trial again, and say how closely it matches.

    It takes the trial's parameters and seed, writes nothing to the study, and compares every number
    that was reported or returned. Where one is not equal bit by bit, it says by how much, and what
    differs: versions, commit, device, processor, data set.
    """
    from studies import reproduce as again
    from studies.session import build_objective
    from studies.worker import devices

    with common.open() as storage:
        record = storage.find_study(name)
        trial = storage.trial(record, trial_number)
        again.require_reproducible(record, trial)
        device = devices.find(label, os.environ.get("CUDA_VISIBLE_DEVICES"))
        os.environ.update(device.environment)  # before the objective imports PyTorch
        folder = data_dir_or_default(data_dir)
        objective = build_objective(record, scripts, allow=allow, data_dir=folder, allow_changed=allow_changed)
        say(f"running trial {trial.number} of {name} again ({device.label})")
        found = again.reproduce(storage, record, trial, objective, device=device.torch)
    if kind == "json":
        echo_data(to_json(_data(found)))
    else:
        _print(found)


def _data(found: Reproduction) -> dict[str, object]:
    return {
        "study": found.study,
        "number": found.number,
        "exact": found.is_exact,
        "steps": found.steps,
        "differences": [
            {**asdict(each), "then": finite(each.then), "now": finite(each.now), "difference": finite(each.size)}
            for each in found.differences
        ],
        "then": found.then,
        "now": found.now,
    }


def _print(found: Reproduction) -> None:
    what = f"trial {found.number} of {found.study}"
    if found.is_exact:
        echo(f"{what} matches bit by bit: {counted(found.steps, 'step')} and the result")
    else:
        echo(f"{what} does not match bit by bit; the largest differences over {counted(found.steps, 'step')}:", "")
        header = ["name", "differ", "at step", "then", "now", "difference"]
        print_columns(header, [_row(each) for each in found.differences], numeric=header[1:])
        echo("")
    if found.then is None:
        echo("an older version ran the trial, and stored nothing about its environment")
    elif found.changes:
        echo("what differs:", *(f"  {line}" for line in found.changes))
    elif not found.is_exact:
        echo("nothing differs that is stored about the environment: is the objective deterministic?")


def _row(each: Difference) -> list[str]:
    step = "result" if each.step is None else str(each.step)
    return [each.name, str(each.numbers), step, number(each.then), number(each.now), f"{each.size:.3g}"]
