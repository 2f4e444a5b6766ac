"""What a worker does: let the objective train trials of a study, until its studies are over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from studies.errors import StorageUnreachable
from studies.storage.postgres import PostgresStorage
from studies.worker.lease_keeper import LeaseKeeper
from studies.worker.served_study import ServedStudy, Service
from studies.worker.trials import LONGEST_POLL, POLL, Trials, one_at_a_time

log = logging.getLogger(__name__)


class Worker:
    """Runs trials of its studies: one after the other, or as many at once as the objective can train.

    It outlives its database: an outage interrupts no training while the lease lasts, and ends no worker.

    Args:
        storage: where the studies are.
        services: the studies; from each trials are taken by its share.
        worker_id: this worker's name in the database, unlike any other's.
        device: the PyTorch name of the device.
        slots: how many trials to train at once, at most; ``None`` for as many as an objective wants.
        lease_seconds: how long a trial stays this worker's after the last heartbeat.
        results: the directory where results wait while the database is unreachable.
        stop: set from outside to leave the running trials at their next step, give them back, and return.
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
        self._studies = [ServedStudy(storage, service, results) for service in services]
        self._courier = LeaseKeeper(storage, worker_id=worker_id, lease_seconds=lease_seconds, stop=stop)

    def run(self) -> str:
        """Run trials until all studies are over or :attr:`stop` is set.

        Returns:
            Why it ended: ``interrupted``, ``idle``, or the reason of the study that was over last.
        """
        reason, poll, busy = "interrupted", POLL, time.monotonic()
        with self._courier:
            while self._studies and not self._stop.is_set():
                try:
                    taken = self._serve()
                except StorageUnreachable as error:
                    log.warning("waiting for the database: %s", error)
                    self._stop.wait(LONGEST_POLL)
                    continue
                if isinstance(taken, str):
                    reason = taken
                elif taken:
                    poll, busy = POLL, time.monotonic()
                elif self._until_idle is not None and time.monotonic() - busy >= self._until_idle:
                    return "idle"
                else:
                    self._stop.wait(poll)
                    poll = min(LONGEST_POLL, poll * 1.5)
        return "interrupted" if self._stop.is_set() else reason

    def _serve(self) -> int | str:
        """Run trials of the study that has had the least of its share: how many there were; or the reason why one of
        the studies is over, which is served no longer.

        Raises:
            StorageUnreachable: there was nothing to run, and nobody to ask.
        """
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
            if trials.unreachable:
                raise trials.unreachable
        return 0

    def _run(self, study: ServedStudy) -> Trials:
        """Let the objective train trials until there are none for now, or it is another study's turn."""
        slots = study.slots(self._device, self._slots)
        trials = Trials(
            self._storage,
            study,
            self._courier,
            worker_id=self._id,
            device=self._device,
            most=slots if len(self._studies) > 1 else None,
            stop=self._stop,
        )
        error: BaseException | None = None
        try:
            if study.trains_several:
                study.objective.train(trials, slots, device=self._device)
            else:
                one_at_a_time(study.objective, trials)
        except BaseException as raised:
            error = raised
        if trials.close(error) == 0 and error is not None:
            raise error
        return trials
