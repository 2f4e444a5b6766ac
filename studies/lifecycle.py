"""What a person does to a study that runs: pause, resume, stop; cancel, enqueue and retry trials.

All of it goes through the database. Workers learn of it with their trial's next step, or with their next look
for a trial. What can't be done raises before anything is written.
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

    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import Status, StudyRecord


@dataclass(frozen=True, kw_only=True)
class Enqueued:
    """A trial that waits for a worker."""

    number: int
    params: Mapping[str, Any]
    is_checked: bool
    """Whether anything is known of the parameters, by which they could be checked."""
    conditions: Mapping[str, str]
    """The parameters that count only under a condition which the sampler decides."""
    has_room: bool
    """Whether the budget has room for it beside what runs and waits already."""


def pause(storage: PostgresStorage, record: StudyRecord) -> bool:
    """Let no trial run for now: the running ones are given back at their next step, and workers wait.

    Returns:
        Whether that is new.

    Raises:
        StorageError: the study has ended, or was not made by studyhall.
    """
    now = _status_of_ours(storage, record)
    require_open(now)
    if not now.paused:
        storage.budgets.pause(record)
    return not now.paused


def stop(storage: PostgresStorage, record: StudyRecord) -> bool:
    """End the workers of a study: the running trials are given back at their next step.

    Returns:
        Whether that is new.

    Raises:
        StorageError: the study has ended otherwise, or was not made by studyhall.
    """
    now = _status_of_ours(storage, record)
    if now.ended == BY_HAND:
        return False
    require_open(now)
    storage.budgets.stop(record, BY_HAND)
    return True


def resume(storage: PostgresStorage, record: StudyRecord) -> bool:
    """Let trials run again, after :func:`pause` or :func:`stop`, or after its objective stopped the study.

    Returns:
        Whether that is new.

    Raises:
        StorageError: the study has ended in a way that only another budget undoes, or was not made by studyhall.
    """
    now = _status_of_ours(storage, record)
    if now.ended in EXTENSIONS:
        require_open(now)
    if now.ended is None and not now.paused:
        return False
    storage.budgets.resume(record)
    return True


def cancel(storage: PostgresStorage, record: StudyRecord, number: int) -> bool:
    """End a trial, which becomes FAIL, with the error "cancelled", and counts as neither done nor failed.

    Returns:
        Whether it has ended; else its worker ends it at its next step.

    Raises:
        TrialNotFound: there is no such trial.
        StorageError: it is finished.
    """
    trial = storage.trial(record, number)
    if not trial.state.is_finished():
        storage.cancel(trial)
        # A worker that is gone has no next step.
        storage.leases.sweep(record)
        trial = storage.trial(record, number)
        if trial.user_attrs.get("error") == CANCELLED or not trial.state.is_finished():
            return trial.state.is_finished()
    raise StorageError(
        f"trial {number} of study {record.name!r} {_is(trial)}; only waiting and running trials can be cancelled"
    )


def enqueue(storage: PostgresStorage, record: StudyRecord, texts: Iterable[str]) -> Enqueued:
    """Let a trial with chosen parameters wait; a worker takes it before it begins a new one.

    Args:
        storage: where the study is.
        record: the study.
        texts: ``NAME=VALUE``, as :func:`studies.spec.params.read_params` takes them.

    Raises:
        SpecError: a parameter is not one of the study's space; where that has none, not as the trials before had it.
        StorageError: the study has ended.
    """
    from studies.spec.params import open_conditions, read_params
    from studies.spec.space import observed_space
    from studies.storage.reader import StudyReader

    space = record.spec.space if record.spec else {}
    if not space:  # the objective suggests for itself: what trials have had is what is known
        space = observed_space(StudyReader(storage, record).distributions())
    params = read_params(texts, space)
    now = storage.status(record)
    require_open(now)
    number = _add_waiting(storage, record, system_attrs={"fixed_params": params})  # as Optuna's enqueue_trial
    return Enqueued(
        number=number,
        params=params,
        is_checked=bool(space),
        conditions=open_conditions(params, space),
        has_room=now.budget is None or now.finished + now.trials["running"] + now.trials["waiting"] < now.budget.trials,
    )


def retry(storage: PostgresStorage, record: StudyRecord, number: int) -> int:
    """Let a trial wait that has the parameters of the failed trial ``number``.

    Returns:
        The number of the new trial.

    Raises:
        TrialNotFound: there is no such trial.
        StorageError: it has not failed, or is retried already, or the study has ended.
    """
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
    history = [*_history(trial), number]
    # As Optuna's RetryHeartbeatStaleTrialCallback, but without the pruner's notes, which are the failed trial's own.
    return _add_waiting(
        storage,
        record,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={key: value for key, value in trial.user_attrs.items() if key not in OWN_ATTRIBUTES},
        system_attrs={
            "fixed_params": {**trial.system_attrs.get("fixed_params", {}), **trial.params},
            "failed_trial": history[0],
            "retry_history": history,
        },
    )


def _add_waiting(storage: PostgresStorage, record: StudyRecord, **contents: Any) -> int:
    """Create a WAITING trial; returns its number."""
    import optuna

    template = optuna.create_trial(state=optuna.trial.TrialState.WAITING, **contents)
    return storage.get_trial(storage.create_new_trial(record.study_id, template)).number


def _status_of_ours(storage: PostgresStorage, record: StudyRecord) -> Status:
    record.require_spec("its workers would not obey; end them where they run")
    return storage.status(record)


def _history(trial: FrozenTrial) -> list[int]:
    """The trials of which this one is a retry, the first one first."""
    return list(trial.system_attrs.get("retry_history", []))


def _is(trial: FrozenTrial) -> str:
    if trial.state.name == "FAIL":
        return "was cancelled" if trial.user_attrs.get("error") == CANCELLED else "has failed"
    return f"is {trial.state.name.lower()}"
