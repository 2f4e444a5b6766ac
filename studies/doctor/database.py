"""The checks of a database: server, connections, users, tables, trials."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from studies.doctor import clocks
from studies.doctor.findings import Finding, KnownStudy
from studies.errors import EmbeddedServerError, NoTables, NotPermitted, StorageError, StorageUnreachable, command
from studies.stop_reasons import BY_HAND
from studies.storage import roles, schema
from studies.storage.database import Database
from studies.storage.url import StorageURL

#: The oldest version with pg_snapshot and pg_current_xact_id, by which clients find what has changed.
OLDEST_POSTGRESQL: Final = 13
#: A machine joins with a worker per core, two connections each: beyond this share the next one may be refused.
MAX_CONNECTIONS_IN_USE: Final = 0.8
_SHOWN: Final = 5
"""The most trials that are listed with the same problem."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """The findings about a database, and its studies."""

    findings: list[Finding] = field(default_factory=list)
    studies: list[KnownStudy] = field(default_factory=list)


def examine_database(url: StorageURL, *, embedded_in: Path | None) -> Examination:
    """Check the server, its clock and connections, the tables, and stuck trials.

    Args:
        url: of the database.
        embedded_in: the home of the embedded server; ``None`` for another server.
    """
    database = Database(url)
    examination = Examination()
    try:
        # One by one: an error must not lose the findings before it.
        for finding in _database(database, examination.studies, embedded_in):
            examination.findings.append(finding)
    except StorageError as error:
        examination.findings.append(failed(error))
    finally:
        database.close()
    return examination


def failed(error: StorageError) -> Finding:
    """The finding that the database could not be used at all."""
    about = "tables"
    if isinstance(error, NotPermitted | NoTables):
        about = "users"
    elif isinstance(error, StorageUnreachable | EmbeddedServerError):
        about = "server"
    if error.fix:
        return Finding(level="error", about=about, what=error.what, fix=error.fix)
    what = f"{error}; the server's log may say why"
    return Finding(level="error", about=about, what=what, fix='psql "$(studyhall db url)"')


def _database(database: Database, studies: list[KnownStudy], embedded_in: Path | None) -> Iterator[Finding]:
    round_trip = _round_trip(database)
    began = time.time()
    (facts,) = database.rows("server_facts")
    ended = time.time()
    yield server(facts, round_trip, f"the embedded server in {embedded_in}" if embedded_in else "")
    # A standby answers all questions; only a worker's first write would fail.
    if facts["is_standby"]:
        yield Finding(
            level="error",
            about="server",
            what="it is a standby, which cannot be written to",
            fix="name the primary in the URL, or all hosts with ?target_session_attrs=read-write",
        )
    # The server read its clock some time between the two of ours: take the middle, and half the distance as the error.
    yield clocks.difference(facts["clock"] - (began + ended) / 2, (ended - began) / 2)
    yield connections(facts["connections"], facts["slots"], is_embedded=embedded_in is not None)
    tables = [*_users(database), *_tables(database, facts)]
    yield from tables
    # The statements below need our tables, in the version that this program knows.
    if not facts["has_studyhall"] or any(finding.level == "error" for finding in tables):
        return
    yield from clocks.stored_times(database, facts)
    rows = database.rows("examined_studies")
    studies += [
        KnownStudy(
            name=row["name"],
            uid=row["uid"],
            objective=row["objective"] or "",
            store=row["store"] or "postgresql",
            ended=row["ended"],
        )
        for row in rows
    ]
    yield from _halted(rows)
    yield from _trials(database, {study.name: study for study in studies})


def _round_trip(database: Database) -> float:
    """The seconds of a round trip: the fastest of three, as the first one opens the connection."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        database.execute("select 1")
        times.append(time.perf_counter() - began)
    return min(times)


def server(facts: Mapping[str, Any], round_trip: float, name: str) -> Finding:
    """The server's version and round trip."""
    if facts["version_number"] < OLDEST_POSTGRESQL * 10_000:
        return Finding(
            level="error",
            about="server",
            what=f"PostgreSQL {facts['version']} is too old: legal are {OLDEST_POSTGRESQL} and newer",
            fix="pg_upgrade",
        )
    what = f"{name + ': ' if name else ''}PostgreSQL {facts['version']}; a round trip takes {round_trip * 1000:.2g} ms"
    return Finding(level="ok", about="server", what=what)


def connections(used: int, slots: int, *, is_embedded: bool) -> Finding:
    """Whether the server has connections left for more workers."""
    what = f"{used} of {slots} in use; a worker takes up to two"
    if used <= MAX_CONNECTIONS_IN_USE * slots:
        return Finding(level="ok", about="connections", what=what)
    # A changed max_connections takes effect at the next start of the server alone.
    restart = "studyhall db stop" if is_embedded else "pg_ctl restart"
    return Finding(
        level="warning",
        about="connections",
        what=what + ("" if is_embedded else "; allow more, or put PgBouncer between"),
        fix=f'psql "$(studyhall db url)" -c "alter system set max_connections = {2 * (slots + 3)}"; {restart}',
    )


def _users(database: Database) -> Iterator[Finding]:
    """Whether each database user has all rights of its kind."""
    for role, kind in roles.lost(database).items():
        is_owner = kind == "owner"
        yield Finding(
            level="error",
            about="users",
            what=f"{role!r} {'owns the tables' if is_owner else f'is a {kind}'} and has lost rights to them",
            fix="studyhall db upgrade" if is_owner else command("db", "grant", kind, role),
        )


def _tables(database: Database, facts: Mapping[str, Any]) -> Iterator[Finding]:
    if not facts["has_optuna"]:
        if roles.own(database)["may_create"]:
            yield Finding(level="ok", about="tables", what="there are none yet", fix="studyhall run digits")
        else:
            yield failed(roles.no_tables(database))
        return
    (optuna,) = database.rows("optuna_version") or [{"optuna": None, "version": None}]
    # Before the versions: an upgrade by Optuna's command alone would leave local times, now taken for UTC.
    if schema.is_optuna_4(optuna["optuna"]):
        yield Finding(
            level="error",
            about="tables",
            what=f"made by Optuna {optuna['optuna']}, which keeps local times where Optuna 5 keeps UTC; "
            "stop its workers, and give the time zone of their machines",
            fix="studyhall db upgrade --optuna-4-time-zone ZONE",
        )
        return
    yield _optunas_tables(optuna["version"], optuna["optuna"])
    if not facts["has_studyhall"]:
        what = "Optuna's are there, studyhall's are not yet"
        yield Finding(level="ok", about="tables", what=what, fix="studyhall db upgrade")
        return
    version = schema.state(database)[0] or 0
    known = schema.newest()
    if version == known:
        yield Finding(level="ok", about="tables", what=f"studyhall's are of version {version}, which this one knows")
    else:
        yield Finding(
            level="error",
            about="tables",
            what=f"studyhall's are of version {version}, this studyhall knows {known}",
            fix="studyhall db upgrade" if version < known else "pip install -U studyhall",
        )


def _optunas_tables(version: str | None, made_by: str | None) -> Finding:
    from optuna.storages import RDBStorage

    # An empty database in memory, to ask the installed Optuna which version of the tables it knows.
    ours = RDBStorage("sqlite://")
    known, *older = ours.get_all_versions()
    ours.engine.dispose()
    if version == known:
        return Finding(level="ok", about="tables", what=f"Optuna's are of version {version}, by Optuna {made_by}")
    return Finding(
        level="error",
        about="tables",
        what=f"Optuna's are of version {version}, the Optuna installed here knows {known}",
        fix='optuna storage upgrade --storage "$(studyhall db url)"' if version in older else "pip install -U optuna",
    )


def _halted(rows: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    for row in rows:
        word = "stopped by hand" if row["ended"] == BY_HAND else "paused" if row["paused"] and not row["ended"] else ""
        if word:
            what = f"study {row['name']!r} is {word}"
            yield Finding(level="ok", about="studies", what=what, fix=command("resume", row["name"]))


def _trials(database: Database, studies: Mapping[str, KnownStudy]) -> Iterator[Finding]:
    # The leases of silent workers still run: their trials are safe, whether they are dead or only slow.
    stuck, silent = database.rows("stuck_trials"), database.rows("silent_workers")
    for row in stuck[:_SHOWN]:
        trial = f"trial {row['number']} of study {row['study']!r}"
        cancel = command("cancel", row["study"], row["number"])
        if row["is_held"]:
            what = (
                f"{trial} runs, but its worker{' on ' + row['host'] if row['host'] else ''} has sent no heartbeat "
                f"since its lease expired {_time(row['seconds'])} ago, and no worker is left to requeue the trial"
            )
            # Workers of a study that has ended exit before they requeue anything.
            study = studies.get(row["study"])
            fix = study.work if study and not study.ended else cancel
        else:
            what = f"{trial} has run for {_time(row['seconds'])} without a lease: a stock Optuna worker may have died"
            # No lease can expire, and a heartbeat is optional in stock Optuna: only a person knows whether it is dead.
            fix = cancel
        yield Finding(level="warning", about="trials", what=what, fix=fix)
    if len(stuck) > _SHOWN:
        what = f"and {len(stuck) - _SHOWN} more like these; mend those first, then check again"
        yield Finding(level="warning", about="trials", what=what, fix="studyhall doctor")
    for row in silent[:_SHOWN]:
        yield Finding(
            level="warning",
            about="workers",
            what=f"the one on {row['host']} that holds trial {row['number']} of study {row['study']!r} was seen "
            f"{_time(row['seen_seconds_ago'])} ago; others get the trial in {_time(row['lease_seconds_left'])}",
            fix=f"ssh {row['host']} ps {row['pid']}",
        )
    if not stuck and not silent:
        yield Finding(level="ok", about="trials", what="none is stuck")


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
