"""Finalize as a person runs it: killed and continued, registered and served."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from objectives import load_model
from objectives.export import export, inputs_of
from studies import PostgresStorage
from studies.errors import StudyNotFound
from tests.acceptance.conftest import Shell
from tests.support.postgres import free_port
from tests.support.waiting import eventually

NET = """
import os
import time


class Net:
    def __call__(self, trial):
        while trial.number >= 3 and "HOLD" in os.environ:
            time.sleep(0.1)
        return trial.suggest_float("x", 0, 1)

    def n_parameters(self, params):
        return int(1000 * params["x"])

    def finalize(self, params, *, seed, device, directory, progress):
        (directory / "x").write_text(str(params["x"]))
        while os.path.exists("hold"):  # a file that a test removes
            time.sleep(0.1)
        return {"accuracy": 1.0}
"""


@pytest.mark.slow
def test_a_finalize_that_is_killed_goes_on_and_of_two_one_tests_the_model(
    shell: Shell, look: Callable[[], PostgresStorage]
) -> None:
    (shell.folder / "net.py").write_text(NET)
    shell.data("run", "net.py:Net", "--name", "net", "--direction", "maximize", "--trials", "3", "--workers", "1")
    storage = look()
    command = ("finalize", "net", "--top", "2", "--seeds", "3", "--objective", "net.py:Net", "--workers", "1")

    def done() -> int:
        try:
            return storage.status(storage.find_study("net.finalize")).trials["complete"]
        except StudyNotFound:
            return 0

    with shell.start(*command, "--lease", "3", HOLD="1") as first:
        eventually(lambda: done() == 3, "three of six trainings")
        first.send_signal(signal.SIGKILL)
        first.wait()
    (shell.folder / "hold").touch()
    with shell.start(*command) as second:
        eventually((part := shell.folder / ".net-final.part" / "x").exists, "the training of the winner")
        second.send_signal(signal.SIGKILL)
        second.wait()
    part.unlink()
    with shell.start(*command) as third:
        eventually(part.exists, "the training of the winner, once the lease of the killed one has expired")
        with shell.start(*command) as fourth:
            assert fourth.stderr
            assert any("waiting for it to end" in line for line in iter(fourth.stderr.readline, ""))
            (shell.folder / "hold").unlink()
            waited = fourth.communicate(timeout=300)
        told, said = third.communicate(timeout=300)
    assert (third.returncode, fourth.returncode) == (0, 0), said + waited[1]
    assert "(pid " in said.partition(" is retraining net; waiting for it to end")[0]
    assert waited[0].endswith("accuracy 1\n")
    assert f" of net meanwhile: see {socket.gethostname()}:{shell.folder / 'net-final'}\n" in waited[1]
    compared = storage.find_study("net.finalize")
    assert [trial.state.name for trial in storage.trials(compared)] == ["COMPLETE"] * 6
    assert all(storage.leases.attempts(compared)[number].times == 1 for number in range(3))
    best = storage.best(storage.find_study("net"))
    metrics = json.loads((shell.folder / "net-final" / "metrics.json").read_text())
    assert (metrics["trial"], metrics["tuned"], metrics["mean"], metrics["std"]) == (
        best.number,
        best.value,
        best.value,
        0,
    )
    assert "chosen" in told
    assert not list(shell.folder.glob(".net-final*"))

    refused = shell.run(*command)
    assert refused.returncode == 1
    assert "error: study 'net' was finalized with trial " in refused.stderr
    hint = refused.stderr.partition("; pass ")[2].partition(" to do it anyway")[0]
    assert hint == "--again --out net-final-2"
    again = shell.run(*command, *shlex.split(hint))
    assert "net-final-2; this was test 2 on the same test data" in again.stderr
    assert "; pass --again --out net-final-3 to do it anyway" in shell.run(*command).stderr
    assert "; pass --again to do it anyway" in shell.run(*command, "--out", "fresh").stderr


ROWS = 1_000


def table(seed: int, rows: int) -> pd.DataFrame:
    """Numbers, booleans and categories, and what they say of a person."""
    rng = np.random.default_rng(seed)
    age, height = rng.normal(40, 10, rows), rng.normal(170, 9, rows)
    smokes = rng.random(rows) < 0.3
    city = rng.choice(["Bonn", "Köln", "Trier"], rows)
    risk = (age - 40) / 10 + (height - 170) / 9 + smokes + (city == "Bonn") + rng.normal(0, 0.3, rows)
    return pd.DataFrame(
        {
            "age": age.round(2),
            "height": height.round(1),
            "smokes": np.where(smokes, "yes", "no"),
            "city": city,
            "risk": np.where(risk > 0.5, "high", "low"),
        }
    )


@pytest.mark.slow
def test_the_folder_the_graph_and_mlflow_say_the_same_of_raw_rows_with_missing_cells_and_unknown_categories(
    shell: Shell, tmp_path: Path
) -> None:
    table(0, 600).to_csv(shell.folder / "people.csv", index=False)
    settings = "objective.args={dataset='people.csv',target='risk',epochs=5}"
    study = ("run", "digits", "--name", "people", "--set", settings, "--trials", "2", "--workers", "2")
    shell.data(*study)
    made = shell.run(
        "finalize", "people", "--seeds", "2", "--ensemble", "--register", "people-at-risk", "--workers", "2"
    )
    assert made.returncode == 0, made.stderr
    assert "registered models:/people-at-risk/1; serve it with: " in made.stderr

    seed = 1
    print("seed", seed)
    rows, rng = table(seed, ROWS).drop(columns="risk"), np.random.default_rng(seed)
    rows.loc[rng.random(ROWS) < 0.1, "city"] = "Aachen"
    rows = rows.astype(object).mask(rng.random(rows.shape) < 0.1, None).astype({"age": float, "height": float})
    model = load_model(shell.folder / "people-final")
    expected = model.predict(rows)
    assert set(expected["prediction"]) == {"high", "low"}

    rows.to_csv(tmp_path / "rows.csv", index=False)
    command = [sys.executable, "-m", "objectives.predict", shell.folder / "people-final", tmp_path / "rows.csv"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (tmp_path / "predicted.csv").write_text(text)
    same(pd.read_csv(tmp_path / "predicted.csv"), expected)

    session = onnxruntime.InferenceSession(export(shell.folder / "people-final"))
    labels, shares = session.run(["prediction", "probabilities"], inputs_of(model, rows))
    same(pd.DataFrame({"prediction": labels, **dict(zip(expected.columns[1:], shares.T, strict=True))}), expected)

    uri = shell.data("mirror", "--print-uri").strip()
    port = free_port()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    options = ["-m", "models:/people-at-risk/1", "--env-manager", "local", "--port", str(port)]
    log = (tmp_path / "serve.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", *options],
        cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        eventually(lambda: server.poll() is not None or answers(port), "a served model")
        assert server.poll() is None, (tmp_path / "serve.log").read_text()
        data = json.loads(rows.to_json(orient="split", index=False))
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            data=json.dumps({"dataframe_split": {"columns": data["columns"], "data": data["data"]}}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=120) as response:
            same(pd.DataFrame(json.load(response)["predictions"]), expected)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
            return True
    except OSError:
        return False


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert list(found.columns) == list(expected.columns)
    assert list(found["prediction"]) == list(expected["prediction"])
    assert np.abs(found.iloc[:, 1:].to_numpy(float) - expected.iloc[:, 1:].to_numpy(float)).max() < 1e-5
