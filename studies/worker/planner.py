"""What a worker claims in a study with a scheduler: the scheduler's choice among the trials as the worker sees them."""

from __future__ import annotations

from typing import Final

from optuna.trial import FrozenTrial, TrialState

from studies.search.scheduler import Progress, Scheduler, State
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Plan, StudyRecord
from studies.storage.trials import paused_at

_STATES: Final[dict[TrialState, State]] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "fail",
}


class Planner:
    """Asks the scheduler of one study, which keeps what it knows of the trials.

    Args:
        storage: where the study is.
        record: the study.
        scheduler: of the study, new.
    """

    def __init__(self, storage: PostgresStorage, record: StudyRecord, scheduler: Scheduler) -> None:
        self._storage = storage
        self._record = record
        self._scheduler = scheduler
        self._since = 0  # when the trials were read, as the storage has it
        self._progress: list[Progress | None] = []  # of each trial; None before it begins
        self._have_all_begun = True
        # An enqueued trial trains as far as the first one of a study.
        self._fresh = scheduler.choose([], 1)[0].until

    def plan(self, count: int) -> Plan:
        """What to train next in ``count`` slots, by the trials as they are now."""
        # Of a large study few trials have changed since the last choice, and a walk over all takes longer than it.
        trials, changed, self._since = self._storage.changes(self._record.study_id, self._since)
        del self._progress[len(trials) :]  # a crash of the server has lost the newest
        for place in changed:
            self._progress[place : place + 1] = [progress_of(trials[place])]
        begun = [progress for progress in self._progress if progress is not None]
        had_all_begun, self._have_all_begun = self._have_all_begun, len(begun) == len(self._progress)
        # The scheduler gets those that have begun: their places are those of all trials only where none is missing.
        known = changed if had_all_begun and self._have_all_begun else None
        choices = self._scheduler.choose(begun, count, known)
        return Plan(choices=choices, fresh=self._fresh)


def progress_of(trial: FrozenTrial) -> Progress | None:
    """A trial as a scheduler sees it; ``None`` of one that has not begun.

    An interrupted trial counts as running: the next worker continues it, whatever the scheduler chooses.
    """
    if trial.state == TrialState.WAITING:
        state: State = "running" if paused_at(trial.state, trial.system_attrs) is None else "paused"
        if not trial.intermediate_values:
            return None
    else:
        state = _STATES[trial.state]
    return Progress(
        number=trial.number,
        params=trial.params,
        distributions=trial.distributions,
        values=trial.intermediate_values,
        state=state,
    )
