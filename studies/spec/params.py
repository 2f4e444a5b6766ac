"""Parameters on a command line, ``lr=1e-3 width=256``, checked against a space."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from studies.errors import SpecError, nearest
from studies.spec.source import read_value
from studies.spec.space import CategoricalParameter, FloatParameter, IntParameter
from studies.values import to_text

Space = Mapping[str, FloatParameter | IntParameter | CategoricalParameter]


def read_params(texts: Iterable[str], space: Space) -> dict[str, Any]:
    """The parameters that ``texts``, each ``NAME=VALUE``, give for one trial.

    A value is read as that of ``--set`` is, and becomes what its parameter's type needs. Not every parameter
    need be there: the sampler chooses the others.

    Args:
        texts: as they were typed.
        space: the study's; where it is empty, nothing is known of it, and any name and JSON will do.

    Raises:
        SpecError: an unknown name, a value that the parameter never takes, or one under a condition that does
            not hold.
    """
    params: dict[str, Any] = {}
    for given in texts:
        name, equals, text = given.partition("=")
        name = name.strip()
        if not equals or not name:
            raise SpecError(f"{given!r} is not NAME=VALUE; for example lr=1e-3")
        if name in params:
            raise SpecError(f"{name} is given twice; give it once")
        if space and name not in space:
            raise SpecError(f"no parameter {name!r} is known; {nearest(name, space)}")
        params[name] = _read(name, text, space)
    for name in params:
        if obstacle := _obstacle(name, params, space):
            raise SpecError(f"{name} = {_show(params[name])}: sampled only where {obstacle}; leave one of the two out")
    return params


def open_conditions(params: Mapping[str, Any], space: Space) -> dict[str, str]:
    """Which of ``params`` are used only under a condition that is still open: ``{"momentum": "optimizer is sgd"}``."""
    return {
        name: f"{parent} is {_either(values)}"
        for name in params
        if name in space
        for parent, values in space[name].when.items()
        if parent not in params
    }


def _read(name: str, text: str, space: Space) -> Any:
    value = read_value(text)
    if not space:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise SpecError(
                f"{name} = {text}: should be text, a finite number, true, false, or a list or table of these"
            ) from None
        return value
    parameter = space[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(parameter, CategoricalParameter):
        for choice in parameter.choices:
            # Not by ==: 1 == True in Python. And a typed number may be a choice that is text.
            if to_text(choice) == text or (choice == value and isinstance(choice, bool) == isinstance(value, bool)):
                return choice
    elif is_number and parameter.low <= value <= parameter.high:  # false for nan
        steps = (value - parameter.low) / (parameter.step or 1)
        # Not exactly: 0.3 is 2.9999999999999996 steps of 0.1.
        is_on_step = math.isclose(steps, round(steps), abs_tol=1e-8)
        if isinstance(parameter, FloatParameter) and (parameter.step is None or is_on_step):
            return float(value)
        if isinstance(parameter, IntParameter) and is_on_step and value == int(value):
            return int(value)
    raise SpecError(f"{name} = {text}: should be {_legal(parameter)}")


def _legal(parameter: FloatParameter | IntParameter | CategoricalParameter) -> str:
    if isinstance(parameter, CategoricalParameter):
        return f"one of {', '.join(map(_show, parameter.choices))}"
    kind = "a whole number" if isinstance(parameter, IntParameter) else "a number"
    step = "" if parameter.step in (None, 1) else f" in steps of {parameter.step:g}"
    return f"{kind} from {_show(parameter.low)} to {_show(parameter.high)}{step}"


def _obstacle(name: str, params: Mapping[str, Any], space: Space) -> str | None:
    """The first impossible condition of a parameter or its parents: ``optimizer is sgd, and optimizer = adamw``."""
    for parent, values in space[name].when.items() if name in space else ():
        if parent in params:
            if params[parent] not in values:
                return f"{parent} is {_either(values)}, and {parent} = {_show(params[parent])}"
        elif further := _obstacle(parent, params, space):
            return f"{parent} is {_either(values)}, which is sampled only where {further}"
    return None


def _either(values: Iterable[Any]) -> str:
    return " or ".join(map(_show, values))


def _show(value: Any) -> str:
    """A value as one would type it."""
    return to_text(value)
