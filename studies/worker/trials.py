"""A study's trials as an objective takes, reports and ends them: the same for one at a time and for many at once.

``docs/objectives.md`` says what an objective that trains several trials owes, and is owed. What becomes of one trial is
that trial's alone: nothing here raises for the sake of one.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.study._tell import _tell_with_warning
from optuna.trial import TrialState

from studies.endings import CANCELLED
from studies.errors import LeaseLost, Refused, StorageUnreachable, StudyhallError, described
from studies.spec.script import CHANGED_SCRIPT
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Claim, Update
from studies.trial import Interrupted, Trial, as_values
from studies.worker.checkpoints import Checkpoints
from studies.worker.held_trial import HeldTrial
from studies.worker.lease import Changes, Courier
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


class OneAtATime:
    """An objective that is called with one trial, as one that trains several has it."""

    def __init__(self, objective: Any) -> None:
        self._objective = objective

    def slots(self, _device: str) -> int:
        """One."""
        return 1

    def train(self, trials: Trials, _slots: int, *, device: str) -> None:  # noqa: ARG002
        """Call it with one trial after the other."""
        while not trials.is_over:
            for trial in trials.take(1):
                try:
                    result = Result(trial=trial, state="complete", value=self._objective(trial))
                except BaseException as error:  # sys.exit() in an objective ends its trial, not its worker
                    result = Result(trial=trial, state="fail", error=error)
                trials.end([result])
                del result  # an error leads to what the objective had in memory


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A trial that this worker runs."""

    claim: Claim
    trial: Trial
    held: HeldTrial


class Trials:
    """The trials of one study that a worker runs, until there is none for now.

    Args:
        storage: where the study is.
        study: as the worker serves it.
        courier: serves the leases.
        worker_id: the worker's name in the database.
        device: the PyTorch name of the device.
        most: how many may be taken in all; ``None`` for any number.
        stop: set when the worker is asked to stop.
        tells_at_once: whether a trial's own ``report`` writes; else :meth:`report` does, for many.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        study: ServedStudy,
        courier: Courier,
        *,
        worker_id: str,
        device: str,
        most: int | None,
        stop: threading.Event,
        tells_at_once: bool,
    ) -> None:
        self._storage = storage
        self._study = study
        self._courier = courier
        self._worker_id = worker_id
        self._device = device
        self._most = most
        self._stop = stop
        self._tells_at_once = tells_at_once
        self._pid = os.getpid()
        self._running: dict[int, _Run] = {}  # by id() of the trial
        #: Whose result the database does not have yet, and the file that holds it meanwhile.
        self._ended: list[tuple[_Run, Path | None]] = []
        #: What the database has not taken back yet, with what there is to tell of it.
        self._left: list[tuple[_Run, Changes]] = []
        self._ask_at, self._poll = 0.0, POLL
        self._is_out = False
        #: How many trials were taken.
        self.taken = 0
        #: Why the study gave no trial when it was last asked, as of :meth:`~studies.storage.leases.Leases.claim_many`.
        self.reason: str | None = None
        #: Why the database could not be asked.
        self.unreachable: StorageUnreachable | None = None

    @property
    def is_over(self) -> bool:
        """Whether no more trials will come: for now there are none, or it is another study's turn."""
        return self._is_out or self._stop.is_set() or (self._most is not None and self.taken >= self._most)

    def take(self, count: int) -> list[Trial]:
        """Up to ``count`` trials, with their parameters; none where there is none now."""
        self._tidy()
        if self.is_over or time.monotonic() < self._ask_at:
            return []
        if self._most is not None:
            count = min(count, self._most - self.taken)
        claims = self._claim(count)
        self.taken += len(claims)
        runs = [self._begin(claim) for claim in claims]
        failed = [result for run in runs if (result := self._sample(run))]
        self.end(failed)
        return [run.trial for run in runs if id(run.trial) in self._running]

    def report(self, reports: Sequence[Report]) -> None:
        """Report a step of each of several trials, together. Afterwards they know whether to be pruned or left."""
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
        """Trials that have ended, by their results. With nothing else to run, waits until the database has them."""
        self._end_if_forked(results)
        self._tidy()
        told = []
        for result in results:
            run = self._running.pop(id(result.trial))
            ending = self._ending(run, result)
            if run.held.lease.lost or ending is None:
                self._left.append((run, {} if run.held.lease.lost else run.held.lease.close()))
            else:
                self._conclude(run, *ending, result.attributes)
                told.append(run)
        self._courier.carry([run.held.lease for run in told])
        self._ended += [(run, run.held.lease.keep_result()) for run in told]
        if any(result.state == "fail" for result in results):
            gc.collect()  # what ran out of memory must not hold it while the next trials run
        self._tidy(wait=not self._running)
        if self._study.optuna._stop_flag:
            self._storage.budgets.stop(self._study.record, "stopped")

    def wait(self) -> None:
        """With nothing running: return. Where there was no trial, this is over, and the worker waits for one."""

    def close(self, error: BaseException | None) -> None:
        """The objective has returned, or raised ``error``: whatever it has not ended ends by that."""
        error = error or RuntimeError("the objective's train() returned without the trial's end")
        running = [run.trial for run in self._running.values()]
        self.end([Result(trial=trial, state="fail", error=error) for trial in running])

    def _claim(self, count: int) -> list[Claim]:
        try:
            claims = self._storage.leases.claim_many(
                self._study.record,
                self._worker_id,
                self._courier.lease_seconds,
                count=count,
                most=self._study.most_trials(),
            )
        except StorageUnreachable as error:
            self.unreachable = error
        else:
            if not isinstance(claims, str):
                self._poll = POLL
                return claims
            self.reason = claims
        self._is_out = not self._running
        # Others' trials, or this worker's own, may make room later; not to be asked for at each step.
        self._ask_at, self._poll = time.monotonic() + self._poll, min(LONGEST_POLL, self._poll * 1.5)
        return []

    def _begin(self, claim: Claim) -> _Run:
        study = self._study
        lease = self._courier.take(claim, study.results)
        self._storage.leases.hold(claim, lease)
        held = HeldTrial(
            self._storage,
            lease,
            Checkpoints(self._storage, claim, study.store, study.spec.checkpoints.every),
            device=self._device,
            stop=self._stop,
            tells_at_once=self._tells_at_once,
        )
        run = _Run(claim=claim, trial=study.begin(self._storage, claim, held), held=held)
        self._running[id(run.trial)] = run
        return run

    def _sample(self, run: _Run) -> Result | None:
        """Draw the parameters, of which each later trial's know."""
        try:
            if self._study.changed_script:
                run.trial.set_user_attr(CHANGED_SCRIPT, self._study.changed_script)
            self._study.begin_sampling(self._storage, run.claim)
            self._study.spec.suggest(run.trial)
        except BaseException as error:  # whatever a sampler or a database does
            return Result(trial=run.trial, state="fail", error=error)
        return None

    def _ending(self, run: _Run, result: Result) -> tuple[TrialState, list[float] | None] | None:
        """The state and values that a result stands for; ``None`` where others go on with the trial."""
        held, error = run.held, result.error or run.held.error
        state = _STATES.get(result.state)
        if error is not None and not isinstance(error, Refused):
            # What breaks while everything is taken down, or the trial away, says nothing about the trial; nor does
            # the storage's failure.
            is_left = isinstance(error, Interrupted | LeaseLost | StorageUnreachable) or held.stop_requested
            state = None if is_left else TrialState.PRUNED if isinstance(error, optuna.TrialPruned) else TrialState.FAIL
        elif error is not None:
            state = TrialState.FAIL
        if held.lease.cancelled and state != TrialState.COMPLETE:
            run.trial.set_user_attr("error", CANCELLED)
            return TrialState.FAIL, None
        if state == TrialState.FAIL and error is not None and not isinstance(error, Refused):
            self._describe(run, error)
        if state != TrialState.COMPLETE:
            return None if state is None else (state, None)
        values = as_values(result.value, len(self._study.spec.all_directions))
        if isinstance(values, str):
            log.warning("trial %d failed: %s", run.claim.number, values)
            run.trial.set_user_attr("error", values)
            return TrialState.FAIL, None
        return TrialState.COMPLETE, values

    def _describe(self, run: _Run, error: BaseException) -> None:
        message = described(error)[:MAX_ERROR]
        log.warning("trial %d failed: %s", run.claim.number, message)
        run.trial.set_user_attr("error", message)
        run.trial.set_user_attr("traceback", "".join(traceback.format_exception(error))[-MAX_TRACEBACK:])

    def _conclude(
        self, run: _Run, state: TrialState, values: list[float] | None, attributes: Mapping[str, Any]
    ) -> None:
        for name, value in attributes.items():
            run.trial.set_user_attr(name, value)
        # Study.tell without its answer, a deep copy of the trial that nobody here looks at.
        try:
            _tell_with_warning(self._study.optuna, run.trial, values, state)
        except StudyhallError as error:
            log.warning("trial %d: %s", run.claim.number, error)
        except Exception as error:  # of the sampler, which looks back at each trial; the result is told all the same
            log.warning("trial %d: the sampler failed: %s", run.claim.number, described(error))

    def _tidy(self, *, wait: bool = False) -> None:
        """Let go of the trials that the database knows to be over.

        Args:
            wait: for the database, unless the worker is asked to stop.
        """
        for run, file in self._ended[:]:
            if wait:
                run.held.lease.wait_until_told()
            if run.held.lease.is_told() or wait:
                self._ended.remove((run, file))
                self._close(run, file)
        while self._left and not self._give_back():
            if not wait or self._stop.wait(1.0):
                break
        if wait:
            for run, _ in self._left:
                log.warning(
                    "trial %d could not be given back: others take it when its lease of %g s runs out",
                    run.claim.number,
                    self._courier.lease_seconds,
                )
                self._release(run)
            self._left.clear()

    def _close(self, run: _Run, file: Path | None) -> None:
        """Of a trial with a result that the database has, or that ``file`` keeps for the next worker."""
        if run.held.lease.is_told():
            if file:
                file.unlink(missing_ok=True)
            if not run.held.lease.lost:
                run.held.checkpoints.discard()
        self._release(run)

    def _give_back(self) -> bool:
        """Give back what was left. Returns whether the database answered."""
        for run, _ in self._left:
            if run.held.lease.lost:
                self._release(run)
        self._left = [(run, pending) for run, pending in self._left if not run.held.lease.lost]
        if not self._left:
            return True
        try:
            self._storage.leases.give_back_many(
                [Update(claim=run.claim, changes=pending) for run, pending in self._left]
            )
        except StorageUnreachable as error:
            log.warning("trials cannot be given back: %s", error)
            return False
        except Refused as error:
            if len(self._left) == 1 or not any(pending for _, pending in self._left):
                log.warning("trials are requeued without what they had to tell: %s", error)
            # The next attempt meets it again, and FAILs for it.
            self._left = [(run, {}) for run, _ in self._left]
            return False
        for run, _ in self._left:
            self._release(run)
        self._left.clear()
        return True

    def _release(self, run: _Run) -> None:
        if run.held.lease.lost:
            log.warning("trial %d is no longer this worker's (requeued or taken over): dropped", run.claim.number)
        run.held.lease.close()
        self._storage.leases.release(run.claim)

    def _end_if_forked(self, results: Sequence[Result]) -> None:
        """End here if this is a child that the objective forked: it must not tell a result."""
        if os.getpid() != self._pid:
            error = next((result.error for result in results if result.error is not None), None)
            code = error.code if isinstance(error, SystemExit) else int(error is not None)
            os._exit(code if isinstance(code, int) else int(code is not None))


_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "fail": TrialState.FAIL}
