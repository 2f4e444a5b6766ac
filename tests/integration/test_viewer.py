"""Every route of both sites, asked by a viewer, by an admin and by nobody; and no password anywhere.

The sites are those of ``serve`` on an external database, the routes those of the installed versions.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
import psutil
import psycopg2
import pytest
from psycopg2 import sql

from studies import PostgresStorage, StudySpec
from studies.storage.url import StorageURL
from tests.conftest import Server
from tests.support.sites import COMMAND, Answer, Hall, Rows, ask, contents, mlflow_database, serving, surroundings
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

SPEC = {"name": "s", "objective": {"path": "objectives.mlp:MLP"}, "budget": {"trials": 4}}
TRIALS = 4
CHANGING = ("POST", "PUT", "PATCH", "DELETE")
#: What MLflow is asked by POST and only looks something up, written down once more, route by route.
READS = {
    "/graphql",
    *("2.0/mlflow/experiments/search", "2.0/mlflow/runs/search", "2.0/mlflow/logged-models/search"),
    *("2.0/mlflow/experiments/search-datasets", "2.0/mlflow/registered-models/get-latest-versions"),
    *("3.0/mlflow/traces/search", "3.0/mlflow/traces/metrics", "3.0/mlflow/traces/batchGetInfos"),
    "3.0/mlflow/traces/calculate-filter-correlation",
    *("3.0/mlflow/datasets/search", "3.0/mlflow/issues/search", "3.0/mlflow/prompt-optimization/jobs/search"),
}
#: What it does by GET on the machine and the network, and a GET that writes.
CLOSED = re.compile(r"/assistant/|^/gateway/|/label-schemas/list$")
_LIST = """
import json, optuna
from mlflow.server import app as flask
from mlflow.server.fastapi_app import app as fastapi
from optuna_dashboard._app import create_app

print(json.dumps({
    "dashboard": [(route.method, route.rule) for route in create_app(optuna.storages.InMemoryStorage()).routes],
    "mlflow": [(method, rule.rule) for rule in flask.url_map.iter_rules() for method in rule.methods]
    + [(method.upper(), path) for path, methods in fastapi.openapi()["paths"].items() for method in methods],
}))
"""
#: Prints the routes of both sites as JSON: their own tables, as installed. A process of its own: MLflow's server
#: is full of warnings.
ROUTES = (sys.executable, "-W", "ignore", "-c", _LIST)
Routes = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True, kw_only=True)
class House:
    """Both sites with passwords, on a study that is finished and mirrored."""

    hall: Hall
    url: StorageURL
    home: Path
    outputs: list[str]
    """What further commands have said."""
    routes: Routes
    database_password: str
    viewer_password: str
    admin_password: str

    def ask(self, site: str, method: str, path: str, who: str | None = "viewer", **options: Any) -> Answer:
        """Ask a site as ``who``."""
        login = who and f"{who}:{self.viewer_password if who == 'viewer' else self.admin_password}"
        return ask(
            self.hall.dashboard if site == "dashboard" else self.hall.mlflow, method, path, login=login, **options
        )

    def all_rows(self) -> Rows:
        """Both databases."""
        mlflow = contents(mlflow_database(self.url))
        return contents(self.url) | {f"MLflow's {table}": rows for table, rows in mlflow.items()}

    def changes(self, before: Rows) -> Rows:
        """The tables that have changed."""
        return {table: rows for table, rows in self.all_rows().items() if rows != before.get(table)}


@pytest.fixture(scope="module")
def house(separate_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    words = {name: f"canary{secrets.token_hex(12)}" for name in ("database", "viewer", "admin")}
    (folder / "admin").touch(0o600)
    (folder / "admin").write_text(f"{words['admin']}\n")
    with owned_database(separate_server, words["database"]) as url:
        environment = surroundings(
            STUDYHALL_STORAGE=url.sqlalchemy, STUDYHALL_HOME=str(folder / "home"), STUDYHALL_PASSWORD=words["viewer"]
        )
        make_study(url)
        options = ("--host", "0.0.0.0", "--admin-password-file", "admin")
        once = [COMMAND, "mirror", "--once", "--storage", url.sqlalchemy]
        with (
            started(once, folder, environment) as mirror,
            started(ROUTES, folder, environment) as routes,
            serving(folder, environment, *options) as hall,
        ):
            outputs = [*mirror.communicate(timeout=300), *routes.communicate(timeout=300)]
            assert (mirror.returncode, routes.returncode) == (0, 0), outputs
            eventually(lambda: f"s: {TRIALS} trials in MLflow" in hall.complaints)
            yield House(
                hall=hall,
                url=url,
                home=folder / "home",
                outputs=outputs,
                routes=json.loads(outputs[2]),
                database_password=words["database"],
                viewer_password=words["viewer"],
                admin_password=words["admin"],
            )


def make_study(url: StorageURL) -> None:
    """A study whose trials have finished."""

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -10, 10)
        for step in range(1, 4):
            trial.report(x * x / step, step)
        return x * x

    with closing(PostgresStorage(url)) as storage:
        record, _ = storage.create_study(StudySpec.from_dict(SPEC, "s"))
        storage.load_study(record).optimize(objective, n_trials=TRIALS)


def started(command: Sequence[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@contextmanager
def owned_database(server: Server, password: str) -> Iterator[StorageURL]:
    """A new database of a user of its own."""
    user = f"user_{secrets.token_hex(8)}"
    name = sql.Identifier(user)
    with closing(psycopg2.connect(**server.url.libpq)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(sql.SQL("create role {} login createdb password {}").format(name, sql.Literal(password)))
        try:
            with server.database() as url:
                database = sql.Identifier(url.database or "")
                cursor.execute(sql.SQL("alter database {} owner to {}").format(database, name))
                yield replace(url, user=user, password=password)
        finally:
            cursor.execute(sql.SQL("drop role {}").format(name))


def filled(rule: str) -> str:
    """A path of a route: what is left open in it filled in, an identifier by that of something that exists."""
    known = {"plot_type": "slice", "artifact_id": "abc", "artifact_path": "abc"}
    path = re.sub(r"<(?:\w+:)?(\w*)(?::[^<>]*)?>", lambda found: known.get(found[1], "1"), rule)
    return re.sub(r"\{[^}]*\}", "1", path)


def changing(routes: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(method, filled(rule)) for method, rule in routes if method in CHANGING]


def without_version(path: str) -> str:
    return re.sub(r"^/(ajax-)?api/", "", path)


def test_the_dashboard_refuses_a_viewer_each_route_that_changes_something(house: House) -> None:
    before = house.all_rows()
    routes = changing(house.routes["dashboard"])
    assert len(routes) >= 15
    for method, path in routes:
        assert "<" not in path
        assert house.ask("dashboard", method, path, None, body=b"{}").status == 401, (method, path)
        answer = house.ask("dashboard", method, path, body=b'{"study_name": "new", "directions": ["minimize"]}')
        assert answer.status == 403, (method, path)
        assert json.loads(answer.body)["reason"]
    assert house.changes(before) == {}


def test_mlflow_refuses_a_viewer_each_route_but_those_that_only_look_something_up(house: House) -> None:
    before = house.all_rows()
    routes = changing(house.routes["mlflow"])
    assert len(routes) >= 200
    open_to_viewers = set()
    for method, path in routes:
        assert "<" not in path
        assert "{" not in path
        assert house.ask("mlflow", method, path, None, body=b"{}").status == 401, (method, path)
        body = b'{"experiment_id": "1", "experiment_ids": ["1"], "key": "k", "name": "new", "query": "{test}"}'
        answer = house.ask("mlflow", method, path, body=body)
        if answer.status != 403:
            open_to_viewers.add(path)
            assert method == "POST"
            assert answer.status in (200, 400, 404), (
                path,
                answer,
            )  # a search that wants to know more, or finds nothing
    assert {without_version(path) for path in open_to_viewers} == READS
    assert house.changes(before) == {}


@pytest.mark.parametrize("site", ["dashboard", "mlflow"])
def test_nothing_that_a_viewer_may_get_changes_anything_or_acts_on_the_machine(house: House, site: str) -> None:
    before = house.all_rows()
    run = json.loads(
        house.ask("mlflow", "POST", "/ajax-api/2.0/mlflow/runs/search", body=b'{"experiment_ids":["1"]}').body
    )
    query = (
        f"?experiment_id=1&experiment_ids=1&run_id={run['runs'][0]['info']['run_id']}&run_ids={run['runs'][0]['info']['run_id']}"
        "&metric_key=loss&name=new&path=study.toml&max_results=9&gateway_path=x&job_id=1&user=me&request_id=1&key=k"
    )
    answers = {}
    for path in sorted({filled(rule) for method, rule in house.routes[site] if method == "GET"}):
        answer = answers[path] = house.ask(site, "GET", path + query)
        assert (answer.status == 403) == bool(CLOSED.search(path)), (path, answer)
        for password in (house.database_password, house.viewer_password, house.admin_password):
            assert password not in answer.body, path
        assert house.ask(site, "GET", path, None).status == 401, path
    assert sum(answer.status == 200 for answer in answers.values()) > (5 if site == "dashboard" else 30)
    assert house.changes(before) == {}


@pytest.mark.parametrize(
    ("site", "method", "path"),
    [
        *(
            ("dashboard", method, path)
            for method, path in (
                ("POST", "//api/studies"),
                ("POST", "/api/studies/"),
                ("POST", "/api%2fstudies"),
                ("POST", "/API/studies"),
                ("POST", "/api/studies;x"),
                ("POST", "/static/../api/studies"),
                ("POST", "http://127.0.0.1/api/studies"),
                ("delete", "/api/studies/1"),
                ("Delete", "/api/studies/1"),
                ("PROXY", "/api/studies/1"),
                ("ANY", "/api/studies/1"),
            )
        ),
        *(
            ("mlflow", method, path)
            for method, path in (
                ("POST", "//ajax-api/2.0/mlflow/experiments/create"),
                ("POST", "/ajax-api/2.0/mlflow/experiments/create/"),
                ("POST", "/ajax-api/2.0/mlflow/runs/search/../../experiments/create"),
                ("POST", "/ajax-api/2.0/mlflow/runs/search%2f..%2f..%2fexperiments/create"),
                ("POST", "/ajax-api/2.0/mlflow/experiments/create%3f/runs/search"),
                ("POST", "/ajax-api/2.0/mlflow/runs/search%0a"),
                ("POST", "/AJAX-API/2.0/mlflow/runs/search"),
                ("POST", "/graphql/../ajax-api/2.0/mlflow/experiments/create"),
                ("post", "/ajax-api/2.0/mlflow/experiments/create"),
                ("GET", "/ajax-api/3.0/mlflow/assistant/config%0a"),
                ("GET", "/ajax-api/3.0/mlflow/assistant%2fconfig"),
                ("HEAD", "/ajax-api/3.0/mlflow/assistant/config"),
                ("GET", "/gateway/mlflow/v1/models%0a"),
                ("OPTIONS", "/ajax-api/3.0/mlflow/assistant/config"),
            )
        ),
    ],
)
def test_no_other_spelling_gets_a_viewer_round_the_guard(house: House, site: str, method: str, path: str) -> None:
    body = (
        None
        if method in ("GET", "HEAD", "OPTIONS")
        else b'{"study_name": "n", "directions": ["minimize"], "name": "n"}'
    )
    before = house.all_rows()
    assert house.ask(site, method, path, body=body).status == 403
    assert house.changes(before) == {}


@pytest.mark.parametrize(
    "path",
    [
        "//ajax-api/3.0/mlflow/assistant/config",
        "/ajax-api/3.0//mlflow/assistant/config",
        "/ajax-api/3.0/mlflow/x/../assistant/config",
        "http://127.0.0.1/ajax-api/3.0/mlflow/assistant/config",
        "/get-artifact?path=../../../../../../etc/passwd&run_uuid=1",
        "/ajax-api/2.0/mlflow-artifacts/artifacts/..%2f..%2f..%2f..%2fetc/passwd",
        "/ajax-api/2.0/mlflow-artifacts/artifacts/%2fetc/passwd",
        "/static-files/..%2f..%2fhandlers.py",
    ],
)
def test_what_a_viewer_should_not_see_is_not_found_by_other_ways(house: House, path: str) -> None:
    answer = house.ask("mlflow", "GET", path)
    assert answer.status >= 300
    assert "root:" not in answer.body


def test_a_header_changes_no_method_and_another_page_gets_no_leave(house: House) -> None:
    before = house.all_rows()
    for header in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        assert house.ask("dashboard", "GET", "/api/studies/1", headers={header: "DELETE"}).status == 200
        assert house.ask("dashboard", "DELETE", "/api/studies/1", headers={header: "GET"}).status == 403
    elsewhere = {"Origin": "http://evil.example"}
    for site, path in (("dashboard", "/api/studies"), ("mlflow", "/ajax-api/2.0/mlflow/experiments/create")):
        assert house.ask(site, "POST", path, "admin", body=b'{"name": "n"}', headers=elsewhere).status == 403
        asks_first = {**elsewhere, "Access-Control-Request-Method": "POST"}
        answer = house.ask(site, "OPTIONS", path, "admin", headers=asks_first)
        assert not [name for name in answer.headers if name.startswith("access-control-allow")]
    assert house.changes(before) == {}


@pytest.mark.parametrize("site", ["dashboard", "mlflow"])
def test_no_websocket_is_opened(house: House, site: str) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert house.ask(site, "GET", "/", None, headers=upgrade).status in (401, 403)
    assert house.ask(site, "GET", "/", headers=upgrade).status != 101


@pytest.mark.parametrize("site", ["dashboard", "mlflow"])
def test_malformed_words_are_refused_and_the_site_goes_on(house: House, site: str) -> None:
    before = house.hall.complaints
    address = urlsplit(house.hall.dashboard if site == "dashboard" else house.hall.mlflow)
    for name, value in (("Authorization", b"Basic \xff"), ("Authorization", b"Basic !"), ("Origin", b"http://[")):
        with closing(http.client.HTTPConnection("127.0.0.1", address.port, timeout=300)) as connection:
            connection.putrequest("POST", "/")
            connection.putheader(name, value)
            connection.putheader("Content-Length", "0")
            connection.endheaders()
            assert connection.getresponse().status == 401
    assert house.ask(site, "GET", "/").status in (200, 302)
    # What the site says of another test's websocket may come late.
    new = house.hall.complaints.removeprefix(before).splitlines()
    assert [line for line in new if "WebSocket" not in line and "upgrade" not in line] == []


def test_an_admin_may_write_in_both(house: House) -> None:
    note = b'{"version": 1, "body": "the widest was the best"}'
    assert house.ask("dashboard", "PUT", "/api/studies/1/note", "admin", body=note).status == 204
    tag = b'{"experiment_id": "1", "key": "seen", "value": "by the admin"}'
    path = "/ajax-api/2.0/mlflow/experiments/set-experiment-tag"
    assert house.ask("mlflow", "POST", path, "admin", body=tag).status == 200
    rows = house.all_rows()
    assert any("the widest was the best" in row for row in rows["public.study_system_attributes"])
    assert any("by the admin" in row for row in rows["MLflow's public.experiment_tags"])
    assert "the widest was the best" in house.ask("dashboard", "GET", "/api/studies/1").body


def test_no_password_is_in_arguments_output_databases_artifacts_or_a_process_that_needs_none(house: House) -> None:
    canaries = (house.database_password, house.viewer_password, house.admin_password)
    places = {"serve": house.hall.said + house.hall.complaints, "commands": "\n".join(house.outputs)}
    for process in psutil.process_iter(["cmdline"]):
        places[f"arguments of {process.pid}"] = "\0".join(process.info["cmdline"] or ())
    children = house.hall.children()
    assert len(children) == 3  # two sites and the mirror
    for child in children:
        places[f"environment of {child.pid}"] = repr(child.environ())
    for table, rows in house.all_rows().items():
        places[table] = repr(rows)
    assert len(places["public.trials"]) > 100
    assert len(places["MLflow's public.runs"]) > 100
    artifacts = [file for file in house.home.rglob("*") if file.is_file()]
    assert [file for file in artifacts if file.name == "study.toml"]
    for file in artifacts:
        places[str(file)] = file.read_bytes().decode(errors="replace")
    assert [place for place, text in places.items() if any(canary in text for canary in canaries)] == []
