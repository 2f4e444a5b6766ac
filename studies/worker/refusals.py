"""Refusals: which change of a statement the database refuses for its content. All other changes are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from studies.errors import LeaseLost, StorageError, StorageUnreachable
from studies.storage.database import WritesLost
from studies.storage.limits import shortened
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Change, Claim

Changes = Mapping[str, Sequence[Change]]

#: Errors of the connection or the lease, which say nothing about the content.
NO_REFUSALS = (WritesLost, LeaseLost, StorageUnreachable)

#: The word for each kind of change in messages, and the field that names the change.
_WORDS = {
    "params": ("parameter", "name"),
    "reports": ("report of step", "step"),
    "user_attrs": ("attribute", "key"),
    "system_attrs": ("attribute", "key"),
    "metrics": ("metric", "name"),
}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One change of a trial that the database refuses."""

    kind: str
    """One of params, reports, user_attrs, system_attrs, metrics."""
    change: Change
    reason: str
    """The database's message."""

    def __str__(self) -> str:
        word, key = _WORDS[self.kind]
        name = self.change[key]
        shown = shortened(name) if isinstance(name, str) else name
        return f"the database refuses the {word} {shown}: {self.reason}"


def isolate(changes: Changes, write: Callable[[Changes], object], first: StorageError) -> list[Refusal]:
    """Write the legal ones of ``changes``, which the database refused as a whole; return the others.

    Bisection: one refused change among n takes about 2·log2(n) statements.

    Args:
        changes: of one trial.
        write: sends some of them.
        first: why all of them together were refused.

    Raises:
        WritesLost: the server crashed meanwhile, if ``write`` says which revision is known.
        LeaseLost: another worker has the trial by now.
        StorageUnreachable: the database became unreachable meanwhile.
    """
    flat = [(kind, change) for kind, some in changes.items() for change in some]
    if len(flat) <= 1:
        return [Refusal(kind=kind, change=change, reason=str(first)) for kind, change in flat]
    refusals: list[Refusal] = []
    for half in (flat[: len(flat) // 2], flat[len(flat) // 2 :]):
        part: dict[str, list[Change]] = {}
        for kind, change in half:
            part.setdefault(kind, []).append(change)
        try:
            write(part)
        except NO_REFUSALS:
            raise
        except StorageError as error:
            refusals += isolate(part, write, error)
    return refusals


def fail_refused(
    storage: PostgresStorage, claim: Claim, changes: Changes, first: StorageError, *, revision: int = 0
) -> list[Refusal]:
    """FAIL a trial whose result came with a change that the database refuses; write all other changes.

    Raises:
        WritesLost: a crash of the server has lost writes up to ``revision``.
        LeaseLost: another worker has the trial by now.
        StorageUnreachable: the database became unreachable meanwhile.
        StorageError: the database refuses the FAIL as well.
    """
    try:
        refusals = isolate(changes, partial(storage.leases.write, claim, step=None, revision=revision), first)
    except LeaseLost:  # requeued meanwhile and not claimed again: the database takes a late result, but no report
        refusals = [
            Refusal(kind=kind, change=change, reason=str(first)) for kind in changes for change in changes[kind]
        ]
    reason = str(refusals[0]) if refusals else str(first)
    error = {"key": "error", "value": json.dumps(reason)}
    storage.leases.finish(claim, "FAIL", None, {"user_attrs": [error]}, revision=revision)
    return refusals
