"""What is wrong with a study file, in its own terms: pydantic speaks of Python's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from studies.errors import nearest
from studies.spec import sections
from studies.spec.space import CategoricalParameter, FloatParameter, IntParameter

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def explain(error: ValidationError, model: type[BaseModel], data: Any) -> str:
    """Pydantic's first error in ``data`` as ``key: what is wrong, what is legal``, and the number of further ones."""
    errors = error.errors(include_url=False)
    # Unknown keys first: a misspelled key also makes the right one missing.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location, tried = _in_file(first, data)
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
        legal = _LEGAL_OF_UNION.get(tried or "") or _LEGAL.get(first["type"], first["msg"].replace("Input ", ""))
        # A webhook's URL is a secret: whoever knows it may post.
        given = "" if location[0] == "notify" and "events" not in location else f" = {_show_given(first['input'])}"
        text = f"{key}{given}: {legal}"
    # Of a union pydantic lists an error for each type that it tried: they count as one.
    more = len({_in_file(each, data)[0] for each in errors}) - 1
    return text + (f" (and {more} more)" if more else "")


def _in_file(error: ErrorDetails, data: Any) -> tuple[tuple[str, ...], str | None]:
    """The key of an error as the file has it, and of a union the first type that pydantic tried, else ``None``."""
    location = list(error["loc"])
    # The tag of a parameter's type is pydantic's, not a key of the file.
    if location[:1] == ["space"] and len(location) > 2 and location[2] in ("int", "float", "categorical"):
        del location[2]
    if error["type"] != "missing":
        value = data
        for depth, part in enumerate(location):
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):  # not of the file, but a type of a union
                return tuple(map(str, location[:depth])), str(part)
    return tuple(map(str, location)), None


# Messages in the terms of a study file, in place of pydantic's in terms of Python.
_LEGAL = dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "should be a table of keys") | {
    "too_short": "should have at least one item",
}
# By the first type of a union.
_LEGAL_OF_UNION = {"bool": "should be text, a number, true or false", "str": "should be text or a list of texts"}


def _show_given(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _known_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The legal keys of the table with an unknown key."""
    tables: dict[str, type[BaseModel]] = {
        "objective": sections.ObjectiveSpec,
        "budget": sections.BudgetSpec,
        "sampler": sections.SamplerSpec,
        "pruner": sections.PrunerSpec,
        "scheduler": sections.SchedulerSpec,
        "checkpoints": sections.CheckpointsSpec,
        "notify": sections.NotifySpec,
        "int": IntParameter,
        "float": FloatParameter,
        "categorical": CategoricalParameter,
    }
    table = model if len(location) == 1 else tables[str(location[-2])]
    return list(table.model_fields)
