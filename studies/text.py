"""Text for terminals and logs. Text from the database is escaped: it controls no terminal, and ends no line.

Whoever prints, prints by this: ``say`` and ``echo`` of the command line, its tables and pictures, its log.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_COLOUR = re.compile("(\x1b\\[[0-9;]*m)")


def printable(text: str) -> str:
    r"""``text`` in one line, in which each invisible character is written as Python writes it.

    ``\x1b``, ``\n``, ``\u202e``: control characters, those that turn the direction of writing, lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_visible(c) else c.encode("unicode_escape").decode() for c in text)


def in_one_line(text: str) -> str:
    """``text`` without line breaks, and with single spaces."""
    return " ".join(text.split())


def coloured(line: str) -> str:
    """:func:`printable`, but for tabs and colours: of what a user's own program prints."""
    parts = _COLOUR.split(line.expandtabs())
    return "".join(part if i % 2 else printable(part) for i, part in enumerate(parts))


def counted(count: int, noun: str) -> str:
    """``1 trial``, ``2 studies``, ``12,000 trials``."""
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun}"


def ranges(numbers: Iterable[int]) -> str:
    """``3, 7–9`` for 3, 7, 8, 9; ``–`` without any. The numbers ascend."""
    runs: list[list[int]] = []
    for number_ in numbers:
        if runs and number_ == runs[-1][-1] + 1:
            runs[-1][1:] = [number_]
        else:
            runs.append([number_])
    return ", ".join("–".join(map(str, run)) for run in runs) or "–"


def duration(seconds: float, *, is_live: bool = False) -> str:
    """``35 ms``, ``48 s``, ``3:20``, ``2:03:20``: as short as it stays clear. ``is_live``: in whole seconds, as what is
    drawn again and again would flicker otherwise."""
    if is_live and seconds < 59.5:
        return f"{seconds:.0f} s"
    # The bounds are where rounding would write 1000 ms, 10.0 s or 60 s.
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def time_left(seconds: float | None) -> str:
    """``3:20 left``; ``– left`` for ``None``."""
    return f"{'–' if seconds is None else duration(max(1.0, seconds), is_live=True)} left"


def number(value: float | None) -> str:
    """``value`` to six significant digits, for people."""
    return "–" if value is None else f"{value:.6g}"


def _is_visible(character: str) -> bool:
    # Some languages separate words by spaces outside of ASCII.
    return character.isprintable() or unicodedata.category(character) == "Zs"
