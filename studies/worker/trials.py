"""A study's trials as an objective takes, reports and ends them: the same for one at a time and for many at once.

``docs/objectives.md`` says what an objective that trains several trials owes, and is owed. What becomes of one trial is
that trial's alone: nothing here raises for the sake of one.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.study._tell import _tell_with_warning
from optuna.trial import TrialState

from studies.errors import LeaseLost, Refused, StorageUnreachable, described
from studies.spec.script import CHANGED_SCRIPT
from studies.stop_reasons import CANCELLED
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Claim
from studies.trial import Interrupted, Trial, as_values
from studies.worker.checkpoints import Checkpoints
from studies.worker.lease_keeper import LeaseKeeper
from studies.worker.leased_trial import LeasedTrial
from studies.worker.served_study import ServedStudy

log = logging.getLogger(__name__)

#: Seconds between two looks for a trial while there is none: the first, and at most.
POLL, LONGEST_POLL = 0.25, 2.0
#: Characters of an objective's error and traceback that are stored; of the traceback the last ones.
MAX_ERROR, MAX_TRACEBACK = 2_000, 20_000


class Report(Protocol):
    """One step of a trial, of an objective that trains several."""

    trial: Any
    step: int
    value: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Result:
    """How an objective's work on a trial ended. An objective may have a class of its own with these attributes."""

    trial: Any
    state: str
    """``complete``, ``pruned``, ``fail``, or ``left``: others go on with it, from its newest checkpoint."""
    value: Any = None
    """Of a complete one: a number, or one for each direction."""
    error: BaseException | None = None
    """Of one that failed."""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A trial that this worker runs."""

    claim: Claim
    trial: Trial
    held: LeasedTrial


class Trials:
    """The trials of one study that a worker runs, until there are none for now.

    Args:
        storage: where the study is.
        study: as the worker serves it.
        courier: serves the leases.
        worker_id: the worker's name in the database.
        device: the PyTorch name of the device.
        most: how many may be taken in all; ``None`` for any number.
        stop: set when the worker is asked to stop.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        study: ServedStudy,
        courier: LeaseKeeper,
        *,
        worker_id: str,
        device: str,
        most: int | None,
        stop: threading.Event,
    ) -> None:
        self._storage = storage
        self._study = study
        self._courier = courier
        self._worker_id = worker_id
        self._device = device
        self._most = most
        self._stop = stop
        self._pid = os.getpid()
        self._running: dict[int, _Run] = {}  # by id() of the trial
        self._ended: list[_Run] = []  # whose results the database may not have yet
        self._left: list[_Run] = []  # which the database has not taken back yet
        self._ask_at, self._poll = 0.0, POLL
        self._is_out = False
        #: How many trials were taken.
        self.taken = 0
        #: Why the study gave no trial when it was last asked (see
        #: :meth:`studies.storage.leases.Leases.claim_many`); ``None`` where it gave one.
        self.reason: str | None = None
        #: Why it could not be asked.
        self.unreachable: StorageUnreachable | None = None

    @property
    def is_over(self) -> bool:
        """Whether no more trials will come: for now there are none, or it is another study's turn."""
        return self._is_out or self._stop.is_set() or (self._most is not None and self.taken >= self._most)

    def take(self, count: int) -> list[Trial]:
        """Up to ``count`` trials, with their parameters; none where there is none now."""
        self._end_if_forked()
        self._tidy()
        if count < 1 or self.is_over or time.monotonic() < self._ask_at:
            return []
        runs = [run for claim in self._claim(count) if (run := self._begin(claim))]
        self.end([result for run in runs if (result := self._sample(run))])
        return [run.trial for run in runs if id(run.trial) in self._running]

    def report(self, reports: Sequence[Report]) -> None:
        """Report a step of each of several trials, together. Afterwards they know whether to be pruned or left."""
        self._end_if_forked()
        self._tidy()
        runs = [self._running[id(report.trial)] for report in reports]
        for run, report in zip(runs, reports, strict=True):
            with run.held.keeping_errors():
                run.trial.report(report.value, report.step, **report.metrics)
        self._courier.carry([run.held.lease for run in runs])
        for run in runs:
            with run.held.keeping_errors():
                run.held.lease.settle()

    def end(self, results: Sequence[Result]) -> None:
        """End trials by their results. With no other running, waits until the database has them."""
        self._end_if_forked(next((result.error for result in results if result.error), None))
        told = []
        for result in results:
            run = self._running.pop(id(result.trial))
            ending = None if run.held.lease.lost else self._ending(run, result)
            if ending:
                self._conclude(run, *ending, result.attributes)
                told.append(run)
            else:
                self._left.append(run)
        self._courier.carry([run.held.lease for run in told])
        for run in told:
            run.held.lease.keep_result()
        self._ended += told
        self._tidy(wait=not self._running)
        if any(result.state == "fail" for result in results):
            gc.collect()  # what ran out of memory must not hold it while the next trials run
        if not self._running:
            self._ask_at = 0.0  # the study may be over by these
        if self._study.optuna._stop_flag:
            self._storage.budgets.stop(self._study.record, "stopped")

    def wait(self) -> None:
        """With no trial running: wait until it is worth asking for one."""
        self._stop.wait(max(0.0, self._ask_at - time.monotonic()))

    def close(self, error: BaseException | None) -> int:
        """The objective has returned, or raised ``error``: whatever it has not ended fails by that.

        Returns:
            How many these were.
        """
        error = error or RuntimeError("train() of the objective returned before the trial's end")
        running = [run.trial for run in self._running.values()]
        if running:
            self.end([Result(trial=trial, state="fail", error=error) for trial in running])
        return len(running)

    # A trial's beginning

    def _claim(self, count: int) -> list[Claim]:
        most = count if self._most is None else min(count, self._most - self.taken)
        self.reason = self.unreachable = None
        try:
            claims = self._storage.leases.claim_many(
                self._study.record,
                self._worker_id,
                self._courier.lease_seconds,
                count=most,
                most=self._study.most_trials(),
            )
        except StorageUnreachable as error:
            self.unreachable = error
        else:
            if not isinstance(claims, str):
                self.taken += len(claims)
                self._poll = POLL
                return claims
            self.reason = claims
        self._is_out = not self._running
        # Trials that end elsewhere may make room; not to be asked for at each step.
        self._ask_at, self._poll = time.monotonic() + self._poll, min(LONGEST_POLL, self._poll * 1.5)
        return []

    def _begin(self, claim: Claim) -> _Run | None:
        """Hold the trial; one whose sampler fails has ended."""
        study = self._study
        lease = self._courier.take(claim, study.results)
        self._storage.leases.hold(claim, lease)
        checkpoints = Checkpoints(self._storage, claim, study.store, study.spec.checkpoints.every)
        held = LeasedTrial(
            self._storage,
            lease,
            checkpoints,
            device=self._device,
            stop=self._stop,
            tells_at_once=not study.trains_several,
        )
        try:
            run = _Run(claim=claim, trial=study.begin(claim, held), held=held)
        except Exception as error:
            log.warning("trial %d failed: %s", claim.number, described(error))
            lease.put("user_attrs", {"key": "error", "value": json.dumps(described(error)[:MAX_ERROR])})
            lease.finish(TrialState.FAIL, None)
            self._courier.carry([lease])
            lease.wait_until_told()
            lease.close()
            self._storage.leases.release(claim)
            return None
        self._running[id(run.trial)] = run
        return run

    def _sample(self, run: _Run) -> Result | None:
        """Draw the parameters. Returns how the trial ended, where that fails."""
        try:
            if self._study.changed_script:
                run.trial.set_user_attr(CHANGED_SCRIPT, self._study.changed_script)
            self._study.spec.suggest(run.trial)
        except BaseException as error:
            return Result(trial=run.trial, state="fail", error=error)
        return None

    # A trial's end

    def _ending(self, run: _Run, result: Result) -> tuple[TrialState, list[float] | None] | None:
        """The state and values that a result stands for; ``None`` where others go on with the trial."""
        state = self._state(run, result)
        if run.held.lease.cancelled and state != TrialState.COMPLETE:
            run.trial.set_user_attr("error", CANCELLED)
            return TrialState.FAIL, None
        if state != TrialState.COMPLETE:
            return None if state is None else (state, None)
        values = as_values(result.value, len(self._study.spec.all_directions))
        if isinstance(values, str):
            log.warning("trial %d failed: %s", run.claim.number, values)
            run.trial.set_user_attr("error", values)
            return TrialState.FAIL, None
        return state, values

    def _state(self, run: _Run, result: Result) -> TrialState | None:
        error = result.error or run.held.error
        match error:
            case None:
                return _STATES.get(result.state)
            case Interrupted() | LeaseLost() | StorageUnreachable():  # the storage's failure, and not the trial's
                return None
            case Refused():
                return TrialState.FAIL  # the lease says why
            case optuna.TrialPruned():
                return TrialState.PRUNED
        if run.held.is_stopping:
            return None  # what breaks while everything is taken down, or the trial away, says nothing about the trial
        message = described(error)[:MAX_ERROR]
        log.warning("trial %d failed: %s", run.claim.number, message)
        run.trial.set_user_attr("error", message)
        run.trial.set_user_attr("traceback", "".join(traceback.format_exception(error))[-MAX_TRACEBACK:])
        return TrialState.FAIL

    def _conclude(
        self, run: _Run, state: TrialState, values: list[float] | None, attributes: Mapping[str, Any]
    ) -> None:
        for name, value in attributes.items():
            run.trial.set_user_attr(name, value)
        # Study.tell without its answer, a deep copy of the trial that nobody here looks at.
        try:
            _tell_with_warning(self._study.optuna, run.trial, values, state)
        except Exception as error:  # of the sampler, which looks back at each trial; the result is told all the same
            log.warning("trial %d: the sampler failed: %s", run.claim.number, described(error))

    def _tidy(self, *, wait: bool = False) -> None:
        """Let go of the trials that have ended or were left, as far as the database knows it.

        Args:
            wait: until it does, unless the worker is asked to stop.
        """
        for run in self._ended[:]:
            if wait:
                run.held.lease.wait_until_told()
            if wait or run.held.lease.is_told():
                self._ended.remove(run)
                if run.held.lease.is_over and not run.held.lease.lost:
                    run.held.checkpoints.discard()
                self._release(run)
        for run in self._left[:]:
            while not (is_back := run.held.give_back()) and wait and not self._stop.wait(1.0):
                pass
            if wait or is_back:
                self._left.remove(run)
                self._release(run)

    def _release(self, run: _Run) -> None:
        if run.held.lease.lost:
            log.warning("trial %d is no longer this worker's (requeued or taken over): dropped", run.claim.number)
        run.held.lease.close()
        self._storage.leases.release(run.claim)

    def _end_if_forked(self, error: BaseException | None = None) -> None:
        """End here if this is a child that the objective forked: it must not tell a result."""
        if os.getpid() != self._pid:
            code = error.code if isinstance(error, SystemExit) else int(error is not None)
            os._exit(code if isinstance(code, int) else int(code is not None))


_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "fail": TrialState.FAIL}


def one_at_a_time(objective: Callable[[Trial], Any], trials: Trials) -> None:
    """Train trials with an objective that is called with one."""
    while not trials.is_over:
        for trial in trials.take(1):
            try:
                result = Result(trial=trial, state="complete", value=objective(trial))
            except BaseException as error:  # sys.exit() in an objective ends its trial, not its worker
                result = Result(trial=trial, state="fail", error=error)
            trials.end([result])
            del result  # its error leads to what the objective had in memory
