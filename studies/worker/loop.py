"""What a worker does: claim a trial, run the objective, tell the result; until the study is over."""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from studies.errors import StorageError
from studies.objective import Objective, one_line
from studies.spec import StudySpec
from studies.storage.postgres import PostgresStorage, StudyRecord
from studies.trial import Interrupted, Trial, as_values

log = logging.getLogger(__name__)

#: Seconds between two looks for a trial while others run the last ones.
POLL = 0.5


class Worker:
    """Runs the trials of one study, one after the other.

    Args:
        storage: where the study is.
        record: the study.
        objective: what a trial runs.
        worker_id: this worker's name in the database, unlike any other's.
        device: the PyTorch name of the device.
        lease_seconds: how long a trial stays this worker's after the last sign of life.
        stop: set from outside to leave the running trial at its next step, give it back, and return.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        record: StudyRecord,
        objective: Objective,
        *,
        worker_id: str,
        device: str,
        lease_seconds: float,
        stop: threading.Event,
    ) -> None:
        if record.spec is None:
            raise StorageError(f"study {record.name!r} was not made by studyhall, so no worker knows what it runs")
        self.device = device
        self._storage = storage
        self._record = record
        self._spec: StudySpec = record.spec
        self._objective = objective
        self._id = worker_id
        self._lease_seconds = lease_seconds
        self._stop = stop
        self._pid = os.getpid()
        self._trial_id: int | None = None
        self._lease_lost = False
        self._study = storage.load_study(record)
        self._study.pruner = self._spec.to_pruner()
        # An objective or a sampler may call study.stop(), which Optuna allows inside optimize() alone.
        self._study._thread_local.in_optimize_loop = True

    def run(self) -> str:
        """Run trials until the study is over or :attr:`stop` is set.

        Returns:
            Why it ended: ``interrupted``, or the study's own reason.
        """
        with self._heartbeat():
            while not self._stop.is_set():
                claim = self._storage.claim(self._record, self._id, self._lease_seconds)
                if claim.trial_id is not None and claim.number is not None:
                    self._run_trial(claim.trial_id, claim.number)
                elif claim.reason != "wait":
                    return claim.reason or ""
                else:
                    self._stop.wait(POLL)
        return "interrupted"

    # What a trial asks of its worker (studies.trial.Reporter)

    @property
    def stop_requested(self) -> bool:
        """Whether the running trial should be left: the worker stops, or the trial is no longer its own."""
        return self._stop.is_set() or self._lease_lost

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Store the metrics of a step, and renew the lease."""
        assert self._trial_id is not None  # only a running trial reports
        if metrics:
            self._storage.add_metrics(self._trial_id, step, metrics)
        self._renew(step)

    # One trial

    def _run_trial(self, trial_id: int, number: int) -> None:
        self._trial_id, self._lease_lost = trial_id, False
        try:
            # As Study.ask does: see what others did meanwhile. Optuna's cache learns the claimed trial, too.
            self._study._thread_local.cached_all_trials = None
            self._study.get_trials(deepcopy=False)
            self._study.sampler = self._spec.to_sampler(number)
            trial = Trial(self._study, trial_id, reporter=self, seed=self._spec.seed_of)
            self._finish(trial, *self._call(trial))
        except Interrupted:
            if not self._lease_lost:
                self._storage.give_back([self._id], died_of=None)
        finally:
            self._trial_id = None
        if self._study._stop_flag:
            self._storage.stop(self._record, "stopped")

    def _call(self, trial: Trial) -> tuple[TrialState, list[float] | None]:
        """Sample and run the objective; what it raises is a result.

        Not so :exc:`Interrupted`, and what is the storage's failure and not the trial's.
        """
        try:
            self._spec.suggest(trial)
            returned = self._objective(trial)
            self._end_if_forked(0)
        except (Interrupted, StorageError, StorageInternalError):
            self._end_if_forked(1)
            raise
        except optuna.TrialPruned:
            self._end_if_forked(0)
            return TrialState.PRUNED, None
        except BaseException as error:  # sys.exit() in an objective ends its trial, not its worker
            self._end_if_forked(error.code if isinstance(error, SystemExit) else 1)
            if self.stop_requested or not self._renew(None):
                # What breaks while everything is taken down, or the trial away, says nothing about the trial.
                raise Interrupted from error
            log.warning("trial %d failed: %s: %s", trial.number, type(error).__name__, one_line(error))
            trial.set_user_attr("error", f"{type(error).__name__}: {one_line(error)}")
            trial.set_user_attr("traceback", traceback.format_exc())
            return TrialState.FAIL, None
        values = as_values(returned, len(self._spec.all_directions))
        if isinstance(values, str):
            log.warning("trial %d failed: %s", trial.number, values)
            trial.set_user_attr("error", values)
            return TrialState.FAIL, None
        return TrialState.COMPLETE, values

    def _end_if_forked(self, code: object) -> None:
        """End here if this is a child that the objective forked.

        It shares the worker's connection, and must neither tell a result nor close it.
        """
        if os.getpid() != self._pid:
            os._exit(code if isinstance(code, int) else int(code is not None))

    def _finish(self, trial: Trial, state: TrialState, values: list[float] | None) -> None:
        if not self._renew(None):
            log.warning("trial %d was taken over while this worker was silent; its result is dropped", trial.number)
            return
        self._study.tell(trial, values, state)

    # The lease

    def _renew(self, step: int | None) -> bool:
        if not self._storage.renew(self._id, self._trial_id, step, self._lease_seconds):
            self._lease_lost = True
        return not self._lease_lost

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Show signs of life three times a lease, however long a step takes."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self._lease_seconds / 3):
                try:
                    self._renew(None)
                except StorageError as error:
                    log.warning("no sign of life could be given: %s", error)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
