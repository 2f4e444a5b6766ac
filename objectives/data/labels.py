"""Labels as class numbers, and what is asked about labels that are hardly meant as classes.

Every check raises :exc:`ValueError` with one line. Axes: N examples, C classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: With fewer examples of a class, one of the three parts would have none of it.
MIN_PER_CLASS = 13
#: So many different numbers may still be classes: fractions, or with few examples of most; whole numbers.
MAX_FRACTIONS, MAX_WHOLE_NUMBERS = 10, 100
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The classes of N examples."""

    names: tuple[str, ...]
    """C distinct labels, numbers in their order, text in the alphabet's; empty where the target is a number."""
    y_N: np.ndarray
    """int64, 0 … C−1; or float64, the numbers."""

    @classmethod
    def of(cls, y: np.ndarray) -> Labels:
        """Of an array of numbers or text."""
        values, y_N = np.unique(y, return_inverse=True)
        return cls(names=tuple(str(value) for value in values), y_N=y_N.astype(np.int64, copy=False))

    @classmethod
    def of_text(cls, spellings: Sequence[str], spelling_N: np.ndarray) -> Labels:
        """Of text: its different spellings, and the number of each example's.

        Raises:
            ValueError: two spellings look like one label.
        """
        counts = np.bincount(spelling_N, minlength=len(spellings))
        _check_spellings(spellings, counts)
        names = [spelling.strip() for spelling in spellings]
        numbers = [_number(name) for name in names]
        keys: list[object] = list(names) if None in numbers else list(numbers)
        order = sorted(range(len(names)), key=keys.__getitem__)  # type: ignore[arg-type]
        rank = np.empty(len(names), dtype=np.int64)
        rank[order] = np.arange(len(names))
        return cls(names=tuple(names[i] for i in order), y_N=rank[spelling_N])

    def like(self, other: Labels) -> Labels:
        """The same labels under the numbers of ``other``, or as the numbers that they are.

        Raises:
            ValueError: ``other`` has no such label.
        """
        if not other.names:
            return self._as_numbers("y_test")
        known = {name: number for number, name in enumerate(other.names)}
        unknown = [name for name in self.names if name not in known]
        if unknown:
            legal = ", ".join(other.names[:8]) + (", …" if len(other.names) > 8 else "")
            raise ValueError(f"y_test holds the label {unknown[0]}, which y does not; known: {legal}")
        return Labels(names=other.names, y_N=np.array([known[name] for name in self.names])[self.y_N])

    def judged(self, what: str, task: str | None) -> Labels:
        """These labels if they are classes, each with enough examples for every part; or the numbers that they are.

        Args:
            what: holds the labels, for the message: ``target 'price'``.
            task: ``classification`` or ``regression``; ``None`` to ask where they look like numbers.

        Raises:
            ValueError: they are neither, or may be meant in two ways.
        """
        if not self.names:
            if task == "classification":
                raise ValueError(f'{what} is a number; leave task out, or give "regression"')
            return self
        self._check_finite(what, task)
        if task == "regression":
            return self._judged_as_numbers(what)
        if len(self.names) < 2:
            raise ValueError(f"all labels are {self.names[0]}; a classifier needs at least two classes")
        counts = np.bincount(self.y_N, minlength=len(self.names))
        numbers = [number for number in map(_number, self.names) if number is not None]
        are_numbers = len(numbers) == len(self.names)
        if task is None and are_numbers and _look_measured(numbers, counts):
            # Not guessed: its value, the RMSE, is to be minimized, which only the study can say.
            raise ValueError(
                f"{what} has {len(numbers)} different numbers from {min(numbers):g} to {max(numbers):g} in "
                f'{len(self.y_N)} rows, which looks like regression: give objective.args.task = "regression", with '
                'direction = "minimize" and metric = "val_rmse"; or "classification" to make each number a class'
            )
        if counts.min() < MIN_PER_CLASS:
            rarest = " ".join(self.names[counts.argmin()].split())  # of an unclosed quote it is half the file
            raise ValueError(
                f"class {rarest:.60} has {counts.min()} of {len(self.y_N)} examples; each of the "
                f"{len(self.names)} classes needs at least {MIN_PER_CLASS} to be in every part"
            )
        return self

    def _check_finite(self, what: str, task: str | None) -> None:
        """Refuse inf, and what is too large for a number, among numbers: as a class it would be a strange one."""
        is_other = [_number(name) is None for name in self.names]
        others = [name for name, is_one in zip(self.names, is_other, strict=True) if is_one]
        if not others or task == "classification" or not all(map(_is_infinite, others)):
            return
        counts = np.bincount(self.y_N, minlength=len(self.names))
        numbers = [number for number in map(_number, self.names) if number is not None]
        if task == "regression" or _look_measured(numbers, counts[~np.array(is_other)]):
            also = "" if task else ', and give objective.args.task = "regression"'
            raise ValueError(
                f"{what} holds {others[0]!r:.60} in {counts[is_other].sum()} of {len(self.y_N)} rows, and numbers in "
                f"the others; regression needs finite numbers: remove these rows{also}"
            )

    def _judged_as_numbers(self, what: str) -> Labels:
        found = self._as_numbers(what)
        if len(self.names) < 2:
            raise ValueError(f"{what} is {self.names[0]} in all rows; regression needs numbers that differ")
        if len(self.y_N) < MIN_PER_CLASS:
            raise ValueError(f"has {len(self.y_N)} rows; regression needs at least {MIN_PER_CLASS}")
        return found

    def _as_numbers(self, what: str) -> Labels:
        text = next((name for name in self.names if _number(name) is None), None)
        if text is not None:
            raise ValueError(f"{what} holds {text!r:.60}, which is not a number; regression needs numbers")
        values = np.array([_number(name) for name in self.names], dtype=np.float64)
        largest = values[np.abs(values).argmax()]
        if abs(largest) > FLOAT32_MAX:
            raise ValueError(
                f"{what} holds {largest:g}; every number must be finite as a float32: divide all by a constant"
            )
        return Labels(names=(), y_N=values[self.y_N])


def _look_measured(numbers: Sequence[float], counts: np.ndarray) -> bool:
    is_fraction = any(not number.is_integer() for number in numbers)
    if len(numbers) <= MAX_FRACTIONS:
        return False
    return is_fraction or len(numbers) > MAX_WHOLE_NUMBERS or bool(np.median(counts) < MIN_PER_CLASS)


def _check_spellings(spellings: Sequence[str], counts: np.ndarray) -> None:
    """Whoever means two classes can rename one; whoever means one would never learn that there were two."""
    alike: dict[object, list[int]] = defaultdict(list)
    for number, spelling in enumerate(spellings):
        alike[_normal(spelling)].append(number)
    for group in alike.values():
        if len(group) > 1:
            shown = " and ".join(f"{spellings[i]!r} ({counts[i]} rows)" for i in group[:4])
            raise ValueError(f"the labels {shown} look like one; spell them alike, or rename one if they differ")


def _normal(label: str) -> object:
    """Equal for labels that a person would take for one."""
    number = _number(label)
    if number is not None:
        return number
    text = unicodedata.normalize("NFKC", label).casefold()
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")  # such as U+200B
    return " ".join(text.replace("_", " ").replace("-", " ").split()) or text  # a label of nothing but such characters


def is_number(text: str) -> bool:
    """Whether a text is a finite number and nothing else."""
    return _number(text) is not None


def plain(text: str) -> str:
    """A number or truth value as every file and data frame would write it; other text, such as 007, as it is."""
    number = _number(text)
    if number is None or is_code(text):
        return text.lower() if text.lower() in ("true", "false") else text
    return str(int(number)) if number.is_integer() else repr(number)


def is_code(text: str) -> bool:
    """Whether text has a leading zero that a number has not."""
    return re.match(r"[+-]?0\d", text) is not None


def is_plain(text: str) -> bool:
    """Whether text is a number or a truth value, which a data frame may hold as such."""
    return text in ("true", "false") or (is_number(text) and not is_code(text))


def _number(label: str) -> float | None:
    """The finite number that a label is; what Python alone would read as one, such as 10_19, is text."""
    number = _float(label)
    return number if number is not None and np.isfinite(number) else None


def _is_infinite(label: str) -> bool:
    number = _float(label)
    return number is not None and bool(np.isinf(number))


def _float(label: str) -> float | None:
    text = label.strip()
    if not text.isascii() or "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None
