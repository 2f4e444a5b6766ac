"""How an objective takes, reports and ends the trials of a study: one after the other, or many at once.

``docs/objectives.md`` has the contract of an objective that trains several. The trials are isolated: an error of one
ends that trial, and nothing here raises it.
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
from typing import Any, Final, Protocol

import optuna
from optuna.study._tell import _tell_with_warning
from optuna.trial import TrialState

from studies.errors import LeaseLost, Refused, StorageUnreachable, described
from studies.spec.script import CHANGED_SCRIPT
from studies.stop_reasons import CANCELLED
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Claim
from studies.trial import Interrupted, Trial, as_values
from studies.worker.backoff import Backoff
from studies.worker.checkpoints import Checkpoints
from studies.worker.lease_keeper import LeaseKeeper
from studies.worker.leased_trial import LeasedTrial
from studies.worker.served_study import ServedStudy

log = logging.getLogger(__name__)

#: How often a scheduler chooses anew, at once, where other workers took what it had chosen.
CHOICES = 10
#: Characters that are stored of an error, and of its traceback, whose end matters most.
MAX_ERROR, MAX_TRACEBACK = 2_000, 20_000
#: An error names this many of the metrics that a trial reported.
NAMED = 12


class Report(Protocol):
    """One step of a trial, from an objective that trains several."""

    trial: Any
    step: int
    value: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Result:
    """How an objective ended a trial. Duck-typed: an objective need not import this class."""

    trial: Any
    state: str
    """``complete``, ``pruned``, ``fail``, or ``left``: requeued, to be continued from its newest checkpoint."""
    value: Any = None
    """Of a complete trial: a number, or one for each direction."""
    error: BaseException | None = None
    """Of a failed trial."""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A trial that this worker runs."""

    claim: Claim
    trial: Trial
    leased: LeasedTrial


class Trials:
    """The trials of one study that a worker runs, until the study gives no more for now.

    Args:
        storage: where the study is.
        study: the study.
        keeper: keeps the leases alive.
        worker_id: the worker's name in the database.
        device: the PyTorch name of the device.
        most: how many trials to take in all; ``None`` for any number.
        backoff: the worker's, for the next claim while other trials run.
        stop: set when the worker is asked to stop.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        study: ServedStudy,
        keeper: LeaseKeeper,
        *,
        worker_id: str,
        device: str,
        most: int | None,
        backoff: Backoff,
        stop: threading.Event,
    ) -> None:
        self._storage = storage
        self._study = study
        self._keeper = keeper
        self._worker_id = worker_id
        self._device = device
        self._most = most
        self._stop = stop
        self._pid = os.getpid()
        self._running: dict[int, _Run] = {}  # by id() of the trial
        self._ended: list[_Run] = []  # whose results may still be pending
        self._left: list[_Run] = []  # not requeued yet
        self._backoff = backoff
        self._ask_at = 0.0
        self._is_out = False
        self._has_failed = False  # a trial, since memory was last freed
        #: How many trials were taken.
        self.taken = 0
        #: Why the study gave no trial when it was last asked (see
        #: :meth:`studies.storage.leases.Leases.claim_many`); ``None`` where it gave one.
        self.reason: str | None = None
        #: Why the last claim had no answer.
        self.unreachable: StorageUnreachable | None = None

    @property
    def is_over(self) -> bool:
        """Whether no more trials will come: the study gives none, another study is due, or the worker stops."""
        return self._is_out or self._stop.is_set() or (self._most is not None and self.taken >= self._most)

    def take(self, count: int) -> list[Trial]:
        """Claim up to ``count`` trials and sample their parameters; an empty list when the study gives none."""
        self._exit_if_forked()
        self._release_ended()
        if count < 1 or self.is_over or time.monotonic() < self._ask_at:
            return []
        self._free_memory()
        # All leases are kept alive first: sampling for one trial after the other may take longer than they last.
        leased = [(claim, self._lease(claim)) for claim in self._claim(count)]
        # Each trial reseeds the sampler, and is sampled before the next one begins: it draws the same as alone.
        begun = [(run, self._sample(run)) for claim, held in leased if (run := self._begin(claim, held))]
        runs = [run for run, _ in begun]
        if failed := [result for _, result in begun if result]:
            self.end(failed)
        return [run.trial for run in runs if id(run.trial) in self._running]

    def report(self, reports: Sequence[Report]) -> None:
        """Report a step of several trials, in one statement. Afterwards each knows whether to be pruned or left."""
        self._exit_if_forked()
        self._release_ended()
        runs = [self._running[id(report.trial)] for report in reports]
        for run, report in zip(runs, reports, strict=True):
            with run.leased.capturing_errors():
                run.trial.report(report.value, report.step, **report.metrics)
        # One statement for all of them; only then each waits for its own acknowledgement, if its lease is at risk.
        self._keeper.flush([run.leased.lease for run in runs])
        for run in runs:
            with run.leased.capturing_errors():
                run.leased.lease.confirm()

    def end(self, results: Sequence[Result]) -> None:
        """End trials with their results; without another one running, wait until the database has them."""
        self._exit_if_forked(next((result.error for result in results if result.error), None))
        finished = []
        for result in results:
            run = self._running.pop(id(result.trial))
            outcome = None if run.leased.lease.lost else self._outcome(run, result)
            if outcome:
                self._has_failed |= outcome[0] == TrialState.FAIL
                self._finish(run, *outcome, result.attributes)
                finished.append(run)
            else:
                self._left.append(run)
        self._keeper.flush([run.leased.lease for run in finished])
        # Only results that did not get through are written to the disk: usually none.
        for run in finished:
            run.leased.lease.save_result()
        self._ended += finished
        self._release_ended(wait=not self._running)
        if not self._running:
            self._ask_at = 0.0  # ask at once: these results may have ended the study
        if self._study.optuna._stop_flag:
            self._storage.budgets.stop(self._study.record, "stopped")

    def wait(self) -> None:
        """Wait until the next claim is due. For a pool without a running trial."""
        self._stop.wait(max(0.0, self._ask_at - time.monotonic()))

    def _free_memory(self) -> None:
        """Free what failed trials hold, such as the tensors of one that ran out of memory, for the next ones.

        An error that its own frames refer to keeps them alive until a collection, which takes 0.2 s with PyTorch
        imported: pruned and interrupted trials raise as well, and leave nothing behind that is worth it. By now nobody
        holds the result any more.
        """
        if self._has_failed:
            self._has_failed = False
            gc.collect()

    def close(self, error: BaseException | None) -> int:
        """Fail the trials that the objective did not end before it returned, or raised ``error``.

        Returns:
            How many trials failed.
        """
        error = error or RuntimeError("train() of the objective returned before the trial's end")
        running = [run.trial for run in self._running.values()]
        if running:
            self.end([Result(trial=trial, state="fail", error=error) for trial in running])
        return len(running)

    # The start of a trial

    def _claim(self, count: int) -> list[Claim]:
        most = count if self._most is None else min(count, self._most - self.taken)
        self.reason = self.unreachable = None
        try:
            claims = self._claim_now(most)
        except StorageUnreachable as error:
            self.unreachable = error
        else:
            if not isinstance(claims, str):
                self.taken += len(claims)
                self._backoff.reset()
                return claims
            self.reason = claims
        self._is_out = not self._running
        # A trial that ends elsewhere may make room, but a pool must not claim at each of its steps. Without a running
        # trial the worker itself waits, as another study may have a trial now.
        if self._running:
            self._ask_at = time.monotonic() + self._backoff.next()
        return []

    def _claim_now(self, count: int) -> list[Claim] | str:
        planner = self._study.planner
        for _ in range(CHOICES):
            claims = self._storage.leases.claim_many(
                self._study.record,
                self._worker_id,
                self._keeper.lease_seconds,
                count=count,
                most=self._study.most_trials(),
                plan=planner.plan(count) if planner else None,
            )
            if not isinstance(claims, str):
                self._study.follow(claims)
            if claims != "changed":
                return claims
        return "wait"

    def _lease(self, claim: Claim) -> LeasedTrial:
        """Keep the lease of a claimed trial alive from here on."""
        study = self._study
        lease = self._keeper.add(claim, study.results)
        self._storage.leases.attach(claim, lease)
        checkpoints = Checkpoints(self._storage, claim, study.store, study.spec.checkpoints.every)
        return LeasedTrial(
            self._storage,
            lease,
            checkpoints,
            device=self._device,
            stop=self._stop,
            flushes=not study.trains_several,
            reached=max(self._storage.get_trial(claim.trial_id).intermediate_values, default=None),
        )

    def _begin(self, claim: Claim, leased: LeasedTrial) -> _Run | None:
        """Start to train a claimed trial; ``None`` if its sampler failed, and with it the trial."""
        lease = leased.lease
        try:
            run = _Run(claim=claim, trial=self._study.begin(claim, leased), leased=leased)
        except Exception as error:
            lease.put("user_attrs", {"key": "error", "value": json.dumps(_failure(claim, described(error)))})
            lease.finish(TrialState.FAIL, None)
            self._keeper.flush([lease])
            lease.wait_until_flushed()
            lease.close()
            self._storage.leases.release(claim)
            return None
        self._running[id(run.trial)] = run
        return run

    def _sample(self, run: _Run) -> Result | None:
        """Sample the parameters. Returns the trial's result if that fails."""
        try:
            if self._study.changed_script:
                run.trial.set_user_attr(CHANGED_SCRIPT, self._study.changed_script)
            self._study.note_environment(run.trial)
            self._study.spec.suggest(run.trial)
        except BaseException as error:
            return Result(trial=run.trial, state="fail", error=error)
        return None

    # The end of a trial

    def _outcome(self, run: _Run, result: Result) -> tuple[TrialState, list[float] | None] | None:
        """The state and values of a result; ``None`` if the trial is requeued."""
        state = self._state(run, result)
        if state is None and run.leased.ends_at_rung:
            state = TrialState.PRUNED
        if state == TrialState.PRUNED and run.leased.ends_at_rung:
            self._study.warn_once(_UNSAVED, run.claim.number, run.claim.until)
        if state == TrialState.COMPLETE and self._study.planner and not run.leased.has_reported:
            self._study.warn_once(_UNREPORTED, run.claim.number)
        if run.leased.lease.cancelled and state != TrialState.COMPLETE:
            run.trial.set_user_attr("error", CANCELLED)
            return TrialState.FAIL, None
        if state == TrialState.PRUNED:
            self._study.constrain(run.trial, None)
        if state != TrialState.COMPLETE:
            return None if state is None else (state, None)
        values = as_values(result.value, len(self._study.spec.all_directions))
        try:
            missing = [] if isinstance(values, str) else self._study.constrain(run.trial, values)
            self._study.end_unjudged(missing)
        except StorageUnreachable:
            return None  # rather trained again from its checkpoint than taken for a feasible one
        if missing:
            values = _never_reported(missing, [*self._study.spec.metric_names, *run.trial.last_metrics])
        if isinstance(values, str):
            run.trial.set_user_attr("error", _failure(run.claim, values))
            return TrialState.FAIL, None
        return state, values

    def _state(self, run: _Run, result: Result) -> TrialState | None:
        error = result.error or run.leased.error
        match error:
            case None:
                return _STATES.get(result.state)
            case Interrupted() | LeaseLost() | StorageUnreachable():  # no failure of the trial
                return None
            case Refused():
                return TrialState.FAIL  # with the lease's reason
            case optuna.TrialPruned():
                return TrialState.PRUNED
        if run.leased.is_stopping:
            return None  # on SIGTERM a data loader or child process may break first, which is no failure of the trial
        run.trial.set_user_attr("error", _failure(run.claim, described(error)))
        run.trial.set_user_attr("traceback", "".join(traceback.format_exception(error))[-MAX_TRACEBACK:])
        return TrialState.FAIL

    def _finish(self, run: _Run, state: TrialState, values: list[float] | None, attributes: Mapping[str, Any]) -> None:
        for name, value in attributes.items():
            run.trial.set_user_attr(name, value)
        # Study.tell returns a deep copy of the trial, which costs milliseconds and which nothing here needs.
        try:
            _tell_with_warning(self._study.optuna, run.trial, values, state)
        except Exception as error:  # of the sampler's after_trial(); the result is already in the lease
            log.warning("trial %d: the sampler failed: %s", run.claim.number, described(error))

    def _release_ended(self, *, wait: bool = False) -> None:
        """Release the leases of trials that have ended or were left, once the database knows it.

        Args:
            wait: until the database knows, unless the worker is asked to stop.
        """
        for run in self._ended[:]:
            if wait:
                run.leased.lease.wait_until_flushed()
            if wait or run.leased.lease.is_flushed():
                self._ended.remove(run)
                if run.leased.lease.is_over and not run.leased.lease.lost:
                    run.leased.checkpoints.discard()
                self._release(run)
        for run in self._left[:]:
            while not (is_requeued := run.leased.requeue()) and wait and not self._stop.wait(1.0):
                pass
            if wait or is_requeued:
                self._left.remove(run)
                self._release(run)

    def _release(self, run: _Run) -> None:
        if run.leased.lease.lost:
            log.warning(
                "trial %d is dropped: its lease was lost (requeued or claimed by another worker)", run.claim.number
            )
        run.leased.lease.close()
        self._storage.leases.release(run.claim)

    def _exit_if_forked(self, error: BaseException | None = None) -> None:
        """Exit if this process is a fork of the worker, made by the objective: only the worker may write results."""
        if os.getpid() != self._pid:
            code = error.code if isinstance(error, SystemExit) else int(error is not None)
            os._exit(code if isinstance(code, int) else int(code is not None))


def _failure(claim: Claim, message: str) -> str:
    """Log why a trial failed. Returns what is stored of the message."""
    log.warning("trial %d failed: %s", claim.number, message[:MAX_ERROR])
    return message[:MAX_ERROR]


def _never_reported(missing: Sequence[str], known: Sequence[str]) -> str:
    """Why a trial FAILs whose constraints cannot be judged: Optuna would take it for a feasible one."""
    name, reported = missing[0], ", ".join([*dict.fromkeys(known)][:NAMED])
    return (
        f"constraints.{name}: the trial never reported the metric {name!r}, only {reported}; report it by "
        f"trial.report(value, step, {name}=…), or make a study without this constraint"
    )


_UNSAVED: Final = (
    "trial %d is pruned at step %d, where its scheduler would pause it: the objective saves no checkpoint; "
    "call trial.checkpoint(step, state) before trial.should_prune()"
)
_UNREPORTED: Final = (
    "trial %d has reported no step: the scheduler has nothing to choose by, every trial trains to its end, and a "
    "budget of epochs is never spent; call trial.report(value, step), or leave [scheduler] out and set budget.trials"
)

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "fail": TrialState.FAIL}


def one_at_a_time(objective: Callable[[Trial], Any], trials: Trials) -> None:
    """Train trials one after the other with a callable ``objective(trial)``."""
    while not trials.is_over:
        for trial in trials.take(1):
            try:
                result = Result(trial=trial, state="complete", value=objective(trial))
            except BaseException as error:  # sys.exit() in an objective ends its trial, not its worker
                result = Result(trial=trial, state="fail", error=error)
            trials.end([result])
            del result  # its error has a traceback, whose frames keep the model in memory
