"""The commands that draw: report, plot."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from studies.cli.common import Common, common_options, say, study_argument
from studies.cli.formats import split_names
from studies.report.files import file_name, require_writable, write
from studies.report.kinds import KINDS, choose_objective, choose_params, require

if TYPE_CHECKING:
    from studies.report.data import StudyData

IMAGES = (".png", ".svg")


class _File(click.Path):
    """A file to write, whose ending says what it is."""

    def __init__(self, *endings: str) -> None:
        super().__init__(path_type=Path)
        self._endings = endings

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(str(value))
        if path.suffix.lower() not in self._endings:
            self.fail(f"{str(path)!r} must end in {' or '.join(self._endings)}", param, ctx)
        return path


@click.command()
@study_argument
@click.option("-o", "--output", type=_File(".html"), metavar="FILE", help="The file to write; default: NAME.html.")
@common_options
def report(common: Common, name: str, output: Path | None) -> None:
    """Make an HTML report of a study.

    One file that holds all it needs: it can be mailed, and read without a network. A file that is
    there already is replaced.
    """
    path = output or Path(file_name(name, ".html"))
    require_writable(path)
    data = _read(common, name)
    from studies.report import page

    _write(path, page.report(data))


@click.command(
    help=f"""Draw one plot of a study.

    KIND is one of {", ".join(KINDS)}.

    The file's ending says what is written: .png, .svg or .html. A file that is there already is
    replaced.
    """
)
@study_argument
@click.argument("kind", metavar="KIND", type=click.Choice(list(KINDS)))
@click.option("-o", "--output", type=_File(*IMAGES, ".html"), metavar="FILE", required=True, help="The file to write.")
@click.option("--objective", metavar="NAME", help="Of several objectives: this one, by name or from 0 on.")
@click.option("--params", "names", metavar="A,B,…", help="These parameters alone.")
@common_options
def plot(common: Common, name: str, kind: str, output: Path, objective: str | None, names: str | None) -> None:
    require_writable(output)
    data = _read(common, name)
    require(data, kind)
    if objective is not None:
        data = replace(data, objective=choose_objective(data, kind, objective))
    params = None if names is None else choose_params(data, kind, split_names(names, list(data.params)))
    ending = output.suffix.lower()
    if ending in IMAGES:
        from studies.report.images import image

        _write(output, image(data, kind, ending.removeprefix("."), params))
    else:
        from studies.report import page

        _write(output, page.single(data, kind, params))


def _read(common: Common, name: str) -> StudyData:
    _import_importances()
    from studies.report import data

    with common.open() as storage:
        return data.read(storage, storage.find_study(name))


def _import_importances() -> None:
    """Import ``optuna.importance`` without scikit-learn, which it loads with pandas and the rest of SciPy if they are
    installed: 150 MB and seconds, for two evaluators that no plot of ours uses."""
    if "sklearn" in sys.modules:
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # so Python marks a module that is not to be found
    try:
        import optuna.importance  # noqa: F401
    finally:
        del sys.modules["sklearn"]


def _write(path: Path, content: bytes) -> None:
    write(path, content)
    size = len(content)
    say(f"wrote {path} ({size / 1e6:.1f} MB)" if size >= 1e5 else f"wrote {path} ({size / 1e3:.0f} kB)")
