"""A client's cache of one study's trials, brought up to date by what changed since its last read."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from itertools import count, takewhile
from sys import getrefcount
from typing import Any, Final

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from studies.storage.trials import to_trial


class LentList:
    """A copy of a list that the caller may change. The copy is reused once no caller refers to it.

    Copying 50,000 trials, and freeing the copy, touches each one's reference count and takes longer than asking the
    database for changes. Comparing two lists of the same objects touches none.
    """

    def __init__(self) -> None:
        self._copies: list[list[FrozenTrial]] = []  # none or one

    def of(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """A list equal to ``trials``."""
        copy, references = _take(self._copies)
        if references > _UNREFERENCED or copy != trials:
            copy = list(trials)
        self._copies.append(copy)
        return copy

    def replace(self, position: int, trial: FrozenTrial) -> None:
        """Apply a change of the list to the copy as well, unless a caller refers to the copy."""
        copy, references = _take(self._copies)
        if references <= _UNREFERENCED and position < len(copy):
            copy[position] = trial
            self._copies.append(copy)


def _take(copies: list[list[FrozenTrial]]) -> tuple[list[FrozenTrial], int]:
    """The list in ``copies``, and its reference count, this function's own references included."""
    copy = copies.pop() if copies else []
    return copy, getrefcount(copy)


_UNREFERENCED: Final = _take([[]])[1]
"""The count of :func:`_take` without other references. It differs between versions of Python."""


_CLOCK: Final = count(1)
"""One for all caches: what changed since an earlier one of the study is all of this one."""


class TrialCache:
    """The trials of one study, as of the last read. Not thread-safe: its owner locks.

    Args:
        losses: of connections, at its creation. After a further loss the cache is discarded: a server that crashed may
            have lost changes that were read here, and may reuse their transaction ids.
        snapshot: of the last read, as PostgreSQL writes it; ``None`` before the first. Only transactions that it does
            not show are asked for.
        is_read: whether the study's size is known: a small study needs no reading by pages.
    """

    def __init__(self, losses: int = 0, *, snapshot: str | None = None, is_read: bool = False) -> None:
        self.losses = losses
        self.snapshot = snapshot
        self.is_read = is_read
        self.distributions: dict[str, BaseDistribution] = {}
        """Of each parameter, from the first trial that was read with it."""
        self.trials: list[FrozenTrial] = []
        """By id, which within a study is by number."""
        self._position: dict[int, int] = {}
        self._stale: set[int] = set()  # to be read again, even if the snapshot shows no change
        self._versions = dict.fromkeys(TrialState, 0)  # how often the trials of each state have changed
        self._selected: dict[frozenset[TrialState], tuple[int, list[FrozenTrial]]] = {}
        self._lent: dict[frozenset[TrialState] | None, LentList] = {}
        # The positions of trials that changed, the newest last, each with when: on a clock that counts the changes.
        self._changed: dict[int, int] = {}
        self._began = next(_CLOCK)

    def __len__(self) -> int:
        return len(self.trials)

    def question(self, own: Collection[int]) -> dict[str, Any]:
        """The parameters of a statement that returns changed trials; ``own`` trials are not asked for."""
        return {"since": self.snapshot, "again": [trial_id for trial_id in self._stale if trial_id not in own]}

    def learn(self, rows: Iterable[Mapping[str, Any]], own: Mapping[int, FrozenTrial]) -> None:
        """Store new and changed trials. ``own`` trials win over their rows, which lack buffered writes."""
        # By id: put() appends the new ones, and the server may return rows in any order.
        for row in sorted(rows, key=lambda row: int(row["trial_id"])):
            self.snapshot = row["snapshot"]
            self._stale.discard(row["trial_id"])
            self.put(own.get(row["trial_id"]) or to_trial(row))

    def load(self, trials: Iterable[FrozenTrial], own: Mapping[int, FrozenTrial]) -> None:
        """Store a page of the first read."""
        for trial in trials:
            self.put(own.get(trial._trial_id, trial))
        self._changed.clear()
        self._began = next(_CLOCK)

    def put(self, trial: FrozenTrial) -> None:
        """Store one trial. A new one must have a higher id than all others."""
        position = self._position.get(trial._trial_id)
        if position is None:
            position = self._position[trial._trial_id] = len(self.trials)
            self.trials.append(trial)
        else:
            self._versions[self.trials[position].state] += 1
            self.trials[position] = trial
            if None in self._lent:
                self._lent[None].replace(position, trial)
        self._versions[trial.state] += 1
        self._changed.pop(position, None)
        self._changed[position] = next(_CLOCK)
        for name, distribution in trial.distributions.items():
            self.distributions.setdefault(name, distribution)

    def get(self, trial_id: int) -> FrozenTrial | None:
        """The trial as last read."""
        position = self._position.get(trial_id)
        return None if position is None else self.trials[position]

    def changes(self, since: int) -> tuple[Sequence[int], int]:
        """The positions of the trials that changed ``since``, ascending, and what the clock says now."""
        now = next(_CLOCK)
        if since < self._began:
            return range(len(self.trials)), now
        newest = takewhile(lambda position: self._changed[position] > since, reversed(self._changed))
        return sorted(newest), now

    def select(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """The trials in these states, by number; all for ``None``. The caller may change the list.

        The selection is cached: filtering 50,000 trials costs more than a step of training, and at most steps only
        running trials have changed.
        """
        if states is None:
            return self._lend(None, self.trials)
        wanted = frozenset(state for state in TrialState if state in states)
        version = sum(self._versions[state] for state in wanted)
        known = self._selected.get(wanted)
        if known is None or known[0] != version:
            known = self._selected[wanted] = version, [trial for trial in self.trials if trial.state in wanted]
        return self._lend(wanted, known[1])

    def _lend(self, key: frozenset[TrialState] | None, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        return self._lent.setdefault(key, LentList()).of(trials)

    def forget(self, trial_id: int) -> None:
        """Mark a trial as stale, to be read again."""
        if trial_id in self._position:
            self._stale.add(trial_id)
