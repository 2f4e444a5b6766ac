"""Stop reasons: why a study has ended, in words, and the command that continues it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from studies.errors import StorageError, command

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from studies.storage.records import Status

#: The stop reason when a person stopped the study; Optuna's ``study.stop()`` leaves "stopped".
BY_HAND: Final = "by hand"

#: The error of a trial that a person cancelled; the database writes it as well.
CANCELLED: Final = "cancelled"

#: The stop reason when the study has a constraint on a metric that no trial reports.
UNREPORTED: Final = "constraint"

#: The stop reasons of a study that went wrong: the last failed trial says how.
FAILURES: Final = ("failures", UNREPORTED)

#: Reason in the database → words.
STOP_REASONS: Final = {
    "complete": "the budget is spent",
    "failures": "stopped after too many failed trials",
    UNREPORTED: "stopped: a constraint is on a metric that no trial reports",
    "timeout": "stopped: time limit reached",
    "target": "the target is reached",
    "epochs": "the budget of epochs is spent",
    "gpu_hours": "the budget of GPU hours is spent",
    "stopped": "stopped by its objective or sampler",
    BY_HAND: "stopped by hand",
    "deleted": "the study was deleted",
}

#: Reason → options of `extend` that continue the study; `resume` continues after every other reason.
EXTENSIONS: Final = {
    "complete": "--trials +1",
    "failures": "--max-failures +10",
    "timeout": "--timeout TIME",
    "target": "--target VALUE",
    "epochs": "--epochs +1000",
    "gpu_hours": "--gpu-hours +1",
}


def way_on(study: str, ended: str) -> str:
    """The command that continues a study with the stop reason ``ended``."""
    if ended in EXTENSIONS:
        return f"{command('extend', study)} {EXTENSIONS[ended]}"
    return command("resume", study)


def failure_of(trial: FrozenTrial) -> str | None:
    """The error of a failed trial; ``None`` if it did not fail, was cancelled, or has no error."""
    error = trial.user_attrs.get("error")
    return str(error) if trial.state.name == "FAIL" and error not in (None, CANCELLED) else None


def require_open(now: Status) -> None:
    """Refuse a study that has ended.

    Raises:
        StorageError: with the stop reason, and the command that continues the study.
    """
    if now.ended:
        words = STOP_REASONS.get(now.ended, now.ended)
        raise StorageError(f"study {now.study!r} has ended: {words}; go on with: {way_on(now.study, now.ended)}")
