"""Who may do what at the sites, asked of the guard itself: no server, no application behind it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

import pytest

from studies.serve.guard import ADMIN, MLFLOW_CLOSED, MLFLOW_READS, VIEWER, Access, Guard

Scope = MutableMapping[str, Any]
PASSWORDS = Access(viewer_password="look", admin_password="wörd: ok")
HERE = ("localhost", "127.0.0.1", "::1")
READ = "/ajax-api/2.0/mlflow/runs/search"
ASSISTANT = "/ajax-api/3.0/mlflow/assistant"


class Application:
    """Says 200 to everything, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Scope] = []

    async def __call__(self, scope: Scope, _: object, send: Any) -> None:
        self.asked.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"yours"})


def ask(access: Access, method: str = "GET", path: str = "/", **headers: str) -> tuple[int, Application, list[Any]]:
    """What the guard says to a request, what came through it, and all that it sent."""
    sent: list[Any] = []
    application = Application()
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "client": ("192.0.2.7", 1234),
        "headers": [(n.replace("_", "-").encode(), v.encode("latin-1")) for n, v in headers.items()],
    }

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    guard = Guard(application, access, reads=MLFLOW_READS, closed=MLFLOW_CLOSED)
    asyncio.run(guard(scope, _receive, send))
    assert len(application.asked) == (sent[0]["status"] == 200)
    return sent[0]["status"], application, sent


async def _receive() -> MutableMapping[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


def basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


VIEWERS = basic("viewer:look")
ADMINS = basic("admin:wörd: ok")


@pytest.mark.parametrize(
    ("method", "path", "viewer", "admin"),
    [
        ("GET", "/", 200, 200),
        ("HEAD", "/", 200, 200),
        ("OPTIONS", "/", 200, 200),
        ("POST", "/api/studies", 403, 200),
        ("PUT", "/api/studies/1/note", 403, 200),
        ("PATCH", READ, 403, 200),
        ("DELETE", READ, 403, 200),
        ("MKCOL", READ, 403, 200),
        ("post", READ, 403, 200),
        ("get", "/", 403, 200),
        ("POST", READ, 200, 200),
        ("POST", "/graphql", 200, 200),
        ("GET", f"{ASSISTANT}/config", 403, 403),
        ("HEAD", f"{ASSISTANT}/config", 403, 403),
        ("GET", ASSISTANT, 403, 403),
        ("GET", "/gateway/mlflow/v1/models", 403, 403),
        ("GET", "/ajax-api/3.0/mlflow/label-schemas/list", 403, 403),
    ],
)
def test_a_viewer_looks_and_an_admin_does_what_is_not_closed(method: str, path: str, viewer: int, admin: int) -> None:
    assert ask(PASSWORDS, method, path, authorization=VIEWERS)[0] == viewer
    assert ask(PASSWORDS, method, path, authorization=ADMINS)[0] == admin
    assert ask(PASSWORDS, method, path)[0] == 401


@pytest.mark.parametrize(
    "path",
    [
        f"/{READ}",
        f"{READ}/",
        f"{READ}\n",
        f"{READ};x",
        f"{READ}/../create",
        f"/x{READ}",
        f"{READ}/x",
        READ.upper(),
        READ.replace("/", "%2f"),
        READ.replace("runs", "webhooks"),
        READ.replace("search", "create"),
        "/graphql/",
        "/graphql\n",
        "/graphql/x",
    ],
)
def test_no_other_spelling_of_a_search_lets_a_viewer_post(path: str) -> None:
    assert ask(PASSWORDS, "POST", path, authorization=VIEWERS)[0] == 403


@pytest.mark.parametrize(
    "path", [f"{ASSISTANT}/config\n", f"{ASSISTANT}/sessions/a\nb/stream", "/gateway/a\nb", f"{ASSISTANT}\n"]
)
def test_a_line_break_in_a_path_opens_nothing(path: str) -> None:
    # A router that matches up to "$" takes "config\n" for "config".
    assert ask(PASSWORDS, "GET", path, authorization=VIEWERS)[0] == 403


@pytest.mark.parametrize("header", ["x-http-method-override", "x-http-method", "x-method-override"])
def test_a_method_in_a_header_is_none(header: str) -> None:
    status, application, _ = ask(PASSWORDS, "GET", "/", authorization=VIEWERS, **{header: "DELETE"})
    assert (status, application.asked[0]["method"]) == (200, "GET")
    assert ask(PASSWORDS, "DELETE", "/", authorization=VIEWERS, **{header: "GET"})[0] == 403


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic " + "A" * 5,
        f"Basic {base64.b64encode(bytes([0xFF, 0xFE])).decode()}",
        "Bearer look",
        VIEWERS.replace("Basic", "Digest"),
        VIEWERS + "A",
        basic("viewer"),
        basic("viewer:"),
        basic("viewer:LOOK"),
        basic("viewer:look "),
        basic("viewer:look\0"),
        basic("viewer:wörd: ok"),
        basic("admin:look"),
        basic("admin:wörd"),
        basic("admin:"),
        basic("Viewer:look"),
        basic("ADMIN:wörd: ok"),
        basic(" viewer:look"),
        basic(":look"),
        basic(":"),
        "Basic \xff",
    ],
)
def test_without_the_right_name_and_password_nothing_is_shown(authorization: str) -> None:
    status, _, sent = ask(PASSWORDS, authorization=authorization)
    assert status == 401
    assert dict(sent[0]["headers"])[b"www-authenticate"].startswith(b"Basic ")
    assert "look" not in sent[1]["body"].decode().replace("can look", "")


@pytest.mark.parametrize("access", [Access(viewer_password="look"), Access(viewer_password="look", admin_password="")])
def test_there_is_no_admin_where_none_was_given_a_password(access: Access) -> None:
    for login in ("admin:", "admin:None", "admin:look"):
        assert ask(access, authorization=basic(login))[0] == 401


def test_the_scheme_is_written_in_any_case_and_the_password_goes_no_further() -> None:
    status, application, _ = ask(PASSWORDS, authorization=VIEWERS.replace("Basic", "bAsIc"), accept="text/html")
    assert status == 200
    assert application.asked[0]["headers"] == [(b"accept", b"text/html")]


@pytest.mark.parametrize(
    ("role", "method", "status"), [(ADMIN, "POST", 200), (VIEWER, "POST", 403), (VIEWER, "GET", 200)]
)
def test_without_passwords_everybody_at_this_machine_has_one_role(role: str, method: str, status: int) -> None:
    access = Access(anybody=True, role=role, hosts=HERE)
    assert ask(access, method, host="localhost:8080")[0] == status
    assert ask(access, method, host="localhost:8080", authorization="Basic !!!")[0] == status


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:5000", "LOCALHOST:5000", "127.0.0.1:80", "[::1]:5000", "[::1]"]
)
def test_the_names_of_this_machine_are_known(host: str) -> None:
    assert ask(Access(anybody=True, hosts=HERE), host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:5000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "evil.example\\@localhost",
        "127.0.0.2",
        "[::1",
        "::1]",
        "[evil]",
    ],
)
def test_a_page_whose_name_was_pointed_to_this_machine_is_refused(host: str) -> None:
    assert ask(Access(anybody=True, hosts=HERE), host=host)[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:8081"},
        {"origin": "http://localhost"},
        {"origin": "http://localhost:8080.evil.example"},
        {"origin": "http://evil.example@localhost:8080"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://[::1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://localhost:8080", "sec-fetch-site": "same-site"},
    ],
)
def test_another_page_in_the_same_browser_can_send_nothing(headers: dict[str, str]) -> None:
    for access in (Access(anybody=True, hosts=HERE), PASSWORDS):
        assert ask(access, "POST", READ, host="localhost:8080", authorization=ADMINS, **headers)[0] == 403


def test_a_page_of_the_site_itself_can() -> None:
    for origin in ("http://localhost:8080", "https://localhost:8080"):
        headers = {"host": "localhost:8080", "origin": origin, "sec-fetch-site": "same-origin"}
        assert ask(PASSWORDS, "POST", READ, authorization=ADMINS, **headers)[0] == 200


def test_no_websocket_is_opened_and_the_application_is_told_of_its_life() -> None:
    sent: list[Any] = []
    application = Application()
    guard = Guard(application, Access(anybody=True))

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(guard({"type": "websocket", "path": "/", "headers": []}, _receive, send))
    assert (sent, application.asked) == ([{"type": "websocket.close", "code": 1008}], [])
    asyncio.run(guard({"type": "lifespan"}, _receive, send))
    assert application.asked == [{"type": "lifespan"}]


def test_a_refusal_is_read_by_both_sites_and_no_page_frames_them() -> None:
    _, _, refused = ask(PASSWORDS, "DELETE", authorization=VIEWERS)
    told = json.loads(refused[1]["body"])
    assert told["reason"] == told["message"] == "a viewer can look, and not change anything"
    _, _, sent = ask(PASSWORDS, authorization=VIEWERS)
    assert (b"x-frame-options", b"SAMEORIGIN") in sent[0]["headers"]
    assert (b"x-content-type-options", b"nosniff") in sent[0]["headers"]


TOKENS = Access(token="t0ken-of_this-start", hosts=HERE)
BEARER = "Bearer t0ken-of_this-start"
COOKIE = f"studyhall-8080={TOKENS.cookie}"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": BEARER},
        {"authorization": BEARER.replace("Bearer", "bearer ")},
        {"cookie": COOKIE},
        {"cookie": f"theme=dark;{COOKIE}; studyhall-5000=other"},
        {"cookie": COOKIE, "authorization": "Bearer of somebody else"},
    ],
)
@pytest.mark.parametrize(("role", "post"), [(ADMIN, 200), (VIEWER, 403)])
def test_the_token_or_its_cookie_lets_in_and_goes_no_further(headers: dict[str, str], role: str, post: int) -> None:
    access = replace(TOKENS, role=role)
    status, application, sent = ask(access, host="localhost:8080", **headers)
    assert status == 200
    assert "t0ken" not in repr(application.asked[0]["headers"]) + repr(sent) + repr(access)
    assert TOKENS.cookie not in repr(application.asked[0]["headers"])
    assert ask(access, "POST", "/api/studies", host="localhost:8080", **headers)[0] == post


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", {}),
        ("GET", "/", {"authorization": "Bearer "}),
        ("GET", "/", {"authorization": "Bearer"}),
        ("GET", "/", {"authorization": BEARER[:-1]}),
        ("GET", "/", {"authorization": f"{BEARER}x"}),
        ("GET", "/", {"authorization": BEARER.upper()}),
        ("GET", "/", {"authorization": BEARER.replace("Bearer", "Token")}),
        ("GET", "/", {"authorization": "Bearer t\xf6ken"}),
        ("GET", "/", {"authorization": basic(f":{TOKENS.token}")}),
        ("GET", "/", {"cookie": "studyhall-8080="}),
        ("GET", "/", {"cookie": "studyhall-8080"}),
        ("GET", "/", {"cookie": f"studyhall-8080={TOKENS.token}"}),
        ("GET", "/", {"cookie": COOKIE.replace("8080", "5000")}),
        ("GET", "/?token=", {}),
        ("GET", "/?token=wrong", {}),
        ("GET", f"/?Token={TOKENS.token}", {}),
        ("GET", f"/?token={TOKENS.token}&token=wrong", {}),
        ("GET", f"/?token={TOKENS.cookie}", {}),
        ("HEAD", f"/?token={TOKENS.token}", {}),
        ("POST", f"/api/studies?token={TOKENS.token}", {}),
    ],
)
def test_without_the_right_token_nobody_gets_in(method: str, path: str, headers: dict[str, str]) -> None:
    status, _, sent = ask(TOKENS, method, path, host="localhost:8080", **headers)
    assert status == 401
    assert dict(sent[0]["headers"])[b"www-authenticate"].startswith(b"Bearer ")
    assert "set-cookie" not in repr(sent)


def test_where_there_is_no_token_none_lets_in() -> None:
    for path, headers in (
        ("/", {"authorization": "Bearer "}),
        ("/", {"authorization": "Bearer None"}),
        ("/", {"cookie": f"studyhall-80={PASSWORDS.cookie}"}),
        ("/?token=", {}),
        ("/?token=None", {}),
    ):
        assert ask(PASSWORDS, "GET", path, **headers)[0] == 401


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/?token={}", "/"),
        ("/dashboard/studies/1?token={}", "/dashboard/studies/1"),
        ("/?token={}&a=1&b=%26", "/?a=1&b=%26"),
        ("//evil.example/?token={}", "/evil.example/"),
        ("/\\evil.example?token={}", "/%5Cevil.example"),
        ("/x\r\nset-cookie: a=b?token={}", "/x%0D%0Aset-cookie:%20a=b"),
        ("/\N{SNOWMAN}?token={}", "/%E2%98%83"),
    ],
)
def test_a_browser_exchanges_the_token_for_a_cookie_and_goes_on_without_it(path: str, place: str) -> None:
    for host, port in (("localhost:8080", 8080), ("127.0.0.1:5000", 5000), ("[::1]", 80)):
        status, _, sent = ask(TOKENS, "GET", path.format(TOKENS.token), host=host)
        headers = dict(sent[0]["headers"])
        assert (status, headers[b"location"].decode()) == (303, place)
        cookie = f"studyhall-{port}={TOKENS.cookie}; Path=/; HttpOnly; SameSite=Lax"
        assert headers[b"set-cookie"].decode() == cookie
        assert (headers[b"cache-control"], headers[b"referrer-policy"]) == (b"no-store", b"same-origin")
        assert "t0ken" not in repr(sent)


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", {"host": "evil.example:8080", "authorization": BEARER}),
        ("GET", "/", {"host": "evil.example:8080", "cookie": COOKIE}),
        ("GET", f"/?token={TOKENS.token}", {"host": "evil.example:8080"}),
        ("GET", f"/?token={TOKENS.token}", {"host": "localhost:8080", "origin": "http://evil.example"}),
        ("GET", "/api/studies", {"host": "localhost:8080", "origin": "http://localhost:9999", "cookie": COOKIE}),
        ("GET", "/api/studies", {"host": "localhost:8080", "sec-fetch-site": "cross-site", "cookie": COOKIE}),
        ("POST", READ, {"host": "localhost:8080", "sec-fetch-site": "same-site", "cookie": COOKIE}),
        (
            "POST",
            READ,
            {"host": "localhost:8080", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "cookie": COOKIE},
        ),
    ],
)
def test_another_page_can_use_neither_token_nor_cookie(method: str, path: str, headers: dict[str, str]) -> None:
    status, _, sent = ask(TOKENS, method, path, **headers)
    assert status == 403
    assert "set-cookie" not in repr(sent)


def test_a_link_on_another_page_leads_to_the_site() -> None:
    headers = {"host": "localhost:8080", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "cookie": COOKIE}
    assert ask(TOKENS, "GET", "/dashboard", **headers)[0] == 200
