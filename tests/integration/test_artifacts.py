"""MLflow's artifacts lie in our folder, and nowhere else: whatever a client, a row or a link says.

A real ``serve``, asked by its admin, with a file outside that must neither be read, changed nor deleted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2
import pytest

from studies.storage.url import StorageURL
from tests.conftest import Server
from tests.support.sites import Answer, Hall, ask, mlflow_database, serving, surroundings

pytestmark = pytest.mark.slow

API = "/ajax-api/2.0/mlflow"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
SECRET = "not for anybody who asks"


@dataclass(frozen=True, kw_only=True)
class Site:
    """MLflow with a run that has an artifact, ``own/a.txt``."""

    hall: Hall
    url: StorageURL
    root: Path
    outside: Path
    experiment: str
    run: str

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        return ask(self.hall.mlflow, method, path, body=data)

    def asked(self, method: str, path: str, body: object = None) -> Any:
        answer = self.ask(method, path, body)
        assert answer.status == 200, answer
        return json.loads(answer.body)

    @property
    def artifacts(self) -> str:
        """The path of the run's artifacts below MLflow's root."""
        return f"{self.experiment}/{self.run}/artifacts"

    def execute(self, sql: str, *values: object) -> None:
        """Change MLflow's database, as an earlier version or another program would."""
        with closing(psycopg2.connect(**mlflow_database(self.url).libpq)) as connection, connection as transaction:
            transaction.cursor().execute(sql, values)


@pytest.fixture(scope="module")
def site(separate_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("artifacts")
    outside = folder / "outside"
    outside.mkdir()
    with separate_server.database() as url:
        environment = surroundings(STUDYHALL_STORAGE=url.sqlalchemy, STUDYHALL_HOME=str(folder / "home"))
        with serving(folder, environment) as hall:
            made = ask(hall.mlflow, "POST", f"{API}/experiments/create", body=b'{"name": "ours"}')
            experiment = json.loads(made.body)["experiment_id"]
            body = json.dumps({"experiment_id": experiment}).encode()
            run = json.loads(ask(hall.mlflow, "POST", f"{API}/runs/create", body=body).body)["run"]["info"]["run_id"]
            root = folder / "home" / "mlflow"
            yield Site(hall=hall, url=url, root=root, outside=outside, experiment=experiment, run=run)
            assert "Traceback" not in hall.complaints


@pytest.fixture(autouse=True)
def untouched(site: Site) -> Iterator[None]:
    """Before each test there is an artifact, and a secret outside; after it the secret is as it was, and alone."""
    assert site.ask("PUT", f"{PROXY}/{site.artifacts}/own/a.txt", b"hello").status == 200
    (site.outside / "secret.txt").write_text(SECRET)
    yield
    assert [file.name for file in site.outside.iterdir()] == ["secret.txt"]
    assert (site.outside / "secret.txt").read_text() == SECRET


def refused(answer: Answer) -> bool:
    """Whether it was a clean no, which tells nothing of what is outside."""
    assert SECRET not in answer.body
    assert "secret.txt" not in answer.body
    return 400 <= answer.status < 500


@pytest.mark.parametrize(
    "location",
    [
        "file://{outside}",
        "{outside}",
        "file:{outside}",
        "FILE://{outside}",
        "file://localhost{outside}",
        "file://{root}/../../outside",
        "file://{root}/%2e%2e/%2e%2e/outside",
        "{root}/../../outside",
        "file://{root}x",
        "file:///",
        "/",
        "outside",
        "../outside",
        "~",
        "mlflow-artifacts:/../../outside",
        "mlflow-artifacts:/%2e%2e/%2e%2e/outside",
        "mlflow-artifacts:/%252e%252e/outside",
        "mlflow-artifacts://elsewhere/x",
        "http://elsewhere/api/2.0/mlflow-artifacts/artifacts/x",
        "s3://bucket/x",
        "gs://bucket/x",
        "ftp://elsewhere/x",
        "sftp://elsewhere/x",
        "hdfs://elsewhere/x",
        "dbfs:/x",
    ],
)
def test_no_location_outside_is_taken(site: Site, location: str) -> None:
    chosen = location.format(outside=site.outside, root=site.root)
    name = f"at {location}"
    assert refused(site.ask("POST", f"{API}/experiments/create", {"name": name, "artifact_location": chosen}))
    assert site.ask("GET", f"{API}/experiments/get-by-name?experiment_name={name}".replace(" ", "%20")).status != 200
    site.ask("POST", f"{API}/registered-models/create", {"name": "model"})
    for more in ({}, {"run_id": site.run}):
        answer = site.ask("POST", f"{API}/model-versions/create", {"name": "model", "source": chosen, **more})
        assert refused(answer)
    assert refused(site.ask("POST", "/api/3.0/mlflow/traces", trace(site, "tr-chosen", chosen)))
    assert site.ask("GET", "/api/3.0/mlflow/traces/tr-chosen").status == 404
    number = "tr-" + re.sub(r"\W", "-", location)[:40]
    site.asked("POST", "/api/3.0/mlflow/traces", trace(site, number))
    tag = {"key": "mlflow.artifactLocation", "value": chosen}
    for version in ("2.0", "3.0"):
        assert refused(site.ask("PATCH", f"/api/{version}/mlflow/traces/{number}/tags", tag))


def trace(site: Site, number: str, location: str | None = None) -> dict[str, Any]:
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": site.experiment}}
    tags = {"mlflow.artifactLocation": location} if location else {}
    info = {"trace_id": number, "trace_location": place, "request_time": "2026-01-01T00:00:00Z", "state": "OK"}
    return {"trace": {"trace_info": {**info, "tags": tags}}}


@pytest.mark.parametrize("location", ["", "mlflow-artifacts:/chosen", "file://{root}/artifacts/chosen"])
def test_a_location_inside_is_taken(site: Site, location: str) -> None:
    body = {"name": f"inside {location}", "artifact_location": location.format(root=site.root)}
    experiment = site.asked("POST", f"{API}/experiments/create", body)["experiment_id"]
    run = site.asked("POST", f"{API}/runs/create", {"experiment_id": experiment})["run"]["info"]["run_id"]
    assert site.ask("POST", f"{API}/upload-artifact?run_uuid={run}&path=b.txt", b"hello").status == 200
    assert list(site.root.rglob(f"{run}/artifacts/b.txt"))


def test_models_are_registered_from_runs_and_logged_models_and_served(site: Site) -> None:
    site.asked("POST", f"{API}/registered-models/create", {"name": "good"})
    body = {"experiment_id": site.experiment, "name": "net"}
    model = site.asked("POST", f"{API}/logged-models", body)["model"]["info"]
    place = model["artifact_uri"].removeprefix("mlflow-artifacts:/")
    assert site.ask("PUT", f"{PROXY}/{place}/a.txt", b"of a model").status == 200
    for source, more, text in (
        (f"mlflow-artifacts:/{site.artifacts}/own", {"run_id": site.run}, "hello"),
        (f"models:/{model['model_id']}", {"model_id": model["model_id"]}, "of a model"),
    ):
        body = {"name": "good", "source": source, **more}
        version = site.asked("POST", f"{API}/model-versions/create", body)["model_version"]["version"]
        answer = site.ask("GET", f"/model-versions/get-artifact?name=good&version={version}&path=a.txt")
        assert answer.body == text
    files = f"{API}/logged-models/{model['model_id']}/artifacts"
    assert "a.txt" in site.ask("GET", f"{files}/directories").body
    assert site.ask("GET", f"{files}/files?artifact_file_path=a.txt").body == "of a model"


def each_access(site: Site, path: str, run: str) -> Iterator[Callable[[], Answer]]:
    """All ways to an artifact of a run: to read, list, write and delete it."""
    below = f"{site.experiment}/{run}/artifacts/{path}"
    proxied = f"{PROXY}/{below}"
    yield lambda: site.ask("GET", f"/get-artifact?run_uuid={run}&path={path}")
    yield lambda: site.ask("GET", f"/get-artifact?run_id={run}&path={path}")
    yield lambda: site.ask("POST", f"{API}/upload-artifact?run_uuid={run}&path={path}", b"changed")
    for api in ("/api", "/ajax-api"):
        yield lambda api=api: site.ask("GET", f"{api}/2.0/mlflow/artifacts/list?run_id={run}&path={path}")
        for method, body in (("GET", None), ("PUT", b"changed"), ("DELETE", b"{}")):
            yield lambda api=api, method=method, body=body: site.ask(method, proxied.replace("/api", api, 1), body)
        yield lambda api=api: site.ask("GET", f"{api}/2.0/mlflow-artifacts/artifacts?path={below}")
    query = {
        "query": "query q($data: MlflowListArtifactsInput!) {mlflowListArtifacts(input: $data)"
        " {files {path} apiError {message}}}",
        "variables": {"data": {"runId": run, "path": path}},
        "operationName": "q",
    }
    yield lambda: site.ask("POST", "/graphql", query)


def tells_nothing(answer: Answer, path: str) -> bool:
    assert SECRET not in answer.body
    assert "secret.txt" in path or "secret.txt" not in answer.body  # an error names what was asked for
    return answer.status < 500 or "Invalid artifact path" in answer.body  # MLflow's words for //


@pytest.mark.parametrize(
    "path",
    [
        "to-file",
        "to-folder",
        "to-folder/secret.txt",
        "to-folder/new/deep.txt",
        "chain/secret.txt",
        "relative/secret.txt",
        "own/to-folder/secret.txt",
        "dangling",
        "own/to-own",
        "pipe",
        "../../../../../../outside/secret.txt",
        "%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/outside/secret.txt",
        "..%2f..%2f..%2f..%2f..%2f..%2foutside%2fsecret.txt",
        "%252e%252e%252f%252e%252e%252foutside",
        "own/../to-file",
        "{outside}/secret.txt",
        "%2F{outside}%2Fsecret.txt",
        "file://{outside}/secret.txt",
        "own%00/a.txt",
        "own%5c..%5c..%5coutside",
    ],
)
def test_neither_links_nor_paths_lead_out(site: Site, path: str) -> None:
    folder = site.root / "received" / site.artifacts
    links = {
        "to-file": site.outside / "secret.txt",
        "to-folder": site.outside,
        "chain": folder / "to-folder",
        "relative": Path(os.path.relpath(site.outside, folder)),
        "own/to-folder": site.outside,
        "dangling": site.outside / "new.txt",
        "own/to-own": folder / "own" / "a.txt",
    }
    # Placed later than the experiment, the run and the artifact beside them.
    for name, target in links.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
    if not (folder / "pipe").exists():
        os.mkfifo(folder / "pipe")
    chosen = path.format(outside=site.outside)
    for access in each_access(site, chosen, site.run):
        assert tells_nothing(access(), chosen)
    for name, target in links.items():
        assert (folder / name).is_symlink()
        assert (folder / name).readlink() == target
    shown = site.ask("GET", f"{API}/artifacts/list?run_id={site.run}").body
    assert not [name for name in (*links, "pipe") if f'"{name}"' in shown]
    assert site.ask("GET", f"{PROXY}/{site.artifacts}/own/a.txt").body == "hello"


def test_a_link_in_the_place_of_a_folder_on_the_way_leads_nowhere(site: Site) -> None:
    body = {"name": "moved", "artifact_location": "mlflow-artifacts:/moved"}
    experiment = site.asked("POST", f"{API}/experiments/create", body)["experiment_id"]
    run = site.asked("POST", f"{API}/runs/create", {"experiment_id": experiment})["run"]["info"]["run_id"]
    (site.root / "received" / "moved").symlink_to(site.outside)
    assert refused(site.ask("GET", f"{API}/artifacts/list?run_id={run}"))
    for method in ("GET", "PUT", "DELETE"):
        assert refused(site.ask(method, f"{PROXY}/moved/secret.txt", None if method == "GET" else b"{}"))


@pytest.mark.parametrize(
    "location", ["file://{outside}", "{outside}", "file://{root}/link", "file://{root}/../../outside", "s3://b/x"]
)
def test_of_what_already_lies_elsewhere_nothing_is_served(site: Site, location: str) -> None:
    link = site.root / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(site.outside)
    chosen = location.format(outside=site.outside, root=site.root)
    name = "old " + re.sub(r"\W", "-", location)
    experiment = site.asked("POST", f"{API}/experiments/create", {"name": name})["experiment_id"]
    run = site.asked("POST", f"{API}/runs/create", {"experiment_id": experiment})["run"]["info"]["run_id"]
    body = {"experiment_id": experiment, "name": "old"}
    model = site.asked("POST", f"{API}/logged-models", body)["model"]["info"]["model_id"]
    site.asked("POST", f"{API}/registered-models/create", {"name": name})
    body = {"name": name, "source": f"models:/{model}", "model_id": model}
    site.asked("POST", f"{API}/model-versions/create", body)
    number = f"tr-{run}"
    body = trace(site, number)
    body["trace"]["trace_info"]["trace_location"]["mlflow_experiment"]["experiment_id"] = experiment
    site.asked("POST", "/api/3.0/mlflow/traces", body)
    for table, column, where in (
        ("experiments", "artifact_location", f"experiment_id = {experiment}"),
        ("runs", "artifact_uri", f"run_uuid = '{run}'"),
        ("logged_models", "artifact_location", f"model_id = '{model}'"),
        ("model_versions", "storage_location", f"name = '{name}'"),
        ("trace_tags", "value", f"request_id = '{number}' and key = 'mlflow.artifactLocation'"),
    ):
        site.execute(f"update {table} set {column} = %s where {where}", chosen)
    uuid = "5f0d1b58-8b1e-4ab5-9a9c-0d6bb2b6f0a1"
    for answer in (
        site.ask("GET", f"/get-artifact?run_uuid={run}&path=secret.txt"),
        site.ask("GET", f"{API}/artifacts/list?run_id={run}"),
        site.ask("POST", f"{API}/upload-artifact?run_uuid={run}&path=new.txt", b"x"),
        site.ask("GET", f"/model-versions/get-artifact?name={quote(name)}&version=1&path=secret.txt"),
        site.ask("GET", f"{API}/logged-models/{model}/artifacts/directories"),
        site.ask("GET", f"{API}/logged-models/{model}/artifacts/files?artifact_file_path=secret.txt"),
        site.ask("GET", f"/ajax-api/3.0/mlflow/get-trace-artifact?request_id={number}"),
        site.ask("GET", f"/ajax-api/2.0/mlflow/get-trace-artifact?request_id={number}&path={uuid}"),
    ):
        assert SECRET not in answer.body
        assert "secret.txt" not in answer.body
        assert answer.status >= 400
    # Nothing new goes there either, but what is there can be renamed and deleted.
    if not location.endswith("/link"):  # which is a name inside
        assert refused(site.ask("POST", f"{API}/runs/create", {"experiment_id": experiment}))
    site.asked("POST", f"{API}/experiments/update", {"experiment_id": experiment, "new_name": f"new {name}"})
    site.asked("POST", f"{API}/experiments/delete", {"experiment_id": experiment})
    link.unlink()


def test_a_large_artifact_goes_in_and_out_piece_by_piece(site: Site) -> None:
    large = os.urandom(1 << 20) * 48  # more than a body that is read whole may have
    path = f"{PROXY}/{site.artifacts}/large.bin"
    assert site.ask("PUT", path, large).status == 200
    assert (site.root / "received" / site.artifacts / "large.bin").read_bytes() == large
    assert site.ask("POST", f"{API}/runs/search", b" " * len(large)).status == 413
    assert site.ask("DELETE", path, b"{}").status == 200


@pytest.mark.parametrize("path", [".", "./", "own/.."])
def test_the_folder_of_all_artifacts_is_not_deleted(site: Site, path: str) -> None:
    assert site.ask("DELETE", f"{PROXY}/{path}", b"{}").status >= 400
    assert site.ask("GET", f"{PROXY}/{site.artifacts}/own/a.txt").body == "hello"


def test_what_mlflow_calls_a_location_is_known(site: Site) -> None:
    """A newer MLflow may keep locations in further columns: then they belong in ``LOCATIONS``, or in here."""
    with closing(psycopg2.connect(**mlflow_database(site.url).libpq)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select table_name, column_name from information_schema.columns where table_schema = 'public'"
            " and column_name ~ '(location|uri|root|path|url)' order by 1, 2"
        )
        columns = {tuple(row) for row in cursor.fetchall()}
    assert columns == {
        ("experiments", "artifact_location"),
        ("logged_models", "artifact_location"),
        ("model_versions", "storage_location"),
        ("runs", "artifact_uri"),
        # No artifacts lie there.
        ("issues", "root_causes"),
        ("mcp_access_endpoints", "url"),
        ("webhooks", "url"),
        *((table, column) for table, column in columns if table == "workspaces"),  # which are off here
    }
