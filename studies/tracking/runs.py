"""What MLflow is told of a study and of a trial. Pure: the same study gives the same runs."""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, Final

import tomli_w
from mlflow.entities import Metric, Param, RunTag
from optuna.trial import FrozenTrial, TrialState

from studies.storage.postgres import Attempt, Point, Status, StudyRecord
from studies.values import to_json, to_text

#: The tags by which the mirror knows its runs.
STUDY_TAG: Final = "studyhall.study"
TRIAL_TAG: Final = "studyhall.trial"
#: MLflow's own, by which it shows one run under another.
PARENT_TAG: Final = "mlflow.parentRunId"
#: The value of :data:`TRIAL_TAG` in the run that stands for the study itself.
WHOLE_STUDY: Final = "study"

#: What MLflow takes in a request, and in a value.
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 800, 100, 100
MAX_PARAM, MAX_TAG, MAX_KEY = 6000, 5000, 250

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
    """What a run shall hold."""

    name: str
    status: str
    start_time: int
    """Milliseconds since 1970; so ``end_time``."""
    end_time: int | None
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()


@dataclass(kw_only=True)
class Known:
    """What MLflow has of a run."""

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

    metrics: Sequence[Metric]
    params: Sequence[Param]
    tags: Sequence[RunTag]


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
    tags = {
        STUDY_TAG: study,
        TRIAL_TAG: str(trial.number),
        PARENT_TAG: parent,
        "mlflow.source.name": "studyhall",
        "mlflow.user": "studyhall",
        "state": trial.state.name,
        **{f"user.{_key(key)}": _text(value) for key, value in trial.user_attrs.items() if key not in _OF_FAILURES},
    }
    if attempt:
        tags |= {"worker": attempt.worker, "attempts": str(attempt.times)}
        tags |= {key: value for key, value in (("host", attempt.host), ("device", attempt.device)) if value}
    if trial.state == TrialState.FAIL:
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
        tags={key: value[:MAX_TAG] for key, value in tags.items()},
        params={_key(name): _text(value)[:MAX_PARAM] for name, value in trial.params.items()},
        metrics=list(_metrics(names, trial, points)),
    )


def of_study(
    study: str, record: StudyRecord, names: Sequence[str], now: Status, trials: Sequence[FrozenTrial]
) -> Contents:
    """The run of a study. Its times are those of its trials; of a study without any, its end is its start."""
    began = min((t.datetime_start for t in trials if t.datetime_start), default=datetime.now())
    end = max((t.datetime_complete for t in trials if t.datetime_complete), default=began)
    tags = {
        STUDY_TAG: study,
        TRIAL_TAG: WHOLE_STUDY,
        "mlflow.source.name": "studyhall",
        "mlflow.user": "studyhall",
        "state": now.ended or ("paused" if now.paused else "running"),
        **{key: str(count) for key, count in now.trials.items()},
    }
    if now.budget:
        tags["budget"] = str(now.budget.trials)
    if spec := public_spec(record, now):
        tags |= {
            "spec": tomli_w.dumps(spec),
            "objective": spec["objective"]["path"],
            "sampler": record.spec.sampler.name if record.spec else "",
            "pruner": record.spec.pruner.name if record.spec else "",
        }
    metrics = []
    if now.best:
        tags |= {"best_trial": str(now.best.number), "best_params": to_json(now.best.params)}
        tags["best_value"] = f"{now.best.value!r}"
        if now.ended and now.best.value is not None:
            # Once the study has ended, so that any number of mirrors writes the same; after an extension anew.
            metrics = [Metric(_key(f"best_{names[0]}"), now.best.value, milliseconds(end), now.finished)]
    return Contents(
        name=record.name,
        status=_study_status(now),
        start_time=milliseconds(began),
        end_time=milliseconds(end) if now.ended else None,
        tags={key: value[:MAX_TAG] for key, value in tags.items()},
        metrics=metrics,
    )


def public_spec(record: StudyRecord, now: Status) -> dict[str, Any] | None:
    """The study file, with the budget as it stands, for everybody to see; ``None`` of a study of Optuna's."""
    return record.spec.to_public_file(now.budget) if record.spec else None


def batches(contents: Contents, known: Known) -> Iterator[Batch]:
    """What a run lacks of its contents, in pieces that MLflow takes."""
    metrics = iter([m for m in contents.metrics if (m.key, m.step) not in known.metrics])
    params = iter([Param(key, value) for key, value in contents.params.items() if key not in known.params])
    tags = iter([RunTag(key, value) for key, value in contents.tags.items() if known.tags.get(key) != value])
    while True:
        batch = Batch(
            metrics=list(islice(metrics, MAX_METRICS)),
            params=list(islice(params, MAX_PARAMS)),
            tags=list(islice(tags, MAX_TAGS)),
        )
        if not (batch.metrics or batch.params or batch.tags):
            return
        yield batch


def milliseconds(local: datetime) -> int:
    """MLflow's time of one of Optuna's."""
    return round(local.timestamp() * 1000)


_OF_FAILURES = ("error", "traceback")


def _study_status(now: Status) -> str:
    if now.ended is None:
        return "RUNNING"
    if now.ended in ("complete", "timeout", "target"):
        return "FINISHED"
    return "FAILED" if now.ended == "failures" else "KILLED"


def _metrics(names: Sequence[str], trial: FrozenTrial, points: Sequence[Point]) -> Iterator[Metric]:
    """The named metrics, the reported values under the name of the objective's, and the final values.

    The times are the database's, never the mirror's own: so what two mirrors write is the same.
    """
    assert trial.datetime_start is not None  # it has begun
    began = milliseconds(trial.datetime_start)
    times = {point.step: milliseconds(point.at) for point in points if point.at}
    named = {(point.step, point.name): point.value for point in points}
    for point in points:
        yield Metric(_key(point.name), point.value, times.get(point.step, began), point.step)
    for step, value in trial.intermediate_values.items():
        given = named.get((step, names[0]))
        if given is None or not _same(given, value):
            key = names[0] if given is None else f"reported_{names[0]}"
            yield Metric(_key(key), value, times.get(step, began), step)
    last = max(trial.intermediate_values, default=0)
    for name, value in zip(names, trial.values or (), strict=False):
        end = milliseconds(trial.datetime_complete) if trial.datetime_complete else began
        if not trial.intermediate_values and (0, name) not in named:
            yield Metric(_key(name), value, end, 0)
        yield Metric(_key(f"final_{name}"), value, end, last)


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _text(value: Any) -> str:
    return to_text(value)


def _key(name: str) -> str:
    """``name`` in the characters that MLflow takes, others as ``_x28_``; the same for the same name."""
    key = re.sub(r"[^\w. :/-]|[^\x00-\x7f]", lambda found: f"_x{ord(found[0]):x}_", name)[:MAX_KEY]
    # MLflow takes a key for a path, and takes none that another path would name, too.
    if not key or posixpath.normpath(key) != key or key.startswith((".", "/")) or key != key.strip():
        key = key.replace("/", "_x2f_").replace(" ", "_x20_").replace(".", "_x2e_") or "_"
    return key
