"""Values as they are stored and written: strict JSON, and text for people and scripts.

JSON has no numbers for infinities and NaN. Where such a value is data, as a choice of a parameter is, it is written
as the text "Infinity", "-Infinity" or "NaN", which float() reads back. Where it is a measurement, it is written as
null (see :func:`finite`).
"""

from __future__ import annotations

import json
import math
from typing import Any


def strict(value: Any) -> Any:
    """``value`` with infinities and NaN replaced by text at any depth, which strict JSON lacks; tuples become lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    return value


def finite(value: float | None) -> float | None:
    """A measurement; ``None`` for infinities and NaN, which JSON lacks."""
    return value if value is not None and math.isfinite(value) else None


def to_json(value: Any, **how: Any) -> str:
    """``value`` as strict JSON. ``how``: keyword arguments of :func:`json.dumps`."""
    return json.dumps(strict(value), ensure_ascii=False, allow_nan=False, **how)


def to_text(value: Any) -> str:
    """A parameter's exact value: text as it is, anything else as JSON, an infinity without quotes."""
    plain = strict(value)
    return plain if isinstance(plain, str) else to_json(plain)


def as_stored(value: Any) -> Any:
    """``value`` as it comes back from JSON: tuples are lists, NumPy's numbers Python's.

    Raises:
        TypeError: JSON cannot say it; the message says which part.
    """
    return json.loads(json.dumps(value, default=_scalar))


def key_of(value: Any) -> str:
    """A key for comparing stored values. Unlike ``==`` it distinguishes 1, 1.0 and true, and equates NaN with NaN."""
    return json.dumps(value, sort_keys=True, default=_scalar)


def _scalar(value: Any) -> Any:
    """For :func:`json.dumps`: the number in a NumPy or PyTorch scalar."""
    # By its method: neither NumPy nor PyTorch is imported for this.
    if callable(item := getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        return item()
    raise TypeError(f"{value!r:.80} is of type {type(value).__name__}")
