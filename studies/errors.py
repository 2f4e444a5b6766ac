"""Every error that Studyhall raises on purpose.

StudyhallError
├── SpecError               the study file, a preset's name or a --set is wrong
├── SpecMismatch            the study exists and was created from another spec
├── ObjectiveError          the objective does not import, cannot be called, or refuses its args
├── StorageError            the database cannot do what was asked
│   ├── StorageURLError     the storage URL cannot be understood
│   ├── StorageUnreachable  no answer, or the server refused us
│   │   └── TooManyConnections  all of the server's connections are taken
│   ├── Refused             the database will never take a value, for what it is
│   ├── NoTables            the database holds no studies yet
│   ├── NotPermitted        the database's user may not do this
│   ├── LeaseLost           a trial is no longer the worker's that writes to it
│   ├── BudgetSpent         the study's budget has no room for one more trial
│   └── EmbeddedServerError the embedded PostgreSQL cannot start or stop
├── StudyNotFound           no study of that name in this storage
├── TrialNotFound           the study has no trial of that number
├── NothingFinished         the study has no finished trial to choose from
├── StudyBusy               workers are running trials of the study
├── CheckpointError         checkpoints cannot be kept where the study says
├── WorkerError             the workers cannot start, or keep dying
├── TrackingError           MLflow cannot take a study
│   └── TrackingUnreachable     no answer from it for now
└── SiteError               a site cannot be served

A message is one line: what was given, what is legal, what to do next. It never holds a password.
``exit_code`` is what the command line returns: 2 for what the user typed, 1 for what went wrong.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from difflib import get_close_matches

from studies.text import in_one_line


class StudyhallError(Exception):
    """The base of every error that Studyhall raises on purpose.

    Args:
        what: was given, and what is legal; the whole message, unless there is a ``fix``.
        fix: what to do or type next, which ends the message; before it ``what`` ends with ``:``, ``;`` or ``; see:``.
    """

    exit_code = 1

    def __init__(self, what: str = "", *, fix: str | None = None) -> None:
        super().__init__(f"{what} {fix}" if fix else what)
        self.what = re.sub("(; see:|[:;])$", "", what) if fix else what
        self.fix = fix


class SpecError(StudyhallError):
    """The study file, a preset's name or a ``--set`` is wrong."""

    exit_code = 2


class SpecMismatch(StudyhallError):
    """The study exists and was created from another spec."""


class ObjectiveError(StudyhallError):
    """The objective does not import, cannot be called, or refuses its args."""


class StorageError(StudyhallError):
    """The database cannot do what was asked."""


class StorageURLError(StorageError):
    """The storage URL cannot be understood."""

    exit_code = 2


class StorageUnreachable(StorageError):
    """No answer from the server, or it refused the connection."""


class TooManyConnections(StorageUnreachable):
    """All of the server's connections are taken."""


class Refused(StorageError):
    """The database refuses a value for its content. A retry is useless."""


class NoTables(StorageError):
    """The database holds no studies yet."""


class NotPermitted(StorageError):
    """The database's user may not do this; the message says who may, or who grants it."""


class LeaseLost(StorageError):
    """The writer of a trial has lost its lease (a stale fencing token). Nothing was written."""


class BudgetSpent(StorageError):
    """The study's budget has no room for one more trial."""


class EmbeddedServerError(StorageError):
    """The embedded PostgreSQL cannot start or stop."""


class StudyNotFound(StudyhallError):
    """No study of that name in this storage."""


class TrialNotFound(StudyhallError):
    """The study has no trial of that number."""


class NothingFinished(StudyhallError):
    """The study has no finished trial to choose from."""


class StudyBusy(StudyhallError):
    """Workers are running trials of the study."""


class CheckpointError(StudyhallError):
    """The study's checkpoint store fails."""


class WorkerError(StudyhallError):
    """The workers cannot start, or keep dying."""


class TrackingError(StudyhallError):
    """MLflow cannot take a study."""


class TrackingUnreachable(TrackingError):
    """No answer from MLflow for now."""


class SiteError(StudyhallError):
    """A site cannot be served."""


def one_line(error: BaseException) -> str:
    """The message of ``error`` in one line; without a message the name of its type."""
    try:
        text = str(error)
    except Exception as broken:  # an exception of an objective, whose __str__ fails
        text = f"{type(error).__name__} (its text cannot be read: {type(broken).__name__})"
    return in_one_line(text) or type(error).__name__


def described(error: BaseException) -> str:
    """``ValueError: its message`` in one line; for Studyhall's own errors the message alone."""
    text = one_line(error)
    return text if isinstance(error, StudyhallError) else f"{type(error).__name__}: {text}"


def command(*words: str | int) -> str:
    """A command line to paste, quoted for the shell: ``command("best", "my study")``."""
    return "studyhall " + shlex.join(map(str, words))


def nearest(word: str, known: Iterable[str], *, in_order: bool = False) -> str:
    """The end of a message about an unknown ``word``: the nearest known one in any case, or the known ones, sorted and
    no more than 12; ``in_order``: as they come, and all."""
    known = list(known) if in_order else sorted(known)
    by_letters = {name.casefold(): name for name in known}
    close = get_close_matches(word.casefold(), by_letters, n=1, cutoff=0.6)
    if close:
        return f"did you mean {by_letters[close[0]]!r}?"
    most = len(known) if in_order else 12
    shown = ", ".join(known[:most]) + (", …" if len(known) > most else "")
    return f"known: {shown or 'none'}"
