"""The next study: the best trials of another one are enqueued, or all of them are evidence for the sampler."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from studies.errors import SpecError, command
from studies.lifecycle import Enqueued, enqueue_params
from studies.spec.constraints import Constraint
from studies.stop_reasons import require_open
from studies.storage.evidence import ForeignTrial
from studies.text import counted
from studies.trial import is_feasible
from studies.values import to_text

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from studies.spec.space import Parameter
    from studies.spec.study import StudySpec
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord

#: The samplers that learn from trials which they did not draw.
LEARNING: Final = ("tpe", "gp", "curves")
#: The most trials that are taken from one study, the newest: a sampler looks at all of them for each parameter.
MOST: Final = 1_000


@dataclass(frozen=True, kw_only=True)
class Copied:
    """A trial of another study that was enqueued."""

    number: int
    """In the other study."""
    enqueued: Enqueued
    left_out: Sequence[str]
    """The parameters that are not in the space, or beyond it: they are sampled."""


def collect(storage: PostgresStorage, spec: StudySpec, sources: Sequence[str]) -> list[ForeignTrial]:
    """The trials of other studies that can be evidence for the study of ``spec``.

    They are the COMPLETE ones; for ``curves``, which learns from curves that have not ended, pruned and paused ones as
    well. Without them its evidence would be of good trials alone, and say nothing of where the bad ones are.

    Raises:
        StudyNotFound: one of ``sources`` does not exist.
        SpecError: the sampler does not learn from it; the study has no space, or none that overlaps; the other study
            has other objectives, or no such trial.
    """
    if spec.sampler.name not in LEARNING:
        raise SpecError(
            f"sampler.name = {spec.sampler.name!r} does not learn from trials of other studies; "
            f"use {', '.join(LEARNING)}, or enqueue the best: {command('enqueue', spec.name, '--from', sources[0])}"
        )
    if not spec.space:
        raise SpecError(
            f"study {spec.name!r} has no [space], so it is not known where it overlaps with others; enqueue their best "
            f"trials instead: {command('enqueue', spec.name, '--from', sources[0])}"
        )
    found = []
    for source in dict.fromkeys(sources):
        record = storage.find_study(source)
        if record.name == spec.name:
            raise SpecError(f"study {source!r} cannot be its own evidence; name another study")
        _require_same_objectives(storage, record, spec)
        known = [trial for trial in storage.trials(record) if _teaches(trial, spec)]
        if not known:
            raise SpecError(
                f"study {source!r} has no complete trial to learn from; leave it out, or let it finish some first"
            )
        trials = [trial for trial in known if _overlap(trial, spec)]
        if not trials:
            params = dict.fromkeys(name for trial in known for name in trial.params)
            raise SpecError(
                f"study {source!r} has no complete trial within the space of {spec.name!r}: its parameters are "
                f"{', '.join(params) or 'none'}, and the space has {', '.join(spec.space)}; leave it out"
            )
        newest = trials[-MOST:]
        metrics = storage.metrics.last(newest)
        found += [_foreign(source, trial, spec, metrics[trial.number]) for trial in newest]
    return found


def doubts(storage: PostgresStorage, record: StudyRecord, sources: Iterable[str]) -> list[str]:
    """Why the values of other studies may not compare with those of a study, a line for each of them.

    They are taken as they are: no sampler here rescales them.
    """
    here, found = _facts(storage, record), []
    for source in dict.fromkeys(sources):
        there = _facts(storage, storage.find_study(source))
        # A fingerprint is known once a worker has begun: one alone says nothing.
        known = [name for name in {**there, **here} if not name.startswith("data ") or name in there.keys() & here]
        differing = [name for name in known if there.get(name) != here.get(name)]
        shown = [
            f"{name} is {there.get(name, 'not given')} there and {here.get(name, 'not given')} here"
            for name in differing
        ]
        if shown:
            again = command("enqueue", record.name, "--from", source)
            found.append(
                f"the values of study {source!r} are taken as they are, though {'; '.join(shown)}; where they do not "
                f"compare, run a study without --warm-start and enqueue the best instead: {again}"
            )
    return found


def _facts(storage: PostgresStorage, record: StudyRecord) -> dict[str, str]:
    """What the values of a study depend on beside its parameters, as far as it is known."""
    if record.spec is None:
        return {"objective.path": "unknown"}
    objective, known = record.spec.objective, storage.environment(record) or {}
    return {
        "objective.path": objective.path,
        **{f"objective.args.{name}": to_text(value) for name, value in objective.args.items()},
        **({"the script's SHA-256": objective.sha256[:12]} if objective.sha256 else {}),
        **{name: str(value)[:12] for name, value in known.items() if name.startswith("data ")},
    }


def enqueue_top(storage: PostgresStorage, record: StudyRecord, source: str, top: int) -> list[Copied]:
    """Enqueue the parameters of the best trials of another study, as far as this one's space has them.

    Args:
        storage: where both studies are.
        record: the study that runs them.
        source: the other study's name.
        top: how many. Of several objectives the Pareto front comes first.

    Raises:
        StudyNotFound: there is no study ``source``.
        SpecError: none of its best trials has a parameter of the space.
        StudyhallError: it has no complete trial that keeps its constraints.
        StorageError: the study has ended.
    """
    from studies.spec.space import observed_space
    from studies.storage.reader import StudyReader

    other = storage.find_study(source)
    best = _best(storage, other)[:top] or storage.refuse_best(other)
    space = record.spec.space if record.spec else {}
    space = space or observed_space(StudyReader(storage, record).distributions())
    legal = [(trial, _legal(trial.params, space) if space else dict(trial.params)) for trial in best]
    if not any(params for _, params in legal):
        raise SpecError(
            f"no parameter of the best {counted(len(best), 'trial')} of {source!r} is in the space of "
            f"{record.name!r}, which has {', '.join(space)}"
        )
    require_open(storage.status(record))
    return [
        Copied(
            number=trial.number,
            enqueued=enqueue_params(storage, record, params, space),
            left_out=[name for name in trial.params if name not in params],
        )
        for trial, params in legal
        if params
    ]


def _best(storage: PostgresStorage, record: StudyRecord) -> list[FrozenTrial]:
    """The feasible COMPLETE trials, the best first."""
    front = storage.front(record)
    on_front = {trial.number for trial in front}
    # Of a single objective the front is its best trials, and the order is that of the values.
    rest = [trial for trial in _complete(storage, record) if is_feasible(trial) and trial.number not in on_front]
    directions = storage.get_study_directions(record.study_id)
    sign = 1 if directions[0].name == "MINIMIZE" else -1
    return [*front, *sorted(rest, key=lambda trial: (sign * trial.values[0], trial.number))]


def _complete(storage: PostgresStorage, record: StudyRecord) -> list[FrozenTrial]:
    return [trial for trial in storage.trials(record) if trial.state.name == "COMPLETE"]


def _require_same_objectives(storage: PostgresStorage, record: StudyRecord, spec: StudySpec) -> None:
    directions = [direction.name.lower() for direction in storage.get_study_directions(record.study_id)]
    names = storage.objective_names(record)
    if (directions, names) != (spec.all_directions, spec.metric_names):
        goal = " and ".join(f"{direction}s {name}" for direction, name in zip(directions, names, strict=True))
        raise SpecError(f"study {record.name!r} {goal}, and {spec.name!r} {spec.goal}: its values tell nothing here")


def _legal(params: Mapping[str, Any], space: Mapping[str, Parameter]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name in space and space[name].contains(value)}


def _teaches(trial: FrozenTrial, spec: StudySpec) -> bool:
    if trial.state.name == "COMPLETE":
        return True
    is_partial = spec.sampler.name == "curves" and trial.state.name in ("PRUNED", "WAITING")
    return is_partial and trial.last_step is not None and math.isfinite(trial.intermediate_values[trial.last_step])


def _overlap(trial: FrozenTrial, spec: StudySpec) -> dict[str, Any]:
    """The parameters of a trial that the space has; none if one of them has an illegal value."""
    legal = _legal(trial.params, spec.space)
    needed = {name for name in trial.params if name in spec.space}
    if spec.sampler.name in ("gp", "curves"):  # which take points of the whole space alone
        needed |= {name for name, parameter in spec.space.items() if parameter.applies(legal)}
    return legal if needed <= legal.keys() else {}


def _foreign(source: str, trial: FrozenTrial, spec: StudySpec, metrics: Mapping[str, float]) -> ForeignTrial:
    step = None if trial.state.name == "COMPLETE" else trial.last_step
    values = trial.values if step is None else [trial.intermediate_values[step]]
    known = {**metrics, **dict(zip(spec.metric_names, values, strict=True))}
    bounds = {name: Constraint.parse(text) for name, text in spec.constraints.items()}
    return ForeignTrial(
        source=source,
        number=trial.number,
        params=_overlap(trial, spec),
        values=values,
        constraints={name: bound.violation(known[name]) for name, bound in bounds.items() if name in known},
        step=step,
    )
