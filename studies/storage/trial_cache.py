"""A client's cache of one study's trials, brought up to date by what changed since its last read."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from sys import getrefcount
from typing import Any, Final

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from studies.storage.trials import to_trial


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
