"""Results that wait on the local disk while the database is away."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from studies.errors import LeaseLost, StorageError, StorageUnreachable
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Change, Claim
from studies.worker.refusals import NO_REFUSALS, Refusal, fail_refused

log = logging.getLogger(__name__)

#: How the name of a file ends that holds what the database refused.
REFUSED = ".refused"


@dataclass(frozen=True, kw_only=True)
class KeptResult:
    """The result of a trial, with what else it has to tell."""

    claim: Claim
    state: str
    values: Sequence[float] | None
    changes: Mapping[str, Sequence[Change]]


class Results:
    """The results of one study's trials in one directory of this machine.

    Args:
        directory: made when it is needed.
        study: the study's unique id: results are told to no other database.
    """

    def __init__(self, directory: Path, study: str) -> None:
        self._directory = directory / study

    def keep(self, result: KeptResult) -> Path | None:
        """Write a result so that not even a power cut loses it.

        Returns:
            Its file; ``None`` where none can be written, which is logged: the result is then only in memory.
        """
        file = self._write(f"{result.claim.trial_id}-{result.claim.epoch}.json", asdict(result))
        if file:
            log.info("trial %d: its result waits for the database in %s", result.claim.number, file)
        return file

    def put_aside(self, claim: Claim, refusals: Sequence[Refusal]) -> None:
        """Write what the database refused of a trial, for a person to look at; `studyhall doctor` finds it."""
        for refusal in refusals:
            name = f"{claim.trial_id}-{claim.epoch}-{uuid.uuid4().hex[:8]}{REFUSED}"
            file = self._write(name, {"claim": asdict(claim), "refused": asdict(refusal)})
            log.warning("trial %d fails: %s; it is put aside in %s", claim.number, refusal, file or "no file")

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
            for folder in (self._directory, self._directory.parent):
                _sync(folder)
        except OSError as error:
            beside.unlink(missing_ok=True)
            log.warning("%s can't be written, so that what it would hold is in memory alone: %s", file, error.strerror)
            return None
        return file

    def tell(self, storage: PostgresStorage) -> None:
        """Tell the database the results that an earlier worker could not.

        Raises:
            StorageUnreachable: it is away; the results stay.
        """
        for file in sorted(self._directory.glob("*.json")):
            try:
                result = _read(file)
                self._finish(storage, result)
                log.info("trial %d: told the result that had waited in %s", result.claim.number, file)
            except FileNotFoundError:
                continue  # told by another worker
            except LeaseLost:
                log.warning("%s: the result came too late: others have run the trial", file)
            except StorageUnreachable:
                raise
            except (StorageError, ValueError, KeyError, TypeError) as error:
                log.warning("%s: no result that can be told: %s", file, error)
                file.replace(file.with_suffix(REFUSED))
                continue
            file.unlink(missing_ok=True)

    def _finish(self, storage: PostgresStorage, result: KeptResult) -> None:
        try:
            storage.leases.finish(result.claim, result.state, result.values, result.changes)
        except NO_REFUSALS:
            raise
        except StorageError as error:
            self.put_aside(result.claim, fail_refused(storage, result.claim, result.changes, error))


def _read(file: Path) -> KeptResult:
    data: dict[str, Any] = json.loads(file.read_text())
    return KeptResult(**{**data, "claim": Claim(**data["claim"])})


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
