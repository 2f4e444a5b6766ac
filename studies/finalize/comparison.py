"""The comparison: the best trials of a study run again with fresh seeds, as a study of their own.

It is a study like any other, ``NAME.finalize``: workers on any machine help, and what was finished stays. Its trials
are enqueued, with the parameters of a candidate and one of the seeds each. All candidates have the same seeds, which
makes their scores pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from optuna.trial import FrozenTrial, TrialState

from studies import lifecycle
from studies.errors import SpecError, StudyhallError, command
from studies.finalize.choice import Candidate
from studies.spec.sections import BudgetSpec, NotifySpec, PrunerSpec, SamplerSpec
from studies.spec.study import StudySpec, check_name
from studies.stop_reasons import BY_HAND
from studies.trial import SEED, is_feasible
from studies.values import key_of

if TYPE_CHECKING:
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord

SUFFIX = ".finalize"
#: The attribute of a trial of the comparison: the number of the candidate in the study.
CANDIDATE = "candidate"
#: The attribute of the comparison: the UUID of the study whose trials it compares.
_OF = "finalize_of"


def top_trials(storage: PostgresStorage, record: StudyRecord, top: int, *, is_at_most: bool) -> list[FrozenTrial]:
    """The best COMPLETE trials that keep their constraints, best first, each with parameters of its own.

    Args:
        storage: where the study is.
        record: the study.
        top: how many.
        is_at_most: whether fewer will do.

    Raises:
        NothingFinished: there is none.
        StorageError: the study has several objectives.
        StudyhallError: there are fewer than ``top``.
    """
    storage.best(record)  # for its errors
    is_minimized = storage.get_study_directions(record.study_id)[0].name == "MINIMIZE"
    complete = [trial for trial in storage.trials(record) if trial.state == TrialState.COMPLETE and is_feasible(trial)]
    # Of equal values the lower number first, as PostgresStorage.best has it.
    complete.sort(key=lambda trial: ((1 if is_minimized else -1) * trial.values[0], trial.number))
    best_of: dict[str, FrozenTrial] = {}
    for trial in complete:
        best_of.setdefault(key_of(trial.params), trial)
    different = list(best_of.values())
    if len(different) < top and not is_at_most:
        raise StudyhallError(
            f"--top {top}: study {record.name!r} has {len(different)} COMPLETE trials with different parameters; "
            f"legal are 1 to {len(different)}; for more of them: {command('extend', record.name, '--trials', '+10')}"
        )
    return different[:top]


def fresh_seeds(spec: StudySpec, count: int) -> list[int]:
    """Seeds of 32 bits that no trial of the study has, the same whenever they are asked for."""
    # The text differs from that of any trial's seed (StudySpec.seed_of).
    digests = (hashlib.sha256(f"{spec.seed}/finalize/{i}".encode()).digest() for i in range(count))
    return [int.from_bytes(digest[:4], "big") for digest in digests]


def spec_of(spec: StudySpec) -> StudySpec:
    """The spec of the comparison: enqueued trials alone, all of which run to their end.

    Raises:
        SpecError: the study's name is too long for that of a comparison.
    """
    name = f"{spec.name}{SUFFIX}"
    try:
        check_name(name)
    except ValueError as error:
        raise SpecError(f"the comparison of study {spec.name!r} needs a study of its own: {error}") from None
    space = {key: parameter.model_copy(update={"prior": None}) for key, parameter in spec.space.items()}
    comparison = spec.model_copy(
        update={
            "space": space,  # a prior is for a sampler that draws
            "name": name,
            "budget": BudgetSpec(),  # grows with what is enqueued
            # Draws nothing: a worker stops the study once no trial waits.
            "sampler": SamplerSpec(name="enqueued"),
            "pruner": PrunerSpec(name="none"),  # a PRUNED trial has no final score, and its candidate would be out
            "scheduler": None,
            "notify": NotifySpec(),
        }
    )
    # Checked as whoever reads it will: a study whose spec is illegal must not be stored.
    return StudySpec.from_json(comparison.to_json())


def enqueue(
    storage: PostgresStorage, record: StudyRecord, spec: StudySpec, trials: Sequence[FrozenTrial], seeds: Sequence[int]
) -> StudyRecord:
    """Create the comparison, or join it, and enqueue each candidate with each seed that it has not yet.

    Returns:
        The comparison.

    Raises:
        SpecError: the study's name is too long for that of a comparison.
        SpecMismatch, StudyhallError: another study has the comparison's name, or a person has stopped it.
    """
    comparison, _ = storage.create_study(spec_of(spec))
    # A study that was deleted and made anew has the same name, and other trials of the same numbers.
    of = storage.get_study_user_attrs(comparison.study_id).get(_OF)
    if of is None:
        storage.set_study_user_attr(comparison.study_id, _OF, record.uid)
    elif of != record.uid:
        raise StudyhallError(
            f"study {comparison.name!r} compares trials of an earlier study {record.name!r}; "
            f"delete it with: {command('delete', comparison.name)}"
        )
    now = storage.status(comparison)
    if now.ended == BY_HAND:
        raise StudyhallError(
            f"study {comparison.name!r} was stopped by hand; go on with: {command('resume', comparison.name)}, then "
            "the same command"
        )
    there = storage.trials(comparison)
    known = {_key(trial) for trial in there}
    # Seed by seed: after an interruption all candidates have about as many.
    missing = [(trial, seed) for seed in seeds for trial in trials if (trial.number, seed) not in known]
    for trial, seed in missing:
        lifecycle.add_waiting(
            storage,
            comparison,
            # Two commands may begin at the same moment: each pair trains once.
            token=str(uuid5(UUID(comparison.uid), f"{trial.number}/{seed}")),
            user_attrs={CANDIDATE: trial.number},
            system_attrs={"fixed_params": trial.params, SEED: seed},
        )
    # As many failures as trials: a candidate that fails must not end the comparison of the others. Counted again after
    # each change: a command that began beside this one adds trials, and either may overwrite the other's budget.
    budget = now.budget and now.budget.trials
    while budget != (count := len(storage.trials(comparison))):
        storage.budgets.extend(comparison, trials=count, max_failures=count)
        budget = count
    # A worker stopped it when no trial waited; by now some do.
    if now.ended == "stopped" and (missing or now.trials["waiting"]):
        storage.budgets.resume(comparison)
    return storage.find_study(comparison.name)  # again, with its present budget


def results(
    storage: PostgresStorage,
    comparison: StudyRecord,
    trials: Sequence[FrozenTrial],
    seeds: Sequence[int],
    n_parameters: Callable[[Mapping[str, Any]], int] | None,
) -> list[Candidate]:
    """The candidates with their scores, in the order of ``trials``.

    Raises:
        StudyhallError: one of their trials has not run.
    """
    ran = [trial for trial in storage.trials(comparison) if trial.state.is_finished()]
    if {(trial.number, seed) for trial in trials for seed in seeds} - {_key(trial) for trial in ran}:
        raise StudyhallError(f"study {comparison.name!r} has trials that have not run; go on with the same command")
    # COMPLETE ones alone: a pair that failed and was retried has two trials.
    scores = {_key(trial): trial.value for trial in ran if trial.state == TrialState.COMPLETE}
    return [
        Candidate(
            trial=trial.number,
            params=trial.params,
            tuned=trial.values[0],
            values=[scores.get((trial.number, seed)) for seed in seeds],
            n_parameters=n_parameters(trial.params) if n_parameters else None,
        )
        for trial in trials
    ]


def _key(trial: FrozenTrial) -> tuple[object, object]:
    """(candidate, seed)."""
    # None where a person has enqueued the trial, which then counts for no candidate.
    return trial.user_attrs.get(CANDIDATE), trial.system_attrs.get(SEED)
