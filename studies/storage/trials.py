"""Trials as the database holds them, and what a client remembers of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Container, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import unpack
from sys import getrefcount
from typing import Any, Final

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


class LentList:
    """A copy of a list for a caller who may do with it as they like, used again once nobody holds it.

    To copy 50,000 trials, and to free the copy, touches each of them and takes longer than to ask the database
    what has changed. To compare two lists of the same objects touches none.
    """

    def __init__(self) -> None:
        self._copies: list[list[FrozenTrial]] = []  # none or one

    def of(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """A list equal to ``trials``."""
        copy, holders = _take(self._copies)
        if holders > _NOBODY or copy != trials:
            copy = list(trials)
        self._copies.append(copy)
        return copy

    def replace(self, position: int, trial: FrozenTrial) -> None:
        """Change the copy as the list itself was changed, unless somebody holds it."""
        copy, holders = _take(self._copies)
        if holders <= _NOBODY and position < len(copy):
            copy[position] = trial
            self._copies.append(copy)


def _take(copies: list[list[FrozenTrial]]) -> tuple[list[FrozenTrial], int]:
    """The list in ``copies``, and how many hold it, this function's own ways of holding it included."""
    copy = copies.pop() if copies else []
    return copy, getrefcount(copy)


_NOBODY: Final = _take([[]])[1]
"""What :func:`_take` counts where nobody else holds the list. Differs between versions of Python."""


class TrialCache:
    """The trials of one study, as far as they were read.

    It knows the snapshot of its last read, and asks only for what that snapshot does not show. It is guarded by
    whoever owns it.

    Args:
        losses: of connections, when it was begun. After another one it is not to be trusted: a server that
            crashed may have lost changes that were read here, and may give their transactions' ids to others.
        snapshot: of the last read, as PostgreSQL writes it; ``None`` before the first.
        is_read: whether the study's size is known, so that a small one needs no reading a page at a time.
    """

    def __init__(self, losses: int = 0, *, snapshot: str | None = None, is_read: bool = False) -> None:
        self.losses = losses
        self.snapshot = snapshot
        self.is_read = is_read
        self.distributions: dict[str, BaseDistribution] = {}
        """Of each parameter, as the first trial that was read has it."""
        self._trials: list[FrozenTrial] = []  # by id, which within a study is by number
        self._position: dict[int, int] = {}
        self._stale: set[int] = set()  # to be read again, whatever the snapshot shows
        self._versions = dict.fromkeys(TrialState, 0)  # how often the trials of each state have changed
        self._selected: dict[frozenset[TrialState], tuple[int, list[FrozenTrial]]] = {}
        self._lent: dict[frozenset[TrialState] | None, LentList] = {}

    def __len__(self) -> int:
        return len(self._trials)

    def question(self, own: Collection[int]) -> dict[str, Any]:
        """What the database needs to know to tell what has changed; ``own`` trials are not asked for."""
        return {"since": self.snapshot, "again": [trial_id for trial_id in self._stale if trial_id not in own]}

    def learn(self, rows: Iterable[Mapping[str, Any]], own: Mapping[int, FrozenTrial]) -> None:
        """Take in new and changed trials; ``own`` ones are known better than from the rows."""
        for row in sorted(rows, key=lambda row: int(row["trial_id"])):
            self.snapshot = row["snapshot"]
            self._stale.discard(row["trial_id"])
            self.put(own.get(row["trial_id"]) or to_trial(row))

    def load(self, trials: Iterable[FrozenTrial], own: Mapping[int, FrozenTrial]) -> None:
        """Take in a page of a study that is read for the first time."""
        for trial in trials:
            self.put(own.get(trial._trial_id, trial))

    def put(self, trial: FrozenTrial) -> None:
        """Take in one trial. A new one has a higher id than all that are known."""
        position = self._position.get(trial._trial_id)
        if position is None:
            self._position[trial._trial_id] = len(self._trials)
            self._trials.append(trial)
        else:
            self._versions[self._trials[position].state] += 1
            self._trials[position] = trial
            if None in self._lent:
                self._lent[None].replace(position, trial)
        self._versions[trial.state] += 1
        for name, distribution in trial.distributions.items():
            self.distributions.setdefault(name, distribution)

    def get(self, trial_id: int) -> FrozenTrial | None:
        """The trial as it was last read."""
        position = self._position.get(trial_id)
        return None if position is None else self._trials[position]

    def select(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """The trials in these states, by number; all for ``None``. The list is the caller's.

        With many trials a walk over all of them costs more than a step of training, and at most steps nothing has
        changed but the trials that run.
        """
        if states is None:
            return self._lend(None, self._trials)
        wanted = frozenset(state for state in TrialState if state in states)
        version = sum(self._versions[state] for state in wanted)
        known = self._selected.get(wanted)
        if known is None or known[0] != version:
            known = self._selected[wanted] = version, [trial for trial in self._trials if trial.state in wanted]
        return self._lend(wanted, known[1])

    def _lend(self, key: frozenset[TrialState] | None, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        return self._lent.setdefault(key, LentList()).of(trials)

    def forget(self, trial_id: int) -> None:
        """Read this trial again next time."""
        if trial_id in self._position:
            self._stale.add(trial_id)


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
