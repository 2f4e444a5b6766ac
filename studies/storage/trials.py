"""Rows of the database as Optuna's frozen trials, and frozen trials with one value replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import unpack
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from studies.spec.space import categorical


@lru_cache(maxsize=4096)
def read_distribution(text: str) -> BaseDistribution:
    """The distribution in a JSON text. One is one object, however many trials have it: they are never changed."""
    data = json.loads(text)
    if data.get("name") == CategoricalDistribution.__name__ and data["attributes"]["choices"]:
        return categorical(data["attributes"]["choices"])
    return json_to_distribution(text)


#: Likewise the name of a parameter.
_read_name = lru_cache(maxsize=4096)(json.loads)

_STATES = {state.name: state for state in TrialState}


def to_trial(row: Mapping[str, Any]) -> FrozenTrial:
    """The trial in a row of ``studyhall.contents``. Studies are large: this takes a few microseconds."""
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    parts = iter(row["params"].split("\x1f") if row["params"] else ())
    for name, value, text in zip(parts, parts, parts, strict=True):
        name = _read_name(name)
        distribution = distributions[name] = read_distribution(text)
        params[name] = distribution.to_external_repr(float(value))
    steps, reports = row["steps"] or b"", row["reports"] or b""
    count = len(reports) // 8
    return FrozenTrial(
        number=row["number"],
        trial_id=row["trial_id"],
        state=_STATES[row["state"]],
        value=None,
        values=[float(value) for value in row["values"].split(",")] if row["values"] else None,
        datetime_start=to_local(row["datetime_start"]),
        datetime_complete=to_local(row["datetime_complete"]),
        params=params,
        distributions=distributions,
        user_attrs=json.loads(row["user_attrs"]) if row["user_attrs"] else {},
        system_attrs=json.loads(row["system_attrs"]) if row["system_attrs"] else {},
        intermediate_values=dict(zip(unpack(f">{count}i", steps), unpack(f">{count}d", reports), strict=True)),
    )


def known_params(state: TrialState, params: Mapping[str, Any], system_attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a trial; of one that waits also those that it was enqueued with, which it will have."""
    fixed = system_attrs.get("fixed_params")
    return {**params, **fixed} if state == TrialState.WAITING and isinstance(fixed, dict) else params


def to_local(utc: datetime | None) -> datetime | None:
    """Optuna's tables hold UTC without a zone, its trials local time without a zone."""
    return utc and utc + offset(utc.replace(minute=utc.minute // 15 * 15, second=0, microsecond=0))


@lru_cache(maxsize=65536)
def offset(quarter: datetime) -> timedelta:
    """What local time is ahead of UTC in a quarter of an hour, at whose ends alone clocks are changed."""
    if not datetime.min.year < quarter.year < datetime.max.year:
        return timedelta()  # these years have no local time; stock Optuna stores what it is given
    local = quarter.replace(tzinfo=UTC).astimezone().utcoffset()
    assert local is not None
    return local


def to_utc(local: datetime | None) -> datetime | None:
    """The reverse of :func:`to_local`."""
    return local and local.astimezone(UTC).replace(tzinfo=None)


def changed(trial: FrozenTrial, field: str, key: Any, value: Any) -> FrozenTrial:
    """A trial in which ``field[key]`` is ``value``; the one that was handed out stays as it is."""
    new = _shallow(trial)
    setattr(new, field, {**getattr(trial, field), key: value})
    return new


def copied(trial: FrozenTrial) -> FrozenTrial:
    """A trial whose dicts may be written to, as :class:`optuna.trial.Trial` does to its own."""
    new = _shallow(trial)
    new.params = dict(trial.params)
    new.distributions = dict(trial.distributions)
    new.user_attrs = dict(trial.user_attrs)
    new.system_attrs = dict(trial.system_attrs)
    new.intermediate_values = dict(trial.intermediate_values)
    return new


def _shallow(trial: FrozenTrial) -> FrozenTrial:
    # As copy.copy, which takes five times as long: this is done for every value that is written.
    new = FrozenTrial.__new__(FrozenTrial)
    new.__dict__.update(trial.__dict__)
    return new
