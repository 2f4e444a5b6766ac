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
from studies.storage.contract import Change
from studies.storage.postgres import Claim, PostgresStorage

log = logging.getLogger(__name__)


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
        file = self._directory / f"{result.claim.trial_id}-{result.claim.epoch}.json"
        beside = file.with_name(f".{uuid.uuid4()}")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with beside.open("x") as handle:
                json.dump(asdict(result), handle)
                handle.flush()
                os.fsync(handle.fileno())
            beside.replace(file)
            for folder in (self._directory, self._directory.parent):
                _sync(folder)
        except OSError as error:
            beside.unlink(missing_ok=True)
            log.warning(
                "trial %d: its result waits for the database in memory alone, since it can't be written to %s: %s",
                result.claim.number,
                self._directory,
                error.strerror,
            )
            return None
        log.info("trial %d: its result waits for the database in %s", result.claim.number, file)
        return file

    def tell(self, storage: PostgresStorage) -> None:
        """Tell the database the results that an earlier worker could not.

        Raises:
            StorageUnreachable: it is away; the results stay.
        """
        for file in sorted(self._directory.glob("*.json")):
            try:
                result = _read(file)
                storage.finish(result.claim, result.state, result.values, result.changes)
                log.info("trial %d: told the result that had waited in %s", result.claim.number, file)
            except FileNotFoundError:
                continue  # told by another worker
            except LeaseLost:
                log.warning("%s: the result came too late: others have run the trial", file)
            except StorageUnreachable:
                raise
            except (StorageError, ValueError, KeyError, TypeError) as error:
                log.warning("%s: no result that can be told: %s", file, error)
                file.replace(file.with_suffix(".refused"))
                continue
            file.unlink(missing_ok=True)


def _read(file: Path) -> KeptResult:
    data: dict[str, Any] = json.loads(file.read_text())
    return KeptResult(**{**data, "claim": Claim(**data["claim"])})


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
