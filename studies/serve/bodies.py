"""Limits of request bodies, in time and size, enforced before a body occupies a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a request's body."""

    seconds: float = 60.0
    """For a whole body to arrive; for the next chunk of a streamed one."""
    largest: int = 32 * 2**20
    """Bytes of a whole body. Artifacts are streamed, and have no limit."""


class BodyRefused(Exception):
    """A body that is too slow (408) or too large (413)."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Gone(Exception):
    """The client disconnected in the middle of its body."""


async def whole(receive: Receive, limits: Limits, declared: str) -> Receive:
    """Read a whole body, for an application that would otherwise wait for it in a thread.

    Args:
        receive: of ASGI.
        limits: of the body.
        declared: its ``Content-Length``, or nothing.

    Returns:
        Another ``receive``, which gives the body in one piece.

    Raises:
        BodyRefused: it is too slow or too large.
        Gone: the client has disconnected.
    """
    too_large = BodyRefused(413, f"the body of a request may have {limits.largest} bytes here")
    if declared.isdecimal() and int(declared) > limits.largest:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            is_complete = False
            while not is_complete:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                body += message.get("body", b"")
                if len(body) > limits.largest:
                    raise too_large
                is_complete = not message.get("more_body", False)
    except TimeoutError:
        raise _too_slow(limits) from None
    pieces = [bytes(body)]

    async def replay() -> Message:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(), "more_body": False}
        return await receive()  # which returns when the client disconnects

    return replay


def streamed(receive: Receive, limits: Limits, refuse: Callable[[int, str], Awaitable[None]]) -> Receive:
    """A body of any size, chunk by chunk.

    When none comes in time, ``refuse`` is called first, to answer 408; then the application gets a
    :exc:`BodyRefused`, for which alone it would answer 500.
    """
    is_complete = False

    async def receiving() -> Message:
        nonlocal is_complete
        if is_complete:
            return await receive()
        try:
            async with asyncio.timeout(limits.seconds):
                message = await receive()
        except TimeoutError:
            refused = _too_slow(limits)
            await refuse(refused.status, str(refused))
            raise refused from None
        is_complete = not message.get("more_body", False)
        return message

    return receiving


def _too_slow(limits: Limits) -> BodyRefused:
    return BodyRefused(408, f"the body of the request did not arrive within {limits.seconds:.0f} s")
