"""One configuration, trained without a study: the metrics of each step, as an objective yields them.

An objective that can do so has a method::

    curves(params, *, seed, device, profile=None) -> Iterator[dict[str, float]]

which trains with ``params`` and yields the metrics of each step. Where ``profile`` is a folder, it leaves there
``table.txt``, for people, and ``trace.json``, in Chrome's format: where the time of some steps went.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studies.errors import ObjectiveError, SpecError, described, nearest, one_line
from studies.objective import Objective

#: What :func:`train` finds in the folder of a profile.
TABLE, TRACE = "table.txt", "trace.json"


def require_trainable(path: str, objective: Objective, params: Mapping[str, Any], *, profile: bool) -> None:
    """Check what can be known before the training.

    Args:
        path: of the objective.
        objective: as it was built.
        params: of the configuration.
        profile: whether the objective is to profile its training.

    Raises:
        ObjectiveError: it has no ``curves``, or one that cannot profile.
        SpecError: it has no such parameter, or refuses a value.
    """
    curves = getattr(objective, "curves", None)
    if curves is None:
        raise ObjectiveError(
            f"objective {path!r} trains within a study alone: give its class a method curves(), as "
            f"objectives.mlp:MLP has, or run one trial with: studyhall run {path} --trials 1"
        )
    if profile and "profile" not in inspect.signature(curves).parameters:
        raise ObjectiveError(
            f"objective {path!r} cannot be profiled: give its method curves() a parameter profile, as "
            "objectives.mlp:MLP has, or leave --profile out"
        )
    known = getattr(objective, "parameters", None)
    for name in params:
        if known is not None and name not in known:
            raise SpecError(f"objective {path!r} has no parameter {name!r}; {nearest(name, known)}")
    try:
        getattr(objective, "check_params", lambda _: None)(params)
    except ValueError as error:
        raise SpecError(f"objective {path!r}: {one_line(error)}") from error


def train(
    path: str,
    objective: Any,
    params: Mapping[str, Any],
    *,
    seed: int,
    device: str,
    profile: Path | None = None,
) -> Iterator[dict[str, float]]:
    """Train with ``params``, and yield the metrics of each step by name, as they come.

    Args:
        path: of the objective.
        objective: as it was built; see :func:`require_trainable`.
        params: of the configuration; the objective knows the others.
        seed: 32 bits.
        device: the PyTorch name of the device.
        profile: a folder that gets ``TABLE`` and ``TRACE``.

    Raises:
        ObjectiveError: whatever the objective raised, or it yields something else than numbers by name.
    """
    # An objective need not know of profiles.
    options = {} if profile is None else {"profile": profile}
    try:
        for metrics in objective.curves(params, seed=seed, device=device, **options):
            yield _numbers(path, metrics)
    except ObjectiveError:
        raise
    except Exception as error:
        # ValueError is the objective's own word about its parameters.
        text = one_line(error) if isinstance(error, ValueError) else described(error)
        raise ObjectiveError(f"objective {path!r}: {text}") from error


def _numbers(path: str, metrics: object) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in metrics.items()}  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        raise ObjectiveError(
            f"objective {path!r}: curves() yields {metrics!r:.80}; it must be numbers by name, for each step"
        ) from None
