"""The command plot: one plot of a study, as HTML, PNG or SVG."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from studies.cli.common import Common, common_options, study_argument
from studies.cli.formats import split_names
from studies.cli.report import OutputFile, read_data, write_output
from studies.report.files import require_writable
from studies.report.plot_kinds import PLOTS, choose_objective, choose_params, require

IMAGES = (".png", ".svg")


@click.command(
    help=f"""Draw one plot of a study.

    KIND is one of {", ".join(PLOTS)}.

    The file's ending says what is written: .png, .svg or .html. A file that is there already is
    replaced.
    """
)
@study_argument
@click.argument("kind", metavar="KIND", type=click.Choice(list(PLOTS)))
@click.option(
    "-o", "--output", type=OutputFile(*IMAGES, ".html"), metavar="FILE", required=True, help="The file to write."
)
@click.option(
    "--objective", metavar="NAME", help="With several objectives: which one, by its name or its index from 0."
)
@click.option("--params", "names", metavar="A,B,…", help="Only these parameters.")
@common_options
def plot(common: Common, name: str, kind: str, output: Path, objective: str | None, names: str | None) -> None:
    # Before the study is read, which takes seconds for a large one.
    require_writable(output)
    data = read_data(common, name)
    require(data, kind)
    if objective is not None:
        data = replace(data, objective=choose_objective(data, kind, objective))
    params = None if names is None else choose_params(data, kind, split_names(names, list(data.params)))
    ending = output.suffix.lower()
    if ending in IMAGES:
        from studies.report.matplotlib_images import image

        write_output(output, image(data, kind, ending.removeprefix("."), params))
    else:
        from studies.report import page

        write_output(output, page.single(data, kind, params))
