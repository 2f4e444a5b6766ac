"""The command ls: all studies of the storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from studies.cli.common import Common, common_options, say
from studies.cli.formats import (
    echo_data,
    print_columns,
    to_json,
)
from studies.errors import NoTables
from studies.stop_reasons import BY_HAND
from studies.text import duration, number
from studies.values import finite


@click.command("ls")
@click.option("--format", "kind", type=click.Choice(["table", "json"]), default="table", show_default=True)
@common_options
def list_studies(common: Common, kind: str) -> None:
    """List the studies.

    A study is paused, running, idle (no trial runs), or has ended: complete (its trials are done), epochs
    or gpu_hours (that budget is spent), failures, timeout, target, stopped.
    """
    nothing = "no studies yet; begin one with: studyhall run digits"
    try:
        with common.open() as storage:
            rows = storage.list_studies()
    except NoTables as error:  # no failure: nobody has made a study yet
        rows, nothing = [], str(error)
    if kind == "json":
        keys = ("name", "budget", "complete", "pruned", "running", "waiting", "paused", "fail", "workers")
        listed = [
            {**{key: row[key] for key in keys}, "state": _state(row), "best": finite(row["best"])} for row in rows
        ]
        echo_data(to_json(listed))
    elif not rows:
        say(nothing)
    else:
        print_columns(
            ["study", "state", "best", "done", "pruned", "running", "failed", "began"],
            [
                [
                    row["name"],
                    _state(row),
                    number(row["best"]),
                    str(row["complete"] + row["pruned"]) + (f"/{row['budget']}" if row["budget"] is not None else ""),
                    *(str(row[key]) for key in ("pruned", "running", "fail")),
                    "–" if row["seconds_ago"] is None else f"{duration(row['seconds_ago'])} ago",
                ]
                for row in rows
            ],
            numeric=["best", "done", "pruned", "running", "failed"],
        )


def _state(row: Mapping[str, Any]) -> str:
    if row["ended"]:
        return "stopped" if row["ended"] == BY_HAND else str(row["ended"])
    return "paused" if row["is_paused"] else "running" if row["running"] else "idle"
