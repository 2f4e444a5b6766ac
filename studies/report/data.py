"""The data of a report, read from the storage at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studies.overview import Overview, overview
from studies.report.curves import points_of_line
from studies.report.subset import Subset, choose, is_placed, of_kind
from studies.spec.constraints import Constraint
from studies.spec.space import Parameter
from studies.stop_reasons import STOP_REASONS
from studies.storage.postgres import PostgresStorage
from studies.storage.reader import StudyReader
from studies.storage.records import Attempt, Point, Status, StudyRecord
from studies.storage.spaces import SpaceChange


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """A study at one moment."""

    name: str
    directions: Sequence[StudyDirection]
    trials: Sequence[FrozenTrial]
    """All of it, by number; of a large study the :attr:`subset` that is shown."""
    status: Status
    metric_names: Sequence[str]
    """What the objective returns, one name for each direction."""
    curves: Mapping[int, Sequence[Point]] = field(default_factory=dict)
    """Every named metric of every step, by trial."""
    attempts: Mapping[int, Attempt] = field(default_factory=dict)
    """The last attempt of each trial; trials of stock Optuna workers have none."""
    spec: str | None = None
    """The study file, without secrets; ``None`` where stock Optuna made the study."""
    space: Mapping[str, Parameter] = field(default_factory=dict)
    """The parameters of the study file; empty where the objective suggests for itself."""
    has_scheduler: bool = False
    """Whether trials are paused: then nobody knows how long they trained."""
    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    """The bounds of the spec, by metric."""
    warm_start: str | None = None
    """How many trials of which other studies the sampler learns from, in words."""
    space_changes: Sequence[SpaceChange] = ()
    """The oldest first."""
    now: datetime = field(default_factory=datetime.now)
    """When it was read: local time without a zone, as Optuna's trials have it."""
    subset: Subset | None = None
    """What is shown of a large study."""
    in_short: Sequence[FrozenTrial] = ()
    """Every trial of a large study, by number: see :meth:`StudyReader.outlines`."""
    objective: int | None = None
    """The objective that plots of one objective show; ``None`` for the first one."""

    @property
    def target(self) -> int:
        """The objective that plots of one objective show."""
        return self.objective or 0

    @property
    def outlines(self) -> Sequence[FrozenTrial]:
        """Every trial by number, whole or in short."""
        return self.trials if self.subset is None else self.in_short

    @cached_property
    def overview(self) -> Overview:
        """The figures computed from the trials."""
        return overview(self.status, self.outlines, self.attempts, now=self.now)

    @cached_property
    def valued(self) -> Sequence[FrozenTrial]:
        """The COMPLETE trials with finite values: those that a plot can place."""
        return list(filter(is_placed, self.trials))

    @cached_property
    def params(self) -> Mapping[str, Sequence[object]]:
        """The different values of each parameter in :attr:`valued`, by name."""
        found: dict[str, dict[str, object]] = {}
        for trial in self.valued:
            for name, value in trial.params.items():
                found.setdefault(name, {})[repr(value)] = value  # a choice that was a tuple may be a list by now
        return {name: list(values.values()) for name, values in found.items()}

    @cached_property
    def numbers(self) -> Mapping[str, Sequence[float]]:
        """Those of :attr:`params` that are numbers from a range."""
        # A choice may be a number as well, and has no place on a scale.
        kinds = {name: distribution for trial in self.valued for name, distribution in trial.distributions.items()}
        return {
            name: [float(value) for value in values if isinstance(value, int | float)]
            for name, values in self.params.items()
            if isinstance(kinds[name], FloatDistribution | IntDistribution)
        }

    @cached_property
    def log_params(self) -> Mapping[str, Sequence[float]]:
        """Those of :attr:`numbers` that are drawn on a logarithmic scale."""
        logs = {
            name
            for trial in self.valued
            for name, of in trial.distributions.items()
            if isinstance(of, FloatDistribution | IntDistribution) and of.log
        }
        return {name: values for name, values in self.numbers.items() if name in logs}

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial; ``None`` where there is none, or several objectives."""
        return self.status.best

    @property
    def state(self) -> str:
        """How the study stands, in words."""
        now = self.status
        if now.ended:
            return STOP_REASONS.get(now.ended, now.ended)
        if now.paused:
            return "paused"
        return "running" if now.trials["running"] else "no trial is running"

    def span(self, trial: FrozenTrial) -> tuple[datetime, datetime] | None:
        """When the trial ran, up to now; ``None`` where it has not begun."""
        if trial.datetime_start is None or trial.state == TrialState.WAITING:
            return None
        # Clocks differ: a trial that began on another machine may begin after our "now".
        return trial.datetime_start, max(trial.datetime_start, trial.datetime_complete or self.now)


def read(storage: PostgresStorage, record: StudyRecord) -> StudyData:
    """Read a whole study, or the subset of a large one that is shown."""
    # Statements one after the other, while the study goes on. First the status: the trials, which are read later, then
    # hold its best one.
    status = storage.status(record)
    directions = storage.get_study_directions(record.study_id)
    reader = StudyReader(storage, record)
    outlines = reader.outlines()
    subset = choose(outlines, directions)
    data = StudyData(
        name=record.name,
        directions=directions,
        trials=reader.whole(outlines if subset is None else [t for t in outlines if t.number in subset.shown]),
        status=status,
        metric_names=storage.objective_names(record),
        attempts=storage.leases.attempts(record),
        spec=_study_file(record),
        space=record.spec.space if record.spec else {},
        has_scheduler=record.spec is not None and record.spec.scheduler is not None,
        constraints={name: Constraint.parse(bound) for name, bound in record.spec.constraints.items()}
        if record.spec
        else {},
        warm_start=storage.evidence.in_words(record),
        space_changes=storage.spaces.changes(record),
        subset=subset,
        in_short=() if subset is None else outlines,
    )
    # Last: which curves are shown, and with how many points, depends on the rest.
    shown = of_kind(data, "curves")
    return replace(data, curves=reader.curves(shown, points_of_line(len(shown))))


def of_curves(name: str, params: Mapping[str, Any], curves: Sequence[Mapping[str, float]]) -> StudyData:
    """One training as a study of one complete trial, for the plot ``curves``.

    Args:
        name: of what was trained.
        params: of the training.
        curves: at least one step's metrics, by name.
    """
    steps = list(enumerate(curves, 1))
    first = next(iter(curves[0]), "value")
    now = datetime.now()
    trial = FrozenTrial(
        number=0,
        trial_id=0,
        state=TrialState.COMPLETE,
        value=0.0,
        datetime_start=now,
        datetime_complete=now,
        params={},
        distributions={},
        user_attrs=dict(params),
        system_attrs={},
        # One of the metrics, so that the value is no metric of its own.
        intermediate_values={step: metrics[first] for step, metrics in steps if first in metrics},
    )
    counts = {state.name.lower(): int(state == TrialState.COMPLETE) for state in TrialState}
    return StudyData(
        name=name,
        directions=[StudyDirection.MINIMIZE],
        trials=[trial],
        status=Status(study=name, budget=None, trials=counts, paused=False, ended=None, best=trial, workers=[]),
        metric_names=["value"],
        curves={
            0: [Point(step=i, name=key, value=value, at=None) for i, metrics in steps for key, value in metrics.items()]
        },
        now=now,
    )


def _study_file(record: StudyRecord) -> str | None:
    if record.spec is None:
        return None
    import tomli_w

    return tomli_w.dumps(record.spec.to_public_file(record.budget)).rstrip()
