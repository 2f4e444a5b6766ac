"""Finalize: retrain the best parameters on training and validation data, and test the model once.

An objective that can do so has a method::

    finalize(params, *, seed, device, directory, progress) -> dict[str, float]

which trains with ``params`` on training and validation data, uses the test data once, writes its
weights into ``directory``, calls ``progress(done, total)`` now and then, and returns its metrics.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studies.errors import ObjectiveError, StudyhallError, command
from studies.objective import Objective
from studies.spec.study import StudySpec
from studies.storage.postgres import PostgresStorage
from studies.storage.records import StudyRecord
from studies.values import to_json

#: The study attribute with the result.
ATTRIBUTE = "final"


def stored(storage: PostgresStorage, record: StudyRecord) -> dict[str, Any] | None:
    """What an earlier :func:`finalize` stored: trial, metrics, at, directory (``HOST:PATH``), looks."""
    found: dict[str, Any] | None = storage.get_study_user_attrs(record.study_id).get(ATTRIBUTE)
    return found


def finalize(
    storage: PostgresStorage,
    record: StudyRecord,
    spec: StudySpec,
    trial: FrozenTrial,
    objective: Objective,
    *,
    device: str,
    directory: Path,
    begin: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None],
) -> Mapping[str, float]:
    """Retrain ``trial``, test it, write the folder, and store the metrics in the study.

    Args:
        storage: where the study is.
        record: the study.
        spec: its spec.
        trial: whose parameters are retrained.
        objective: the study's, built.
        device: the PyTorch name of the device.
        directory: the folder to make; it appears when it is complete.
        begin: is called when nothing stands in the way of the training.
        progress: is called with (done, total).

    Returns:
        The metrics, as the objective returned them.

    Raises:
        ObjectiveError: the objective has no ``finalize``.
        StudyhallError: the trial is not COMPLETE; the folder exists, or cannot be written.
    """
    retrain = getattr(objective, "finalize", None)
    if retrain is None:
        raise ObjectiveError(
            f"objective {spec.objective.path!r} cannot be finalized: give its class a method finalize(), "
            "as objectives.mlp:MLP has"
        )
    require_complete(record, trial)
    with new_directory(directory, "--out") as beside:
        begin()
        metrics: dict[str, float] = retrain(
            trial.params, seed=spec.seed_of(trial.number), device=device, directory=beside, progress=progress
        )
        final = {
            "trial": trial.number,
            "metrics": metrics,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "directory": f"{socket.gethostname()}:{directory}",
            "looks": (stored(storage, record) or {"looks": 0})["looks"] + 1,
        }
        _write(beside / "config.json", {"study": record.name, "trial": trial.number, "params": trial.params,
                                        "spec": spec.to_data()})  # fmt: skip
        _write(beside / "metrics.json", {"study": record.name, **_value(trial), **final})
    storage.set_study_user_attr(record.study_id, ATTRIBUTE, final)
    return metrics


def require_complete(record: StudyRecord, trial: FrozenTrial) -> None:
    """Check that ``trial`` is COMPLETE: other trials have no final value.

    Raises:
        StudyhallError: it is not.
    """
    if trial.state != TrialState.COMPLETE:
        raise StudyhallError(
            f"trial {trial.number} of study {record.name!r} is {trial.state.name}; only COMPLETE trials can be "
            f"finalized; see: {command('trials', record.name, '--state', 'complete')}"
        )


def require_new(directory: Path, option: str) -> None:
    """Check that ``directory`` can be written. A link is replaced.

    Args:
        directory: the new folder.
        option: the option that names another one.

    Raises:
        StudyhallError: it exists, or is not accessible.
    """
    try:
        exists = directory.exists() and not directory.is_symlink()
    except OSError as error:
        raise _cannot_write(directory, option, error) from error
    if exists:
        raise StudyhallError(f"{str(directory)!r} exists; name another folder with {option}")


@contextmanager
def new_directory(directory: Path, option: str) -> Iterator[Path]:
    """A folder to write into, beside ``directory``, whose name it takes when it is complete; else it goes.

    Raises:
        StudyhallError: as :func:`require_new`; or it cannot be written.
    """
    require_new(directory, option)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise _cannot_write(directory, option, error) from error
    try:
        yield beside
        beside.chmod(0o755)
        if directory.is_symlink():
            directory.unlink()  # what it leads to is not ours
        beside.rename(directory)
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # gone already where all went well


def _cannot_write(directory: Path, option: str, error: OSError) -> StudyhallError:
    return StudyhallError(f"cannot write {str(directory)!r}: {error.strerror}; name another folder with {option}")


def _value(trial: FrozenTrial) -> dict[str, Any]:
    values = trial.values
    return {"value": values[0]} if len(values) == 1 else {"values": values}


def _write(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(to_json(data, indent=2) + "\n", encoding="utf-8")
