"""The command doctor: print the findings of :mod:`studies.doctor`."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from studies.cli.common import Common, allow_option, common_options, data_dir_option, data_dir_or_default, home, say
from studies.cli.db import located
from studies.cli.formats import echo, echo_data, to_json
from studies.errors import EmbeddedServerError
from studies.text import counted, printable

if TYPE_CHECKING:
    from studies.doctor import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command()
@click.option("--format", "kind", type=click.Choice(["table", "json"]), default="table", show_default=True)
@data_dir_option
@allow_option
@common_options
def doctor(common: Common, kind: str, data_dir: Path | None, allow: tuple[str, ...]) -> None:
    """Find problems, and print the command that fixes each.

    Looks at the server, its clock, connections and tables, at stuck trials, and at this machine:
    GPUs, disks, passwords. Exits with 1 if something does not work.
    """
    findings = _examine(common, data_dir_or_default(data_dir), allow)
    if kind == "json":
        echo_data(to_json([asdict(finding) for finding in findings]))
    else:
        echo(*_lines(findings, max(60, min(120, shutil.get_terminal_size().columns))), styled=True)
    errors, warnings = (sum(finding.level == level for finding in findings) for level in ("error", "warning"))
    if errors or warnings:
        say(f"{counted(errors, 'error')}, {counted(warnings, 'warning')}")
    if errors:
        raise click.exceptions.Exit(1)


def _examine(common: Common, data_dir: Path, allow: tuple[str, ...]) -> list[Finding]:
    from studies import doctor
    from studies.storage.url import StorageURL

    findings: list[Finding] = []
    studies: list[doctor.KnownStudy] = []
    if common.storage_url:
        source = click.get_current_context().get_parameter_source("storage_url")
        given_by = "--storage" if source == ParameterSource.COMMANDLINE else "STUDYHALL_STORAGE"
        pgpass = Path(os.environ.get("PGPASSFILE") or Path.home() / ".pgpass")
        findings += doctor.examine_url(StorageURL.parse(common.storage_url), given_by, pgpass)
    try:
        with located(common) as url:
            examination = doctor.examine_database(url, embedded_in=None if common.storage_url else home())
        findings = examination.findings + findings
        studies = examination.studies
    except EmbeddedServerError as error:
        # One finding among others: the machine is examined all the same.
        findings.insert(0, doctor.failed(error))
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return findings + doctor.examine_machine(home(), data_dir, gpus, studies, allow)


def _lines(findings: Sequence[Finding], width: int) -> list[str]:
    """Each finding with its fix on the next line."""
    lines = []
    for finding in findings:
        level, about = f"{finding.level:<9}", f"{printable(finding.about):<13}"
        margin = " " * len(level + about)
        first, *rest = _wrapped(finding.what, margin, width)
        lines.append(click.style(level, fg=_COLOURS[finding.level]) + about + first.lstrip())
        lines += rest
        for line in finding.fix.split("; ") if finding.fix else ():
            lines += _wrapped(f"→ {line}", " " * len(level), width)
    return lines


def _wrapped(text: str, margin: str, width: int) -> list[str]:
    # Words are never broken: paths and commands must stay copyable.
    shown = textwrap.TextWrapper(width, margin, margin, break_long_words=False, break_on_hyphens=False)
    return shown.wrap(printable(text))
