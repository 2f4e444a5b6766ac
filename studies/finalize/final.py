"""The final model: retrained on training and validation data, tested once, and described in a folder."""

from __future__ import annotations

import inspect
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from studies import environment
from studies.errors import ObjectiveError, StudyhallError, command
from studies.finalize import card
from studies.finalize.choice import Candidate, Rule
from studies.finalize.folder import new_directory
from studies.objective import Objective
from studies.spec.study import StudySpec
from studies.storage.postgres import PostgresStorage
from studies.storage.records import StudyRecord
from studies.values import to_json
from studies.worker.devices import Device

#: The study attribute with the result.
ATTRIBUTE = "final"
CONFIG = "config.json"
METRICS = "metrics.json"
ENVIRONMENT = "environment.json"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the trial was chosen among candidates."""

    comparison: str
    """The name of the study that compared them."""
    rule: Rule
    winner: Candidate
    candidates: list[Candidate]

    @property
    def facts(self) -> dict[str, Any]:
        """What is stored with the result."""
        return {
            "comparison": self.comparison,
            "rule": self.rule,
            "candidates": len(self.candidates),
            "seeds": len(self.winner.values),
            "tuned": self.winner.tuned,
            "mean": self.winner.mean,
            "std": self.winner.std,
        }


def stored(storage: PostgresStorage, record: StudyRecord) -> dict[str, Any] | None:
    """What an earlier :func:`finalize` stored: trial, metrics, at, directory (``HOST:PATH``), looks, and how the trial
    was chosen."""
    found: dict[str, Any] | None = storage.get_study_user_attrs(record.study_id).get(ATTRIBUTE)
    return found


def note(storage: PostgresStorage, record: StudyRecord, facts: Mapping[str, Any]) -> None:
    """Add to what is stored of the final model."""
    storage.set_study_user_attr(record.study_id, ATTRIBUTE, {**(stored(storage, record) or {}), **facts})


def require_finalizable(spec: StudySpec, objective: Objective, *, ensemble: int = 1) -> None:
    """Check that the objective has what finalizing needs.

    Raises:
        ObjectiveError: it has no ``finalize``, or none that takes ``ensemble``.
    """
    method = getattr(objective, "finalize", None)
    if method is None:
        raise ObjectiveError(
            f"objective {spec.objective.path!r} cannot be finalized: give its class a method finalize(), "
            "as objectives.mlp:MLP has"
        )
    if ensemble > 1 and "ensemble" not in inspect.signature(method).parameters:
        raise ObjectiveError(
            f"objective {spec.objective.path!r} cannot make an ensemble: leave --ensemble out, or give its finalize() "
            "a keyword ensemble, as objectives.mlp:MLP has"
        )


def finalize(
    storage: PostgresStorage,
    record: StudyRecord,
    spec: StudySpec,
    trial: FrozenTrial,
    objective: Objective,
    *,
    device: Device,
    directory: Path,
    progress: Callable[[int, int], None],
    state: Path,
    choice: Choice | None = None,
    ensemble: int = 1,
) -> dict[str, float]:
    """Retrain ``trial``, test it, write the folder, and store the metrics in the study.

    Args:
        storage: where the study is.
        record: the study.
        spec: its spec.
        trial: whose parameters are retrained.
        objective: the study's, built.
        device: to train on.
        directory: the folder to make; it appears when it is complete.
        progress: is called with (done, total).
        state: a folder of this machine, for what a training that is killed goes on from.
        choice: how the trial was chosen; ``None`` where a person named it.
        ensemble: how many models to average.

    Returns:
        The metrics, as the objective returned them.

    Raises:
        ObjectiveError: as :func:`require_finalizable`.
        StudyhallError: the trial is not COMPLETE; the folder exists, or cannot be written.
    """
    require_finalizable(spec, objective, ensemble=ensemble)
    require_complete(record, trial)
    method: Any = getattr(objective, "finalize")  # noqa: B009  # which not every objective has
    # Read before the training, which may last hours: the caller has the lease, and nobody else tests meanwhile.
    looks = (stored(storage, record) or {"looks": 0})["looks"] + 1
    # By the uid, not the name: a deleted study's training must not go on in one of the same name.
    checkpoint = state / f"{record.uid}-{trial.number}-{ensemble}"
    optional = {"ensemble": ensemble, "checkpoint": checkpoint}
    known = inspect.signature(method).parameters  # an objective need not take the optional ones
    with new_directory(directory, "--out") as beside:
        metrics: dict[str, float] = method(
            trial.params,
            seed=spec.seed_of(trial.number),
            device=device.torch,
            directory=beside,
            progress=progress,
            **{name: value for name, value in optional.items() if name in known},
        )
        final = {
            "trial": trial.number,
            "metrics": metrics,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "directory": f"{socket.gethostname()}:{directory}",  # each machine may have a folder of this name
            "looks": looks,
            **({"ensemble": ensemble} if ensemble > 1 else {}),
            **(choice.facts if choice else {}),
        }
        surroundings = environment.collect(spec.objective.path, objective, device.torch)
        _write(beside / CONFIG, {"study": record.name, "trial": trial.number, "params": trial.params,
                                 "spec": spec.to_data()})  # fmt: skip
        _write(beside / METRICS, {"study": record.name, **_value(trial), **final})
        _write(beside / ENVIRONMENT, surroundings)
        card.write(
            beside / card.FILE, record.name, spec, trial, final, surroundings, choice.candidates if choice else None
        )
    # Only now: an attempt that dies before the folder is whole goes on from it.
    checkpoint.unlink(missing_ok=True)
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


def _value(trial: FrozenTrial) -> dict[str, Any]:
    values = trial.values
    return {"value": values[0]} if len(values) == 1 else {"values": values}


def _write(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(to_json(data, indent=2) + "\n", encoding="utf-8")
