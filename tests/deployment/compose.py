"""docker-compose.yml from beginning to end, on a real Docker engine: ``make test-compose``.

    python tests/deployment/compose.py

It builds the image, so it needs the network, some 20 GB and ten minutes. In a copy of the tree with passwords of its
own; what it started and made is gone at the end, but for the image.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TRIALS = 300
SLOTS = 5  # of a worker with so small a data set, at most
STUDY = "small"
DASHBOARD, MLFLOW = 18080, 15000
SETTINGS = f"""
PRESET=diabetes
STUDY={STUDY}
TRIALS={TRIALS}
DASHBOARD_PORT={DASHBOARD}
MLFLOW_PORT={MLFLOW}
STUDYHALL_VERSION=test
"""


class Compose:
    """docker-compose in a folder, under a project name of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = f"studyhall-test-{folder.name.lower()}"

    def __call__(self, *arguments: str, timeout: float = 1800) -> str:
        done = subprocess.run(
            ["docker-compose", "-p", self.project, *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"docker-compose {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def cli(self, *arguments: str) -> str:
        """The standard output of a studyhall command, as the README says to run it."""
        return self("run", "--rm", "-T", "cli", *arguments)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.cli("status", STUDY, "--format", "json"))
        return status

    def containers(self, service: str) -> list[str]:
        return self("ps", "-q", service).split()


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="compose"))
    compose = Compose(folder)
    try:
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, tracked.split("\0")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        run(compose)
    except BaseException:
        print(compose("logs", "--tail", "30"))
        raise
    finally:
        compose("down", "-v", "--remove-orphans")
        shutil.rmtree(folder)
    print("compose: all is well")


def run(compose: Compose) -> None:
    step("secrets and settings")
    (compose.folder / ".env").write_text(SETTINGS)
    subprocess.run(["deploy/secrets.sh"], cwd=compose.folder, check=True)
    compose("config", "-q")

    step("build, and up with two workers")
    compose("up", "-d", "--build", "--scale", "worker=2")
    look_at_the_image(compose)
    wait_for(compose, lambda status: len(hosts(status)) == 2, "two workers at work")

    step("kill a worker in the middle of its trials")
    victim = compose.containers("worker")[0]
    subprocess.run(["docker", "kill", victim], check=True, capture_output=True)
    compose("up", "-d", "--scale", "worker=2")

    step("stop the workers in order: their trials are requeued at once")
    wait_for(compose, lambda status: status["trials"]["running"] >= 1, "a running trial")
    compose("stop", "worker")
    status = compose.status()
    print(status["trials"])
    assert status["trials"]["running"] <= SLOTS  # those of the one which was killed, until their leases are over
    assert status["trials"]["fail"] == 0

    step("down and up keep everything")
    done = status["trials"]["complete"] + status["trials"]["pruned"]
    assert 0 < done < TRIALS
    compose("down")
    compose("up", "-d", "--scale", "worker=2")
    status = wait_for(compose, lambda status: status["ended"] == "complete", "the end")
    finished = status["trials"]["complete"] + status["trials"]["pruned"]
    assert finished == TRIALS, status
    assert status["trials"]["fail"] == status["trials"]["running"] == status["trials"]["waiting"] == 0
    trials = json.loads(compose.cli("trials", STUDY, "--format", "json"))
    assert [trial["number"] for trial in trials] == list(range(TRIALS))
    assert max(trial["attempts"] for trial in trials) > 1

    step("another password for the workers, and a backup, as the runbook has it")
    secrets = compose.folder / "secrets"
    before = (secrets / "worker").read_text()
    for name in ("worker", "worker.pgpass"):
        (secrets / name).unlink()
    subprocess.run(["deploy/secrets.sh"], cwd=compose.folder, check=True)
    assert (secrets / "worker").read_text() != before
    compose("up", "-d", "--force-recreate")
    compose("exec", "-T", "-u", "postgres", "postgres", "sh", "/docker-entrypoint-initdb.d/10-roles.sh")
    assert compose.status()["trials"] == status["trials"]
    compose.cli("db", "backup", "/data/studies.dump")

    step("the best parameters, and both sites")
    best = json.loads(compose.cli("best", STUDY, "--format", "json"))
    assert best["value"] > 0.9
    look_at_the_sites(compose)


def look_at_the_image(compose: Compose) -> None:
    step("the containers: not root, read-only, no secrets")
    secrets = [file.read_text().strip() for file in (compose.folder / "secrets").iterdir()]
    for service in ("dashboard", "mlflow", "mirror", "worker"):
        (first, *_) = compose.containers(service)
        text = subprocess.run(["docker", "inspect", first], capture_output=True, text=True, check=True).stdout
        (facts,) = json.loads(text)
        assert facts["HostConfig"]["ReadonlyRootfs"], service
        assert facts["Config"]["User"] not in ("", "0", "root"), service
        assert not any(secret in text for secret in secrets), service
    history = ["docker", "history", "--no-trunc", "studyhall:test"]
    layers = subprocess.run(history, capture_output=True, text=True, check=True).stdout
    assert not any(secret in layers for secret in secrets)
    command = [
        "docker",
        "run",
        "--rm",
        "--read-only",
        "--entrypoint",
        "sh",
        "studyhall:test",
        "-c",
        "id -u; touch /opt/x",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "10001\n"
    assert "Read-only file system" in done.stderr


def look_at_the_sites(compose: Compose) -> None:
    password = (compose.folder / "secrets" / "sites").read_text().strip()
    login = {"Authorization": f"Basic {base64.b64encode(f'viewer:{password}'.encode()).decode()}"}
    for port in (DASHBOARD, MLFLOW):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=300)
    studies = json.loads(ask(f"http://127.0.0.1:{DASHBOARD}/api/studies", login))
    assert [study["study_name"] for study in studies["study_summaries"]] == [STUDY]
    search = f"http://127.0.0.1:{MLFLOW}/api/2.0/mlflow"
    deadline = time.monotonic() + 120
    while True:  # the mirror is some seconds behind
        found = json.loads(ask(f"{search}/experiments/search", login, {"max_results": 9}))["experiments"]
        (experiment,) = [each["experiment_id"] for each in found if each["name"] == STUDY] or [None]
        query = {"experiment_ids": [experiment], "max_results": 1000}
        runs = json.loads(ask(f"{search}/runs/search", login, query)).get("runs", []) if experiment else []
        if len(runs) == TRIALS + 1 and all(run["info"]["status"] not in ("RUNNING", "SCHEDULED") for run in runs):
            return
        assert time.monotonic() < deadline, f"{len(runs)} runs in MLflow"
        time.sleep(2)


def ask(url: str, headers: dict[str, str], body: dict[str, Any] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {**headers, "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        content: bytes = answer.read()
        return content


def hosts(status: dict[str, Any]) -> set[str]:
    """Of the workers that have trials."""
    return {worker["host"] for worker in status["workers"] if worker["trials"]}


def wait_for(compose: Compose, condition: Any, what: str) -> dict[str, Any]:
    deadline = time.monotonic() + 600
    while True:
        try:
            status = compose.status()
            if condition(status):
                return status
        except AssertionError as error:
            status = {"error": str(error)[-300:]}  # it is not created yet
        assert time.monotonic() < deadline, f"no sign of {what}: {status}"
        time.sleep(1)


def step(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


if __name__ == "__main__":
    main()
