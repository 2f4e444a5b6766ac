"""The guard in front of both sites: authentication, what a role may do, and limits of requests.

An admin may do everything, a viewer look. Whoever started the sites has a token, or gave passwords to others.
The requests of other pages in the same browser are refused: they would be sent with its owner's cookie or password.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode

from studies.serve import bodies
from studies.serve.bodies import BodyRefused, Limits, Message, Receive
from studies.serve.logins import Failures, retry_after

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

ADMIN: Final = "admin"
VIEWER: Final = "viewer"
SAFE: Final = ("GET", "HEAD", "OPTIONS")
TOKEN: Final = "token"

_SEARCHES = "|".join(
    (
        r"(runs|experiments|logged-models|traces|datasets|issues|prompt-optimization/jobs)/search",
        r"experiments/search-datasets",
        r"registered-models/get-latest-versions",
        r"traces/(metrics|batchGetInfos|calculate-filter-correlation)",
    )
)
#: Routes of MLflow that read by POST, which a viewer may use; its pages need most of them.
MLFLOW_READS: Final = re.compile(rf"/(?:ajax-)?api/[23]\.0/mlflow/(?:{_SEARCHES})|/graphql")
#: Routes that are closed for everybody: MLflow's assistant, which runs programs on this machine; its gateway to
#: language models; and a list that reading creates. ``DOTALL``, as its router accepts line breaks.
MLFLOW_CLOSED: Final = re.compile(
    r"/(?:ajax-)?api/[23]\.0/mlflow/(?:assistant|label-schemas/list)(?:[/\s].*)?|/gateway(?:[/\s].*)?",
    re.DOTALL,
)
#: MLflow's artifacts: of any size, streamed to the disk.
MLFLOW_STREAMS: Final = re.compile(r"/(?:ajax-)?api/2\.0/mlflow-artifacts/artifacts/.*", re.DOTALL)
_HOST: Final = re.compile(r"(?:\[([\da-f:.]+)\]|([\w.-]+))(?::(\d+))?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who has access, and with which role."""

    viewer_password: str | None = field(default=None, repr=False)
    admin_password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    """Gives its bearer the :attr:`role`."""
    anybody: bool = False
    """Whether everybody has the :attr:`role`."""
    role: str = ADMIN
    hosts: tuple[str, ...] = ()
    """The legal host names; empty for any. Prevents DNS rebinding: a foreign page whose name resolves to this machine.
    With passwords any name is safe, as such a page has none."""

    def login(self, authorization: str) -> str | None:
        """The role of an Authorization header; ``None`` for wrong credentials."""
        kind, _, word = authorization.partition(" ")
        if kind.lower() == "bearer":
            return self.role if self.is_token(word.strip()) else None
        if kind.lower() != "basic":
            return None
        try:
            name, _, password = base64.b64decode(word, validate=True).decode().partition(":")
        except ValueError:  # not Base64, or not UTF-8
            return None
        for role, right in ((VIEWER, self.viewer_password), (ADMIN, self.admin_password)):
            if right and name == role and _is_same(password, right):
                return role
        return None

    def is_token(self, word: str) -> bool:
        """Whether ``word`` is the token, compared in constant time."""
        return self.token is not None and _is_same(word, self.token)

    @property
    def cookie(self) -> str:
        """The cookie for a browser. Derived from the token, as browsers send cookies to every port of a host."""
        return hmac.digest((self.token or "").encode(), b"cookie", hashlib.sha256).hex()

    def has_cookie(self, cookies: Mapping[str, str], name: str) -> bool:
        """Whether a browser has our cookie."""
        return self.token is not None and _is_same(cookies.get(name, ""), self.cookie)


class Guard:
    """ASGI middleware.

    Args:
        application: which one.
        access: who may do what.
        reads: paths that a viewer may POST to: they change nothing.
        closed: paths that are refused for every role.
        streams: paths whose bodies the application reads piece by piece.
        limits: of the bodies.
    """

    def __init__(
        self,
        application: Application,
        access: Access,
        *,
        reads: re.Pattern[str] | None = None,
        closed: re.Pattern[str] | None = None,
        streams: re.Pattern[str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._application = application
        self._access = access
        self._reads = reads
        self._closed = closed
        self._streams = streams
        self._limits = limits or Limits()
        self._failures = Failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # neither site needs one
        else:
            answer = _Answer(send)
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            if await self._admits(scope, headers, answer):
                await self._pass(scope, receive, headers, answer)

    async def _admits(self, scope: Scope, headers: Mapping[str, str], answer: _Answer) -> bool:
        """Check a request; returns whether it may pass. A refused one has been answered."""
        method, path = scope["method"], scope["path"]
        host = headers.get("host", "")
        called = _HOST.fullmatch(host)
        if self._access.hosts and (not called or (called[1] or called[2]).lower() not in self._access.hosts):
            await answer.refuse(403, f"this site is called {self._access.hosts[0]} here, not {host[:80]!r}")
            return False
        cookie = f"studyhall-{(called and called[3]) or 80}"  # the ports of a host share its cookies
        token = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"))).get(TOKEN)
        comes_with_token = method == "GET" and token is not None and self._access.is_token(token)
        role = self._access.role if comes_with_token else self._role(headers, cookie)
        if role is None:
            await self._refuse_login(scope, is_attempt=bool(token or headers.get("authorization")), answer=answer)
        elif why := self._reason_against(role, method, path, host, headers):
            await answer.refuse(403, why)
        elif comes_with_token:
            await answer.redirect(_without_token(scope), f"{cookie}={self._access.cookie}")
        else:
            return True
        return False

    def _role(self, headers: Mapping[str, str], cookie: str) -> str | None:
        if self._access.anybody or self._access.has_cookie(_cookies(headers.get("cookie", "")), cookie):
            return self._access.role
        return self._access.login(headers.get("authorization", ""))

    async def _refuse_login(self, scope: Scope, *, is_attempt: bool, answer: _Answer) -> None:
        if is_attempt and (seconds := self._failures.count((scope.get("client") or ("",))[0])):
            if self._access.token is None:  # a token is too long to guess, a password is not
                await self._failures.wait(seconds)
            again = (b"retry-after", str(retry_after(seconds)).encode())
            await answer.refuse(429, "too many failed logins: wait, then try again", [again])
        elif self._access.token:
            why = (
                "a token is needed: open the address that studyhall serve printed, or send Authorization: Bearer TOKEN"
            )
            await answer.refuse(401, why, [(b"www-authenticate", b'Bearer realm="Studyhall"')])
        else:
            why = "a password is needed: the user's name is viewer, or admin"
            await answer.refuse(401, why, [(b"www-authenticate", b'Basic realm="Studyhall", charset="UTF-8"')])

    def _reason_against(self, role: str, method: str, path: str, host: str, headers: Mapping[str, str]) -> str | None:
        if self._closed and self._closed.fullmatch(path):
            return "this part of the site is not served here"
        if not _is_same_site(host, method, headers):
            return "a request from another page is refused"
        may_view = method in SAFE or (method == "POST" and bool(self._reads and self._reads.fullmatch(path)))
        if role == VIEWER and not may_view:
            return "a viewer can look, and not change anything"
        return None

    async def _pass(self, scope: Scope, receive: Receive, headers: Mapping[str, str], answer: _Answer) -> None:
        """Call the application, without credentials in the headers and with a limited body."""
        scope["headers"] = _without_login(scope["headers"])
        try:
            if scope["method"] == "PUT" and self._streams and self._streams.fullmatch(scope["path"]):
                receive = bodies.streamed(receive, self._limits, answer.refuse)
            else:
                receive = await bodies.whole(receive, self._limits, headers.get("content-length", ""))
        except BodyRefused as refused:
            await answer.refuse(refused.status, str(refused))
        except bodies.Gone:
            pass
        else:
            try:
                await self._application(scope, receive, answer.send)
            except Exception:
                if not answer.is_ours:  # otherwise it comes from the body that was refused
                    raise


class _Answer:
    """The one answer to a request: the application's or the guard's, whichever starts first."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = False
        self.is_ours = False
        """Whether the guard has answered; the application's answer is then dropped."""

    async def send(self, message: Message) -> None:
        """Send a message of the application."""
        if self.is_ours:
            return
        if message["type"] == "http.response.start":
            self._has_begun = True
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await self._send(message)

    async def refuse(self, status: int, why: str, headers: Headers = ()) -> None:
        """Refuse, in the error formats that the pages of both sites read."""
        body = json.dumps({"reason": why, "error_code": "PERMISSION_DENIED", "message": why}).encode()
        await self._answer(status, [(b"content-type", b"application/json"), *headers], body)

    async def redirect(self, location: str, cookie: str) -> None:
        """Redirect a browser, with a cookie that it sends to this site only."""
        cookie = f"{cookie}; Path=/; HttpOnly; SameSite=Lax"
        await self._answer(303, [(b"location", location.encode()), (b"set-cookie", cookie.encode())], b"")

    async def _answer(self, status: int, headers: Headers, body: bytes) -> None:
        if self._has_begun:
            return
        self._has_begun = self.is_ours = True
        length = (b"content-length", str(len(body)).encode())
        headers = [*headers, length, (b"cache-control", b"no-store"), *_HEADERS]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


#: Headers of every answer. Another site gets no referrer, which may hold the token.
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"same-origin"),
)


def _is_same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), right.encode("utf-8", "surrogatepass"))


def _is_same_site(host: str, method: str, headers: Mapping[str, str]) -> bool:
    """Whether a request comes from this site, or from no page. A plain link may come from anywhere."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return False
    is_link = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    return is_link or headers.get("sec-fetch-site", "none") in ("same-origin", "none")


def _cookies(header: str) -> dict[str, str]:
    pairs = (pair.strip().partition("=") for pair in header.split(";"))
    return {name: value for name, _, value in pairs}


def _without_login(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers without our credentials and cookies, which the application must not log or store."""
    kept = []
    for name, value in headers:
        if name.lower() == b"cookie":
            value = b"; ".join(p for p in map(bytes.strip, value.split(b";")) if not p.startswith(b"studyhall-"))
        if name.lower() != b"authorization" and (value or name.lower() != b"cookie"):
            kept.append((name, value))
    return kept


def _without_token(scope: Scope) -> str:
    """Where a browser with the right token is redirected: to the same page of this host (no open redirect)."""
    path = quote("/" + scope["path"].lstrip("/"), safe="/:@!$&'()*+,;=~")
    rest = [(name, value) for name, value in parse_qsl(scope["query_string"].decode("latin-1"), True) if name != TOKEN]
    return f"{path}?{urlencode(rest)}" if rest else path
