"""Trials as the database holds them, and what a client remembers of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from studies.space import categorical


@lru_cache(maxsize=4096)
def read_distribution(text: str) -> BaseDistribution:
    """The distribution in a JSON text. One is one object, however many trials have it: they are never changed."""
    data = json.loads(text)
    if data.get("name") == CategoricalDistribution.__name__ and data["attributes"]["choices"]:
        return categorical(data["attributes"]["choices"])
    return json_to_distribution(text)


def to_trial(row: Mapping[str, Any]) -> FrozenTrial:
    """The trial in a row of ``studyhall.contents``."""
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for name, value, text in json.loads(row["params"] or "[]"):
        distribution = distributions[name] = read_distribution(text)
        params[name] = distribution.to_external_repr(float(value))
    reports = json.loads(row["reports"] or "[]")
    values = row["values"] and [float(value) for value in json.loads(row["values"])]
    return FrozenTrial(
        number=row["number"],
        trial_id=row["trial_id"],
        state=TrialState[row["state"]],
        value=None,
        values=values or None,
        datetime_start=to_local(row["datetime_start"]),
        datetime_complete=to_local(row["datetime_complete"]),
        params=params,
        distributions=distributions,
        user_attrs=json.loads(row["user_attrs"] or "{}"),
        system_attrs=json.loads(row["system_attrs"] or "{}"),
        intermediate_values={step: float(value) for step, value in zip(reports[::2], reports[1::2], strict=True)},
    )


def to_local(utc: datetime | None) -> datetime | None:
    """Optuna's tables hold UTC without a zone, its trials local time without a zone."""
    return utc and utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def to_utc(local: datetime | None) -> datetime | None:
    """The reverse of :func:`to_local`."""
    return local and local.astimezone(UTC).replace(tzinfo=None)


class TrialCache:
    """The trials of one study, as far as they were read.

    Finished trials never change, so they are read once. Of the others it knows the revision. It is
    guarded by whoever owns it.

    Args:
        losses: of connections, when it was begun. After another one it is not to be trusted: a server that
            crashed may have lost changes that were read here, and have given their revisions to others.
    """

    def __init__(self, losses: int = 0) -> None:
        self.losses = losses
        self.trials: list[FrozenTrial] = []
        """By id, which within a study is by number: both are given under the study's row lock."""
        self.distributions: dict[str, BaseDistribution] = {}
        """Of each parameter, as the first trial that was read has it."""
        self._position: dict[int, int] = {}
        self._revisions: dict[int, int | None] = {}

    def question(self, own: Collection[int]) -> dict[str, Any]:
        """What the database needs to know to tell what is new; ``own`` trials are not asked for."""
        known = [trial_id for trial_id in self._revisions if trial_id not in own]
        return {
            "after": self.trials[-1]._trial_id if self.trials else -1,
            "known": known,
            "revisions": [self._revisions[trial_id] for trial_id in known],
        }

    def learn(self, rows: Iterable[Mapping[str, Any]], own: Mapping[int, FrozenTrial]) -> None:
        """Take in new and changed trials; ``own`` ones are known better than from the rows."""
        for row in sorted(rows, key=lambda row: int(row["trial_id"])):
            self.put(own.get(row["trial_id"]) or to_trial(row), row["revision"])

    def put(self, trial: FrozenTrial, revision: int | None) -> None:
        """Take in one trial. A new one has a higher id than all that are known."""
        position = self._position.get(trial._trial_id)
        if position is None:
            self._position[trial._trial_id] = len(self.trials)
            self.trials.append(trial)
        else:
            self.trials[position] = trial
        if trial.state.is_finished():
            self._revisions.pop(trial._trial_id, None)
        else:
            self._revisions[trial._trial_id] = revision
        for name, distribution in trial.distributions.items():
            self.distributions.setdefault(name, distribution)

    def get(self, trial_id: int) -> FrozenTrial | None:
        """The trial as it was last read."""
        position = self._position.get(trial_id)
        return None if position is None else self.trials[position]

    def forget(self, trial_id: int) -> None:
        """Read this trial again next time."""
        if trial_id in self._revisions:
            self._revisions[trial_id] = None


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
