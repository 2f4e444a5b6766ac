"""The study file: TOML, validated as a whole, turned into Optuna's sampler, pruner and parameters.

A spec is read from a file, a preset or a stored study; ``--set`` changes single keys before it is
validated. What is stored in the study is its canonical JSON: every key, defaults included.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from studies.errors import SpecError, SpecMismatch, command, nearest
from studies.objective import work_command
from studies.spec import constraints as bounds
from studies.spec.locations import mask_url, validate_location, validate_url
from studies.spec.script import is_script, short
from studies.spec.space import Parameter, check_conditions, suggestion_order
from studies.text import counted

if TYPE_CHECKING:
    import optuna

    from studies.search.scheduler import Scheduler
    from studies.search.study import Study

MAX_NAME = 128
Direction = Literal["minimize", "maximize"]
Event = Literal["best", "finished", "failures", "worker_lost"]


def parse_seconds(value: object) -> object:
    """``"1h30m"`` or ``"90"`` as seconds; pydantic checks anything else."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", value.strip())
    if not found or not any(found.groups()):
        raise ValueError(f"{value!r} is not a time; write seconds or 45s, 30m, 2h, 1d, 1h30m")
    return sum(float(n or 0) * unit for n, unit in zip(found.groups(), (86400, 3600, 60, 1), strict=True))


Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(json_schema_extra={"format": "duration"})]


class Section(BaseModel):
    """A table of the study file: frozen, strict, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


#: The largest integer and the longest time that PostgreSQL can store.
MAX_COUNT = 2**31 - 1
MAX_SECONDS = 10 * 365 * 86400.0


#: TOML's integers have 64 bits.
MAX_INTEGER = 2**63 - 1


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


def _as_json(value: Any, key: str = "") -> Any:
    """Check that JSON can represent ``value``.

    Raises:
        ValueError: with the key of what it can't.
    """
    if isinstance(value, dict):
        return {name: _as_json(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} = {value} is not a finite number")
    if not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"{key} = {value}: a date or time is written as text, in quotes")
    return value


JsonTable = Annotated[dict[str, Any], AfterValidator(_as_json)]


class ObjectiveSpec(Section):
    """[objective]: what a trial runs."""

    path: str = Field(description="what a trial calls; each machine needs the module or file")
    sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="of the script's content; Studyhall sets it"
    )
    args: JsonTable = Field(default={}, description="keyword arguments of a class; none for a function")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not re.fullmatch(r"[^:]+:[A-Za-z_][\w.]*", self.path):
            raise ValueError(f"path {self.path!r} is not package.module:callable or path/to/file.py:callable")
        if self.sha256 and not is_script(self.path):
            raise ValueError(f"sha256 is of a script's content, and path {self.path!r} is a module's; remove it")
        return self


class BudgetSpec(Section):
    """[budget]: the limits of a study, over all its workers."""

    trials: int = Field(default=100, gt=0, le=MAX_COUNT, description="COMPLETE + PRUNED trials, never one more")
    max_failures: int = Field(default=10, gt=0, le=MAX_COUNT, description="FAILed trials before the study stops")
    timeout: Seconds | None = Field(
        default=None, gt=0, le=MAX_SECONDS, description="no trial begins so long after the first one began"
    )
    target: float | None = Field(default=None, description="stop when a trial reaches this value")
    epochs: int | None = Field(
        default=None,
        gt=0,
        le=MAX_INTEGER,
        description="steps that the trials report in all; a step that is trained again counts once",
    )
    gpu_hours: float | None = Field(
        default=None, gt=0, le=MAX_SECONDS / 3600, description="hours in which workers have trials on a GPU, in all"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_trials(cls, data: Any) -> Any:
        """A budget of epochs or GPU hours alone has no limit of trials."""
        if isinstance(data, Mapping) and any(data.get(key) is not None for key in ("epochs", "gpu_hours")):
            return {"trials": MAX_COUNT, **data}
        return data

    @property
    def limits_trials(self) -> bool:
        """Whether the number of trials is limited by more than what the database can count."""
        return self.trials < MAX_COUNT


class SamplerSpec(Section):
    """[sampler]: one of Optuna's."""

    name: str = Field(default="tpe", description="its short name")
    options: JsonTable = Field(
        default={},
        description="Optuna's keyword arguments of that sampler; another sampler is { name = …, options = {…} }",
    )


class PrunerSpec(Section):
    """[pruner]: one of Optuna's."""

    name: str = Field(default="median", description="its short name")
    options: JsonTable = Field(
        default={},
        description="Optuna's keyword arguments of that pruner; another pruner is { name = …, options = {…} }",
    )
    metric: str | None = Field(
        default=None, description="of several objectives the one to prune on; without it nothing is pruned there"
    )


class SchedulerSpec(Section):
    """[scheduler]: pauses trials and continues the best ones, instead of a pruner."""

    name: str = Field(description="its short name")
    options: JsonTable = Field(default={}, description="its options")


class CheckpointsSpec(Section):
    """[checkpoints]: where and how often trials save checkpoints, if their objective does."""

    store: Annotated[str, AfterValidator(validate_location)] = Field(
        default="postgresql", description="where checkpoints are kept; all machines share the directory"
    )
    every: Seconds = Field(default=30.0, ge=0, le=MAX_SECONDS, description="time between two checkpoints of a trial")


class NotifySpec(Section):
    """[notify]: which events are sent where. The URL may hold a secret, and is masked wherever a spec is shown."""

    url: Annotated[str, AfterValidator(validate_url)] | None = Field(
        default=None, repr=False, description="gets a JSON POST for each event"
    )
    events: list[Event] | None = Field(default=None, min_length=1, description="which events are sent; without it, all")


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
    space: dict[str, Parameter] = {}

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
        if isinstance(data, Mapping) and data.get("scheduler") is not None:
            return {"pruner": {"name": "none"}, **data}
        return data

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
                'would fight over the same trials; keep one (pruner = { name = "none" })'
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
                "trial to its end; set budget.epochs, such as ten times the epochs of one trial, gpu_hours or timeout"
            )

    # Reading and writing

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "spec") -> Self:
        """Validate ``data``. Error messages start with ``source``."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(f"{source}: {_explain(error, cls)}") from None

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
        """Check that ``given`` defines this, the stored, study.

        The order of the space counts as little as the order of keys in a file. The budget may be as it
        was when the study was created, so that the same command goes on after ``studyhall extend``, or
        ``budget``, as it stands now. What a spec does not say of the budget and the direction is the study's.

        Args:
            given: what is to be run.
            budget: of the study, as it stands now.
            finished: how many of its trials have; the first one settles the direction.
        """
        said = {key: getattr(given.budget, key) for key in given.budget.model_fields_set}
        is_as_created = self.budget.model_copy(update=said) == self.budget
        given = given.model_copy(update={"budget": budget if is_as_created else budget.model_copy(update=said)})
        accepted: dict[str, Any] = {"budget": budget}
        if not given.says_direction or given.all_directions == self.all_directions:
            accepted |= {"direction": given.direction, "directions": given.directions}
        if self.objective.sha256 is None and _file_name(self.objective.path) == _file_name(given.objective.path):
            # Older versions stored the whole path of a script.
            known = {"path": given.objective.path, "sha256": given.objective.sha256}
            accepted["objective"] = self.objective.model_copy(update=known)
        stored = self.model_copy(update=accepted)
        differences = dict(_differences(stored.model_dump(mode="json"), given.model_dump(mode="json")))
        if "objective.path" in differences:
            differences.pop("objective.sha256", None)  # implied by another path
        if differences:
            shown = list(differences.values())
            more = f"; and {len(shown) - 4} more" if len(shown) > 4 else ""
            work = work_command(self.name, self.objective.path, self.checkpoints.store)
            way_out = f"work on it as it is with: {work}; or give this one another --name"
            if all(key.startswith("budget.") for key in differences):
                changes = [
                    word
                    for key in differences
                    for word in (f"--{key.removeprefix('budget.').replace('_', '-')}", _value_at(given, key))
                ]
                way_out = f"change it with: {command('extend', self.name, *changes)}"
                if given.budget.trials < finished:
                    way_out = (
                        f"{counted(finished, 'trial')} finished already: give no fewer, or this one another --name"
                    )
            is_direction = set(differences) <= {"direction", "directions"}
            if is_direction and not finished and len(given.all_directions) == len(self.all_directions):
                words = [word for direction in given.all_directions for word in ("--direction", direction)]
                change = command("extend", self.name, *words)
                way_out = f"as no trial has finished, change it with: {change}"
            if set(differences) == {"objective.sha256"}:
                way_out = (
                    f"run this one all the same, which each trial records, with: {work} --allow-changed; "
                    "or give it another --name"
                )
            if all(key.startswith("notify.") for key in differences):
                way_out = "leave it out, and tell this command alone with --notify URL"
            raise SpecMismatch(f"study {self.name!r} exists with another spec: {'; '.join(shown[:4])}{more}; {way_out}")

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
        for name in suggestion_order(self.space):
            parameter = self.space[name]
            # A trial that was requeued has its parameters, by the space of its first claim.
            if name not in trial.params and parameter.applies(trial.params):
                parameter.suggest(trial, name)


def check_name(name: str) -> None:
    """Check the name of a study; raises :exc:`ValueError`."""
    if not name.strip():
        raise ValueError("name is empty; a study needs one of 1 to 128 characters")
    if len(name) > MAX_NAME:
        raise ValueError(f"name {name[:20] + '…'!r} has {len(name)} characters; at most {MAX_NAME} are legal")
    if not name.isprintable():
        raise ValueError(f"name {name!r} holds a control character; only printable ones are legal")
    if name != name.strip() or name.startswith("-"):
        raise ValueError(f"name {name!r} begins or ends with a space, or begins with '-'; remove that")


def _differences(stored: Any, given: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, description) of each leaf in which two dumped specs differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for part in [*stored, *(k for k in given if k not in stored)]:
            yield from _differences(stored.get(part), given.get(part), f"{key}.{part}" if key else part)
    elif stored != given or type(stored) is not type(given):
        if key == "notify.url":
            stored, given = (value and mask_url(value) for value in (stored, given))
        if key == "objective.sha256" and stored and given:
            yield key, f"its script has changed: SHA-256 {short(stored)} then, {short(given)} now"
        elif stored == given:
            yield key, f"{key} is another one at {_show(stored)}"
        else:
            is_default = key == "direction" and stored is None
            was = '"minimize" (the default)' if is_default else _show(stored)
            yield key, f"{key} is {was}, not {_show(given)}"


def _value_at(spec: StudySpec, key: str) -> str:
    """The value of ``budget.…`` in ``spec``, as the command line takes it."""
    value = getattr(spec.budget, key.removeprefix("budget."))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _file_name(path: str) -> str:
    """An objective's path with the bare name of its file."""
    return path.rpartition("/")[2] if is_script(path) else path


def _show(value: Any) -> str:
    return "absent" if value is None else json.dumps(value, ensure_ascii=False)


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Pydantic's first error as ``key: what is wrong, what is legal``, and the number of further ones."""
    errors = error.errors(include_url=False)
    # Unknown keys first: a misspelled key also makes the right one missing.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = [str(part) for part in first["loc"]]
    # The tag of a parameter's type is pydantic's, not a key of the file.
    if location[:1] == ["space"] and len(location) > 2 and location[2] in ("int", "float", "categorical"):
        del location[2]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        text = f"{key}: unknown key; {nearest(location[-1], _known_keys(model, first['loc']))}"
    elif first["type"] == "missing":
        text = f"{key}: missing"
    elif first["type"] == "union_tag_not_found":
        text = f'{key}: no type; write type = "int", "float" or "categorical"'
    elif first["type"] == "union_tag_invalid":
        given = first["ctx"]["tag"]
        text = f"{key}.type: {given!r} is unknown; {nearest(given, ['int', 'float', 'categorical'])}"
    elif first["type"] == "value_error":
        text = f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    else:
        if "choices" in location:
            key = ".".join(location[: location.index("choices") + 2])  # behind it pydantic lists the types it tried
        legal = _LEGAL.get(first["type"], first["msg"].replace("Input ", ""))
        given = "" if location[0] == "notify" and "events" not in location else f" = {_show_given(first['input'])}"
        text = f"{key}{given}: {legal}"
        errors = [e for e in errors if e["loc"][:3] != first["loc"][:3]] + [first]
    return text + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


# Messages in the terms of a study file, in place of pydantic's in terms of Python.
_LEGAL = dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "should be a table of keys") | {
    "too_short": "should have at least one item",
    **dict.fromkeys(("none_required", "bool_type"), "should be text, a number, true or false"),
}


def _show_given(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _known_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The legal keys of the table with an unknown key."""
    from studies.spec.space import CategoricalParameter, FloatParameter, IntParameter

    sections: dict[str, type[BaseModel]] = {
        "objective": ObjectiveSpec,
        "budget": BudgetSpec,
        "sampler": SamplerSpec,
        "pruner": PrunerSpec,
        "scheduler": SchedulerSpec,
        "checkpoints": CheckpointsSpec,
        "notify": NotifySpec,
        "int": IntParameter,
        "float": FloatParameter,
        "categorical": CategoricalParameter,
    }
    table = model if len(location) == 1 else sections[str(location[-2])]
    return list(table.model_fields)
