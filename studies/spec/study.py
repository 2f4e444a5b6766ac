"""The study file: TOML, validated as a whole, turned into Optuna's sampler, pruner and parameters.

A spec is read from a file, a preset or a stored study; ``--set`` changes single keys before it is
validated. What is stored in the study is its canonical JSON: every key, defaults included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from studies.errors import SpecError, nearest
from studies.spec import constraints as bounds
from studies.spec.differences import require_same
from studies.spec.locations import mask_url
from studies.spec.sections import (
    MAX_INTEGER,
    BudgetSpec,
    CheckpointsSpec,
    Direction,
    NotifySpec,
    ObjectiveSpec,
    PrunerSpec,
    SamplerSpec,
    SchedulerSpec,
    Section,
)
from studies.spec.space import Parameter, check_conditions, suggestion_order
from studies.spec.validation import explain
from studies.text import counted

if TYPE_CHECKING:
    import optuna

    from studies.search.scheduler import Scheduler
    from studies.search.study import Study

MAX_NAME: Final = 128


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of all leaves."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{key}[{i}]")
    else:
        yield key, value


class StudySpec(Section):
    """A study: what to run, how often, and how its parameters are chosen.

    Every constructor raises :exc:`studies.errors.SpecError`, which names the key, the value and what
    is legal.
    """

    name: str = Field(description=f"1 to {MAX_NAME} printable characters")
    direction: Direction | None = Field(
        default=None, description="of a single objective; without it, as the objective says, else minimize"
    )
    directions: list[Direction] | None = Field(
        default=None, min_length=1, description="of several objectives, one for each, instead of direction"
    )
    metric: str | list[str] = Field(
        default="value", description="the name of what the objective returns; of several objectives one name for each"
    )
    constraints: dict[str, Annotated[str, AfterValidator(bounds.check)]] = Field(
        default={},
        description='bounds on an objective or on a reported metric, such as { latency_ms = "<= 5" }; a trial that '
        "breaks one is never the best",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="a trial's seed comes from this one and its number, never from its worker",
    )
    objective: ObjectiveSpec
    budget: BudgetSpec = BudgetSpec()
    sampler: SamplerSpec = SamplerSpec()
    pruner: PrunerSpec = PrunerSpec()
    scheduler: SchedulerSpec | None = None
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    notify: NotifySpec = NotifySpec()
    space: dict[str, Parameter] = Field(default={})

    @model_validator(mode="before")
    @classmethod
    def _check_integers(cls, data: Any) -> Any:
        for key, value in _leaves(data):
            if isinstance(value, int) and abs(value) > MAX_INTEGER:
                raise ValueError(f"{key} is a whole number of {value.bit_length()} bits; legal are at most 63")
        return data

    @model_validator(mode="before")
    @classmethod
    def _default_pruner(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("scheduler") is None:
            return data
        if data["scheduler"] == {"name": "none"}:  # as --set takes it out of a preset
            return {key: value for key, value in data.items() if key != "scheduler"}
        # A pruner, even the default one, would fight with the scheduler over the same trials.
        return {"pruner": {"name": "none"}, **data}

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_name(self.name)
        if self.direction and self.directions:
            raise ValueError("direction and directions are both given; keep one")
        if self.budget.target is not None and len(self.all_directions) > 1:
            raise ValueError("budget.target needs a single objective; this study has several directions")
        if isinstance(self.metric, list) and len(self.metric) != len(self.all_directions):
            names, directions = counted(len(self.metric), "name"), counted(len(self.all_directions), "direction")
            raise ValueError(f"metric holds {names}, and the study has {directions}; give one name for each")
        if not all(name.strip() for name in self.metric_names):
            raise ValueError("metric is empty; name what the objective returns")
        from studies.search.curve_sampler import CurveSampler
        from studies.search.samplers import require_several_objectives

        check_conditions(self.space)
        # Built here once: a wrong option must be an error of the file, and not of a worker.
        sampler = self.to_sampler(0)
        if len(self.all_directions) > 1:
            require_several_objectives(sampler)
        if self.constraints and isinstance(sampler, CurveSampler):
            raise ValueError(
                "sampler.name: 'curves' knows no constraints, and this study has some; use tpe, gp or nsgaii"
            )
        expected = [name for name, parameter in self.space.items() if parameter.prior is not None]
        if expected and not isinstance(sampler, CurveSampler):
            raise ValueError(
                f"space.{expected[0]}.prior is for the sampler 'curves' alone, and sampler.name = "
                f"{self.sampler.name!r}; change that, or leave the prior out"
            )
        self._check_pruner()
        self._check_scheduler()
        return self

    def _check_pruner(self) -> None:
        from studies.search import pruning

        pruner, metric = self.to_pruner(), self.pruner.metric
        if metric is not None and metric not in self.metric_names:
            raise ValueError(f"pruner.metric: {metric!r} is no objective; {nearest(metric, self.metric_names)}")
        if len(self.all_directions) > 1:
            pruning.require_several_objectives(pruner)

    def _check_scheduler(self) -> None:
        from studies.search.freeze_thaw import FreezeThaw

        if self.scheduler is None:
            return
        scheduler = self.to_scheduler()
        if isinstance(scheduler, FreezeThaw):
            self._check_freeze_thaw()
        if len(self.all_directions) > 1:
            raise ValueError(
                f"scheduler.name: {self.scheduler.name!r} takes one objective, and this study has several; leave "
                "[scheduler] out"
            )
        if self.pruner.name != "none":
            raise ValueError(
                f"pruner.name: {self.pruner.name!r} and scheduler.name: {self.scheduler.name!r} are both given, and "
                "would fight over the same trials; give one of them the name none"
            )

    def _check_freeze_thaw(self) -> None:
        if self.constraints:
            raise ValueError(
                "scheduler.name: 'freezethaw' knows no constraints, and this study has some; use halving, or a pruner"
            )
        budget = self.budget
        if budget.epochs is None and budget.gpu_hours is None and budget.timeout is None:
            raise ValueError(
                f"budget.trials = {budget.trials} is the only limit, and the scheduler 'freezethaw' would train every "
                "trial to its end; set budget.epochs, such as twenty times the epochs of one, gpu_hours or timeout"
            )

    # Reading and writing

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "spec") -> Self:
        """Validate ``data``. Error messages start with ``source``."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(f"{source}: {explain(error, cls, data)}") from None

    @classmethod
    def from_json(cls, text: str, notify_url: str | None = None) -> Self:
        """The spec that :meth:`to_json` wrote, with the URL that it masked."""
        try:
            data = json.loads(text)
        except ValueError:  # also for an integer of 5,000 digits
            raise SpecError("the stored spec is no JSON that can be read") from None
        if "url" in data.get("notify", {}):
            data["notify"]["url"] = notify_url
        return cls.from_dict(data, "the stored spec")

    def to_json(self) -> str:
        """Canonical JSON: all keys with defaults, in the order of the fields and the space; notify.url is masked."""
        return json.dumps(self.to_data(), ensure_ascii=False, separators=(",", ":"))

    def to_data(self) -> dict[str, Any]:
        """The content of :meth:`to_json`."""
        return self._shown(mode="json", exclude_none=True)

    def to_file(self) -> dict[str, Any]:
        """The content of a study file: without defaults, parameters starting with their type, notify.url masked."""
        data = self._shown(exclude_none=True, exclude_defaults=True)
        data["space"] = {
            name: {"type": parameter.type, **parameter.model_dump(exclude_none=True, exclude_defaults=True)}
            for name, parameter in self.space.items()
        }
        if self.budget.trial_limit is None:
            del data["budget"]["trials"]
        return {key: value for key, value in data.items() if value != {}}

    def to_public_file(self, budget: BudgetSpec | None) -> dict[str, Any]:
        """The public content: :meth:`to_file` with the current budget, and without [notify]."""
        data = self.model_copy(update={"budget": budget}).to_file() if budget else self.to_file()
        data.pop("notify", None)
        return data

    def _shown(self, **how: Any) -> dict[str, Any]:
        data = self.model_dump(**how)
        if "url" in data.get("notify", {}):
            data["notify"]["url"] = mask_url(data["notify"]["url"])
        return data

    @property
    def identity(self) -> dict[str, Any]:
        """The keys that may not differ between specs of one study: all but [budget], [checkpoints] and [notify]."""
        return self.model_dump(mode="json", exclude={"budget", "checkpoints", "notify"}, exclude_none=True)

    @property
    def sha256(self) -> str:
        """The SHA-256 of :attr:`identity`, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def require_same(self, given: StudySpec, budget: BudgetSpec, *, finished: int = 0) -> None:
        """Check that ``given`` defines this, the stored, study: :func:`studies.spec.differences.require_same`."""
        require_same(self, given, budget, finished=finished)

    def with_script_of(self, other: StudySpec | None) -> StudySpec:
        """This spec with the script's SHA-256 of ``other``."""
        if other is None:
            return self
        objective = self.objective.model_copy(update={"sha256": other.objective.sha256})
        return self.model_copy(update={"objective": objective})

    # As Optuna's objects

    @property
    def says_direction(self) -> bool:
        """Whether the direction is given; otherwise it is Optuna's default."""
        return bool(self.direction or self.directions)

    @property
    def goal(self) -> str:
        """The direction of each objective, for people: ``maximizes val_accuracy``."""
        return " and ".join(
            f"{direction}s {name}" for direction, name in zip(self.all_directions, self.metric_names, strict=True)
        )

    @property
    def all_directions(self) -> list[Direction]:
        """One direction per objective; Optuna's default is to minimize."""
        return self.directions or [self.direction or "minimize"]

    @property
    def metric_names(self) -> list[str]:
        """One name per objective."""
        if isinstance(self.metric, list):
            return self.metric
        count = len(self.all_directions)
        return [self.metric] if count == 1 else [f"{self.metric}_{i}" for i in range(count)]

    def seed_of(self, number: int) -> int:
        """The seed of trial ``number``, 32 bits: a function of (study seed, number), never of the worker."""
        # Hashed: by a sum, study seed 1 would share all its trials' seeds but one with study seed 0.
        digest = hashlib.sha256(f"{self.seed}/{number}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def to_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """The sampler that draws trial ``number``.

        A new one for each trial, seeded by it, so that two workers never draw the same values and a
        trial is drawn alike on any worker.
        """
        from studies.spec.samplers import build_sampler

        return build_sampler(self.sampler.name, self.sampler.options, self.space, self.seed, self.seed_of(number))

    @property
    def combinations(self) -> int | None:
        """The number of combinations of an exhaustive sampler; ``None`` for others."""
        from studies.search.samplers import grid_of

        grid = grid_of(self.to_sampler(0))
        return grid.size if grid else None

    def to_pruner(self) -> optuna.pruners.BasePruner:
        """The pruner of every trial: none for several objectives without ``pruner.metric``."""
        from studies.spec.samplers import build_pruner

        # Optuna prunes by one value alone, and nothing says by which.
        is_undecided = len(self.all_directions) > 1 and self.pruner.metric is None
        return build_pruner("none", {}) if is_undecided else build_pruner(self.pruner.name, self.pruner.options)

    def to_study(self, storage: optuna.storages.BaseStorage) -> Study:
        """The study in ``storage`` as an Optuna object, with this sampler and pruner."""
        from optuna.study import StudyDirection

        from studies.search.study import Study

        study = Study(self.name, storage, sampler=self.to_sampler(0), pruner=self.to_pruner())
        if self.pruner.metric is not None:
            direction = self.all_directions[self.metric_names.index(self.pruner.metric)]
            study.pruned_direction = StudyDirection[direction.upper()]
        return study

    def to_scheduler(self, steps: int | None = None) -> Scheduler | None:
        """A new scheduler; ``None`` for a study without one.

        Args:
            steps: how many the objective trains; ``None`` if that is unknown.

        Raises:
            ValueError: an unknown name or option, or a rung that no trial reaches.
        """
        from studies.spec.samplers import build_scheduler

        if self.scheduler is None:
            return None
        return build_scheduler(self.scheduler.name, self.scheduler.options, self.all_directions[0], steps)

    def suggest(self, trial: optuna.trial.Trial) -> None:
        """Sample the space into ``trial.params``, parents first."""
        params = trial.params  # Optuna copies them for each caller
        for name in suggestion_order(self.space):
            parameter = self.space[name]
            # A trial that was requeued has its parameters, by the space of its first claim.
            if name not in params and parameter.applies(params):
                params[name] = parameter.suggest(trial, name)


def check_name(name: str) -> None:
    """Check the name of a study; raises :exc:`ValueError`."""
    if not name.strip():
        raise ValueError("name is empty; a study needs one of 1 to 128 characters")
    if len(name) > MAX_NAME:
        raise ValueError(f"name {name[:20] + '…'!r} has {len(name)} characters; at most {MAX_NAME} are legal")
    if not name.isprintable():
        raise ValueError(f"name {name!r} holds a control character; only printable ones are legal")
    # On a command line a space is not seen, and -x is an option.
    if name != name.strip() or name.startswith("-"):
        raise ValueError(f"name {name!r} begins or ends with a space, or begins with '-'; remove that")
