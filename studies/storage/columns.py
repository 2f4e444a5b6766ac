"""The columns of a study's trials as a table: for CSV, for data frames, and for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from studies.spec.script import CHANGED_SCRIPT
from studies.values import finite

if TYPE_CHECKING:
    from studies.storage.reader import StudyReader, TrialRow


class Column(NamedTuple):
    """A column of the table."""

    name: str
    cell: Callable[[TrialRow], Any]
    """The value as data; ``None`` if the trial has none."""
    shown: Callable[[Any], str] | None = None
    """The value for people, if it differs."""


#: The columns of every study, before and after those of the objectives' values.
FIRST: Final = (
    Column("number", lambda row: row.number),
    Column("state", lambda row: row.state, str.lower),
)
NEXT: Final = (
    Column("steps", lambda row: row.steps),
    Column("start", lambda row: row.start and row.start.isoformat()),
    Column("complete", lambda row: row.complete and row.complete.isoformat()),
    Column("seconds", lambda row: seconds_of(row)),
    Column("worker", lambda row: row.worker),
    Column("attempts", lambda row: row.attempts),
    Column("error", lambda row: row.error),
    Column(CHANGED_SCRIPT, lambda row: row.script_sha256),
)


def columns_of(reader: StudyReader, objectives: Sequence[str]) -> list[Column]:
    """All columns of a study. A name that a running trial uses first after this call has none."""
    values = ["value"] if len(objectives) == 1 else [f"values_{name}" for name in objectives]
    return [
        *FIRST,
        *(Column(name, _value(i)) for i, name in enumerate(values)),
        *NEXT,
        *(Column(f"params_{name}", _entry(attrgetter("params"), name)) for name in reader.param_names()),
        *(Column(f"metrics_{name}", _entry(attrgetter("metrics"), name)) for name in reader.last_metric_names()),
        *(Column(f"user_attrs_{name}", _entry(attrgetter("user_attrs"), name)) for name in reader.user_attr_names()),
    ]


def _value(objective: int) -> Callable[[TrialRow], float | None]:
    return lambda row: finite(row.values[objective]) if objective < len(row.values) else None


def _entry(of: Callable[[TrialRow], Mapping[str, Any]], name: str) -> Callable[[TrialRow], Any]:
    return lambda row: of(row).get(name)


def seconds_of(row: TrialRow) -> float | None:
    """Seconds from the first start to the end, including the pauses between attempts."""
    return (row.complete - row.start).total_seconds() if row.start and row.complete else None
