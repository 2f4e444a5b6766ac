"""`studyhall launch kubernetes`, and the number by which its workers are scaled."""

from __future__ import annotations

import json
from collections.abc import Callable

import psycopg2
import pytest
import yaml
from click.testing import CliRunner

from studies import PostgresStorage
from studies.cli import studyhall
from tests.acceptance.conftest import Shell
from tests.conftest import ROOT


def test_it_prints_the_job_of_a_study_that_exists(shell: Shell) -> None:
    shell.data("create", "digits", "--name", "my study")
    done = shell.run(
        "launch", "kubernetes", "my study", "--workers", "8", "--gpus", "2", "--spot", "--image", "r.example/s:1"
    )
    assert done.returncode == 0, done.stderr
    job = yaml.safe_load(done.stdout)
    assert job["kind"] == "Job"
    assert job["spec"]["parallelism"] == 8
    (worker,) = job["spec"]["template"]["spec"]["containers"]
    assert worker["image"] == "r.example/s:1"
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert f"kubectl -n studyhall delete job {job['metadata']['name']}\n" in done.stderr
    # What is on this machine, as by kubectl port-forward, is not in a pod: there it is the cluster's own.
    assert "127.0.0.1" not in done.stdout
    assert "note: the Job's storage is the cluster's own" in done.stderr
    assert str(shell.url.password) not in done.stdout


def test_the_storage_that_is_given_is_the_jobs() -> None:
    def printed(url: str, *options: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(studyhall, ["launch", "kubernetes", "s", "--storage", url, *options])
        return done.exit_code, done.stdout, done.stderr

    # Of the names that are kept for examples none is known: it cannot be asked from here, and is the Job's.
    url = "postgresql://lab:secret@db.invalid/studies?sslmode=verify-full&sslrootcert=/home/me/lab.crt"
    code, out, err = printed(url, "--volume", "ckpt:/checkpoints", "--pull-secret", "registry")
    assert code == 0, err
    assert "sslrootcert=/etc/studyhall/ca/lab.crt" in out
    assert "postgresql://lab@db.invalid/studies" in out
    assert "--allow=store=/checkpoints" in out
    assert "secret@" not in out + err
    assert "--from-file=/home/me/lab.crt" in err
    assert "study 's' was not checked: its workers find out whether it exists and may run" in err
    assert printed("postgresql://lab@db.invalid/studies?passfile=/home/me/pgpass")[0] == 1


@pytest.mark.parametrize(("arguments", "said"), [
    (["--volume", "ckpt"], "'ckpt' is not CLAIM:/PATH"),
    (["--volume", "My:/x"], "'My:/x' is not CLAIM:/PATH"),
    (["--volume", "ckpt:/data"], "/data is taken in the pod"),
    (["--workers", "0"], "0 is not in the range x>=1"),
    (["--gpus", "-1"], "-1 is not in the range x>=0"),
    (["--gpus", "one"], "'one' is not a valid integer"),
    (["--image", "studyhall"], "write NAME:TAG"),
    (["--image", "r.example:5000/studyhall"], "write NAME:TAG"),
    (["--image", "studyhall:latest"], "write NAME:TAG"),
    (["--namespace", "My Team"], "'My Team': legal are"),
])  # fmt: skip
def test_what_is_wrong_is_refused_and_nothing_is_printed(shell: Shell, arguments: list[str], said: str) -> None:
    done = shell.run("launch", "kubernetes", "digits", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_study_whose_workers_could_not_begin_is_refused(shell: Shell) -> None:
    shell.data("create", "script.py:equal", "--trials", "1", "--name", "mine")
    script = "/code/script.py:equal"  # in the image
    shell.data("stop", "mine")
    refusals = {
        "did you mean 'mine'?": ["min"],
        "say where it lies on this machine: --objective script.py:equal": ["mine"],
        "has ended (stopped by hand) and its workers would exit at once; go on with: studyhall resume mine": [
            "mine", "--objective", script
        ],
    }  # fmt: skip
    for said, arguments in refusals.items():
        done = shell.run("launch", "kubernetes", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
    shell.data("resume", "mine")
    shell.data("launch", "kubernetes", "mine", "--objective", script)


def test_the_query_of_the_autoscaler_counts_what_nobody_has_begun(
    shell: Shell, look: Callable[[], PostgresStorage]
) -> None:
    text = (ROOT / "deploy" / "kubernetes" / "README.md").read_text()
    (block,) = (part for part in text.split("```yaml\n")[1:] if "ScaledJob" in part)
    scaled, _ = yaml.safe_load_all(block.partition("```")[0])
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]

    def queued() -> int:
        with psycopg2.connect(**shell.url.libpq) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            ((count,),) = cursor.fetchall()
        connection.close()
        return int(count)

    def by_status() -> int:
        status = json.loads(shell.data("status", "my-study", "--format", "json"))
        trials = status["trials"]
        return int(status["budget"] - trials["complete"] - trials["pruned"] - trials["running"])

    shell.data("create", "script.py:equal", "--name", "other")
    assert queued() == 0  # and not: no row, which the scaler takes for an error
    shell.data("create", "script.py:equal", "--name", "my-study", "--trials", "5")
    assert queued() == by_status() == 5
    study = look().load_study(look().find_study("my-study"))
    study.tell(study.ask(), 1.0)
    study.ask()
    assert queued() == by_status() == 3
    shell.data("pause", "my-study")
    assert queued() == 0
    shell.data("resume", "my-study")
    assert queued() == 3
    shell.data("stop", "my-study")
    assert queued() == 0
