"""`studyhall mirror` and `run --mlflow`, as a person uses them; MLflow there, away, and hanging."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mlflow import MlflowClient

from studies import PostgresStorage
from studies.mirror.server import configure, database_of
from tests.acceptance.conftest import Shell
from tests.support.mirrored import assert_same, runs_of
from tests.support.mlflow_server import mlflow_server
from tests.support.postgres import free_port
from tests.support.waiting import GUARD, eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
Look = Callable[[], PostgresStorage]
RUN = ("run", "script.py:objective", "--trials", "6", "--workers", "2", "--set", "metric=loss")


@pytest.fixture(autouse=True)
def _settings() -> None:
    configure()


def contents(shell: Shell) -> MlflowClient:
    """MLflow's database beside the shell's."""
    return MlflowClient(database_of(shell.url).sqlalchemy)


def curves(client: MlflowClient, name: str) -> dict[int, list[tuple[int, float]]]:
    _, runs = runs_of(client, name)
    return {
        number: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss"))
        for number, run in runs.items()
    }


def run_until(shell: Shell, told: str, *options: str) -> str:
    """Run a study whose trials wait at their last step for a line that has ``told``; returns all that is said.

    The mirror gives way to whoever is busy on the machine: its first words may take minutes.
    """
    hold, lines = shell.folder / "before step 4", []
    hold.touch()
    with shell.start(*RUN, *options) as running:
        guard = threading.Timer(GUARD, hold.unlink, kwargs={"missing_ok": True})
        guard.start()
        assert running.stderr
        for line in running.stderr:
            lines.append(line)
            if told in line:
                hold.unlink(missing_ok=True)
        guard.cancel()
    assert running.returncode == 0, lines
    return "".join(lines)


def test_a_running_trials_curve_is_there_step_by_step(shell: Shell) -> None:
    (shell.folder / "stepping.py").write_text("""
import pathlib, time

def objective(trial):
    for step in range(3):
        trial.report(float(step), step)
        while not pathlib.Path(f"seen-{step}").exists():
            time.sleep(0.05)
    return 1.0
""")
    following = shell.start("mirror")
    assert following.stderr
    assert following.stderr.readline().startswith("opening the MLflow database")
    assert following.stderr.readline() == "mirroring into the MLflow database\n"
    running = shell.start("run", "stepping.py:objective", "--trials", "1", "--workers", "1", "--set", "metric=loss")
    client = contents(shell)

    def shown() -> list[tuple[int, float]]:
        if not client.get_experiment_by_name("stepping-objective"):
            return []
        try:
            _, runs = runs_of(client, "stepping-objective")
        except KeyError:
            return []  # there is no run of the study itself yet
        assert {run.info.status for run in runs.values()} <= {"RUNNING"}
        return [point for curve in curves(client, "stepping-objective").values() for point in curve]

    try:
        # The trial takes no step before MLflow has the last one.
        for step in range(3):
            eventually(lambda: shown() == [(s, float(s)) for s in range(step + 1)], f"step {step}")  # noqa: B023
            (shell.folder / f"seen-{step}").touch()
        _, err = running.communicate(timeout=300)
        assert running.returncode == 0, err
    finally:
        for process in (running, following):
            process.terminate()
            process.communicate(timeout=300)
    assert following.returncode == 130


class _Foreign(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>a wiki</html>")

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def foreign() -> Iterator[str]:
    """A web server that is not MLflow."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Foreign)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class TestRun:
    """A class of its own: ``--dist loadscope`` runs it beside the other tests."""

    def test_a_run_leaves_its_study_in_the_database_beside_it(self, shell: Shell, look: Look) -> None:
        said = run_until(shell, "mirroring into the MLflow database", "--mlflow")
        assert "mirrored into the MLflow database" in said
        storage = look()
        trials = storage.trials(storage.find_study("script-objective"))
        assert curves(contents(shell), "script-objective") == {
            trial.number: sorted(trial.intermediate_values.items()) for trial in trials
        }
        parent, _ = runs_of(contents(shell), "script-objective")
        assert parent.info.status == "FINISHED"

        uri = shell.data("mirror", "--print-uri").strip()
        assert MlflowClient(uri).get_experiment_by_name("script-objective")
        again = shell.run("mirror", "script-objective", "--once")
        assert (again.returncode, again.stdout) == (0, "")
        opening, connected, done_line = again.stderr.splitlines()
        assert opening.startswith("opening the MLflow database")
        assert connected == "mirroring into the MLflow database"
        assert done_line == "script-objective: 6 trials in MLflow"

    def test_a_study_ends_beside_an_mlflow_that_is_stopped_or_hangs(self, shell: Shell, hanging: str) -> None:
        stopped = f"http://127.0.0.1:{free_port()}"
        for name, uri in (("stopped", stopped), ("hanging", hanging)):
            why = f"no answer from MLflow at {uri}"
            options = ("--name", name, "--mlflow", "--tracking-uri", uri)
            if name == "stopped":
                said = run_until(shell, f"waiting: {why}", *options)
            else:
                done = shell.run(*RUN, *options)
                assert done.returncode == 0, done.stderr
                said = done.stderr
                why = f"(it does not answer|{why})"  # the latter where the study has outlasted the mirror's patience
            assert f"{name}: 6 of 6 trials done" in said
            assert re.search(rf"MLflow is incomplete \({why}", said), said
            assert f"; catch up with: studyhall mirror {name} --once" in said
        assert shell.run("mirror", "--once").returncode == 0
        for name in ("stopped", "hanging"):
            assert len(curves(contents(shell), name)) == 6

    def test_what_is_not_mlflow_is_said_and_the_study_goes_on(self, shell: Shell, foreign: str) -> None:
        done = shell.run("mirror", "--once", "--tracking-uri", foreign)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"error: what answers at {foreign} is not MLflow: give the address of an MLflow server\n"
        what = f"the mirror ended: what answers at {foreign} is not MLflow"
        assert what in run_until(shell, what, "--mlflow", "--tracking-uri", foreign)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "error: no study 'nosuch' in "),
        (["--tracking-uri", "mlruns"], "error: the tracking URI 'mlruns' cannot be used: write http://HOST:PORT"),
        (["--tracking-uri", "http://user:hidden@"], "error: the tracking URI 'http://***@' cannot be used"),
        (
            ["--once", "--tracking-uri", "http://127.0.0.1:1"],
            "error: no answer from MLflow at http://127.0.0.1:1: is it",
        ),
    ],
)
def test_what_a_mirror_cannot_do_is_one_line(shell: Shell, arguments: list[str], message: str) -> None:
    assert shell.run("create", "digits").returncode == 0
    done = shell.run("mirror", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(message)


def test_a_database_that_may_not_be_made_is_said_with_what_to_do(shell: Shell, look: Look) -> None:
    storage = look()
    storage.database.execute("create role poor login password 'p'")
    try:
        for table in ("all tables in schema public", "all tables in schema studyhall"):
            storage.database.execute(f"grant select on {table} to poor")
        storage.database.execute("grant usage on schema studyhall to poor")
        url = replace(shell.url, user="poor", password="p").sqlalchemy
        done = shell.run("mirror", "--once", STUDYHALL_STORAGE=url)
        assert done.returncode == 1
        assert "cannot make the database" in done.stderr
        assert "let an administrator create it (createdb -O poor " in done.stderr
    finally:
        storage.database.execute("drop owned by poor")
        storage.database.execute("drop role poor")


def test_mlflow_on_a_server_gets_what_it_missed_while_it_was_away(shell: Shell) -> None:
    done = shell.run(*RUN)
    assert done.returncode == 0, done.stderr
    shell.data("mirror", "--print-uri")
    port = free_port()
    database = database_of(shell.url).sqlalchemy
    following = shell.start("mirror", "--tracking-uri", f"http://127.0.0.1:{port}")
    try:
        with mlflow_server(database, port):
            client = MlflowClient(f"http://127.0.0.1:{port}")
            eventually(lambda: _is_there(client, 6), "six trials in MLflow")
        assert shell.run("extend", "script-objective", "--trials", "+2").returncode == 0
        assert shell.run("work", "script-objective", "--objective", "script.py:objective").returncode == 0
        assert following.poll() is None
        with mlflow_server(database, port):
            eventually(lambda: _is_there(client, 8), "eight trials in MLflow")
            parent, _ = runs_of(client, "script-objective")
            assert client.list_artifacts(parent.info.run_id)[0].path == "study.toml"
    finally:
        following.terminate()
        _, said = following.communicate(timeout=300)
    assert f"waiting: no answer from MLflow at http://127.0.0.1:{port}" in said
    assert said.count(f"mirroring into MLflow at http://127.0.0.1:{port}") == 2


def _is_there(client: MlflowClient, trials: int) -> bool:
    experiment = client.get_experiment_by_name("script-objective")
    if experiment is None or not client.search_runs([experiment.experiment_id], max_results=1):
        return False  # the study's own run is made first
    _, runs = runs_of(client, "script-objective")
    return len(runs) == trials and all(run.info.end_time for run in runs.values())


def test_a_mirror_of_real_training_is_the_same_as_the_database(shell: Shell, look: Look) -> None:
    shell.data("run", "digits", "--trials", "3", "--workers", "2", "--set", "objective.args.epochs=3")
    shell.data("mirror", "digits", "--once")
    storage = look()
    assert_same(storage, storage.find_study("digits"), contents(shell))
