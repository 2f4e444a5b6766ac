"""The checks of clocks: this machine's against the database's, and whether stored times are in UTC.

Leases depend on the database's clock alone, so a wrong clock on a machine costs no trial. It confuses people who
compare logs, and stock Optuna workers, which do write their machine's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from studies.doctor.findings import Finding
from studies.storage.database import Database

#: Seconds of difference that nobody would notice in a table of times.
MAX_CLOCK_SECONDS: Final = 5.0


def difference(ahead: float, uncertain: float) -> Finding:
    """Whether the clocks of the database and of this machine agree.

    Args:
        ahead: seconds by which the database's clock is ahead.
        uncertain: the error of ``ahead`` in seconds: half the round trip of the question.
    """
    if abs(ahead) <= MAX_CLOCK_SECONDS + uncertain:
        return Finding(level="ok", about="clock", what="the database's and this machine's agree")
    return Finding(
        level="warning",
        about="clock",
        what=f"the database's is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's: "
        "leases depend on the database's alone, but people compare both; set the wrong one",
        fix="timedatectl set-ntp true",
    )


def stored_times(database: Database, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether all stored times are in UTC, as Optuna 5 writes them.

    Args:
        database: with studyhall's tables.
        facts: the row of ``server_facts``.
    """
    odd = database.rows("odd_times")
    if odd:
        named = ", ".join(f"{row['number']} of {row['study']!r}" for row in odd)
        yield Finding(
            level="warning",
            about="times",
            what=f"some trials begin in the future or end before they begin: {named}; Optuna 4 writes such "
            "local times: upgrade it on every worker",
            fix="pip install -U optuna",
        )
    zone = facts["time_zone"]
    # The zone matters to stock Optuna's heartbeats alone, which are times without a zone.
    (row,) = database.rows("has_heartbeats")
    if row["has_heartbeats"] and zone not in ("UTC", "Etc/UTC", "GMT"):
        yield Finding(
            level="warning",
            about="times",
            what=f"the time zone of sessions is {zone}: stock Optuna may requeue live trials as stale",
            fix=f'psql "$(studyhall db url)" -c "alter database {facts["database"]} set timezone = \'UTC\'"',
        )
    elif not odd:
        is_utc = "" if zone == "UTC" else f", though sessions have the time zone {zone}"
        yield Finding(level="ok", about="times", what=f"kept in UTC{is_utc}")
