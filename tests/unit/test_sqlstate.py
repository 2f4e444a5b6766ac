"""What each SQLSTATE means for whoever sent the statement."""

from __future__ import annotations

import psycopg2
import psycopg2.errors
import pytest

from studies.storage.sqlstate import Verdict, breaks_connection, verdict


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        *[(code, Verdict.REFUSED) for code in ("22001", "22003", "22021", "22P05", "23505", "23514", "54000")],
        *[(code, Verdict.RETRY) for code in ("40001", "40P01", "55P03", "57014")],
        *[
            (code, Verdict.UNREACHABLE)
            for code in ("08006", "53100", "53200", "53300", "57P01", "57P03", "57P05", "25006")
        ],
        *[(code, Verdict.UNEXPECTED) for code in ("42501", "42P01", "25P02", "XX000", "P0002", "SH001")],
    ],
)
def test_each_sqlstate_has_one_verdict(code: str, expected: Verdict) -> None:
    error = psycopg2.errors.lookup(code)() if not code.startswith("SH") else psycopg2.DatabaseError()
    error.__setstate__({"pgcode": code})
    assert verdict(error) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg2.OperationalError("server closed the connection"), Verdict.UNREACHABLE),
        (psycopg2.InterfaceError("connection already closed"), Verdict.UNREACHABLE),
        (psycopg2.DataError("cannot be sent: a NUL"), Verdict.REFUSED),
        (psycopg2.ProgrammingError("can't adapt type 'object'"), Verdict.UNEXPECTED),
    ],
)
def test_an_error_without_a_sqlstate_is_about_the_connection_or_what_could_not_be_sent(
    error: psycopg2.Error, expected: Verdict
) -> None:
    assert verdict(error) is expected
    assert breaks_connection(error) is (expected is Verdict.UNREACHABLE)


def test_a_server_that_takes_no_writes_is_left_for_another_but_one_with_a_full_disk_is_not() -> None:
    broken = {}
    for code in ("25006", "57P01", "08006", "53100", "57014", "40P01"):
        error = psycopg2.errors.lookup(code)()
        error.__setstate__({"pgcode": code})
        broken[code] = breaks_connection(error)
    assert broken == {
        "25006": True,
        "57P01": True,
        "08006": True,
        "53100": False,
        "57014": False,
        "40P01": False,
    }
