"""What an error of PostgreSQL means for whoever sent the statement: one table of its SQLSTATEs.

The codes are in the appendix of PostgreSQL's manual; the first two characters are the class.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import psycopg2

INSUFFICIENT_PRIVILEGE: Final = "42501"


class Verdict(Enum):
    """What to do about a statement that failed."""

    REFUSED = "the server will never take it: it is about what was sent"
    TRY_AGAIN = "the server gave it up for another's sake: send it again"
    AWAY = "the server can't take it now: wait"
    UNEXPECTED = "none of these: tell whoever asked"


#: By the longest prefix of the SQLSTATE.
VERDICTS: Final = {
    "22": Verdict.REFUSED,  # data exception: too long, NUL, out of range, no valid text
    "23": Verdict.REFUSED,  # integrity constraint violation
    "54": Verdict.REFUSED,  # program limit exceeded: an index row or a value too large
    "40001": Verdict.TRY_AGAIN,  # serialization failure
    "40P01": Verdict.TRY_AGAIN,  # deadlock detected
    "55P03": Verdict.TRY_AGAIN,  # lock not available: lock_timeout
    "57014": Verdict.TRY_AGAIN,  # query canceled: statement_timeout, or an administrator
    "08": Verdict.AWAY,  # connection exception
    "25006": Verdict.AWAY,  # read-only transaction: a standby before its promotion
    "53": Verdict.AWAY,  # insufficient resources: disk full, no connection or memory left
    "57P": Verdict.AWAY,  # operator intervention: shutdown, crash, starting up, idle session ended
}

#: Where a person can do something about it that the server's own words don't tell.
ADVICE: Final = {
    "25006": (
        "the server at {where} takes no writes (read-only): it may be a standby before its promotion;",
        "name the primary, or let its operator end that",
    ),
    "53100": ("the disk of the server at {where} is full:", "free some space there"),
    "53200": ("the server at {where} is out of memory:", "give it more, or run fewer workers"),
    "40P01": ("the server at {where} kept meeting deadlocks:", "pg_stat_activity shows who locks"),
    "55P03": ("the server at {where} gave up a statement at its lock_timeout:", "pg_stat_activity shows who locks"),
    "57014": ("the server at {where} gave up a statement at its statement_timeout:", "raise that for this user"),
}
"""What is wrong, and what a person can do."""


def verdict(error: psycopg2.Error) -> Verdict:
    """What to do about ``error``. One without a SQLSTATE is not the server's: it is about the connection, or about
    what could not even be sent."""
    code = error.pgcode
    if code is not None:
        return next((VERDICTS[code[:n]] for n in (5, 3, 2) if code[:n] in VERDICTS), Verdict.UNEXPECTED)
    if isinstance(error, psycopg2.DataError):
        return Verdict.REFUSED
    is_connection = isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return Verdict.AWAY if is_connection else Verdict.UNEXPECTED


def breaks_connection(error: psycopg2.Error) -> bool:
    """Whether to send the next statement over another connection. A server that takes no writes may be the wrong
    one of several by now."""
    code = error.pgcode
    return verdict(error) is Verdict.AWAY if code is None else code.startswith(("08", "57P", "25006"))
