"""The loop of a worker: claim trials, let the objective train them, until its studies are over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from studies.errors import StorageUnreachable
from studies.storage.postgres import PostgresStorage
from studies.worker.backoff import LONGEST, Backoff
from studies.worker.lease_keeper import LeaseKeeper
from studies.worker.served_study import ServedStudy, Service
from studies.worker.trials import Trials, one_at_a_time

log = logging.getLogger(__name__)


class Worker:
    """Runs trials of its studies: one after the other, or as many at once as the objective can train.

    It outlives an outage of the database: training continues while the lease lasts, and a worker
    without a trial waits.

    Args:
        storage: where the studies are.
        services: the studies, each with its share of the trials.
        worker_id: this worker's unique name in the database.
        device: the PyTorch name of the device.
        slots: how many trials to train at once, at most; ``None`` for as many as an objective wants.
        lease_seconds: how long a lease lasts after the last heartbeat.
        results: the directory for pending results.
        stop: set from outside to requeue the running trials at their next step, and return.
        until_idle: seconds without a trial after which to return, even though all studies are over: a person may
            extend one. ``None`` to return when the studies are over.

    Raises:
        StorageError: a study was not made by studyhall.
        CheckpointError: a study's checkpoint store can't be written to.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        services: Sequence[Service],
        *,
        worker_id: str,
        device: str,
        slots: int | None = None,
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
        self._slots = slots
        self._backoff = Backoff()
        self._studies = [ServedStudy(storage, service, results) for service in services]
        self._keeper = LeaseKeeper(storage, worker_id=worker_id, lease_seconds=lease_seconds, stop=stop)

    def run(self) -> str:
        """Run trials until all studies are over or :attr:`stop` is set.

        Returns:
            Why it ended: ``interrupted``, ``idle``, or the reason of the study that was over last.
        """
        reason, busy = "interrupted", time.monotonic()
        with self._keeper:
            while self._studies and not self._stop.is_set():
                try:
                    taken = self._serve()
                except StorageUnreachable as error:
                    log.warning("waiting for the database: %s", error)
                    self._stop.wait(LONGEST)
                    continue
                if isinstance(taken, str):
                    reason = taken
                elif taken:
                    self._backoff.reset()
                    busy = time.monotonic()
                elif self._until_idle is not None and time.monotonic() - busy >= self._until_idle:
                    return "idle"
                else:
                    self._stop.wait(self._backoff.next())
        return "interrupted" if self._stop.is_set() else reason

    def _serve(self) -> int | str:
        """Run trials of the study that is farthest below its share.

        Returns:
            How many trials were taken; or why one of the studies is over, which is then no longer served.

        Raises:
            StorageUnreachable: no study gave a trial, and the database did not answer.
        """
        # Pending results first: they may spend the budget, and their trials must not run again.
        for study in self._studies:
            study.clean_up()
        for study in sorted(self._studies, key=lambda study: study.taken / study.share):
            trials = self._run(study)
            study.taken += trials.taken
            if trials.reason == "exhausted":
                study.end_exhausted()
            elif trials.reason not in (None, "wait", "paused") and (
                trials.reason == "deleted" or self._until_idle is None
            ):
                self._studies.remove(study)
                return trials.reason
            if trials.taken:
                return trials.taken
            # Every study is in the same database: asking for the others would only wait again.
            if trials.unreachable:
                raise trials.unreachable
        return 0

    def _run(self, study: ServedStudy) -> Trials:
        """Let the objective train trials of one study until it gives none, or another study is due."""
        slots = study.slots(self._device, self._slots)
        # With several studies a pool takes one trial per slot and returns, so that the shares come out right.
        trials = Trials(
            self._storage,
            study,
            self._keeper,
            worker_id=self._id,
            device=self._device,
            most=slots if len(self._studies) > 1 else None,
            backoff=self._backoff,
            stop=self._stop,
        )
        error: BaseException | None = None
        try:
            if study.trains_several:
                study.objective.train(trials, slots, device=self._device)
            else:
                one_at_a_time(study.objective, trials)
        except BaseException as raised:  # sys.exit() in an objective as well: it fails the trials, not the worker
            error = raised
        if trials.close(error) == 0 and error is not None:
            raise error
        return trials
