"""The command space: what a study samples, and changes of that."""

from __future__ import annotations

import click

from studies.cli.common import Common, common_options, say, study_argument
from studies.cli.formats import echo, print_columns
from studies.values import to_text


@click.command()
@study_argument
@click.argument("changes", metavar="[PARAM.FIELD=VALUE]...", nargs=-1)
@common_options
def space(common: Common, name: str, changes: tuple[str, ...]) -> None:
    """Show or change what a study samples.

    A range changes by low, high and step, choices by =, += and -=:

    studyhall space digits lr.high=0.3 optimizer.choices+=lion

    Running workers follow at their next trial. Finished trials stay; the sampler learns from those
    that are legal in the new space. A change that makes a running or waiting trial illegal is
    refused. Without a change the space is shown, and what was changed when by whom.
    """
    from studies.space import change_space

    with common.open() as storage:
        record = storage.find_study(name)
        if changes:
            if differences := change_space(storage, record, changes):
                echo(*differences)
                say(f"the space of study {name!r} has changed; its workers follow at their next trial")
            else:
                say(f"study {name!r} has this space already")
            return
        spec = record.require_spec("its space is in its objective")
        history = storage.spaces.changes(record)
    if not spec.space:
        say(f"study {name!r} has no [space]: its objective suggests the parameters")
        return
    rows = []
    for key, parameter in spec.space.items():
        fields = parameter.model_dump(exclude={"type"}, exclude_none=True, exclude_defaults=True)
        shown = " ".join(f"{field}={to_text(value)}" for field, value in fields.items())
        rows.append([key, parameter.type, shown])
    print_columns(["parameter", "type", "range or choices"], rows)
    if history:
        echo("")
        print_columns(
            ["changed", "by", "change"],
            [[f"{each.at.astimezone():%Y-%m-%d %H:%M:%S}", each.who, each.change] for each in history],
        )
