"""The table in docs/security-sites.md, walked: every route of both sites, as everybody who may ask.

And the machine's other users, who may read nothing: neither files, nor processes, nor ports.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from tests.conftest import Server
from tests.integration.test_viewer import CLOSED, READS, ROUTES, Routes, filled, make_study, without_version
from tests.support.sites import COMMAND, Hall, ask, serving, surroundings, without_token
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "security-sites.md"
SAFE = ("GET", "HEAD", "OPTIONS")
WRONG = "A" * 43
#: What the guard itself says; an application's own refusal has other words.
REFUSALS = re.compile(r"a token is needed|too many failed|another page|this site is called|can look|is not served here")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The sites of two starts, for an admin and, read-only, for viewers; and their routes."""

    admin: Hall
    viewer: Hall
    home: Path
    routes: Routes

    def address(self, site: str, who: str) -> str:
        hall = self.viewer if who == "viewer" else self.admin
        return hall.dashboard if site == "dashboard" else hall.mlflow


@pytest.fixture(scope="module")
def place(separate_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    for path in (folder, *folder.parents):  # pytest's own are private: here only ours may be what keeps others out
        if path.owner() == Path("~").expanduser().owner() and path.name.startswith(("pytest-", "place", "popen-")):
            path.chmod(0o755)
    home = folder / "home"
    home.mkdir(mode=0o755)
    (home / "mlflow").mkdir(mode=0o755)  # as earlier versions made it
    with separate_server.database() as url:
        make_study(url)
        environment = surroundings(STUDYHALL_STORAGE=url.sqlalchemy, STUDYHALL_HOME=str(home))
        routes = subprocess.run(ROUTES, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
        (folder / "viewer").mkdir()
        with (
            serving(folder, environment) as admin,
            serving(folder / "viewer", environment, "--read-only") as viewer,
        ):
            eventually(lambda: "trials in MLflow" in admin.complaints)
            yield Place(admin=admin, viewer=viewer, home=home, routes=json.loads(routes.stdout))


def table() -> dict[str, dict[str, list[str]]]:
    """What the page says: by kind of route and who asks, the answers."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("|") and not line.startswith("|--")
    ]
    head, *body = rows
    return {
        row[0].partition(":")[0]: dict(zip(head[1:], (c.split(", ") for c in row[1:]), strict=True)) for row in body
    }


def kind(method: str, path: str) -> str:
    if CLOSED.search(path):
        return "closed"
    if method in SAFE:
        return "look"
    return "search" if method == "POST" and without_version(path) in READS else "change"


def headers(who: str, port: int) -> dict[str, str]:
    """What somebody sends; a viewer, an admin and who is foreign send the token, too."""
    return {
        "wrong token": {"Authorization": f"Bearer {WRONG}"},
        "foreign origin": {"Origin": "http://evil.example"},
        "foreign host": {"Host": f"evil.example:{port}"},
    }.get(who, {})


@pytest.mark.parametrize("who", ["no token", "wrong token", "foreign origin", "foreign host", "viewer", "admin"])
@pytest.mark.parametrize("site", ["dashboard", "mlflow"])
def test_each_route_answers_as_the_table_says(place: Place, site: str, who: str) -> None:
    # In this order: what an admin may do, he does, and deletes what others look at.
    expected = table()
    address = place.address(site, who)
    if who == "no token":
        address = without_token(address)
    routes = sorted({(method, filled(rule)) for method, rule in place.routes[site]})
    assert len(routes) >= (30 if site == "dashboard" else 400)
    assert {kind(*route) for route in routes} >= ({"look", "change"} if site == "dashboard" else set(expected))
    sent = headers(who, urlsplit(address).port or 0)

    def differs(route: tuple[str, str]) -> str | None:
        method, path = route
        answer = ask(address, method, path, body=None if method in SAFE else b"{}", headers=sent)
        is_ours = bool(REFUSALS.search(answer.body)) or (method == "HEAD" and answer.status in (401, 403, 429))
        told = str(answer.status) if is_ours else "served"
        return None if told in expected[kind(method, path)][who] else f"{method} {path}: {answer}"

    with ThreadPoolExecutor(4) as pool:
        assert [found for found in pool.map(differs, routes) if found] == []


@pytest.mark.parametrize("count", [12, 100])
@pytest.mark.parametrize("site", ["dashboard", "mlflow"])
def test_unfinished_requests_of_somebody_who_may_come_in_hold_up_nobody(place: Place, site: str, count: int) -> None:
    address = place.address(site, "admin")
    parts = urlsplit(address)
    head = f"HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {parts.query.removeprefix('token=')}\r\n"
    begun = [
        f"POST /api/studies {head}Content-Length: 100\r\n\r\n{{",
        f"POST /ajax-api/2.0/mlflow/runs/search {head}Content-Length: 100\r\n\r\n{{",
        f"PUT /api/2.0/mlflow-artifacts/artifacts/x {head}Content-Length: 100\r\n\r\n{{",
        f"GET / {head}X-",
    ]
    with ExitStack() as stack:
        for number in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", parts.port or 0)))
            client.sendall(begun[number % len(begun)].encode())
        assert [ask(address, "GET", "/", timeout=300).status for _ in range(3)] in ([302] * 3, [200] * 3)


def test_the_token_is_nowhere_but_in_the_addresses(place: Place) -> None:
    for hall in (place.admin, place.viewer):
        tokens = {parse_qs(urlsplit(address).query)["token"][0] for address in (hall.dashboard, hall.mlflow)}
        (token,) = tokens
        assert len(token) == 43
        ask(hall.mlflow, "GET", "/ajax-api/2.0/mlflow/runs/get?run_id=none")
        places = {"complaints": hall.complaints}
        for process in psutil.process_iter(["cmdline"]):
            places[f"arguments of {process.pid}"] = "\0".join(process.info["cmdline"] or ())
        for process in (psutil.Process(hall.process.pid), *hall.children()):
            places[f"environment of {process.pid}"] = repr(process.environ())
        for file in place.home.rglob("*"):
            if file.is_file():
                places[str(file)] = file.read_bytes().decode(errors="replace")
        assert len(places) > 10
        assert [where for where, text in places.items() if token in text] == []


def test_each_start_has_a_token_of_its_own_and_none_fits_another(place: Place) -> None:
    tokens = [parse_qs(urlsplit(hall.dashboard).query)["token"][0] for hall in (place.admin, place.viewer)]
    assert tokens[0] != tokens[1]
    bearer = {"Authorization": f"Bearer {tokens[1]}"}
    assert ask(place.admin.dashboard, "GET", "/api/studies", headers=bearer).status in (401, 429)


#: Prints what it can read of the folders that it is given, and what the ports say.
SPY = """
import http.client, os, sys
root, *ports = sys.argv[1:]
for folder, folders, files in os.walk(root):
    for file in files:
        try:
            open(os.path.join(folder, file), "rb").read(1)
            print("read", os.path.join(folder, file))
        except OSError:
            pass
for folder in ("mlflow", "mlflow/artifacts", "mlflow/received"):
    try:
        print("list", os.listdir(os.path.join(root, folder)))
    except OSError:
        pass
for port in ports:
    for path in ("/", "/api/studies", "/health", "/ajax-api/2.0/mlflow/experiments/search?max_results=9"):
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=300)
        connection.request("GET", path)
        if connection.getresponse().status != 401:
            print("port", port, path)
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        environ = open(f"/proc/{pid}/environ", "rb").read()
    except OSError:
        continue
    if b"STUDYHALL_HOME=" + root.encode() in environ:
        print("environ", pid)
print("done")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_of_the_machine_reads_nothing(place: Place) -> None:
    upload = ask(place.admin.mlflow, "PUT", "/api/2.0/mlflow-artifacts/artifacts/0/private.txt", body=b"private")
    assert upload.status == 200
    files = [file for file in (place.home / "mlflow").rglob("*") if file.is_file()]
    assert {file.name for file in files} >= {"private.txt", "study.toml"}
    ports = [str(urlsplit(site).port) for site in (place.admin.dashboard, place.admin.mlflow, place.viewer.mlflow)]
    # A folder that it can enter, or it would not get as far as ours.
    assert stat.S_IMODE(place.home.stat().st_mode) == 0o755
    spy = subprocess.run(
        ["/usr/bin/python3", "-c", SPY, str(place.home), *ports],
        user="nobody",
        group="nogroup",
        extra_groups=[],
        cwd="/",
        env={},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (spy.stdout, spy.stderr) == ("done\n", "")


def test_all_that_mlflow_keeps_is_its_owners_alone(place: Place) -> None:
    ask(place.admin.mlflow, "PUT", "/api/2.0/mlflow-artifacts/artifacts/0/deep/er/one.txt", body=b"private")
    found = [place.home / "mlflow", *(place.home / "mlflow").rglob("*")]
    assert {path.name for path in found} >= {"one.txt", "er", "study.toml"}
    assert [str(path) for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_without_a_token_it_says_what_that_gives_up(place: Place, tmp_path: Path) -> None:
    environment = surroundings(
        STUDYHALL_STORAGE=psutil.Process(place.admin.process.pid).environ()["STUDYHALL_STORAGE"],
        STUDYHALL_HOME=str(place.home),
    )
    with serving(tmp_path, environment, "--no-token") as hall:
        assert "?" not in hall.mlflow
        (line,) = [line for line in hall.complaints.splitlines() if "--no-token" in line]
        assert "every user and program on this machine can read and change" in line
        assert ask(hall.mlflow, "GET", "/health").body == "OK"
        assert ask(hall.mlflow, "GET", "/health", headers={"Host": "evil.example"}).status == 403


def test_no_token_and_a_password_exclude_each_other(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMMAND, "serve", "--no-token"],
        env=surroundings(STUDYHALL_PASSWORD="secret", STUDYHALL_HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--no-token lets everybody in" in done.stderr
    assert "secret" not in done.stderr


def test_mlflows_own_client_gets_in_by_the_token(place: Place, tmp_path: Path) -> None:
    script = """
import mlflow
client = mlflow.MlflowClient()
run = client.create_run(client.create_experiment("by a client"))
client.log_text(run.info.run_id, "hello", "notes/a.txt")
print(client.list_artifacts(run.info.run_id, "notes")[0].path)
print(open(client.download_artifacts(run.info.run_id, "notes/a.txt")).read())
"""
    address = urlsplit(place.admin.mlflow)
    environment = surroundings(
        MLFLOW_TRACKING_URI=f"http://{address.netloc}", MLFLOW_TRACKING_TOKEN=address.query.removeprefix("token=")
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["notes/a.txt", "hello"], done.stderr
