"""What an error of PostgreSQL means: one table of SQLSTATEs.

The codes are in the appendix of PostgreSQL's manual; the first two characters are the class.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import psycopg2

INSUFFICIENT_PRIVILEGE: Final = "42501"


class Verdict(Enum):
    """What to do about a failed statement."""

    REFUSED = "the server refuses the content, and always will"
    RETRY = "a deadlock, a timeout or the like: send it again"
    UNREACHABLE = "the server can't execute it now: wait, then send it again"
    UNEXPECTED = "none of these: raise it"


#: By the longest prefix of the SQLSTATE.
VERDICTS: Final = {
    "22": Verdict.REFUSED,  # data exception: too long, NUL, out of range, no valid text
    "23": Verdict.REFUSED,  # integrity constraint violation
    "54": Verdict.REFUSED,  # program limit exceeded: an index row or a value too large
    "40001": Verdict.RETRY,  # serialization failure
    "40P01": Verdict.RETRY,  # deadlock detected
    "55P03": Verdict.RETRY,  # lock not available: lock_timeout
    "57014": Verdict.RETRY,  # query canceled: statement_timeout, or an administrator
    "08": Verdict.UNREACHABLE,  # connection exception
    "25006": Verdict.UNREACHABLE,  # read-only transaction: a standby before its promotion
    "53": Verdict.UNREACHABLE,  # insufficient resources: disk full, no connection or memory left
    "57P": Verdict.UNREACHABLE,  # operator intervention: shutdown, crash, starting up, idle session ended
}

#: SQLSTATE → what is wrong, and what a person can do that the server's own message does not say.
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


def verdict(error: psycopg2.Error) -> Verdict:
    """What to do about ``error``.

    An error without a SQLSTATE is psycopg2's: the connection broke, or a value could not be encoded.
    """
    code = error.pgcode
    if code is not None:
        return next((VERDICTS[code[:n]] for n in (5, 3, 2) if code[:n] in VERDICTS), Verdict.UNEXPECTED)
    if isinstance(error, psycopg2.DataError):
        return Verdict.REFUSED
    is_connection = isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return Verdict.UNREACHABLE if is_connection else Verdict.UNEXPECTED


def breaks_connection(error: psycopg2.Error) -> bool:
    """Whether the next statement needs a new connection.

    Also after "read-only": of several hosts in the URL another one may be the primary by now.
    """
    code = error.pgcode
    return verdict(error) is Verdict.UNREACHABLE if code is None else code.startswith(("08", "57P", "25006"))
