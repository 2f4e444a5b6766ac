"""A trial while its worker has the lease: what it reports, saves and restores, and when it must stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from optuna.distributions import BaseDistribution

from studies.errors import LeaseLost, Refused, StorageUnreachable
from studies.search.scheduler import TO_THE_END
from studies.storage.limits import check_name
from studies.storage.postgres import PostgresStorage
from studies.trial import Checkpoint, Interrupted
from studies.values import strict
from studies.worker.checkpoints import Checkpoints
from studies.worker.lease import Changes, Lease

log = logging.getLogger(__name__)


class LeasedTrial:
    """The worker's side of a :class:`studies.trial.Trial` (a :class:`studies.trial.LeaseHolder`).

    Args:
        storage: where the study is.
        lease: the worker's lease on the trial.
        checkpoints: of the trial.
        device: the PyTorch name of the device.
        stop: set when the worker is asked to stop.
        flushes: whether each report is sent at once; a pool sends the reports of its trials together instead.
        reached: the last step that earlier attempts reported.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        lease: Lease,
        checkpoints: Checkpoints,
        *,
        device: str,
        stop: threading.Event,
        flushes: bool,
        reached: int | None = None,
    ) -> None:
        self._storage = storage
        self.device = device
        self.lease = lease
        self.checkpoints = checkpoints
        self._stop = stop
        self._tells_at_once = flushes
        self._reached = reached
        #: Whether the objective has offered a checkpoint.
        self.saves = False
        self._pending: Changes | None = None
        #: The first error of the trial while it trained beside others, which must not see it.
        self.error: BaseException | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether to stop at this step: the worker stops, the study is paused or stopped, or the trial is over."""
        return self._stop.is_set() or self.lease.interrupted or self.is_over

    @property
    def stop_requested(self) -> bool:
        """Whether the objective should stop: :attr:`is_stopping`, at its rung, or because of an :attr:`error`."""
        return self.is_stopping or self.is_at_rung or self.error is not None

    @property
    def has_reported(self) -> bool:
        """Whether any attempt of the trial reported a step."""
        return self._reached is not None

    @property
    def is_at_rung(self) -> bool:
        """Whether the trial has reported the step at which its scheduler pauses it."""
        until = self.lease.claim.until
        # A trial that is to train to its end is not paused at the largest step of all, either.
        if until is None or until == TO_THE_END:
            return False
        return self._reached is not None and self._reached >= until

    @property
    def ends_at_rung(self) -> bool:
        """Whether the trial ends at this step: it should be paused, and its objective saves no checkpoints."""
        return self.is_at_rung and not self.saves

    @contextmanager
    def capturing_errors(self) -> Iterator[None]:
        """Store what the block raises in :attr:`error`: it ends this trial, and none that trains beside it."""
        try:
            yield
        except (Exception, Interrupted) as error:
            self.error = self.error or error

    @property
    def is_over(self) -> bool:
        """Whether the trial was cancelled or its lease lost."""
        return self.lease.cancelled or self.lease.lost

    def agree(self, name: str, distribution: BaseDistribution) -> BaseDistribution:
        """The distribution under which the study stores a parameter.

        An outage must not stop the training: without an answer it is the given one.
        """
        try:
            return self._storage.agree(self.lease.claim.study_id, name, distribution)
        except StorageUnreachable:
            return distribution

    def put_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Buffer the metrics of a step, to be sent with its report.

        Raises:
            ValueError: a name that no table can store.
        """
        for name in metrics:
            check_name("metric", name)
        for name, value in metrics.items():
            self.lease.put("metrics", {"step": step, "name": name, "value": strict(value)})

    def flush(self, step: int) -> None:
        """End a step: its report and metrics are sent, by this call or by the pool."""
        self.lease.set_step(step)
        self._reached = step if self._reached is None else max(step, self._reached)
        if self._tells_at_once:
            self.lease.flush()

    def save(self, step: int, state: Callable[[], bytes]) -> None:
        """Save a checkpoint if one is due, or if the trial is about to be requeued or paused.

        A checkpoint is never ahead of the reports in the database: a worker that restores it would not report the
        steps between.
        """
        self.saves = True
        if self.is_over or self.error or not (self.stop_requested or self.checkpoints.is_due):
            return
        if not self.lease.is_flushed():
            self.lease.flush()
        if not self.lease.is_flushed():
            number = self.lease.claim.number
            log.warning("trial %d: no checkpoint at step %d: the database is unreachable", number, step)
            return
        try:
            self.checkpoints.save(step, state)
        except LeaseLost:
            self.lease.lose()

    def restore(self) -> Checkpoint | None:
        """The newest intact checkpoint; waits while the database is unreachable.

        Raises:
            Interrupted: the worker was asked to stop meanwhile.
        """
        while True:
            try:
                return self.checkpoints.restore()
            except StorageUnreachable:
                # Starting afresh would throw away hours of training for an outage of seconds.
                if self._stop.wait(1.0):
                    raise Interrupted from None

    def requeue(self) -> bool:
        """Requeue the trial, with everything pending; or pause it, at its rung.

        Returns:
            Whether the trial is no longer leased; ``False`` where the database is unreachable.
        """
        if self._pending is None:
            self._pending = self.lease.close()
        while not self.lease.lost:
            try:
                self._storage.leases.requeue(self.lease.claim, self._pending, paused=self.is_at_rung)
                return True
            except Refused as error:  # requeue all the same: the next attempt meets the refusal again, and FAILs
                log.warning("trial %d is requeued without its last reports: %s", self.lease.claim.number, error)
                self._pending = {}
            except StorageUnreachable as error:
                log.warning(
                    "trial %d could not be requeued (%s): other workers get it when its lease expires",
                    self.lease.claim.number,
                    error,
                )
                return False
        return True
