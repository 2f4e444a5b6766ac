"""The tables of the study file, each a model of its keys. Their descriptions become docs/study-file.md."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from studies.spec.locations import validate_location, validate_url
from studies.spec.script import is_script

#: The largest integer and the longest time that PostgreSQL can store.
MAX_COUNT: Final = 2**31 - 1
MAX_SECONDS: Final = 10 * 365 * 86400.0
#: TOML's integers have 64 bits.
MAX_INTEGER: Final = 2**63 - 1

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

    # JSON, as which a spec is stored, has neither infinities nor NaN.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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
    # TOML has dates and times, JSON has not.
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
        # Before validation: afterwards a default of trials looks like one that was given.
        if isinstance(data, Mapping) and any(data.get(key) is not None for key in ("epochs", "gpu_hours")):
            return {"trials": MAX_COUNT, **data}
        return data

    @property
    def trial_limit(self) -> int | None:
        """The most trials; ``None`` where nothing but what the database can count limits them."""
        return self.trials if self.trials < MAX_COUNT else None


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

    name: str = Field(description="its short name; none is no scheduler")
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
