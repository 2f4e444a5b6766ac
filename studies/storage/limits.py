"""Limits of PostgreSQL and Optuna's tables, checked in the objective's call: the error is then the objective's."""

from __future__ import annotations

import json
from typing import Any, Final

from studies.text import printable

MAX_NAME: Final = 512
"""Characters in the name of a study, a parameter or a metric, or in an attribute's key: Optuna's columns."""
MAX_JSON: Final = 64 * 2**20
"""Bytes of an attribute's value as JSON. PostgreSQL's own limit, 256 MB, holds for a whole statement."""


def check_name(what: str, name: object) -> None:
    """Check that the database can store a name.

    Args:
        what: the name's kind, as a message says it.
        name: it.

    Raises:
        TypeError: it is not text.
        ValueError: it is too long, or holds a character that PostgreSQL refuses.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} {name!r:.60} is of type {type(name).__name__}; legal is text")
    shown = shortened(name)
    if len(name) > MAX_NAME:
        raise ValueError(f"{what} {shown} has {len(name):,} characters; at most {MAX_NAME} are legal")
    if "\0" in name:
        raise ValueError(f"{what} {shown} holds a NUL character, which PostgreSQL does not store; leave it out")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError(f"{what} {shown} holds half of a surrogate pair, which is no text; leave it out")


def shortened(name: str) -> str:
    """A name as a message quotes it: at most 40 characters, all of them visible."""
    return f"'{printable(name if len(name) <= 40 else name[:39] + '…')}'"


def to_json(key: str, value: Any) -> str:
    """An attribute's value as Optuna stores it.

    Raises:
        TypeError: it is not JSON, or its key is not text; the message says which, and what in it is wrong.
        ValueError: it is too large, or its key is no legal name.
    """
    check_name("attribute", key)
    try:
        # As in Optuna NaN and infinities are legal: the column is text, and no JSON of PostgreSQL.
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"attribute {key!r} is not JSON: {error}; legal are text, numbers, booleans, None, lists and dicts"
        ) from None
    check_size(f"attribute {key!r}", text)
    return text


def check_size(what: str, text: str) -> None:
    """Check the size of ``text``, which is ASCII, against the limit of an attribute; raises :exc:`ValueError`."""
    if len(text) > MAX_JSON:
        raise ValueError(
            f"{what} has {len(text):,} bytes as JSON; at most {MAX_JSON:,} are legal: store a file, and its path here"
        )
