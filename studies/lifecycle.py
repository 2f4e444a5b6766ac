"""The life cycle of studies and trials, as a person steers it: pause, resume, stop; cancel, enqueue, retry.

Everything goes through the database. A worker learns of it from the answer to its next report, heartbeat or claim. An
illegal request raises before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studies.errors import StorageError, command
from studies.spec.script import OWN_ATTRIBUTES
from studies.stop_reasons import BY_HAND, CANCELLED, EXTENSIONS, require_open

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from studies.spec.space import Parameter
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import Status, StudyRecord


@dataclass(frozen=True, kw_only=True)
class Enqueued:
    """A new WAITING trial."""

    number: int
    params: Mapping[str, Any]
    is_checked: bool
    """Whether the parameters were checked: against the space, or against those of earlier trials."""
    conditions: Mapping[str, str]
    """Parameters that are used only if another one, which the sampler will draw, has a certain value."""
    has_room: bool
    """Whether the budget has room for the trial, beside those that run and wait."""


def pause(storage: PostgresStorage, record: StudyRecord) -> bool:
    """Pause a study: its workers stay and wait, and no trial runs until :func:`resume`.

    What happens to a running trial:

    1. The answer to its next report or heartbeat says that the study is paused (``Lease.interrupted``).
    2. ``trial.stop_requested`` becomes true, and at its next step the objective saves a checkpoint and raises
       ``Interrupted``. If the objective ignores this, ``should_prune()`` or the next report raises it.
    3. The worker requeues the trial: RUNNING → WAITING, with its number, parameters, reports and checkpoint.
    4. After :func:`resume` any worker claims it and continues from the checkpoint.

    Returns:
        Whether the study was not paused before.

    Raises:
        StorageError: the study has ended, or stock Optuna made it.
    """
    now = _steerable_status(storage, record)
    require_open(now)
    if not now.paused:
        storage.budgets.pause(record)
    return not now.paused


def stop(storage: PostgresStorage, record: StudyRecord) -> bool:
    """Stop a study: running trials are requeued at their next step, as by :func:`pause`, and the workers exit.

    Returns:
        Whether the study was not stopped before.

    Raises:
        StorageError: the study has ended for another reason, or stock Optuna made it.
    """
    now = _steerable_status(storage, record)
    if now.ended == BY_HAND:
        return False
    require_open(now)
    storage.budgets.stop(record, BY_HAND)
    return True


def resume(storage: PostgresStorage, record: StudyRecord) -> bool:
    """Resume a study after :func:`pause` or :func:`stop`, or after its objective or sampler stopped it.

    Returns:
        Whether the study did not run before.

    Raises:
        StorageError: the study has ended by its budget, which only `extend` changes, or stock Optuna made it.
    """
    now = _steerable_status(storage, record)
    # Clearing the stop would not help: at the next claim the budget would end the study again.
    if now.ended in EXTENSIONS:
        require_open(now)
    if now.ended is None and not now.paused:
        return False
    storage.budgets.resume(record)
    return True


def cancel(storage: PostgresStorage, record: StudyRecord, number: int) -> bool:
    """Cancel a trial: it becomes FAIL with the error "cancelled", and counts neither as finished nor as a failure.

    Returns:
        Whether the trial has ended; if not, its worker ends it at the next step.

    Raises:
        TrialNotFound: there is no such trial.
        StorageError: it is finished.
    """
    trial = storage.trial(record, number)
    if not trial.state.is_finished():
        storage.cancel(trial)
        # A dead worker has no next step: its expired lease ends the trial here.
        storage.leases.requeue_expired(record)
        trial = storage.trial(record, number)
        # It may have ended by itself at this very moment: then it is not cancelled.
        if trial.user_attrs.get("error") == CANCELLED or not trial.state.is_finished():
            return trial.state.is_finished()
    raise StorageError(
        f"trial {number} of study {record.name!r} {_is(trial)}; only waiting and running trials can be cancelled"
    )


def enqueue(storage: PostgresStorage, record: StudyRecord, texts: Iterable[str]) -> Enqueued:
    """Add a WAITING trial with given parameters; workers claim it before they create a new one.

    Args:
        storage: where the study is.
        record: the study.
        texts: ``NAME=VALUE``, as :func:`studies.spec.params.read_params` takes them.

    Raises:
        SpecError: a parameter is not in the space; without a space, it differs from those of earlier trials.
        StorageError: the study has ended.
    """
    from studies.spec.params import read_params
    from studies.spec.space import observed_space
    from studies.storage.reader import StudyReader

    space = record.spec.space if record.spec else {}
    if not space:  # the objective suggests for itself: only earlier trials show its parameters
        space = observed_space(StudyReader(storage, record).distributions())
    params = read_params(texts, space)
    require_open(storage.status(record))
    return enqueue_params(storage, record, params, space)


def enqueue_params(
    storage: PostgresStorage, record: StudyRecord, params: Mapping[str, Any], space: Mapping[str, Parameter]
) -> Enqueued:
    """Add a WAITING trial with parameters that were checked against ``space``, which may be empty.

    The study is open.
    """
    from studies.spec.params import open_conditions

    # As Optuna's enqueue_trial.
    number = add_waiting(storage, record, system_attrs={"fixed_params": dict(params)})
    now = storage.status(record)
    # Read after the trial was added: it is one of those that wait.
    begun = sum(count for state, count in now.trials.items() if state != "fail")
    return Enqueued(
        number=number,
        params=params,
        is_checked=bool(space),
        conditions=open_conditions(params, space),
        has_room=now.budget is None or begun <= now.budget.trials,
    )


def retry(storage: PostgresStorage, record: StudyRecord, number: int) -> int:
    """Add a WAITING trial with the parameters of the failed trial ``number``.

    Returns:
        The number of the new trial.

    Raises:
        TrialNotFound: there is no such trial.
        StorageError: the trial did not fail or was retried before, or the study has ended.
    """
    from studies.trial import SEED

    trial = storage.trial(record, number)
    if trial.state.name != "FAIL":
        raise StorageError(f"trial {number} of study {record.name!r} {_is(trial)}; only failed trials can be retried")
    for other in storage.trials(record):
        if number in _history(other) and other.state.name != "FAIL":
            raise StorageError(
                f"trial {number} of study {record.name!r} is retried already: trial {other.number} {_is(other)}; "
                f"see: {command('show', record.name, other.number)}"
            )
    require_open(storage.status(record))
    # The whole chain, as Optuna has it: a retry of a retry still names the first trial.
    history = [*_history(trial), number]
    # As Optuna's RetryHeartbeatStaleTrialCallback, but without the pruner's attributes: the new trial starts at step 0.
    return add_waiting(
        storage,
        record,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={key: value for key, value in trial.user_attrs.items() if key not in OWN_ATTRIBUTES},
        system_attrs={
            "fixed_params": {**trial.system_attrs.get("fixed_params", {}), **trial.params},
            **{key: value for key, value in trial.system_attrs.items() if key == SEED},
            "failed_trial": history[0],
            "retry_history": history,
        },
    )


def add_waiting(storage: PostgresStorage, record: StudyRecord, *, token: str | None = None, **contents: Any) -> int:
    """Create a WAITING trial; returns its number. Of several with one ``token``, a UUID, the first is made."""
    import optuna

    template = optuna.create_trial(state=optuna.trial.TrialState.WAITING, **contents)
    return storage.get_trial(storage.create_new_trial(record.study_id, template, token=token)).number


def _steerable_status(storage: PostgresStorage, record: StudyRecord) -> Status:
    # Stock Optuna's workers read neither pause nor stop.
    record.require_spec("its workers would not obey; end them where they run")
    return storage.status(record)


def _history(trial: FrozenTrial) -> list[int]:
    """The numbers of the trials that this one retries, the oldest first."""
    return list(trial.system_attrs.get("retry_history", []))


def _is(trial: FrozenTrial) -> str:
    if trial.state.name == "FAIL":
        return "was cancelled" if trial.user_attrs.get("error") == CANCELLED else "has failed"
    return f"is {trial.state.name.lower()}"
