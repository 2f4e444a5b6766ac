"""Change the space of a study while it runs: ``lr.high=0.3``, ``optimizer.choices+=lion``.

What happens to the trials:

- Those that run or wait must be legal in the new space; else the change is refused.
- Finished ones stay as they are. A sampler sees those that are legal in the new space, with its distributions.
- Each claim tells the version of the space: a worker reads the new one before it samples its next trial.
"""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from studies.errors import SpecError, StudyBusy, command, nearest
from studies.spec.source import read_value
from studies.spec.study import StudySpec
from studies.values import to_text

if TYPE_CHECKING:
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord

#: What can change. The scale and the type cannot: Optuna knows one of each for a parameter.
FIELDS = ("low", "high", "step", "choices")
#: Samplers whose trials are dealt or scaled by the space that the study began with.
FIXED = ("grid", "bruteforce", "cmaes")


class _Change(NamedTuple):
    name: str
    field: str
    operator: str
    value: Any
    text: str


def change_space(storage: PostgresStorage, record: StudyRecord, texts: Sequence[str]) -> list[str]:
    """Change the space of a study.

    Args:
        storage: where the study is.
        record: the study.
        texts: ``NAME.low=VALUE``, and the like of ``high``, ``step``, ``choices``; of choices also ``+=`` and ``-=``.

    Returns:
        What is another by now, ``lr.high: 0.1 → 0.3``; empty where nothing is.

    Raises:
        NotPermitted: the database user is a viewer.
        StorageError: stock Optuna made the study.
        SpecError: a change is not legal, or its sampler cannot follow one.
        StudyBusy: a running or waiting trial would be illegal; or somebody changed the space at the same moment.
    """
    storage.require("worker")
    # Read anew: the caller may have its record from before another change.
    record = storage.find_study(record.name)
    record.require_spec("its space is in its objective")
    # The text before the spec that is changed: the database compares it when it writes. The other way round, what
    # somebody changes between the two would be undone.
    before = storage.spaces.text(record)
    spec = storage.find_study(record.name).require_spec("its space is in its objective")
    if spec.sampler.name in FIXED:
        raise SpecError(
            f"study {record.name!r} has the sampler {spec.sampler.name!r}, which keeps the space that it began with; "
            f"make a study with the new space, and give it the best trials: studyhall enqueue NEW --from {record.name}"
        )
    if not spec.space:
        raise SpecError(f"study {record.name!r} has no [space]: its objective suggests the parameters; change it there")
    changed = _changed(spec, [_parse(text, spec) for text in texts])
    differences = _differences(spec, changed)
    if not differences:
        return []
    _require_legal_trials(storage, record, changed)
    if not storage.spaces.change(record, before, changed, who=_user(), change=", ".join(differences)):
        raise StudyBusy(f"somebody changed the space of study {record.name!r} at this moment; look, and try again")
    return differences


def _parse(text: str, spec: StudySpec) -> _Change:
    found = re.fullmatch(r"(.+)\.(\w+)\s*(\+=|-=|=)(.*)", text, re.DOTALL)
    if not found:
        raise SpecError(f"{text!r} is not NAME.FIELD=VALUE; for example lr.high=0.3 or optimizer.choices+=lion")
    name, field, operator, value = found.groups()
    if name not in spec.space:
        raise SpecError(f"study {spec.name!r} has no parameter {name!r} in its space; {nearest(name, spec.space)}")
    parameter = spec.space[name]
    own = [key for key in FIELDS if key in type(parameter).model_fields]
    if field not in own:
        why = "; a study keeps the rest" if field in type(parameter).model_fields else ""
        raise SpecError(f"{name}.{field} cannot change: of {name!r} these can: {', '.join(own)}{why}")
    if operator != "=" and field != "choices":
        raise SpecError(f"{text!r}: {operator} is for choices; write {name}.{field}=VALUE")
    return _Change(name, field, operator, read_value(value), text)


def _changed(spec: StudySpec, changes: Sequence[_Change]) -> StudySpec:
    space = {name: parameter.model_dump(exclude_none=True) for name, parameter in spec.space.items()}
    for change in changes:
        fields, given = space[change.name], change.value
        if change.operator == "=":
            fields[change.field] = given
            continue
        values = given if isinstance(given, list) else [given]
        if change.operator == "+=":
            fields["choices"] = [*fields["choices"], *values]
        else:
            for value in values:
                if value not in fields["choices"]:
                    raise SpecError(
                        f"{change.text!r}: {change.name!r} has no choice {value!r}; it has {fields['choices']}"
                    )
                fields["choices"] = [choice for choice in fields["choices"] if choice != value]
    return StudySpec.from_dict({**spec.model_dump(exclude_none=True), "space": space}, "the new space")


def _differences(before: StudySpec, after: StudySpec) -> list[str]:
    return [
        f"{name}.{field}: {'none' if old is None else to_text(old)} → {to_text(new)}"
        for name, parameter in after.space.items()
        for field in FIELDS
        if (old := getattr(before.space[name], field, None)) != (new := getattr(parameter, field, None))
    ]


def _require_legal_trials(storage: PostgresStorage, record: StudyRecord, changed: StudySpec) -> None:
    from studies.storage.trials import known_params

    for trial in storage.trials(record):
        if trial.state.is_finished():
            continue
        for name, value in known_params(trial.state, trial.params, trial.system_attrs).items():
            if name in changed.space and not changed.space[name].contains(value):
                number, state = trial.number, trial.state.name.lower()
                raise StudyBusy(
                    f"trial {number} of study {record.name!r} is {state} with {name} = {value!r}, which the new space "
                    f"lacks; wait for its end, or end it: {command('cancel', record.name, number)}"
                )


def _user() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
