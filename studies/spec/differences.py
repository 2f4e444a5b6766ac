"""Whether a spec defines the study that is stored, and the way out where it does not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from studies.errors import SpecMismatch, command
from studies.objective import work_command
from studies.spec.locations import mask_url
from studies.spec.script import is_script, short
from studies.spec.sections import MAX_COUNT
from studies.text import counted

if TYPE_CHECKING:
    from studies.spec.sections import BudgetSpec
    from studies.spec.study import StudySpec

#: The most differences that a message names.
MOST = 4


def require_same(stored: StudySpec, given: StudySpec, budget: BudgetSpec, *, finished: int = 0) -> None:
    """Check that ``given`` defines the study ``stored``.

    The order of parameters does not count. The budget may be ``budget``, or that of ``stored``: the command that
    created the study still runs after ``studyhall extend``. The study decides what ``given`` leaves open of the budget
    and the direction.

    Args:
        stored: the spec of the study, as it was created.
        given: what is to be run.
        budget: of the study, as it is now.
        finished: how many of its trials have finished; the first one settles the direction.

    Raises:
        SpecMismatch: they differ; the message says in what, and what to do.
    """
    # Only what was given: a default says nothing about the budget.
    said = {key: getattr(given.budget, key) for key in given.budget.model_fields_set}
    is_as_created = stored.budget.model_copy(update=said) == stored.budget
    given = given.model_copy(update={"budget": budget if is_as_created else budget.model_copy(update=said)})
    accepted: dict[str, Any] = {"budget": budget}
    if not given.says_direction or given.all_directions == stored.all_directions:
        accepted |= {"direction": given.direction, "directions": given.directions}
    if stored.objective.sha256 is None and _file_name(stored.objective.path) == _file_name(given.objective.path):
        # Older versions stored the whole path of a script.
        known = {"path": given.objective.path, "sha256": given.objective.sha256}
        accepted["objective"] = stored.objective.model_copy(update=known)
    stored = stored.model_copy(update=accepted)
    differences = dict(_differences(stored.model_dump(mode="json"), given.model_dump(mode="json")))
    if "objective.path" in differences:
        differences.pop("objective.sha256", None)  # implied by another path
    if differences:
        shown = list(differences.values())
        more = f"; and {len(shown) - MOST} more" if len(shown) > MOST else ""
        raise SpecMismatch(
            f"study {stored.name!r} exists with another spec: {'; '.join(shown[:MOST])}{more}; "
            f"{_way_out(stored, given, differences, finished)}"
        )


def _way_out(stored: StudySpec, given: StudySpec, differences: Mapping[str, str], finished: int) -> str:
    work = work_command(stored.name, stored.objective.path, stored.checkpoints.store)
    if all(key.startswith("budget.") for key in differences):
        if given.budget.trials < finished:
            return f"{counted(finished, 'trial')} finished already: give no fewer, or this one another --name"
        changes = [
            word
            for key in differences
            for word in (f"--{key.removeprefix('budget.').replace('_', '-')}", _value_at(given, key))
        ]
        return f"change it with: {command('extend', stored.name, *changes)}"
    is_direction = set(differences) <= {"direction", "directions"}
    if is_direction and not finished and len(given.all_directions) == len(stored.all_directions):
        words = [word for direction in given.all_directions for word in ("--direction", direction)]
        return f"as no trial has finished, change it with: {command('extend', stored.name, *words)}"
    if set(differences) == {"objective.sha256"}:
        return (
            f"run this one all the same, which each trial records, with: {work} --allow-changed; "
            "or give it another --name"
        )
    if all(key.startswith("notify.") for key in differences):
        return "leave it out, and tell this command alone with --notify URL"
    return f"work on it as it is with: {work}; or give this one another --name"


def _differences(stored: Any, given: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, description) of each leaf in which two dumped specs differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for part in [*stored, *(k for k in given if k not in stored)]:
            yield from _differences(stored.get(part), given.get(part), f"{key}.{part}" if key else part)
    # As text: 1 == True and 1 == 1.0 in Python, in lists as well.
    elif json.dumps(stored, sort_keys=True) != json.dumps(given, sort_keys=True):
        if key == "notify.url":
            stored, given = (value and mask_url(value) for value in (stored, given))
        if key == "objective.sha256" and stored and given:
            yield key, f"its script has changed: SHA-256 {short(stored)} then, {short(given)} now"
        elif key == "notify.url" and stored == given:
            yield key, f"{key} is another one at {_show(stored)}"  # the parts that differ are masked
        else:
            is_default = key == "direction" and stored is None
            was = '"minimize" (the default)' if is_default else _show(stored)
            if key == "budget.trials" and stored == MAX_COUNT:
                was = "without a limit"
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
