"""Pending results: results on the local disk while the database is unreachable."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from studies.errors import LeaseLost, StorageError, StorageUnreachable
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Change, Claim
from studies.worker.refusals import NO_REFUSALS, Refusal, fail_refused

log = logging.getLogger(__name__)

#: Suffix of a file with a change that the database refused.
REFUSED = ".refused"


@dataclass(frozen=True, kw_only=True)
class PendingResult:
    """The result of a trial, with its other pending changes."""

    claim: Claim
    state: str
    values: Sequence[float] | None
    changes: Mapping[str, Sequence[Change]]


class PendingResults:
    """The pending results of one study in a directory of this machine.

    Args:
        directory: created with the first result.
        study: the study's unique id: another database may have a study of the same name.
    """

    def __init__(self, directory: Path, study: str) -> None:
        self._directory = directory / study

    def save(self, result: PendingResult) -> Path | None:
        """Write a result that survives a power cut.

        Returns:
            Its file; ``None`` if the disk refuses it, which is logged: the result is then only in memory.
        """
        file = self._write(f"{result.claim.trial_id}-{result.claim.epoch}.json", asdict(result))
        if file:
            log.info("trial %d: the result is pending in %s", result.claim.number, file)
        return file

    def save_refusals(self, claim: Claim, refusals: Sequence[Refusal]) -> None:
        """Write the refused changes of a trial to files, which `studyhall doctor` lists."""
        for refusal in refusals:
            name = f"{claim.trial_id}-{claim.epoch}-{uuid.uuid4().hex[:8]}{REFUSED}"
            file = self._write(name, {"claim": asdict(claim), "refused": asdict(refusal)})
            log.warning("trial %d fails: %s; the refused data is in %s", claim.number, refusal, file or "no file")

    def _write(self, name: str, content: Mapping[str, Any]) -> Path | None:
        file = self._directory / name
        beside = file.with_name(f".{uuid.uuid4()}")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with beside.open("x") as handle:
                json.dump(content, handle)
                handle.flush()
                os.fsync(handle.fileno())
            beside.replace(file)
            # A rename survives a power cut once its folder is synced; a new folder, once the folder above it is.
            for folder in (self._directory, self._directory.parent):
                _sync(folder)
        except OSError as error:
            with suppress(OSError):  # the directory may be what is wrong
                beside.unlink()
            log.warning("%s can't be written, its content is in memory only: %s", file, error.strerror)
            return None
        return file

    def send(self, storage: PostgresStorage) -> None:
        """Send the pending results of earlier workers, and delete their files.

        Raises:
            StorageUnreachable: the results stay pending.
        """
        for file in sorted(self._directory.glob("*.json")):
            try:
                result = _read(file)
                self._finish(storage, result)
                log.info("trial %d: sent the pending result in %s", result.claim.number, file)
            except FileNotFoundError:
                continue  # sent by another worker of this machine
            except LeaseLost:
                log.warning("%s: the result came too late: another worker ran the trial", file)
            except StorageUnreachable:
                raise
            except (StorageError, ValueError, KeyError, TypeError) as error:
                log.warning("%s: not a legal result: %s", file, error)
                file.replace(file.with_suffix(REFUSED))
                continue
            file.unlink(missing_ok=True)

    def _finish(self, storage: PostgresStorage, result: PendingResult) -> None:
        try:
            storage.leases.finish(result.claim, result.state, result.values, result.changes)
        except NO_REFUSALS:
            raise
        except StorageError as error:
            self.save_refusals(result.claim, fail_refused(storage, result.claim, result.changes, error))


def _read(file: Path) -> PendingResult:
    data: dict[str, Any] = json.loads(file.read_text())
    return PendingResult(**{**data, "claim": Claim(**data["claim"])})


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
