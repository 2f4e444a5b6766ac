"""The saved state of a training as bytes, and what is wrong with one."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class StateError(ValueError):
    """A saved state is damaged or another training's. One line: what was found, what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # what was found may have lines


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """A state of tensors and plain values."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    """What :func:`to_bytes` was given. Runs no code of ``data``.

    Raises:
        StateError: these bytes are something else. Flipped bits inside of a tensor are not seen: a checksum is for
            who keeps the bytes.
    """
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    # Damaged bytes raise nearly anything; torch's own text is long and advises to let them run code.
    except Exception as error:
        state = type(error).__name__
    if not isinstance(state, dict):
        found = f"{len(data)} bytes that torch cannot use ({state!s:.80})"
        raise StateError(f"the checkpoint is {found}; expected the saved state of a training")
    return state


def expect_same(found: object, expected: object) -> None:
    """Compare two states, tensors by type and shape, everything else by value; names the first difference."""
    found_leaves, expected_leaves = dict(_leaves(found)), dict(_leaves(expected))
    for path in [*expected_leaves, *found_leaves]:
        there, here = (leaves.get(path, "nothing") for leaves in (found_leaves, expected_leaves))
        if there != here:
            name = ".".join(map(str, path))
            raise StateError(f"the checkpoint has {name:.80} = {there!s:.80}; expected {here}")


def _leaves(state: object, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], object]]:
    """What nested dictionaries hold, by path; of a tensor its type and shape."""
    if isinstance(state, dict) and state:
        for key, value in state.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(state, Tensor):
        shape = " × ".join(map(str, state.shape)) or "scalar"
        yield path, f"{str(state.dtype).removeprefix('torch.')} {shape}"
    else:
        yield path, state
