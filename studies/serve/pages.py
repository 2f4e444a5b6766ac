"""Redirects from ``/study/NAME`` to a study's page of either site, and the defaults of MLflow's first page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from studies.errors import StudyhallError

if TYPE_CHECKING:
    from studies.serve.bodies import Receive
    from studies.serve.guard import Application, Scope, Send

STUDY: Final = "/study/"
#: Defaults for the local storage of MLflow's pages: its pages for training, without the assistant, which is not served,
#: and without the notice about telemetry, which is off. Other versions of MLflow ignore unknown keys.
_DEFAULTS: Final = {
    "mlflow.workflowType_v1": json.dumps("machine_learning"),
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.telemetry.info.alert.dismissed_v1": "true",
    "mlflow.settings.telemetry.enabled_v1": "false",
}
_SCRIPT: Final = (
    f"<script>for (const [key, value] of Object.entries({json.dumps(_DEFAULTS)}))"
    " if (localStorage.getItem(key) === null) localStorage.setItem(key, value)</script>"
)


class Pages:
    """ASGI middleware.

    Args:
        application: which one.
        find: the address of a study's page, by the study's name.
        first: the page at ``/``, instead of the application's.
    """

    def __init__(self, application: Application, find: Callable[[str], str], first: bytes | None = None) -> None:
        self._application = application
        self._find = find
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        is_read = scope["type"] == "http" and scope["method"] == "GET"
        if is_read and scope["path"].startswith(STUDY):
            try:
                where = await asyncio.to_thread(self._find, scope["path"].removeprefix(STUDY))
            except StudyhallError as error:
                await _answer(send, 404, b"text/plain; charset=utf-8", f"{error}\n".encode())
            else:
                await _answer(send, 303, b"text/plain", b"", [(b"location", where.encode())])
        elif is_read and scope["path"] == "/" and self._first is not None:
            await _answer(send, 200, b"text/html; charset=utf-8", self._first)
        else:
            await self._application(scope, receive, send)


def opening(page: str) -> bytes:
    """MLflow's first page, which opens as :data:`_DEFAULTS` says."""
    return page.replace("<head>", f"<head>{_SCRIPT}", 1).encode()


async def _answer(
    send: Send, status: int, kind: bytes, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    given = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": [*given, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
