"""Studies in Python: created, run, steered and read as by the command line, with the same errors."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from studies import PostgresStorage, Study
from studies.errors import (
    NothingFinished,
    ObjectiveError,
    SpecError,
    SpecMismatch,
    StorageError,
    StudyhallError,
    StudyNotFound,
)
from tests.conftest import Server
from tests.support.waiting import eventually

SCRIPT = """
import time


def objective(trial):
    x = trial.suggest_float("x", -5.0, 5.0)
    for step in range(1, 4):
        time.sleep(0.02)
        trial.report(x * x / step, step, loss=abs(x))
    return x * x


def slow(trial):
    x = trial.suggest_float("x", -5.0, 5.0)
    for step in range(1, 10_000):
        time.sleep(0.02)
        trial.report(x, step)
    return x


def broken(trial):
    raise RuntimeError("no such luck")
"""
RANDOM = {"sampler": {"name": "random"}, "pruner": {"name": "none"}}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STUDYHALL_HOME", str(tmp_path / "home"))
    file = tmp_path / "train.py"
    file.write_text(SCRIPT)
    return file


@pytest.fixture
def storage(separate_server: Server) -> Iterator[PostgresStorage]:
    with separate_server.database() as url, closing(PostgresStorage(url)) as storage:
        yield storage


def test_a_study_is_created_run_and_read(storage: PostgresStorage, script: Path) -> None:
    study = Study.of(f"{script}:objective", name="lab", trials=4, storage=storage, **RANDOM)
    with pytest.raises(NothingFinished, match="'lab' has no complete trial yet"):
        _ = study.best
    number = study.enqueue(x=0.5)
    study.run(workers=1, progress=False)
    assert repr(study) == "<Study 'lab': 4 of 4 trials done>"
    assert study.best.value == min(trial.value for trial in study.trials) == study.optuna.best_value
    assert study.trials[number].params == {"x": 0.5}
    frame = study.trials.to_pandas()
    assert list(frame["number"]) == [0, 1, 2, 3]
    assert set(frame["state"]) == {"COMPLETE"}
    assert frame.loc[number, "params_x"] == 0.5
    assert frame.loc[number, "metrics_loss"] == 0.5
    curves = study.curves()
    assert list(curves.columns) == ["trial", "step", "metric", "value"]
    assert curves["metric"].value_counts().to_dict() == {"loss": 12, "value": 12}
    assert curves["trial"].is_monotonic_increasing
    assert set(study.curves(points=1).query("metric == 'value'")["step"]) == {3}
    study.run(workers=1, progress=False)  # it is over: nothing to do
    again = Study.open("lab", storage)
    assert len(again.trials) == 4
    with pytest.raises(StorageError, match="has ended: the budget is spent; go on with: studyhall extend lab"):
        again.enqueue(x=1.0)


def test_workers_in_the_background_are_paused_resumed_and_stopped(storage: PostgresStorage, script: Path) -> None:
    study = Study.of(f"{script}:slow", name="long", trials=4, storage=storage, **RANDOM)
    with study.start(workers=1) as running:
        eventually(lambda: study.status.trials["running"] == 1, "a trial runs")
        assert not running.wait(timeout=0.1)
        study.pause()
        eventually(lambda: study.status.trials["running"] == 0, "it is given back")
        study.resume()
        eventually(lambda: study.status.trials["running"] == 1, "it runs again")
        study.cancel(0)
        eventually(lambda: study.trials[0].state.name == "FAIL", "it is cancelled")
    assert not running.is_alive
    assert study.status.trials["running"] == 0
    assert not study.status.ended
    with study.start(workers=1) as running:
        study.stop()
        assert running.wait()


def test_a_study_that_fails_raises_what_the_command_says(storage: PostgresStorage, script: Path) -> None:
    study = Study.of(f"{script}:broken", name="bad", storage=storage, budget={"max_failures": 1}, trials=9)
    with pytest.raises(StudyhallError, match=r"'bad' stopped: 1 trial failed, .*no such luck; see: studyhall show"):
        study.run(workers=1, progress=False)


def test_a_file_a_dict_and_overrides_make_the_same_study(storage: PostgresStorage, script: Path) -> None:
    file = script.with_name("my.toml")
    file.write_text('name = "mine"\nobjective.path = "train.py:objective"\nbudget.trials = 7\nsampler.name = "tpe"\n')
    from_file = Study.create(file, storage, trials=3, sampler={"name": "random"})
    data: dict[str, Any] = {
        "name": "mine",
        "objective": {"path": f"{script}:objective"},
        "budget": {"trials": 3},
        "sampler": {"name": "random"},
    }
    same = Study.create(data, storage)
    assert same.spec == from_file.spec
    assert same.status.budget is not None
    assert same.status.budget.trials == 3
    with pytest.raises(SpecMismatch, match="'mine'"):
        Study.create(data, storage, seed=9)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"source": "nowhere.toml"}, SpecError, "cannot read the study file 'nowhere.toml'"),
        ({"source": "digts"}, SpecError, "did you mean 'digits'"),
        ({"source": "digits", "sampler": {"name": "best"}}, SpecError, "sampler"),
        ({"source": "digits", "trials": 0}, SpecError, "budget.trials = 0"),
        ({"source": "nowhere.py:f"}, ObjectiveError, "nowhere.py"),
    ],
)
def test_what_the_command_line_refuses_is_refused_in_the_same_words(
    storage: PostgresStorage, given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Study.create(storage=storage, **given)
    assert storage.study_names() == []


def test_a_name_that_nobody_knows_is_refused(storage: PostgresStorage) -> None:
    with pytest.raises(StudyNotFound, match="no study 'lab'"):
        Study.open("lab", storage)


@pytest.mark.parametrize("objective", [lambda _trial: 0.0, 3])
def test_what_has_no_name_cannot_be_an_objective(storage: PostgresStorage, objective: Any) -> None:
    with pytest.raises(ObjectiveError, match=r"give a function or class .* or its path"):
        Study.of(objective, storage=storage)


def test_a_function_of_a_file_is_given_as_it_is(
    storage: PostgresStorage, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(script.parent))
    import train  # type: ignore[import-not-found]

    study = Study.of(train.objective, trials=1, storage=storage, **RANDOM)
    assert study.name == "train-objective"
    study.run(workers=1, progress=False)
    opened = Study.open("train-objective", storage)
    with pytest.raises(ObjectiveError, match=r"train\.py"):
        opened.start(workers=1)


CELLS = [
    "from studies import Study",
    "%%writefile train.py\n" + SCRIPT,
    'study = Study.of("train.py:objective", name="note", trials=3)\nstudy.run(workers=1)',
    "sorted(study.best.params)",
    "study.trials.to_pandas()",
    'study.curves().query("metric == \'loss\'").groupby("trial")["value"].last()',
    "def mine(trial):\n    return 0.0",
    "try:\n    Study.of(mine)\nexcept Exception as error:\n    print(type(error).__name__, error)",
    "study.close()",
]


def test_a_notebook_creates_runs_and_reads_a_study(
    storage: PostgresStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbclient
    import nbformat

    monkeypatch.setenv("STUDYHALL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STUDYHALL_STORAGE", storage.location.sqlalchemy)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in CELLS])
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [
        "".join(str(output.get("text") or output["data"]["text/plain"]) for output in cell.outputs)
        for cell in notebook.cells
    ]
    assert shown[3] == "['x']"
    assert "COMPLETE" in shown[4]
    assert "params_x" in shown[4]
    assert shown[5].startswith("trial\n0")
    assert shown[7].startswith("ObjectiveError mine is defined in a notebook")
    assert 'Study.of("train.py:mine")' in shown[7]
