"""Optuna's samplers and pruners by their short names, built from a spec's options."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers._lazy_random_state import LazyRandomState

from studies.errors import nearest, one_line
from studies.samplers import BruteForceSampler, GridSampler, QMCSampler
from studies.space import CategoricalParameter

if TYPE_CHECKING:
    from studies.space import FloatParameter, IntParameter

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "bruteforce": BruteForceSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "grid": GridSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "nsgaiii": optuna.samplers.NSGAIIISampler,
    "partialfixed": optuna.samplers.PartialFixedSampler,
    "qmc": QMCSampler,
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
}
PRUNERS: dict[str, Callable[..., optuna.pruners.BasePruner]] = {
    "hyperband": optuna.pruners.HyperbandPruner,
    "median": optuna.pruners.MedianPruner,
    "none": optuna.pruners.NopPruner,
    "patient": optuna.pruners.PatientPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "successivehalving": optuna.pruners.SuccessiveHalvingPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
}
# Options that are a sampler or pruner themselves: { name = …, options = {…} }.
_NESTED = ("base_sampler", "independent_sampler", "wrapped_pruner")
# What a TOML file cannot say, or what the spec says elsewhere.
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
    ]
)

# The least value of a whole-numbered option, which Optuna looks at only when it is used; else 0.
_LEAST = {"min_resource": 1, "reduction_factor": 2, "population_size": 2, "n_ei_candidates": 1, "interval_steps": 1}
# Real-valued ones that may be written as a whole number below that, and a default of -1.
_SIGNED = ("lower", "upper", "inc_popsize", "sigma0")


def build_sampler(
    name: str,
    options: Mapping[str, Any],
    space: Mapping[str, FloatParameter | IntParameter | CategoricalParameter],
    study_seed: int,
    trial_seed: int,
) -> optuna.samplers.BaseSampler:
    """The sampler ``name`` for one trial.

    Raises:
        ValueError: unknown name or option, or a value that Optuna refuses; the message says which.
    """
    options = dict(options)
    if "base_sampler" in options:
        base = _nested("sampler.options.base_sampler", options["base_sampler"])
        fixed = options.get("fixed_params", {})
        options["base_sampler"] = build_sampler(*base, _fixed(space, fixed), study_seed, trial_seed)
    if "independent_sampler" in options:
        independent = _nested("sampler.options.independent_sampler", options["independent_sampler"])
        options["independent_sampler"] = build_sampler(*independent, space, study_seed, trial_seed)
    if name == "grid" or (name == "bruteforce" and space):
        _check_options("sampler", SAMPLERS, name, options)
        return _grid(name, space, study_seed)
    # The points of a quasi-random sequence are told apart by the trial's number: all draw from one.
    extra = {} if name == "partialfixed" else {"seed": study_seed if name == "qmc" else trial_seed}
    sampler: optuna.samplers.BaseSampler = _build("sampler", SAMPLERS, name, options, extra)
    if isinstance(sampler, QMCSampler):
        found = {name: parameter.distribution() for name, parameter in space.items()}
        sampler.space = {name: distribution for name, distribution in found.items() if not distribution.single()}
    return sampler


def reseed(sampler: optuna.samplers.BaseSampler, seed: int) -> None:
    """Let ``sampler`` draw as if it had been built with ``seed``, without losing what it has learned of the
    study: building one anew for each trial costs it a walk over all trials.

    Those that tell points apart by the trial's number, grid and qmc, keep theirs.
    """
    for part in vars(sampler).values():
        if isinstance(part, LazyRandomState):
            part.rng.seed(seed)
        elif isinstance(part, optuna.samplers.BaseSampler):
            reseed(part, seed)


def build_pruner(name: str, options: Mapping[str, Any]) -> optuna.pruners.BasePruner:
    """The pruner ``name``.

    Raises:
        ValueError: unknown name or option, or a value that Optuna refuses; the message says which.
    """
    options = dict(options)
    if "wrapped_pruner" in options:
        options["wrapped_pruner"] = build_pruner(*_nested("pruner.options.wrapped_pruner", options["wrapped_pruner"]))
    elif name == "patient":
        options["wrapped_pruner"] = None
    pruner: optuna.pruners.BasePruner = _build("pruner", PRUNERS, name, options, {})
    return pruner


def _build(
    kind: str,
    known: Mapping[str, Callable[..., Any]],
    name: str,
    options: Mapping[str, Any],
    extra: dict[str, Any],
) -> Any:
    _check_options(kind, known, name, options)
    with warnings.catch_warnings():
        # "Experimental" is Optuna's word to programmers; whoever names a sampler in a file has chosen it.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return known[name](**options, **extra)
        except (TypeError, ValueError, AssertionError) as error:
            shown = ", ".join(f"{key} = {value!r}" for key, value in options.items())
            raise ValueError(f"{kind}.options: {name!r} refuses {shown or 'no options'}: {one_line(error)}") from None


def _check_options(kind: str, known: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, Any]) -> None:
    if name not in known:
        raise ValueError(f"{kind}.name: {name!r} is unknown; {nearest(name, known)}; all: {', '.join(known)}")
    parameters = inspect.signature(known[name]).parameters
    legal = [option for option in parameters if option not in _HIDDEN]
    for option, value in options.items():
        if option not in legal:
            raise ValueError(f"{kind}.options.{option}: {name!r} has no such option; {nearest(option, legal)}")
        if not _fits(value, str(parameters[option].annotation)):
            raise ValueError(f"{kind}.options.{option} = {value!r}: should be {parameters[option].annotation}")
        least = _LEAST.get(option, 0)
        if isinstance(value, int) and value < least and option not in _SIGNED:
            raise ValueError(f"{kind}.options.{option} = {value}: should be at least {least}")


def _fits(value: Any, annotation: str) -> bool:
    """Whether ``value`` is what Optuna's annotation says; true where that is no plain type."""
    plain = {"int": int, "float": int | float, "bool": bool, "str": str, "None": type(None)}
    types = [part.strip() for part in annotation.replace("'", "").split("|")]
    if not all(part in plain for part in types):
        return True
    return any(isinstance(value, plain[part]) and isinstance(value, bool) <= (part == "bool") for part in types)


def _nested(key: str, value: Any) -> tuple[str, dict[str, Any]]:
    name = value.get("name") if isinstance(value, Mapping) else None
    options = value.get("options", {}) if isinstance(value, Mapping) else None
    if not isinstance(name, str) or not isinstance(options, Mapping) or not set(value) <= {"name", "options"}:
        raise ValueError(f"{key}: {value!r} is not {{ name = …, options = {{…}} }}")
    return name, dict(options)


def _grid(
    name: str, space: Mapping[str, FloatParameter | IntParameter | CategoricalParameter], seed: int
) -> GridSampler:
    if not space:
        raise ValueError(f"sampler.name: {name!r} needs a [space]; add one or choose another sampler")
    try:
        return GridSampler(space, seed)
    except ValueError as error:
        raise ValueError(f"sampler.name: {name!r} {error}") from None


def _fixed(
    space: Mapping[str, FloatParameter | IntParameter | CategoricalParameter], fixed: Any
) -> Mapping[str, FloatParameter | IntParameter | CategoricalParameter]:
    """``space`` with the parameters that a partialfixed sampler fixes at their values.

    Raises:
        ValueError: there is no such parameter, or it never takes its value.
    """
    if not isinstance(fixed, Mapping) or not space:
        return space
    for name, value in fixed.items():
        key = f"sampler.options.fixed_params.{name}"
        if name not in space:
            raise ValueError(f"{key}: there is no such parameter; {nearest(name, space)}")
        if not space[name].contains(value):
            raise ValueError(f"{key} = {value!r}: the parameter never takes this value")
    held = {
        name: CategoricalParameter(type="categorical", choices=[value], when=space[name].when)
        for name, value in fixed.items()
    }
    return {**space, **held}
