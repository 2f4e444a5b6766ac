"""The contents of the runs of a study and of its trials. Pure: the same study gives the same runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import tomli_w
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils import validation
from optuna.trial import FrozenTrial, TrialState

from studies.mirror.names import MAX_PARAM, MAX_RUN, Legal
from studies.stop_reasons import FAILURES
from studies.storage.records import Attempt, Point, Status, StudyRecord
from studies.trial import is_feasible
from studies.values import to_json, to_text

#: The tags by which the mirror knows its runs.
STUDY_TAG: Final = "studyhall.study"
TRIAL_TAG: Final = "studyhall.trial"
#: In the study's run: the identity of the database.
DATABASE_TAG: Final = "studyhall.database"
#: MLflow's own tag, which nests one run under another.
PARENT_TAG: Final = "mlflow.parentRunId"
#: Tags set at creation: other mirrors and MLflow's pages recognize the run from its first moment.
KNOWN_BY: Final = (STUDY_TAG, TRIAL_TAG, DATABASE_TAG, PARENT_TAG, "mlflow.source.name", "mlflow.user")
#: In the study's run: the trials that MLflow refuses, by number.
REFUSED_TAG: Final = "studyhall.refused"
#: The value of :data:`TRIAL_TAG` in the run that stands for the study itself.
WHOLE_STUDY: Final = "study"
#: Seconds after which no trial is expected that was finished earlier than one that is known.
SETTLED: Final = 5.0

#: What MLflow takes in a request: 1,000 items in all, and bytes of JSON, of which some stay for what is around them.
MAX_PARAMS = MAX_TAGS = validation.MAX_PARAMS_TAGS_PER_BATCH
MAX_METRICS = validation.MAX_ENTITIES_PER_BATCH - MAX_PARAMS - MAX_TAGS
MAX_BYTES = int(0.9 * validation.MAX_BATCH_LOG_REQUEST_SIZE)

STATUS: Final = {
    TrialState.RUNNING: "RUNNING",
    TrialState.WAITING: "SCHEDULED",
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAIL: "FAILED",
}
#: Of MLflow's, those in which nothing more is written to a run.
OVER: Final = ("FINISHED", "KILLED", "FAILED")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents that a run should have."""

    name: str
    status: str
    start_time: int
    """Milliseconds since 1970; so ``end_time``."""
    end_time: int | None
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    """The full texts of values that were cut, by SHA-256."""


def study_tag(name: str, uid: str | None) -> str:
    """What :data:`STUDY_TAG` says in all runs of a study, before it is made legal."""
    return uid or f"made by Optuna: {name}"


@dataclass(kw_only=True)
class Known:
    """The contents that a run has in MLflow."""

    run_id: str
    status: str
    start_time: int
    """Milliseconds since 1970; so ``end_time``."""
    end_time: int | None
    tags: dict[str, str]
    params: dict[str, str]
    metrics: set[tuple[str, int]]
    """By key and step."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What fits into one ``log_batch``."""

    metrics: list[Metric] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    tags: list[RunTag] = field(default_factory=list)

    def add(self, item: Metric | Param | RunTag) -> None:
        if isinstance(item, Metric):
            self.metrics.append(item)
        elif isinstance(item, Param):
            self.params.append(item)
        else:
            self.tags.append(item)

    def is_full(self) -> bool:
        return len(self.metrics) == MAX_METRICS or len(self.params) == MAX_PARAMS or len(self.tags) == MAX_TAGS


def of_trial(
    study: str,
    names: Sequence[str],
    trial: FrozenTrial,
    attempt: Attempt | None,
    points: Sequence[Point],
    parent: str,
) -> Contents:
    """The run of a trial that has begun.

    Args:
        study: the value of :data:`STUDY_TAG`.
        names: of what the objective returns.
        trial: the trial.
        attempt: who ran it last; ``None`` for a stock Optuna worker.
        points: its named metrics, some or all.
        parent: the id of the study's run.
    """
    legal = Legal()
    failed = trial.state == TrialState.FAIL
    tags = {
        STUDY_TAG: study,
        TRIAL_TAG: str(trial.number),
        PARENT_TAG: parent,
        "mlflow.source.name": "studyhall",
        "mlflow.user": "studyhall",
        "state": trial.state.name,
        **{
            legal.key(key, "user."): _text(value)
            for key, value in trial.user_attrs.items()
            if not (failed and key in _OF_FAILURES)
        },
    }
    if attempt:
        tags |= {"worker": attempt.worker, "attempts": str(attempt.times)}
        tags |= {key: value for key, value in (("host", attempt.host), ("device", attempt.device)) if value}
    if failed:
        tags["reason"] = _text(trial.user_attrs.get("error", "failed without a reason"))
        if "traceback" in trial.user_attrs:
            tags["mlflow.note.content"] = f"```\n{trial.user_attrs['traceback']}\n```"
    elif trial.state == TrialState.PRUNED:
        tags["reason"] = f"pruned at step {max(trial.intermediate_values, default=0)}"
    assert trial.datetime_start is not None  # it has begun
    return Contents(
        name=f"trial {trial.number}",
        status=STATUS[trial.state],
        start_time=milliseconds(trial.datetime_start),
        end_time=milliseconds(trial.datetime_complete) if trial.datetime_complete else None,
        params={legal.key(name): legal.value(_text(value), MAX_PARAM) for name, value in trial.params.items()},
        metrics=list(_metrics(legal, names, trial, points)),
        tags=_tags(legal, tags),
        texts=legal.texts,
    )


def of_study(
    study: str,
    record: StudyRecord,
    names: Sequence[str],
    now: Status,
    trials: Sequence[FrozenTrial],
    *,
    database: str,
    is_minimized: bool,
    final: Mapping[str, Any] | None = None,
) -> Contents:
    """The run of a study. Its times are those of its trials; of a study without any, its end is its start.

    Args:
        study: the value of :data:`STUDY_TAG`.
        record: the study.
        names: of what the objective returns.
        now: its state.
        trials: all of them.
        database: the value of :data:`DATABASE_TAG`.
        is_minimized: whether the lowest value is the best; where there is one objective.
        final: what ``finalize`` stored.
    """
    legal = Legal()
    best = legal.key(f"best_{names[0]}")
    began = min((t.datetime_start for t in trials if t.datetime_start), default=datetime.now())
    end = max((t.datetime_complete for t in trials if t.datetime_complete), default=began)
    tags = {
        STUDY_TAG: study,
        TRIAL_TAG: WHOLE_STUDY,
        DATABASE_TAG: database,
        "mlflow.source.name": "studyhall",
        "mlflow.user": "studyhall",
        "state": now.ended or ("paused" if now.paused else "running"),
        **{key: str(count) for key, count in now.trials.items()},
    }
    if now.budget and now.budget.trial_limit:
        tags["budget"] = str(now.budget.trial_limit)
    if spec := public_spec(record, now):
        tags |= {
            "spec": tomli_w.dumps(spec),
            "objective": spec["objective"]["path"],
            "sampler": record.spec.sampler.name if record.spec else "",
            "pruner": record.spec.pruner.name if record.spec else "",
        }
    metrics: list[Metric] = []
    if now.best:
        tags |= {"best_trial": str(now.best.number), "best_params": to_json(now.best.params)}
        tags["best_value"] = f"{now.best.value!r}"
        history = _best_so_far(trials, is_minimized=is_minimized, is_over=now.ended is not None)
        metrics = [Metric(best, value, at, step) for step, value, at in history]
    if final:
        tags |= {f"final.{key}": _text(value) for key, value in final.items() if key != "metrics"}
        at = _of_metric(datetime.fromisoformat(final["at"]))
        metrics += [
            Metric(legal.key(name, reserved=(best,)), value, at, final["looks"])
            for name, value in final["metrics"].items()
        ]
    return Contents(
        name=legal.title(record.name, MAX_RUN),
        status=_study_status(now),
        start_time=milliseconds(began),
        end_time=milliseconds(end) if now.ended else None,
        metrics=metrics,
        tags=_tags(legal, tags),
        texts=legal.texts,
    )


def _best_so_far(
    trials: Sequence[FrozenTrial], *, is_minimized: bool, is_over: bool
) -> Iterator[tuple[int, float, int]]:
    """The best value after each trial that improved it, and at the end of the study: how many were finished then, the
    value, and the time in milliseconds.

    In the order in which trials were finished: a mirror that comes late writes what one that was there did. What was
    finished a moment ago is left for the next time: another trial, finished before it, may still be on its way.
    """
    finished = sorted(
        (t.datetime_complete, t.number, t)
        for t in trials
        if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and t.datetime_complete
    )
    if not finished:
        return
    end, best, told = finished[-1][0], None, 0
    for count, (at, _, trial) in enumerate(finished, start=1):
        if not is_over and (end - at).total_seconds() < SETTLED:
            return
        value = trial.value if trial.state == TrialState.COMPLETE and is_feasible(trial) else None
        if value is not None and (best is None or (value < best if is_minimized else value > best)):
            best, told = value, count
            yield count, value, _of_metric(at)
    if best is not None and told < len(finished):
        yield len(finished), best, _of_metric(end)


def public_spec(record: StudyRecord, now: Status) -> dict[str, Any] | None:
    """The study file without secrets, with the current budget; ``None`` for a study of stock Optuna."""
    return record.spec.to_public_file(now.budget) if record.spec else None


def batches(contents: Contents, known: Known) -> Iterator[Batch]:
    """The missing contents of a run, in batches within MLflow's limits."""
    batch, size = Batch(), 0
    for item in _lacking(contents, known):
        more = _size(item)
        if batch.is_full() or size + more > MAX_BYTES:
            yield batch
            batch, size = Batch(), 0
        batch.add(item)
        size += more
    if size:
        yield batch


def _size(item: Metric | Param | RunTag) -> int:
    """Bytes in a request, at most."""
    return 200 + len(item.key) + (0 if isinstance(item, Metric) else len(json.dumps(item.value)))


def _lacking(contents: Contents, known: Known) -> Iterator[Metric | Param | RunTag]:
    yield from (Param(key, value) for key, value in contents.params.items() if key not in known.params)
    yield from (RunTag(key, value) for key, value in contents.tags.items() if known.tags.get(key) != value)
    yield from (m for m in contents.metrics if (m.key, m.step) not in known.metrics)


def milliseconds(local: datetime) -> int:
    """A time in MLflow's milliseconds. Never 0, which MLflow's client replaces by the current time."""
    return round(local.timestamp() * 1000) or 1


def _of_metric(local: datetime) -> int:
    """The same for a metric, for which MLflow refuses times before 1970."""
    return max(0, milliseconds(local))


def _tags(legal: Legal, tags: Mapping[str, str]) -> dict[str, str]:
    """``tags`` with legal values, and further ones for the texts that were too long."""
    values = {key: legal.value(value) for key, value in tags.items()}
    return values | legal.tags()


_OF_FAILURES = ("error", "traceback")


def _study_status(now: Status) -> str:
    if now.ended is None:
        return "RUNNING"
    if now.ended in ("complete", "timeout", "target"):
        return "FINISHED"
    return "FAILED" if now.ended in FAILURES else "KILLED"


def _metrics(legal: Legal, names: Sequence[str], trial: FrozenTrial, points: Sequence[Point]) -> Iterator[Metric]:
    """The named metrics, the reported values under the name of the objective's, and the final values.

    The times are the database's, never the mirror's own: so what two mirrors write is the same.
    """
    assert trial.datetime_start is not None  # it has begun
    began = _of_metric(trial.datetime_start)
    times = {point.step: _of_metric(point.at) for point in points if point.at}
    named = {(point.step, point.name): point.value for point in points}
    final, reported = [f"final_{name}" for name in names], f"reported_{names[0]}"
    ours = (*final, reported)
    for point in points:
        yield Metric(legal.key(point.name, reserved=ours), point.value, times.get(point.step, began), point.step)
    for step, value in trial.intermediate_values.items():
        # A metric of the objective's name may differ from what was reported: then both are written, under two names.
        given = named.get((step, names[0]))
        if given is None or not _same(given, value):
            key = legal.key(names[0], reserved=ours) if given is None else legal.key(reported)
            yield Metric(key, value, times.get(step, began), step)
    last = max(trial.intermediate_values, default=0)
    end = _of_metric(trial.datetime_complete) if trial.datetime_complete else began
    for name, final_name, value in zip(names, final, trial.values or (), strict=False):
        if not trial.intermediate_values and (0, name) not in named:
            yield Metric(legal.key(name, reserved=ours), value, end, 0)
        yield Metric(legal.key(final_name), value, end, last)


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _text(value: Any) -> str:
    return to_text(value)
