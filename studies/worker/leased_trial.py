"""A trial in the hands of a worker: its lease, its checkpoints, its device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from optuna.distributions import BaseDistribution

from studies.errors import LeaseLost, Refused, StorageUnreachable
from studies.storage.limits import check_name
from studies.storage.postgres import PostgresStorage
from studies.trial import Checkpoint, Interrupted
from studies.values import strict
from studies.worker.checkpoints import Checkpoints
from studies.worker.lease import Changes, Lease

log = logging.getLogger(__name__)


class LeasedTrial:
    """What :class:`studies.trial.Trial` asks of its worker (a :class:`studies.trial.Holder`).

    Args:
        storage: where the study is.
        lease: by which the trial is held.
        checkpoints: of the trial.
        device: the PyTorch name of the device.
        stop: set when the worker is asked to stop.
        tells_at_once: whether :meth:`tell` writes; else somebody does it for many trials at once.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        lease: Lease,
        checkpoints: Checkpoints,
        *,
        device: str,
        stop: threading.Event,
        tells_at_once: bool,
    ) -> None:
        self._storage = storage
        self.device = device
        self.lease = lease
        self.checkpoints = checkpoints
        self._stop = stop
        self._tells_at_once = tells_at_once
        self._pending: Changes | None = None
        #: What went wrong with the trial where nothing may be raised for it.
        self.error: BaseException | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether the worker stops, the study is paused or stopped, or the trial is over."""
        return self._stop.is_set() or self.lease.interrupted or self.is_over

    @property
    def stop_requested(self) -> bool:
        """Whether the trial should be left: see :attr:`is_stopping`; or something is wrong with it."""
        return self.is_stopping or self.error is not None

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """Keep what is raised: it ends this trial, when the objective looks, and no other one."""
        try:
            yield
        except (Exception, Interrupted) as error:
            self.error = self.error or error

    @property
    def is_over(self) -> bool:
        """Whether the trial was cancelled, or is no longer this worker's."""
        return self.lease.cancelled or self.lease.lost

    def agree(self, name: str, distribution: BaseDistribution) -> BaseDistribution:
        """The distribution under which the study stores a parameter; a database that is away is not waited for."""
        try:
            return self._storage.agree(self.lease.claim.study_id, name, distribution)
        except StorageUnreachable:
            return distribution

    def put_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Have the metrics of a step written with what is told next."""
        for name in metrics:
            check_name("metric", name)
        for name, value in metrics.items():
            self.lease.put("metrics", {"step": step, "name": name, "value": strict(value)})

    def tell(self, step: int) -> None:
        """Tell the database of a step; see :meth:`studies.worker.lease.Lease.settle`."""
        self.lease.note(step)
        if self._tells_at_once:
            self.lease.tell()

    def save(self, step: int, state: Callable[[], bytes]) -> None:
        """Keep a checkpoint if one is due, or if the trial is about to be given back.

        Not one that is ahead of what the database was told: who went on from there would never report
        the steps between.
        """
        if self.is_over or self.error or not (self.is_stopping or self.checkpoints.is_due):
            return
        if not self.lease.is_told():
            self.lease.tell()
        if not self.lease.is_told():
            log.warning("trial %d: no checkpoint at step %d: the database is away", self.lease.claim.number, step)
            return
        try:
            self.checkpoints.save(step, state)
        except LeaseLost:
            self.lease.lose()

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; waits for a database that is away.

        Raises:
            Interrupted: the worker was asked to stop meanwhile.
        """
        while True:
            try:
                return self.checkpoints.restore()
            except StorageUnreachable:
                if self._stop.wait(1.0):
                    raise Interrupted from None

    def give_back(self) -> bool:
        """Give the trial back, with what there is to tell of it. Returns whether it is no longer held."""
        if self._pending is None:
            self._pending = self.lease.close()
        while not self.lease.lost:
            try:
                self._storage.leases.give_back(self.lease.claim, self._pending)
                return True
            except Refused as error:  # the next attempt meets it again, and FAILs for it
                log.warning("trial %d is requeued without what it had to tell: %s", self.lease.claim.number, error)
                self._pending = {}
            except StorageUnreachable as error:
                log.warning(
                    "trial %d could not be given back (%s): others take it when its lease runs out",
                    self.lease.claim.number,
                    error,
                )
                return False
        return True
