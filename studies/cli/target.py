"""What TARGET and the options beside it define: the study of run and create."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from studies.cli.common import (
    complete_targets,
    direction_option,
    say,
    together,
)
from studies.text import counted

if TYPE_CHECKING:
    from studies.spec.script import Script
    from studies.spec.study import StudySpec


spec_options = together(
    click.argument("target", metavar="TARGET", shell_complete=complete_targets),
    click.option("--name", help="The study's name; default: the spec's."),
    click.option("--trials", type=int, metavar="N", help="Short for --set budget.trials=N."),
    direction_option("Short for --set direction=; once for each objective. Optuna's default: minimize."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a key of the spec."),
)


def read_spec(
    target: str, name: str | None, trials: int | None, directions: tuple[str, ...], settings: tuple[str, ...]
) -> tuple[StudySpec, Script | None]:
    """The study that the options define, and the script of its objective, if it is one."""
    from studies.spec.source import override, read_target, take_script
    from studies.spec.study import StudySpec

    data = read_target(target)
    for setting in settings:
        override(data, setting)
    if trials is not None:
        override(data, f"budget.trials={trials}")
    if directions:
        data.pop("direction", None)
        data.pop("directions", None)
        data |= {"directions": list(directions)} if len(directions) > 1 else {"direction": directions[0]}
    if name is not None:
        data["name"] = name
    script = take_script(data)
    return StudySpec.from_dict(data, target), script


def say_grid(spec: StudySpec) -> None:
    """Say that a grid ends before the budget that was given."""
    size = spec.combinations
    if size is not None and size < spec.budget.trials:
        say(
            f"its grid has {counted(size, 'combination')}: it ends with them, and not after {spec.budget.trials} trials"
        )
