"""TARGET and its options: the study of run and create."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

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

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Target:
    """TARGET and its options, as typed."""

    target: str
    name: str | None = None
    trials: int | None = None
    directions: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def read(self) -> tuple[StudySpec, Script | None]:
        """The spec that they define, and the script of its objective, if any.

        Raises:
            SpecError: something in it is not legal.
            ObjectiveError: the script cannot be read.
        """
        from studies.spec.source import override, put, read_target, take_script
        from studies.spec.study import StudySpec

        data = read_target(self.target)
        for setting in self.settings:
            override(data, setting)
        if self.trials is not None:
            override(data, f"budget.trials={self.trials}")
        # Not by override(), which reads text: these are values of their own, and a name may hold an equals sign.
        if len(self.directions) > 1:
            put(data, ("directions",), list(self.directions))
        elif self.directions:
            put(data, ("direction",), self.directions[0])
        if self.name is not None:
            put(data, ("name",), self.name)
        script = take_script(data)
        return StudySpec.from_dict(data, self.target), script


target_argument = click.argument("target", metavar="TARGET", shell_complete=complete_targets)
set_option = click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a key of the spec.")
_options = together(
    target_argument,
    click.option("--name", help="The study's name; default: the spec's."),
    click.option("--trials", type=int, metavar="N", help="Short for --set budget.trials=N."),
    direction_option("Short for --set direction=; once for each objective. Optuna's default: minimize."),
    set_option,
)


def spec_options(command: F) -> F:
    """Give ``command`` the options that define a study, as the argument ``target``, a :class:`Target`."""

    @functools.wraps(command)
    def wrapped(**options: Any) -> Any:
        given = {field.name: options.pop(field.name) for field in fields(Target)}
        return command(target=Target(**given), **options)

    return _options(wrapped)  # type: ignore[return-value]  # click's decorators keep the callable, not its type


def say_grid(spec: StudySpec) -> None:
    """Warn that a grid has fewer combinations than the given budget."""
    size = spec.combinations
    if size is not None and size < spec.budget.trials:
        say(f"its grid has {counted(size, 'combination')}: the study ends after these, not after {spec.budget.trials}")
