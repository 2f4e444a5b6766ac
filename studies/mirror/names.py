"""How any text becomes one that MLflow takes, and how to get it back. docs/mirror.md states the rule for users.

1. Text that MLflow takes stays as it is.
2. A character that MLflow refuses becomes ``_xHH_``, its code point in hexadecimal: two digits for printable
   ASCII, at least four for all else. ``learning rate (log)`` becomes ``learning rate _x28_log_x29_``. Text that
   already looks like such an escape loses its first underscore to ``_x5f_``. An empty name becomes ``_x_``.
   :func:`unescape` reverses all this.
3. Text that is too long is cut, and ends in the SHA-256 of the whole. The run keeps the whole: a name in the tag
   ``studyhall.name.<sha256>``, a value in the artifact ``text/<sha256>.txt``. Text that already ends like that is
   treated as too long.

Hence two texts never become the same. Escapes are lower-case, so that stores that ignore case (MLflow on MySQL)
confuse only names that differ in nothing but the case of ASCII letters.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Collection
from functools import lru_cache
from typing import Final

from mlflow.utils import validation

#: In characters. Servers before MLflow 3 take shorter tags than this client would send.
MAX_KEY: Final = validation.MAX_ENTITY_KEY_LENGTH
MAX_TAG: Final = min(5000, validation.MAX_TAG_VAL_LENGTH)
MAX_PARAM: Final = validation.MAX_PARAM_VAL_LENGTH
#: What MLflow's tables hold; its own check of experiment names lets longer ones through to the database.
MAX_EXPERIMENT: Final = 256
MAX_RUN: Final = 250
#: An experiment's place for artifacts and the path of a run below it must fit into 200 characters.
MAX_FOLDER: Final = 40

#: A tag that begins with this holds a name that was too long for a key.
NAME_TAG: Final = "studyhall.name."

# What is escaped. MLflow takes letters of any script in keys, but stores may equate them: ASCII is unambiguous.
_NO_KEY = r"[^A-Za-z0-9_. :/-]"
_NO_PART_OF_A_PATH = r"[^A-Za-z0-9_:-]"
_NO_VALUE = r"[\x00\ud800-\udfff]"

_CODE = r"2[0-9a-f]|3[a-f]|40|5[b-f]|60|7[b-e]|[0-9a-f]{4,5}|10[0-9a-f]{4}"
_ESCAPE = re.compile(rf"_x({_CODE})_")
_EMPTY = "_x_"
_CUT_NAME = re.compile(r"_sha256_([0-9a-f]{64})\Z", re.IGNORECASE)
_CUT_VALUE = re.compile(r"… \[whole text: text/([0-9a-f]{64})\.txt\]\Z")


class Legal:
    """Makes the texts of one run legal, and remembers those that it had to cut."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        """Names that were too long, by SHA-256."""
        self.texts: dict[str, str] = {}
        """Values that were too long, by SHA-256."""

    def key(self, name: str, prefix: str = "", reserved: Collection[str] = ()) -> str:
        """A key for a metric, parameter or tag.

        Args:
            name: any text.
            prefix: of ours, put before it.
            reserved: names that mean something else in this run: of them, the first underscore is escaped,
                as nothing else is, by four digits.
        """
        key = _key(name, prefix, name in reserved)
        return self._noted(name, key)

    def value(self, text: str, limit: int = MAX_TAG) -> str:
        """The value of a tag or parameter, of at most ``limit`` characters."""
        # Escapes only lengthen: of megabytes, no more is read than what may stay.
        escaped = text and _named(_escape(text[: limit + 1], _NO_VALUE))
        if len(escaped) <= limit and not digest_in(escaped):
            return escaped
        sha256 = digest(text)
        self.texts[sha256] = text
        tail = f"… [whole text: {text_file(sha256)}]"
        return escaped[: limit - len(tail)] + tail

    def title(self, name: str, limit: int) -> str:
        """The name of an experiment or run, of at most ``limit`` characters."""
        return self._noted(name, experiment_name(name, limit))

    def tags(self) -> dict[str, str]:
        """Tags that keep the names that were too long."""
        return {NAME_TAG + found: self.value(name) for found, name in self.names.items()}

    def _noted(self, name: str, written: str) -> str:
        if _CUT_NAME.search(written):
            self.names[digest(name)] = name
        return written


def experiment_name(name: str, limit: int = MAX_EXPERIMENT) -> str:
    """The name of a study's experiment: any text but an empty one, NUL and lone surrogates."""
    return _fitted(name, _named(_escape(name, _NO_VALUE)), limit)


def folder(name: str) -> str:
    """A folder for a study's artifacts: one component of a path. Studies may share one; runs have their own in it."""
    escaped = _named(_escape(name, _NO_PART_OF_A_PATH))
    return escaped if len(escaped) <= MAX_FOLDER else f"{escaped[: MAX_FOLDER - 17]}_{digest(name)[:16]}"


def unescape(text: str) -> str:
    """The original of what was escaped but not cut."""
    return "" if text == _EMPTY else _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)


def text_file(sha256: str) -> str:
    """The artifact that keeps a text, as UTF-8."""
    return f"text/{sha256}.txt"


def digest_in(text: str) -> str | None:
    """The SHA-256 at the end of a name or value that was cut; ``None`` where it is whole."""
    found = _CUT_NAME.search(text) or _CUT_VALUE.search(text)
    return found[1] if found else None


def digest(text: str) -> str:
    """The SHA-256 of the text's bytes."""
    return hashlib.sha256(as_bytes(text)).hexdigest()


def as_bytes(text: str) -> bytes:
    """UTF-8, in which lone surrogates stay what they are."""
    return text.encode("utf-8", "surrogatepass")


@lru_cache(4096)  # the names of metrics come with every step
def _key(name: str, prefix: str, is_reserved: bool) -> str:
    head, underscore, rest = name.partition("_") if is_reserved else ("", "", name)
    head += underscore and "_x005f_"
    escaped = _named(head + _escape(rest, _NO_KEY))
    if _is_ambiguous(escaped):
        escaped = _named(head + _escape(rest, _NO_PART_OF_A_PATH))
    return prefix + _fitted(name, escaped, MAX_KEY - len(prefix))


def _is_ambiguous(key: str) -> bool:
    """Whether a store that takes keys for paths, or trims them, could confuse it with another."""
    return posixpath.normpath(key) != key or key.startswith((".", "/")) or key != key.strip()


def _named(escaped: str) -> str:
    if escaped.lower() == _EMPTY:
        return _escaped("_") + escaped[1:]
    return escaped or _EMPTY


def _fitted(name: str, escaped: str, limit: int) -> str:
    if len(escaped) <= limit and not digest_in(escaped):
        return escaped
    tail = f"_sha256_{digest(name)}"
    return escaped[: limit - len(tail)] + tail


def _escape(text: str, refused: str) -> str:
    """Escape the characters that ``refused`` matches, and each underscore that would begin an escape."""
    pattern = rf"{refused}|_(?=[xX](?i:{_CODE})(?:_|{refused}))"
    return re.sub(pattern, lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"_x{code:02x}_" if " " <= character <= "~" else f"_x{code:04x}_"
