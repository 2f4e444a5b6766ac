"""What the database refuses for what it is: found among what was sent, so that all else is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from studies.errors import LeaseLost, StorageError, StorageUnreachable
from studies.storage.database import Forgotten
from studies.storage.limits import shortened
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Change, Claim

Changes = Mapping[str, Sequence[Change]]

#: Errors that say nothing about what was sent.
NO_REFUSALS = (Forgotten, LeaseLost, StorageUnreachable)

#: What a person calls each kind of change, and the key by which it goes.
_WORDS = {
    "params": ("parameter", "name"),
    "reports": ("report of step", "step"),
    "user_attrs": ("attribute", "key"),
    "system_attrs": ("attribute", "key"),
    "metrics": ("metric", "name"),
}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One change of a trial that the database does not take."""

    kind: str
    """One of params, reports, user_attrs, system_attrs, metrics."""
    change: Change
    reason: str
    """In the database's words."""

    def __str__(self) -> str:
        word, key = _WORDS[self.kind]
        name = self.change[key]
        shown = shortened(name) if isinstance(name, str) else name
        return f"the database refuses the {word} {shown}: {self.reason}"


def isolate(changes: Changes, write: Callable[[Changes], object], first: StorageError) -> list[Refusal]:
    """Write what the database takes of ``changes``, which it refused as a whole; returns the rest.

    A few among many are found in a handful of statements: each part that is refused is cut in two.

    Args:
        changes: of one trial.
        write: sends some of them.
        first: why all together were refused.

    Raises:
        Forgotten: the server crashed meanwhile, if ``write`` says which revision is known.
        LeaseLost: the trial is another's by now.
        StorageUnreachable: the database went away meanwhile.
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
    """End a trial whose result the database refuses for what came with it: FAIL, with the reason and all else.

    Raises:
        Forgotten: a crash of the server has lost what was written up to ``revision``.
        LeaseLost: it is another's by now.
        StorageUnreachable: the database went away meanwhile.
        StorageError: it refuses even that.
    """
    try:
        refusals = isolate(changes, partial(storage.leases.write, claim, step=None, revision=revision), first)
    except LeaseLost:  # requeued meanwhile, and free: it takes a result, and nothing before that
        refusals = [
            Refusal(kind=kind, change=change, reason=str(first)) for kind in changes for change in changes[kind]
        ]
    reason = str(refusals[0]) if refusals else str(first)
    error = {"key": "error", "value": json.dumps(reason)}
    storage.leases.finish(claim, "FAIL", None, {"user_attrs": [error]}, revision=revision)
    return refusals
