"""The comparison of a study's best trials: a study of its own, with the same fresh seeds for each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from studies import PostgresStorage, StudySpec, lifecycle
from studies.cli import studyhall
from studies.errors import NothingFinished, StorageError, StudyhallError
from studies.finalize import comparison
from studies.finalize.lease import leased
from studies.reproduce import reproduce
from studies.stop_reasons import BY_HAND
from studies.storage.records import StudyRecord
from studies.storage.url import StorageURL
from studies.trial import SEED, Trial
from tests.support.postgres import free_port
from tests.support.waiting import GUARD
from tests.support.worker import worker_on

NET = """
class Net:
    def __call__(self, trial):
        return trial.params["x"]

    def finalize(self, params, *, seed, device, directory, progress):
        (directory / "weights").write_text("w")
        return {"accuracy": 1.0}
"""
LOADER = """

def _load_pyfunc(directory):
    raise AssertionError("never loaded")
"""
X = {"x": {"type": "float", "low": 0.0, "high": 10.0}}


@pytest.fixture
def storage(database: StorageURL) -> Iterator[PostgresStorage]:
    storage = PostgresStorage(database)
    yield storage
    for name in storage.study_names():
        storage.delete(storage.find_study(name))
    storage.close()


def study(storage: PostgresStorage, *xs: float, **more: Any) -> StudyRecord:
    """A study to be maximized whose trials have the value of their only parameter."""
    spec = {"name": "s", "direction": "maximize", "objective": {"path": "tests:f"}, "space": X, **more}
    record, _ = storage.create_study(StudySpec.from_dict(spec))
    for x in xs:
        storage.load_study(record).add_trial(
            create_trial(value=x, params={"x": x}, distributions={"x": FloatDistribution(0, 10)})
        )
    return record


def compare(storage: PostgresStorage, record: StudyRecord, top: int, seeds: int) -> tuple[StudyRecord, list[int]]:
    spec = record.require_spec("")
    given = comparison.fresh_seeds(spec, seeds)
    trials = comparison.top_trials(storage, record, top, is_at_most=False)
    return comparison.enqueue(storage, record, spec, trials, given), given


def ran(storage: PostgresStorage, compared: StudyRecord) -> list[FrozenTrial]:
    return [trial for trial in storage.trials(compared) if trial.state.is_finished()]


def test_the_best_trials_run_with_the_same_fresh_seeds_and_more_seeds_add_what_is_missing(
    storage: PostgresStorage, tmp_path: Path
) -> None:
    record = study(storage, 3.0, 9.0, 5.0, 9.0, 7.0)
    seen: list[tuple[float, int]] = []

    def objective(trial: Trial) -> float:
        seen.append((trial.params["x"], trial.seed))
        return trial.params["x"] + trial.seed / 2**33

    compared, seeds = compare(storage, record, 3, 2)
    assert compared.name == "s.finalize"
    assert worker_on(storage, compared, objective, tmp_path).run() == "complete"
    assert seen == [(x, seed) for seed in seeds for x in (9.0, 7.0, 5.0)]
    assert not {record.spec.seed_of(number) for number in range(1000)} & set(seeds)

    again, _ = compare(storage, record, 3, 2)
    assert storage.status(again).ended == "complete"
    compared, seeds = compare(storage, record, 3, 3)
    assert storage.status(compared).ended is None
    worker_on(storage, compared, objective, tmp_path).run()
    assert len(ran(storage, compared)) == len(seen) == 9
    trials = comparison.top_trials(storage, record, 3, is_at_most=False)
    found = comparison.results(storage, compared, trials, seeds, lambda params: int(params["x"]))
    assert [(c.trial, c.tuned, c.n_parameters) for c in found] == [(1, 9.0, 9), (4, 7.0, 7), (2, 5.0, 5)]
    assert found[0].values == [9.0 + seed / 2**33 for seed in seeds]
    assert reproduce(storage, compared, storage.trial(compared, 4), objective, device="cpu").is_exact


def test_a_study_that_searched_with_priors_is_compared_as_any_other(storage: PostgresStorage) -> None:
    space = {"x": {"type": "float", "low": 0, "high": 10, "prior": 5.0}}
    search = {"sampler": {"name": "curves"}, "scheduler": {"name": "freezethaw"}, "budget": {"epochs": 9}}
    record = study(storage, 1.0, 2.0, space=space, **search)
    compared, seeds = compare(storage, record, 2, 1)
    assert storage.find_study("s.finalize") == compared
    assert [trial.system_attrs["fixed_params"] for trial in storage.trials(compared)] == [{"x": 2.0}, {"x": 1.0}]
    assert len(seeds) == 1


def test_trials_of_equal_parameters_rank_by_the_best_of_them(storage: PostgresStorage) -> None:
    record = study(storage, 8.0)
    for value in (9.0, 7.0):
        storage.load_study(record).add_trial(
            create_trial(value=value, params={"x": 1.0}, distributions={"x": FloatDistribution(0, 10)})
        )
    trials = comparison.top_trials(storage, record, 2, is_at_most=False)
    assert [(trial.number, trial.value) for trial in trials] == [(1, 9.0), (0, 8.0)]


def test_commands_that_begin_together_enqueue_each_pair_once_and_train_the_winner_one_after_the_other(
    storage: PostgresStorage,
) -> None:
    record = study(storage, 1.0, 2.0)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: compare(storage, record, 2, 3)[0], range(4)))
    pairs = [(t.user_attrs["candidate"], t.system_attrs[SEED]) for t in storage.trials(found[0])]
    assert len(set(pairs)) == len(pairs) == 6
    trials = comparison.top_trials(storage, record, 2, is_at_most=False)
    with pytest.raises(
        StudyhallError, match=r"'s\.finalize' has trials that have not run; go on with the same command"
    ):
        comparison.results(storage, found[0], trials, comparison.fresh_seeds(record.require_spec(""), 3), None)

    storage.finals.lease(record, dead := str(uuid4()), holder="a killed one", seconds=1)
    waited: list[str] = []
    told = threading.Event()
    ends: list[str] = []

    def second() -> None:
        with leased(storage, record, waits=lambda _: told.set()):
            ends.append("second")

    with ThreadPoolExecutor() as pool:
        with leased(storage, record, waits=waited.append):
            assert waited == ["a killed one"]
            assert not storage.finals.lease(record, dead, holder="a killed one", seconds=1)
            job = pool.submit(second)
            assert told.wait(GUARD)
            ends.append("first")
        job.result(120)
    assert ends == ["first", "second"]


def test_the_budget_has_the_trials_of_a_command_beside_this_one(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = study(storage, 1.0, 2.0)
    extend = storage.budgets.extend

    def extend_after_another_command(*given: Any, **changes: Any) -> None:
        monkeypatch.undo()
        compare(storage, record, 2, 3)
        extend(*given, **changes)

    monkeypatch.setattr(storage.budgets, "extend", extend_after_another_command)
    compared, _ = compare(storage, record, 2, 2)
    assert compared.budget is not None
    assert compared.budget.trials == 6


def test_a_failed_seed_takes_no_new_trial_and_a_retry_has_its_seed(storage: PostgresStorage, tmp_path: Path) -> None:
    record = study(storage, 1.0, 2.0)
    broken = True

    def objective(trial: Trial) -> float:
        if broken and trial.number == 1:
            raise RuntimeError("no luck")
        return 1.0

    compared, seeds = compare(storage, record, 2, 2)
    assert worker_on(storage, compared, objective, tmp_path).run() == "stopped"
    assert [trial.state.name for trial in storage.trials(compared)] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    trials = comparison.top_trials(storage, record, 2, is_at_most=False)
    found = comparison.results(storage, compared, trials, seeds, None)
    assert [c.is_complete for c in found] == [True, False]

    lifecycle.resume(storage, compared)
    number = lifecycle.retry(storage, compared, 1)
    assert storage.trial(compared, number).system_attrs[SEED] == storage.trial(compared, 1).system_attrs[SEED]
    broken = False
    compared, _ = compare(storage, record, 2, 2)
    worker_on(storage, compared, objective, tmp_path).run()
    assert all(c.is_complete for c in comparison.results(storage, compared, trials, seeds, None))


def test_what_cannot_be_compared_is_refused_before_anything_is_written(storage: PostgresStorage) -> None:
    empty = study(storage)
    with pytest.raises(NothingFinished, match="study 's' has no complete trial yet"):
        comparison.top_trials(storage, empty, 1, is_at_most=True)
    storage.delete(empty)
    several = study(storage, direction=None, directions=["minimize", "maximize"], metric=["loss", "score"])
    with pytest.raises(StorageError, match="choose one with --trial N"):
        comparison.top_trials(storage, several, 1, is_at_most=True)
    storage.delete(several)

    record = study(storage, 1.0, 2.0, 2.0)
    with pytest.raises(StudyhallError, match=r"--top 3: study 's' has 2 COMPLETE trials with different parameters"):
        comparison.top_trials(storage, record, 3, is_at_most=False)
    assert [trial.number for trial in comparison.top_trials(storage, record, 3, is_at_most=True)] == [1, 0]
    assert storage.study_names() == ["s"]

    compared, _ = compare(storage, record, 1, 1)
    storage.budgets.stop(compared, BY_HAND)
    with pytest.raises(StudyhallError, match=r"'s\.finalize' was stopped by hand; go on with: studyhall resume"):
        compare(storage, record, 1, 1)
    storage.delete(record)
    with pytest.raises(StudyhallError, match=r"compares trials of an earlier study 's'; delete it with: studyhall del"):
        compare(storage, study(storage, 4.0), 1, 1)


def test_a_study_of_enqueued_trials_alone_ends_with_them(storage: PostgresStorage, tmp_path: Path) -> None:
    record = study(storage, sampler={"name": "enqueued"}, budget={"trials": 9})
    lifecycle.enqueue(storage, record, ["x=3"])
    storage.create_new_trial(record.study_id, create_trial(state=TrialState.WAITING))
    assert worker_on(storage, record, lambda trial: trial.params["x"], tmp_path).run() == "stopped"
    good, bad = storage.trials(record)
    assert (good.value, bad.state) == (3.0, TrialState.FAIL)
    assert "the sampler 'enqueued' draws nothing, and the trial was enqueued without 'x'" in bad.user_attrs["error"]


def test_a_folder_is_written_though_mlflow_is_unreachable_and_the_command_for_later_is_told(
    database: StorageURL, storage: PostgresStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("STUDYHALL_HOME", str(tmp_path / "home"))
    Path("nets.py").write_text(NET + LOADER)
    Path("old.py").write_text(NET)
    study(storage, 0.5, objective={"path": "nets:Net"})
    study(storage, 0.5, name="old", objective={"path": "old:Net"})

    def told(*arguments: str) -> tuple[int, str]:
        environment = {"STUDYHALL_STORAGE": database.sqlalchemy}
        done = CliRunner().invoke(studyhall, [*arguments, "--allow", "nets.", "--allow", "old."], env=environment)
        return done.exit_code, done.stderr

    away = f"http://127.0.0.1:{free_port()}"
    status, lines = told("finalize", "s", "--trial", "0", "--register", "net", "--tracking-uri", away)
    assert status == 1
    assert lines.splitlines()[-1].startswith(f"error: the model is not registered: no answer from MLflow at {away}: ")
    assert lines.endswith(f"do it later with: studyhall register {tmp_path}/s-final net --tracking-uri {away}\n")
    assert (tmp_path / "s-final" / "weights").read_text() == "w"
    card = (tmp_path / "s-final" / "README.md").read_text()
    assert "A person named the trial" in card
    assert "| accuracy | 1 |" in card
    for arguments, message in {
        (
            "finalize",
            "s",
            "--register",
            "a/b",
        ): "'a/b' is no name for a registered model; legal is text without /",
        ("finalize", "old", "--register", "net"): "module 'old' has no function _load_pyfunc(directory)",
        (
            "finalize",
            "old",
            "--trial",
            "0",
            "--top",
            "3",
        ): "--trial 0 is retrained without a comparison",
        ("finalize", "old", "--ensemble"): "cannot make an ensemble: leave --ensemble out",
        ("register", str(tmp_path / "s-final"), "net", "--tracking-uri", away): "no answer from MLflow",
        (
            "register",
            str(tmp_path),
            "net",
            "--tracking-uri",
            away,
        ): "holds no final model; name a folder",
    }.items():
        status, lines = told(*arguments)
        assert status != 0
        assert message in lines, lines
    assert storage.study_names() == ["old", "s"]
