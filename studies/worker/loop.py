"""What a worker does: take a trial, run the objective, tell the result; until its studies are over."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.study._tell import _tell_with_warning
from optuna.trial import TrialState

from studies.endings import CANCELLED
from studies.errors import LeaseLost, Refused, StorageUnreachable, StudyhallError, described
from studies.spec.script import CHANGED_SCRIPT
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Claim
from studies.trial import Interrupted, Trial, as_values
from studies.worker.checkpoints import Checkpoints
from studies.worker.courier import Courier
from studies.worker.held_trial import HeldTrial
from studies.worker.served_study import ServedStudy, Service

log = logging.getLogger(__name__)

#: Seconds between two looks for a trial while there is none: the first, and at most.
POLL, LONGEST_POLL = 0.25, 2.0
#: Characters of an objective's error and traceback that are stored; of the traceback the last ones.
MAX_ERROR, MAX_TRACEBACK = 2_000, 20_000


class Worker:
    """Runs trials of its studies, one after the other.

    It outlives its database: an outage interrupts no training while the lease lasts, and ends no worker.

    Args:
        storage: where the studies are.
        services: the studies; from each a trial is taken by its share.
        worker_id: this worker's name in the database, unlike any other's.
        device: the PyTorch name of the device.
        lease_seconds: how long a trial stays this worker's after the last sign of life.
        results: the directory where results wait while the database is away.
        stop: set from outside to leave the running trial at its next step, give it back, and return.
        until_idle: seconds without a trial after which to return, and not already when the studies are over, which
            a person may extend; ``None`` to return with the studies.

    Raises:
        StorageError: a study was not made by studyhall.
        CheckpointError: checkpoints can't be kept where a spec says.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        services: Sequence[Service],
        *,
        worker_id: str,
        device: str,
        lease_seconds: float,
        results: Path,
        stop: threading.Event,
        until_idle: float | None = None,
    ) -> None:
        self._until_idle = until_idle
        self._storage = storage
        self._stop = stop
        self._id = worker_id
        self._device = device
        self._lease_seconds = lease_seconds
        self._results = results
        self._pid = os.getpid()
        self._studies = [ServedStudy(storage, service, results) for service in services]
        self._courier = Courier(storage, worker_id=worker_id, lease_seconds=lease_seconds, stop=stop)

    def run(self) -> str:
        """Run trials until all studies are over or :attr:`stop` is set.

        Returns:
            Why it ended: ``interrupted``, ``idle``, or the reason of the study that was over last.
        """
        reason, poll, busy = "interrupted", POLL, time.monotonic()
        with self._courier:
            while self._studies and not self._stop.is_set():
                try:
                    for study in self._studies:
                        study.clean_up()
                    taken = self._take()
                except StorageUnreachable as error:
                    log.warning("waiting for the database: %s", error)
                    self._stop.wait(LONGEST_POLL)
                    continue
                if isinstance(taken, str):
                    reason = taken
                elif taken:
                    poll = POLL
                    self._run_trial(*taken)
                    busy = time.monotonic()
                elif self._until_idle is not None and time.monotonic() - busy >= self._until_idle:
                    return "idle"
                else:
                    self._stop.wait(poll)
                    poll = min(LONGEST_POLL, poll * 1.5)
        return "interrupted" if self._stop.is_set() else reason

    def _take(self) -> tuple[ServedStudy, Claim] | str | None:
        """A trial of the study that has had the least of its share; or the reason why one of the studies
        is over, which is served no longer; or ``None`` for now."""
        for study in sorted(self._studies, key=lambda study: study.taken / study.share):
            claim = self._storage.leases.claim(study.record, self._id, self._lease_seconds, most=study.most_trials())
            if isinstance(claim, Claim):
                study.taken += 1
                return study, claim
            if claim == "exhausted":
                study.end_exhausted()
                continue
            if claim == "deleted" or (self._until_idle is None and claim not in ("wait", "paused")):
                self._studies.remove(study)
                return claim
        return None

    # One trial

    def _run_trial(self, study: ServedStudy, claim: Claim) -> None:
        lease = self._courier.take(claim, study.results)
        self._storage.leases.hold(claim, lease)
        checkpoints = Checkpoints(self._storage, claim, study.store, study.spec.checkpoints.every)
        held = HeldTrial(self._storage, lease, checkpoints, device=self._device, stop=self._stop)
        try:
            trial = study.begin(self._storage, claim, held)
            state, values = self._outcome(study, trial, held)
            self._finish(study, trial, held, state, values)
        except Interrupted:
            self._leave(claim, held)
        except LeaseLost:
            lease.lose()
        finally:
            if lease.lost:
                log.warning("trial %d is no longer this worker's (requeued or taken over): dropped", claim.number)
            lease.close()
            self._storage.leases.release(claim)
        if study.optuna._stop_flag:
            self._storage.budgets.stop(study.record, "stopped")

    def _outcome(self, study: ServedStudy, trial: Trial, held: HeldTrial) -> tuple[TrialState, list[float] | None]:
        """How the trial ended; one that was cancelled failed, and is not given back."""
        try:
            return self._call(study, trial, held)
        except Interrupted:
            if held.lease.cancelled:
                return TrialState.FAIL, None
            raise

    def _call(self, study: ServedStudy, trial: Trial, held: HeldTrial) -> tuple[TrialState, list[float] | None]:
        """Sample and run the objective; what it raises is a result, but for :exc:`Interrupted`."""
        try:
            if study.changed_script:
                trial.set_user_attr(CHANGED_SCRIPT, study.changed_script)
            study.spec.suggest(trial)
            returned = study.objective(trial)
            self._end_if_forked(0)
        except (Interrupted, LeaseLost):
            self._end_if_forked(1)
            raise
        except StorageUnreachable as error:  # the storage's failure, and not the trial's
            self._end_if_forked(1)
            raise Interrupted from error
        except Refused:
            self._end_if_forked(1)
            return TrialState.FAIL, None
        except optuna.TrialPruned:
            self._end_if_forked(0)
            return TrialState.PRUNED, None
        except BaseException as error:  # sys.exit() in an objective ends its trial, not its worker
            self._end_if_forked(error.code if isinstance(error, SystemExit) else 1)
            if held.stop_requested:
                # What breaks while everything is taken down, or the trial away, says nothing about the trial.
                raise Interrupted from error
            message = described(error)[:MAX_ERROR]
            log.warning("trial %d failed: %s", trial.number, message)
            trial.set_user_attr("error", message)
            trial.set_user_attr("traceback", traceback.format_exc()[-MAX_TRACEBACK:])
            return TrialState.FAIL, None
        values = as_values(returned, len(study.spec.all_directions))
        if isinstance(values, str):
            log.warning("trial %d failed: %s", trial.number, values)
            trial.set_user_attr("error", values)
            return TrialState.FAIL, None
        return TrialState.COMPLETE, values

    def _end_if_forked(self, code: object) -> None:
        """End here if this is a child that the objective forked: it must not tell a result."""
        if os.getpid() != self._pid:
            os._exit(code if isinstance(code, int) else int(code is not None))

    def _finish(
        self, study: ServedStudy, trial: Trial, held: HeldTrial, state: TrialState, values: list[float] | None
    ) -> None:
        if held.lease.lost:
            return
        if held.lease.cancelled and state != TrialState.COMPLETE:
            state = TrialState.FAIL
            trial.set_user_attr("error", CANCELLED)
        # Study.tell without its answer, a deep copy of the trial that nobody here looks at.
        try:
            _tell_with_warning(study.optuna, trial, values, state)
        except StudyhallError:
            raise
        except Exception as error:  # of the sampler, which looks back at each trial; the result is told all the same
            log.warning("trial %d: the sampler failed: %s", trial.number, described(error))
        if state == TrialState.FAIL:
            gc.collect()  # what ran out of memory must not hold it while the next trial runs
        if not held.lease.lost:
            held.checkpoints.discard()

    def _leave(self, claim: Claim, held: HeldTrial) -> None:
        """Give the trial back; a database that is away is waited for, unless the worker is asked to stop."""
        pending = held.lease.close()
        while not held.lease.lost:
            try:
                self._storage.leases.give_back(claim, pending)
                return
            except Refused as error:  # the next attempt meets it again, and FAILs for it
                log.warning("trial %d is requeued without what it had to tell: %s", claim.number, error)
                pending = {}
            except StorageUnreachable as error:
                if self._stop.wait(1.0):
                    log.warning(
                        "trial %d could not be given back (%s): others take it when its lease of %g s runs out",
                        claim.number,
                        error,
                        self._lease_seconds,
                    )
                    return
