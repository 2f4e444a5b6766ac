"""The command importance: which parameters matter, and what leads from a configuration to the best trial."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from studies.cli.common import Common, common_options, say, study_argument
from studies.cli.formats import DATA_FORMATS, data_as, echo, echo_data, print_columns, readable
from studies.cli.report import read_data
from studies.errors import StudyhallError, command
from studies.text import counted, number
from studies.values import finite

if TYPE_CHECKING:
    from studies.report.ablation import Step


@click.command()
@study_argument
@click.argument("params", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--format", "kind", type=click.Choice(("table", *DATA_FORMATS)), default="table", show_default=True)
@click.option(
    "--objective", metavar="NAME", help="With several objectives: which one, by its name or its index from 0."
)
@common_options
def importance(common: Common, name: str, params: tuple[str, ...], kind: str, objective: str | None) -> None:
    """Show which parameters matter.

    First the importance of each parameter by PED-ANOVA: how much it decides whether a trial is among
    the best. Then the path from a configuration, such as your defaults (lr=1e-3 width=256), to the best
    trial: each step changes the parameter that improves the value most, as a random forest of the
    complete trials predicts. A parameter that you leave out begins in the middle of its range.
    """
    data = read_data(common, name)
    # After read_data(), which imports Optuna in a cheaper way than these would.
    from studies.report.ablation import ablation, best_trial, sign_of, space_of
    from studies.report.plot_kinds import PLOTS, choose_objective
    from studies.report.snapshot import importances
    from studies.spec.params import read_params

    obstacle = PLOTS["slice"].obstacle(data)
    if obstacle is None and len(data.valued) < 2:
        obstacle = "one trial is complete, and two must be compared"
    if obstacle:
        raise StudyhallError(f"study {name!r} has no importances: {obstacle}; see: {command('status', name)}")
    if objective is not None:
        data = replace(data, objective=choose_objective(data, "importances", objective))
    shares = importances(data) or dict.fromkeys(data.params, 1.0)  # of a single parameter there is nothing to compute
    steps = ablation(data, read_params(params, space_of(data)))
    best = best_trial(data)
    value = best.values[data.target]
    metric = data.metric_names[data.target]
    if kind != "table":
        path = [{"changed": dict(s.changed), "dropped": list(s.dropped), "predicted": s.predicted} for s in steps]
        echo_data(
            data_as(
                kind,
                {
                    "study": name,
                    "objective": metric,
                    "trials": len(data.valued),
                    "importances": dict(shares),
                    "ablation": path,
                    "best": {"number": best.number, "value": finite(value)},
                },
            )
        )
        return
    echo(f"{name}: {metric} of {counted(len(data.valued), 'complete trial')}", "")
    rows = [[key, f"{share:.1%}"] for key, share in shares.items()]
    print_columns(["parameter", "importance"], rows, numeric=["importance"])
    echo(
        "",
        f"from {'these parameters' if params else 'the middle of the space'} to trial {best.number}, as predicted",
        "",
    )
    rows = [[_words(step), number(step.predicted)] for step in steps]
    print_columns(["change", f"predicted {metric}"], rows, numeric=[f"predicted {metric}"])
    echo(f"trial {best.number} reached {number(value)}")
    if (steps[-1].predicted - steps[0].predicted) * sign_of(data) >= 0:
        say(
            f"the model predicts trial {best.number} to be no better than the first line: "
            f"{counted(len(data.valued), 'complete trial')} tell too little"
        )


def _words(step: Step) -> str:
    changed = [f"{key}={readable(value)}" for key, value in step.changed.items()]
    return " ".join([*changed, *(f"without {key}" for key in step.dropped)])
