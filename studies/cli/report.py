"""The command report: a study in one HTML file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from studies.cli.common import Common, common_options, say, study_argument
from studies.report.files import file_name, require_writable, write

if TYPE_CHECKING:
    from studies.report.data import StudyData


class OutputFile(click.Path):
    """An option for a file to write, with a legal suffix."""

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
@click.option("-o", "--output", type=OutputFile(".html"), metavar="FILE", help="The file to write; default: NAME.html.")
@common_options
def report(common: Common, name: str, output: Path | None) -> None:
    """Make an HTML report of a study.

    One file that holds all it needs: it can be mailed, and read without a network. A file that is
    there already is replaced.
    """
    path = output or Path(file_name(name, ".html"))
    require_writable(path)
    data = read_data(common, name)
    # After read_data(), which imports Optuna's importances without scikit-learn.
    from studies.report import page

    write_output(path, page.report(data))


def read_data(common: Common, name: str) -> StudyData:
    import_importances()
    from studies.report import data

    with common.open() as storage:
        return data.read(storage, storage.find_study(name))


def import_importances() -> None:
    """Import ``optuna.importance`` without scikit-learn, which it loads with pandas and the rest of SciPy if they are
    installed: 150 MB and seconds, for two evaluators that no plot of ours uses."""
    if "sklearn" in sys.modules:
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # so Python marks a module that is not to be found
    try:
        import optuna.importance  # noqa: F401
    finally:
        del sys.modules["sklearn"]


def write_output(path: Path, content: bytes) -> None:
    write(path, content)
    size = len(content)
    say(f"wrote {path} ({size / 1e6:.1f} MB)" if size >= 1e5 else f"wrote {path} ({size / 1e3:.0f} kB)")
