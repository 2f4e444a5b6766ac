"""Samplers, pruners and schedulers by their short names, built from a spec's options."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers._lazy_random_state import LazyRandomState

from studies.errors import nearest, one_line
from studies.search.curve_sampler import CurveSampler
from studies.search.freeze_thaw import FreezeThaw
from studies.search.halving import Halving
from studies.search.pruning import HyperbandPruner
from studies.search.samplers import BruteForceSampler, EnqueuedSampler, GridSampler, QMCSampler
from studies.search.tpe import TPESampler
from studies.spec.space import CategoricalParameter

if TYPE_CHECKING:
    from studies.search.scheduler import Scheduler
    from studies.spec.space import FloatParameter, IntParameter

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "bruteforce": BruteForceSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "curves": CurveSampler,
    "enqueued": EnqueuedSampler,
    "gp": optuna.samplers.GPSampler,
    "grid": GridSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "nsgaiii": optuna.samplers.NSGAIIISampler,
    "partialfixed": optuna.samplers.PartialFixedSampler,
    "qmc": QMCSampler,
    "random": optuna.samplers.RandomSampler,
    "tpe": TPESampler,
}
PRUNERS: dict[str, Callable[..., optuna.pruners.BasePruner]] = {
    "hyperband": HyperbandPruner,
    "median": optuna.pruners.MedianPruner,
    "none": optuna.pruners.NopPruner,
    "patient": optuna.pruners.PatientPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "successivehalving": optuna.pruners.SuccessiveHalvingPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
}
SCHEDULERS: dict[str, Callable[..., Scheduler]] = {"freezethaw": FreezeThaw, "halving": Halving}
# Options that are a sampler or pruner themselves: { name = …, options = {…} }.
_NESTED = ("base_sampler", "independent_sampler", "wrapped_pruner")
# Options that TOML cannot represent, or that other keys of the spec set.
_HIDDEN = frozenset(
    [
        "self",
        "seed",
        "search_space",
        "x0",
        "source_trials",
        "gamma",
        "weights",
        "constraints_func",
        "mutation",
        "crossover",
        "reference_points",
        "elite_population_selection_strategy",
        "child_generation_strategy",
        "after_trial_strategy",
        "args",
        "kwargs",
        "direction",
        "steps",
    ]
)

# Required options, and what is legal; of a tuple of options at least one.
_NEEDED: Mapping[str, Mapping[tuple[str, ...], str]] = {
    "partialfixed": {
        ("fixed_params",): "a table of parameters and their values, such as { lr = 0.01 }",
        ("base_sampler",): '{ name = "tpe", options = {…} }, with any sampler',
    },
    "patient": {("patience",): "a whole number of steps, at least 0"},
    "percentile": {("percentile",): "a number from 0 to 100, of which 50.0 is the median"},
    "threshold": {("lower", "upper"): "a number that a reported value must not fall below, or rise above"},
}
_PLAIN: Mapping[str, Any] = {"int": int, "float": int | float, "bool": bool, "str": str, "None": type(None)}
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}

# The least values of integer options (default: 0), which Optuna checks too late, in the worker.
_LEAST = {
    **dict.fromkeys(("min_resource", "min_steps", "n_ei_candidates", "interval_steps"), 1),
    **dict.fromkeys(("reduction_factor", "population_size"), 2),
}
# Real-valued ones that may be written as a whole number below that, and a default of -1.
_SIGNED = ("lower", "upper", "inc_popsize", "sigma0")


def build_sampler(
    name: str,
    options: Mapping[str, Any],
    space: Mapping[str, FloatParameter | IntParameter | CategoricalParameter],
    study_seed: int,
    trial_seed: int,
    key: str = "sampler",
) -> optuna.samplers.BaseSampler:
    """The sampler ``name`` for one trial; ``key`` is where the spec names it.

    Raises:
        ValueError: unknown name or option, or a value that Optuna refuses; the message says which.
    """
    options = dict(options)
    if "base_sampler" in options:
        inner = f"{key}.options.base_sampler"
        base = _nested(inner, options["base_sampler"])
        # The inner sampler sees each as a choice of one: a grid must not count values that no trial takes.
        fixed = _fixed(f"{key}.options.fixed_params", space, options.get("fixed_params", {}))
        options["base_sampler"] = build_sampler(*base, fixed, study_seed, trial_seed, inner)
    if "independent_sampler" in options:
        inner = f"{key}.options.independent_sampler"
        independent = _nested(inner, options["independent_sampler"])
        options["independent_sampler"] = build_sampler(*independent, space, study_seed, trial_seed, inner)
    # With a [space] both run each combination once; ours never gives two workers the same one.
    if name == "grid" or (name == "bruteforce" and space):
        _check_options(key, SAMPLERS, name, options)
        return _grid(key, name, space, study_seed)
    # All trials draw from one quasi-random sequence, at the index of their number.
    by_number = name in ("curves", "qmc")
    # These two draw nothing by themselves, and take no seed.
    extra = {} if name in ("partialfixed", "enqueued") else {"seed": study_seed if by_number else trial_seed}
    sampler: optuna.samplers.BaseSampler = _build(key, SAMPLERS, name, options, extra)
    if isinstance(sampler, QMCSampler | CurveSampler):
        # As in Optuna: a parameter of a single value has no coordinate.
        found = {name: parameter.distribution() for name, parameter in space.items()}
        sampler.space = {name: distribution for name, distribution in found.items() if not distribution.single()}
    if isinstance(sampler, CurveSampler):
        sampler.priors = {name: parameter.prior for name, parameter in space.items() if parameter.prior is not None}
    return sampler


def reseed(sampler: optuna.samplers.BaseSampler, seed: int) -> None:
    """Let ``sampler`` draw as if it had been built with ``seed``, without losing what it has learned of the
    study: building one anew for each trial costs it a walk over all trials.

    Those that tell points apart by the trial's number, curves, grid and qmc, keep theirs.
    """
    for part in vars(sampler).values():
        if isinstance(part, LazyRandomState):
            part.rng.seed(seed)
        elif isinstance(part, optuna.samplers.BaseSampler):
            reseed(part, seed)


def build_pruner(name: str, options: Mapping[str, Any], key: str = "pruner") -> optuna.pruners.BasePruner:
    """The pruner ``name``; ``key`` is where the spec names it.

    Raises:
        ValueError: unknown name or option, or a value that Optuna refuses; the message says which.
    """
    options = dict(options)
    if "wrapped_pruner" in options:
        inner = f"{key}.options.wrapped_pruner"
        options["wrapped_pruner"] = build_pruner(*_nested(inner, options["wrapped_pruner"]), inner)
    elif name == "patient":
        options["wrapped_pruner"] = None  # Optuna has no default for it, and takes None
    pruner: optuna.pruners.BasePruner = _build(key, PRUNERS, name, options, {})
    return pruner


def build_scheduler(name: str, options: Mapping[str, Any], direction: str, steps: int | None) -> Scheduler:
    """The scheduler ``name`` of a study with one objective.

    Args:
        name: of :data:`SCHEDULERS`.
        options: its keyword arguments.
        direction: of the objective: minimize or maximize.
        steps: how many the objective trains; ``None`` if that is unknown.

    Raises:
        ValueError: unknown name or option, or a value that it refuses; the message says which.
    """
    scheduler: Scheduler = _build("scheduler", SCHEDULERS, name, options, {"direction": direction, "steps": steps})
    return scheduler


def _build(
    key: str,
    known: Mapping[str, Callable[..., Any]],
    name: str,
    options: Mapping[str, Any],
    extra: dict[str, Any],
) -> Any:
    _check_options(key, known, name, options)
    with warnings.catch_warnings():
        # Silence ExperimentalWarning, which is for programmers: the study file names the sampler on purpose.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return known[name](**options, **extra)
        except (TypeError, ValueError, AssertionError) as error:
            shown = ", ".join(f"{option} = {value!r}" for option, value in options.items())
            raise ValueError(f"{key}.options: {name!r} refuses {shown or 'no options'}: {one_line(error)}") from None


def _check_options(key: str, known: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, Any]) -> None:
    if name not in known:
        hint = nearest(name, known, in_order=True)
        every = "" if hint.startswith("known") else f"; all: {', '.join(known)}"
        raise ValueError(f"{key}.name: {name!r} is unknown; {hint}{every}")
    parameters = inspect.signature(known[name]).parameters
    legal = [option for option in parameters if option not in _HIDDEN]
    for option, value in options.items():
        if option not in legal:
            raise ValueError(f"{key}.options.{option}: {name!r} has no such option; {nearest(option, legal)}")
        types = _types(parameters[option])
        if types and not _fits(value, types):
            words = " or ".join(_WORDS[part] for part in types if part in _WORDS)
            raise ValueError(f"{key}.options.{option} = {value!r}: should be {words}")
        least = _LEAST.get(option, 0)
        if isinstance(value, int) and value < least and option not in _SIGNED:
            raise ValueError(f"{key}.options.{option} = {value}: should be at least {least}")
    for alternatives, meaning in _NEEDED.get(name, {}).items():
        if not any(option in options for option in alternatives):
            missing = " or ".join(f"{key}.options.{option}" for option in alternatives)
            raise ValueError(f"{missing} is missing: {name!r} needs it; legal is {meaning}")


def _types(parameter: inspect.Parameter) -> list[str]:
    """The plain types that Optuna's annotation names; none where another is among them."""
    annotation = parameter.annotation
    # Where a module of Optuna postpones the evaluation of annotations, they are text.
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    types = [part.strip() for part in text.replace("'", "").split("|")]
    return types if all(part in _PLAIN for part in types) else []


def _fits(value: Any, types: Sequence[str]) -> bool:
    # A bool is an int in Python, and no number in a study file.
    return any(isinstance(value, _PLAIN[part]) and isinstance(value, bool) <= (part == "bool") for part in types)


def _nested(key: str, value: Any) -> tuple[str, dict[str, Any]]:
    name = value.get("name") if isinstance(value, Mapping) else None
    options = value.get("options", {}) if isinstance(value, Mapping) else None
    if not isinstance(name, str) or not isinstance(options, Mapping) or not set(value) <= {"name", "options"}:
        raise ValueError(f"{key}: {value!r} is not {{ name = …, options = {{…}} }}")
    return name, dict(options)


def _grid(
    key: str, name: str, space: Mapping[str, FloatParameter | IntParameter | CategoricalParameter], seed: int
) -> GridSampler:
    if not space:
        raise ValueError(f"{key}.name: {name!r} needs a [space]; add one or choose another sampler")
    try:
        return GridSampler(space, seed)
    except ValueError as error:
        raise ValueError(f"{key}.name: {name!r} {error}") from None


def _fixed(
    key: str, space: Mapping[str, FloatParameter | IntParameter | CategoricalParameter], fixed: Any
) -> Mapping[str, FloatParameter | IntParameter | CategoricalParameter]:
    """``space`` with the parameters that a partialfixed sampler fixes at their values, under ``key``.

    Raises:
        ValueError: it is no table, there is no such parameter, or it never takes its value.
    """
    if not isinstance(fixed, Mapping):
        raise ValueError(f"{key} = {fixed!r}: should be {_NEEDED['partialfixed'][('fixed_params',)]}")
    if not space:
        return space
    for name, value in fixed.items():
        if name not in space:
            raise ValueError(f"{key}.{name}: there is no such parameter; {nearest(name, space)}")
        if not space[name].contains(value):
            raise ValueError(f"{key}.{name} = {value!r}: the parameter never takes this value")
    held = {
        name: CategoricalParameter(type="categorical", choices=[value], when=space[name].when)
        for name, value in fixed.items()
    }
    return {**space, **held}
