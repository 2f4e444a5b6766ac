"""The guard before both sites: who may come in, and what they may do there.

An admin may do everything, a viewer look. Without passwords everybody on this machine is one or the other.
The requests of other pages in the same browser are refused: they would be sent with its owner's password.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Callable[[], Awaitable[MutableMapping[str, Any]]], Send], Awaitable[None]]

ADMIN: Final = "admin"
VIEWER: Final = "viewer"
SAFE: Final = ("GET", "HEAD", "OPTIONS")

_SEARCHES = "|".join(
    (
        r"(runs|experiments|logged-models|traces|datasets|issues|prompt-optimization/jobs)/search",
        r"experiments/search-datasets",
        r"registered-models/get-latest-versions",
        r"traces/(metrics|batchGetInfos|calculate-filter-correlation)",
    )
)
#: What MLflow is asked by POST and changes nothing; its pages need most of these.
MLFLOW_READS: Final = re.compile(rf"/(?:ajax-)?api/[23]\.0/mlflow/(?:{_SEARCHES})|/graphql")
#: What nobody is served: MLflow's assistant, which runs programs on this machine for whoever asks; its gateway to
#: language models; and a list that is made by being looked at. ``DOTALL``: its router takes line breaks, too.
MLFLOW_CLOSED: Final = re.compile(
    r"/(?:ajax-)?api/[23]\.0/mlflow/(?:assistant|label-schemas/list)(?:[/\s].*)?|/gateway(?:[/\s].*)?",
    re.DOTALL,
)
_HOST: Final = re.compile(r"(?:\[([\da-f:.]+)\]|([\w.-]+))(?::\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may do what."""

    viewer_password: str | None = None
    admin_password: str | None = None
    anybody: str | None = None
    """The role of who gives no password; ``None``: none is let in."""
    hosts: tuple[str, ...] = ()
    """The names by which the sites may be called; none: any. Else a page of somebody else's, whose name he
    points to this machine, could speak with them. With a password it could not."""

    def role(self, authorization: str) -> str | None:
        """The role of a request with this header; ``None``: none."""
        kind, _, encoded = authorization.partition(" ")
        if kind.lower() == "basic":
            try:
                name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
            except ValueError:  # not Base64, or not UTF-8
                return self.anybody
            for role, right in ((VIEWER, self.viewer_password), (ADMIN, self.admin_password)):
                if right and name == role and hmac.compare_digest(password.encode(), right.encode()):
                    return role
        return self.anybody


class Guard:
    """An ASGI application before another.

    Args:
        application: which one.
        access: who may do what.
        reads: paths that a viewer may POST to: they change nothing.
        closed: paths that nobody may ask for.
    """

    def __init__(
        self,
        application: Application,
        access: Access,
        *,
        reads: re.Pattern[str] | None = None,
        closed: re.Pattern[str] | None = None,
    ) -> None:
        self._application = application
        self._access = access
        self._reads = reads
        self._closed = closed

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[MutableMapping[str, Any]]], send: Send
    ) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # neither site needs one
        else:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            if refusal := self._refusal(scope["method"], scope["path"], headers):
                await _refuse(send, *refusal)
            else:
                # The password is nothing to the application.
                scope["headers"] = [(n, v) for n, v in scope["headers"] if n.lower() != b"authorization"]
                await self._application(scope, receive, _with_headers(send))

    def _refusal(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        name = _HOST.fullmatch(host)
        if self._access.hosts and (not name or (name[1] or name[2]).lower() not in self._access.hosts):
            return 403, f"this site is called {self._access.hosts[0]} here, not {host[:80]!r}"
        role = self._access.role(headers.get("authorization", ""))
        if role is None:
            return 401, "a password is needed: the user's name is viewer, or admin"
        if self._closed and self._closed.fullmatch(path):
            return 403, "this part of the site is not served here"
        if method not in SAFE and not _is_same_site(host, headers):
            return 403, "a request from another page is refused"
        if role == VIEWER and not self._may_view(method, path):
            return 403, "a viewer can look, and not change anything"
        return None

    def _may_view(self, method: str, path: str) -> bool:
        return method in SAFE or (method == "POST" and bool(self._reads and self._reads.fullmatch(path)))


def _is_same_site(host: str, headers: Mapping[str, str]) -> bool:
    origin = headers.get("origin")
    return headers.get("sec-fetch-site", "none") in ("same-origin", "none") and (
        origin is None or origin.partition("://")[2] == host
    )


async def _refuse(send: Send, status: int, why: str) -> None:
    # As either site's pages read an error.
    body = json.dumps({"reason": why, "error_code": "PERMISSION_DENIED", "message": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="Studyhall", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-content-type-options", b"nosniff"),
                (b"x-frame-options", b"SAMEORIGIN"),
            ]
        await send(message)

    return sending
