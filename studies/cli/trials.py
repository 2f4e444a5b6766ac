"""The command trials: a study's trials as a table, CSV or JSON, a page at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import click

from studies.cli.common import QUICK, Common, ask_quickly, common_options, say, study_argument, study_in, way_to_work
from studies.cli.formats import echo_data, echo_json, print_columns, readable, split_names, to_csv
from studies.errors import StudyhallError, command, nearest
from studies.spec.script import CHANGED_SCRIPT, OWN_ATTRIBUTES
from studies.storage.columns import FIRST, NEXT, Column, columns_of, seconds_of
from studies.text import duration, number
from studies.values import finite, strict, to_text

if TYPE_CHECKING:
    from studies.storage.database import Database
    from studies.storage.evidence import ForeignTrial
    from studies.storage.reader import TrialRow

STATES: Final = ("complete", "pruned", "fail", "running", "waiting", "paused")


def _complete_column(ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """Complete the name of a column."""
    return [name for name in _column_names(ctx) if name.startswith(begun)]


def _complete_columns(ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """Complete the last name of a list."""
    before, comma, last = begun.rpartition(",")
    return [f"{before}{comma}{name}" for name in _column_names(ctx) if name.startswith(last)]


def _column_names(ctx: click.Context) -> list[str]:
    def ask(database: Database) -> list[str]:
        record = database.row("find_study", name=study_in(ctx))
        if record is None:
            return []
        study, own = record["study_id"], list(OWN_ATTRIBUTES)
        found = {
            "params": database.rows("param_names", within=QUICK, study_id=study),
            "metrics": database.rows("last_metric_names", within=QUICK, study_id=study),
            "user_attrs": database.rows("user_attr_names", within=QUICK, study_id=study, own=own),
        }
        return [f"{kind}_{row['name']}" for kind, rows in found.items() for row in rows]

    first, following = ([column.name for column in columns] for columns in (FIRST, NEXT))
    # Of several objectives there are others than "value".
    return [*first, "value", *following, *ask_quickly(ctx, ask)]


@click.command()
@study_argument
@click.option("--format", "kind", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(STATES, case_sensitive=False),
    help="Only these; may be repeated.",
)
@click.option(
    "--sort",
    "order",
    metavar="COLUMN",
    shell_complete=_complete_column,
    help="By this column, smallest first; -COLUMN: largest first.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The first N of them.")
@click.option("--columns", metavar="A,B,…", shell_complete=_complete_columns, help="Only these columns, in this order.")
@click.option("--warm-start", "is_of_others", is_flag=True, help="The trials of other studies that the sampler knows.")
@common_options
def trials(
    common: Common,
    name: str,
    kind: str,
    states: tuple[str, ...],
    order: str | None,
    limit: int | None,
    columns: str | None,
    is_of_others: bool,
) -> None:
    """List a study's trials.

    Columns are those of --format csv: number, state, value (of several objectives one for each:
    values_NAME), steps, start, complete, seconds, worker, attempts, error, script_sha256 (of a
    changed script), and params_NAME, metrics_NAME (at the last step) and user_attrs_NAME, for which
    NAME alone is enough; the table's headings work as well. seconds (time) runs from the first start to
    the end: for a trial with several attempts (≤ in the table) it includes the pauses between them.
    """
    from studies.storage.reader import StudyReader

    with common.open() as storage:
        record = storage.find_study(name)
        reader = StudyReader(storage, record)
        objectives = storage.objective_names(record)
        if is_of_others:
            if states or order or limit or columns:
                raise click.UsageError("--warm-start goes with --format alone; leave the other options out")
            _echo_evidence(storage.evidence.of(record), objectives, kind)
            return
        is_chosen = columns is not None
        # Naming the columns takes statements over all trials: only where columns are named.
        known = columns_of(reader, objectives) if kind == "csv" or is_chosen or order is not None else []
        headings = {"#": "number", "time": "seconds"} | ({objectives[0]: "value"} if len(objectives) == 1 else {})
        chosen = None
        if columns is not None:
            chosen = _choose(split_names(columns, [*headings, *(column.name for column in known)]), known, headings)
        pages: Iterator[Sequence[TrialRow]] = reader.pages(reports=kind == "json" and chosen is None)
        if states:
            pages = _of_states(pages, {state.upper() for state in states})
        if order is not None:
            (column,) = _choose([order.removeprefix("-")], known, headings)
            pages = iter([_sorted(chain.from_iterable(pages), column, limit, largest_first=order.startswith("-"))])
        elif limit:
            pages = _first(pages, limit)
        if kind == "json":
            echo_json([_flat(row, chosen) if chosen else _trial_data(row) for row in page] for page in pages)
        elif kind == "csv":
            _echo_csv(pages, chosen or known)
        else:
            # A table's widths are those of its widest cells: it needs all rows, where csv and json stream.
            rows = list(chain.from_iterable(pages))
            _print_table(rows, chosen, objectives)
            if not rows and states:
                say(f"study {name!r} has no trial in the state {' or '.join(states)}; see: {command('status', name)}")
            elif not rows:
                say(f"study {name!r} has no trials yet{way_to_work(record)}")


def _echo_evidence(evidence: Sequence[ForeignTrial], objectives: Sequence[str], kind: str) -> None:
    """The trials of other studies, each with its study and its number there."""
    rows = [
        {"study": trial.source, "number": trial.number, **dict(zip(objectives, map(finite, trial.values), strict=True)),
         **({} if trial.step is None else {"step": trial.step}),
         **{f"params_{name}": value for name, value in trial.params.items()}}
        for trial in evidence
    ]  # fmt: skip
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["study", "number", *objectives]
    if kind == "json":
        echo_json([rows])
    elif kind == "csv":
        echo_data(to_csv([names, *([strict(row.get(name)) for name in names] for row in rows)]))
    elif rows:
        print_columns(names, [[readable(row[name]) if name in row else "–" for name in names] for row in rows])


def _choose(names: Sequence[str], known: Sequence[Column], headings: Mapping[str, str]) -> list[Column]:
    """The columns of these names, in full or without what they begin with, or of these headings of the table.

    Raises:
        StudyhallError: there is no such column, or no name.
    """
    by_name = {column.name: column for column in known}
    found = []
    # No name at all is refused like an unknown one, with the legal names.
    for name in names or [""]:
        full = [name, headings.get(name), *(f"{kind}_{name}" for kind in ("values", "params", "metrics", "user_attrs"))]
        column = next((by_name[candidate] for candidate in full if candidate in by_name), None)
        if column is None:
            raise StudyhallError(f"there is no column {name!r}; {nearest(name, by_name, in_order=True)}")
        found.append(column)
    return found


def _of_states(pages: Iterable[Sequence[TrialRow]], states: set[str]) -> Iterator[list[TrialRow]]:
    return ([row for row in page if row.state in states] for page in pages)


def _first(pages: Iterable[Sequence[TrialRow]], limit: int) -> Iterator[Sequence[TrialRow]]:
    for page in pages:
        yield page[:limit]
        limit -= len(page)
        if limit <= 0:
            return


def _sorted(rows: Iterable[TrialRow], by: Column, limit: int | None, *, largest_first: bool) -> list[TrialRow]:
    """The first ``limit`` rows in this order: numbers before text, rows without a value last, equal ones by number.

    No more rows than ``limit`` are in memory: a study may have a million.
    """

    def key(row: TrialRow) -> tuple[Any, ...]:
        value = strict(by.cell(row))
        missing, is_text = value is None, isinstance(value, str | list | dict)
        place = (is_text, to_text(value) if is_text else value)
        # heapq's largest come first, and of equal ones the first that it meets, which has the lowest number.
        return (missing != largest_first, *(() if missing else place))

    if limit is not None:
        return (heapq.nlargest if largest_first else heapq.nsmallest)(limit, rows, key)
    return sorted(rows, key=key, reverse=largest_first)


def _print_table(rows: Sequence[TrialRow], chosen: Sequence[Column] | None, objectives: Sequence[str]) -> None:
    if not rows:
        return
    if chosen:
        cells = [[_for_people(column, row) for column in chosen] for row in rows]
        is_numeric = [all(_is_number(column.cell(row)) for row in rows) for column in chosen]
        names = [column.name for column in chosen]
        print_columns(names, cells, numeric=[name for name, is_it in zip(names, is_numeric, strict=True) if is_it])
        return
    names = ["value"] if len(objectives) == 1 else list(objectives)
    last = "parameters; attributes" if any(row.user_attrs for row in rows) else "parameters"
    header = ["#", "state", *names, "steps", "time", last]
    print_columns(header, [_cells(row, len(names)) for row in rows], numeric=["#", *names, "steps", "time"])


def _cells(row: TrialRow, objectives: int) -> list[str]:
    seconds = seconds_of(row)
    words, noted = (
        " ".join(f"{name}={readable(value)}" for name, value in of.items()) for of in (row.params, row.user_attrs)
    )
    return [
        str(row.number),
        row.state.lower() if row.paused is None else f"paused at step {row.paused}",
        *([number(value) for value in row.values] or ["–"] * objectives),
        str(row.steps),
        # Of several attempts it is not stored how long each took.
        "–" if seconds is None else f"≤ {duration(seconds)}" if (row.attempts or 1) > 1 else duration(seconds),
        f"{words}; {noted}" if noted else words,
    ]


def _for_people(column: Column, row: TrialRow) -> str:
    value = column.cell(row)
    return "–" if value is None else (column.shown or readable)(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _trial_data(row: TrialRow) -> dict[str, Any]:
    return {
        "number": row.number,
        "state": row.state,
        "value": finite(row.values[0]) if len(row.values) == 1 else None,
        "values": [finite(value) for value in row.values],
        "params": row.params,
        "metrics": {name: finite(value) for name, value in row.metrics.items()},
        "user_attrs": row.user_attrs,
        "steps": {str(step): finite(value) for step, value in row.reports.items()},
        "start": row.start and row.start.isoformat(),
        "complete": row.complete and row.complete.isoformat(),
        "worker": row.worker,
        "attempts": row.attempts,
        "error": row.error,
        CHANGED_SCRIPT: row.script_sha256,
    }


def _flat(row: TrialRow, columns: Sequence[Column]) -> dict[str, Any]:
    return {column.name: column.cell(row) for column in columns}


def _echo_csv(pages: Iterable[Sequence[TrialRow]], columns: Sequence[Column]) -> None:
    echo_data(to_csv([[column.name for column in columns]]))
    for page in pages:
        if page:
            echo_data(to_csv(zip(*(_csv_cells(column, page) for column in columns), strict=True)))


#: Types that CSV takes unchanged. Checking a column's types once is faster than converting each cell.
_PLAIN: Final = frozenset([int, str, type(None)])


def _csv_cells(column: Column, rows: Sequence[TrialRow]) -> Sequence[Any]:
    """The cells of a column: scalars as they are, lists and tables as JSON."""
    cells = list(map(column.cell, rows))
    if _PLAIN.issuperset(map(type, cells)):
        return cells
    return [to_text(cell) if isinstance(cell, list | dict) else strict(cell) for cell in cells]
