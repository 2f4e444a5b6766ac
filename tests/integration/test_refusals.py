"""What the database refuses for what it is ends one trial, and nothing else; what it can't do now is tried again."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from studies import PostgresStorage, StudySpec
from studies.errors import LeaseLost, Refused, StorageUnreachable
from studies.storage.limits import MAX_JSON, MAX_NAME
from studies.storage.records import Claim
from studies.trial import Trial
from studies.worker.pending_results import PendingResult, PendingResults
from tests.support.proxy import Proxy
from tests.support.stage import CASES, Stages, lose_reports, shown
from tests.support.worker import worker_on

pytestmark = pytest.mark.both_servers

REFUSED = ("22001", "22021", "23514", "54000")
TRY_AGAIN = ("40001", "40P01", "57014")
AWAY = ("08006", "25006", "53100", "57P01")
#: Who holds a lease goes on without the answer, and sends again by itself.
IMPATIENT = {"leases.write", "leases.finish", "workers.heartbeat"}


@pytest.mark.parametrize("method", CASES)
def test_every_error_of_the_server_is_taken_for_what_it_is_in(method: str, proxy: Proxy, stages: Stages) -> None:
    case = CASES[method]
    with closing(PostgresStorage(proxy.url)) as storage:
        stage = stages.set(storage)
        proxy.reset()
        result, count = shown(case(stage)), len(proxy.statements)
    expected = stages.contents()
    with closing(PostgresStorage(proxy.url)) as storage:
        stage = stages.set(storage)
        before = stages.contents()
        for code in REFUSED:
            proxy.refuse(code)
            with pytest.raises(Refused, match="refused by the proxy"):
                case(stage)
        assert stages.contents() == before
    for n in range(1, count + 1):
        for code in (TRY_AGAIN[n % 3], AWAY[n % 4]):
            with closing(PostgresStorage(proxy.url)) as storage:
                stage = stages.set(storage)
                proxy.refuse(code, n)
                if method in IMPATIENT and code == "53100":  # what breaks a connection is tried once over another
                    with pytest.raises(StorageUnreachable):
                        case(stage)
                assert shown(case(stage)) == result, (code, n)
                assert proxy.fired
                assert stages.contents() == expected, (code, n)


# A worker's trial

Run = Callable[..., Path]

#: A constraint that a database may well have, and that no client knows of.
CONSTRAINTS = {
    "user_attrs": "alter table trial_user_attributes add constraint poison check (key <> 'poison')",
    "params": "alter table trial_params add constraint poison check (param_name <> 'poison')",
    "metrics": "alter table studyhall.metrics add constraint poison check (name <> 'poison')",
    "reports": "alter table trial_intermediate_values add constraint poison check (step <> 13)",
}


def poison(trial: Trial, kind: str) -> None:
    """Have something written that the database refuses."""
    if kind == "user_attrs":
        trial.set_user_attr("poison", 1)
    elif kind == "params":
        trial.suggest_float("poison", 0, 1)
    elif kind == "metrics":
        trial.report(1.0, 12, poison=1.0)
    else:
        trial.report(1.0, 13)


@pytest.fixture
def run(storage: PostgresStorage, tmp_path: Path) -> Run:
    """Run a study of two trials that do not fail to its end; returns the folder of its results."""

    def run(objective: Callable[[Trial], Any], kind: str | None = None) -> Path:
        if kind:
            storage.database.execute(CONSTRAINTS[kind])
        budget = {"trials": 2, "max_failures": 20}
        data = {"name": "study", "objective": {"path": "tests:objective"}, "budget": budget}
        record, _ = storage.create_study(StudySpec.from_dict(data))
        storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
        worker = worker_on(storage, record, objective, tmp_path)
        assert worker.run() == "complete"
        return tmp_path / str(record.uid)

    return run


def trials(storage: PostgresStorage) -> list[FrozenTrial]:
    return storage.trials(storage.find_study("study"))


def after_a_report(trial: Trial, kind: str) -> float:
    poison(trial, kind)
    trial.report(1.0, 20)
    return 1.0


def at_the_end(trial: Trial, kind: str) -> float:
    poison(trial, kind)
    return 1.0


def swallowed(trial: Trial, kind: str) -> float:
    try:
        poison(trial, kind)
        trial.report(1.0, 20)
    except Exception as error:
        trial.set_user_attr("swallowed", type(error).__name__)
    return 1.0


def pruned(trial: Trial, kind: str) -> float:
    poison(trial, kind)
    raise optuna.TrialPruned


@pytest.mark.parametrize("body", [after_a_report, at_the_end, swallowed, pruned])
@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_what_the_database_refuses_fails_its_trial_and_all_else_is_kept(
    storage: PostgresStorage, run: Run, kind: str, body: Callable[[Trial, str], float]
) -> None:
    def objective(trial: Trial) -> float:
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("before", 1)
        if trial.number == 1:
            return body(trial, kind)
        return 1.0

    folder = run(objective, kind)
    assert [trial.state.name for trial in trials(storage)] == ["COMPLETE", "FAIL", "COMPLETE"]
    failed = trials(storage)[1]
    assert 'violates check constraint "poison"' in failed.user_attrs["error"]
    assert "traceback" not in failed.user_attrs
    assert list(failed.params) == ["x"]
    assert failed.user_attrs["before"] == 1
    assert failed.value is None
    assert ("swallowed" in failed.user_attrs) == (body is swallowed)
    [aside] = folder.glob("*.refused")
    assert json.loads(aside.read_text())["refused"]["kind"] == kind
    assert list(folder.glob("*.json")) == []


def test_of_many_attributes_those_that_are_refused_are_found_and_the_others_kept(
    storage: PostgresStorage, run: Run
) -> None:
    def objective(trial: Trial) -> float:
        if trial.number == 0:
            for i in range(40):
                trial.set_user_attr(f"a{i}", i)
            trial.set_user_attr("poison", 1)
            trial.report(1.0, 13)
        return 1.0

    storage.database.execute(CONSTRAINTS["reports"])
    folder = run(objective, "user_attrs")
    failed = trials(storage)[0]
    assert failed.state == TrialState.FAIL
    assert {key for key in failed.user_attrs if key.startswith("a")} == {f"a{i}" for i in range(40)}
    assert failed.intermediate_values == {}
    assert len(list(folder.glob("*.refused"))) == 2


@pytest.mark.parametrize("steps", [1, 2])
def test_what_is_refused_when_a_crashed_server_is_told_again_is_taken_apart(
    storage: PostgresStorage, run: Run, steps: int
) -> None:
    def objective(trial: Trial) -> float:
        trial.suggest_float("x", 0, 1)
        trial.report(1.0, 0, loss=3.0)
        if trial.number == 0:
            lose_reports(storage.location)
            trial.set_user_attr("poison", 1)
            trial.set_user_attr("fine", 1)
        for step in range(1, steps):  # the next thing told is a report, or the result
            trial.report(2.0, step)
        return 1.0

    folder = run(objective, "user_attrs")
    failed = trials(storage)[0]
    assert failed.state == TrialState.FAIL
    assert "the database refuses the attribute 'poison'" in failed.user_attrs["error"]
    assert list(failed.params) == ["x"]
    assert failed.user_attrs["fine"] == 1
    assert failed.intermediate_values == dict(zip(range(steps), [1.0, 2.0], strict=False))
    assert storage.metrics.of(failed) == {0: {"loss": 3.0}}
    assert len(list(folder.glob("*.refused"))) == 1


@pytest.mark.parametrize("is_requeued", [False, True])
def test_a_result_that_waited_on_the_disk_and_is_refused_blocks_no_later_worker(
    storage: PostgresStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_requeued: bool
) -> None:
    storage.database.execute(CONSTRAINTS["user_attrs"])
    data = {"name": "study", "objective": {"path": "tests:objective"}, "budget": {"trials": 2}}
    record, _ = storage.create_study(StudySpec.from_dict(data))
    claim = storage.leases.claim(record, "w", 30)
    assert isinstance(claim, Claim)
    if is_requeued:
        storage.workers.reap(["w"], died_of=None)
    results = PendingResults(tmp_path, str(record.uid))
    attrs = [{"key": "poison", "value": "1"}, {"key": "fine", "value": "2"}]
    results.save(PendingResult(claim=claim, state="COMPLETE", values=[1.0], changes={"user_attrs": attrs}))
    results.send(storage)
    [trial] = storage.trials(record)
    assert trial.state == TrialState.FAIL
    assert "the database refuses the attribute 'poison'" in trial.user_attrs["error"]
    aside = [json.loads(file.read_text())["refused"]["change"]["key"] for file in tmp_path.rglob("*.refused")]
    # Of a trial that nobody holds only the result is taken.
    assert sorted(aside) == (["fine", "poison"] if is_requeued else ["poison"])
    assert trial.user_attrs.get("fine") == (None if is_requeued else 2)
    assert list(tmp_path.rglob("*.json")) == []
    assert "the refused data is in" in caplog.text


def test_a_requeued_trial_gives_back_what_it_can(storage: PostgresStorage) -> None:
    storage.database.execute(CONSTRAINTS["user_attrs"])
    data = {"name": "study", "objective": {"path": "tests:objective"}, "budget": {"trials": 2}}
    record, _ = storage.create_study(StudySpec.from_dict(data))
    claim = storage.leases.claim(record, "w", 30)
    assert isinstance(claim, Claim)
    with pytest.raises(Refused):
        storage.leases.requeue(claim, {"user_attrs": [{"key": "poison", "value": "1"}]})
    assert storage.trials(record)[0].state == TrialState.RUNNING
    storage.leases.requeue(claim, {})
    assert storage.trials(record)[0].state == TrialState.WAITING
    with pytest.raises(LeaseLost):
        storage.leases.write(claim, {}, step=None)


# What can be checked is checked where the objective calls.

ILLEGAL: dict[str, tuple[Callable[[optuna.Trial], object], str]] = {
    "long key": (lambda t: t.set_user_attr("k" * 513, 1), "has 513 characters; at most 512 are legal"),
    "NUL in key": (lambda t: t.set_user_attr("a\0b", 1), "attribute 'a\\x00b' holds a NUL character"),
    "surrogate in key": (lambda t: t.set_user_attr("a\ud800", 1), "'a\\ud800' holds half of a surrogate pair"),
    "key that is no text": (lambda t: t.set_user_attr(1, 1), "attribute 1 is of type int; legal is text"),  # type: ignore[arg-type]
    "huge value": (lambda t: t.set_user_attr("big", "x" * MAX_JSON), f"at most {MAX_JSON:,} are legal"),
    "value that is no JSON": (lambda t: t.set_user_attr("o", object()), "attribute 'o' is not JSON"),
    "value in a circle": (lambda t: t.set_user_attr("o", circle()), "attribute 'o' is not JSON"),
    "long parameter": (lambda t: t.suggest_float("p" * 600, 0, 1), "has 600 characters"),
    "NUL in parameter": (lambda t: t.suggest_int("p\0", 0, 1), "holds a NUL character"),
    "surrogate in parameter": (lambda t: t.suggest_categorical("\udfff", [1]), "half of a surrogate pair"),
    "huge choices": (lambda t: t.suggest_categorical("c", ["x" * MAX_JSON, "y"]), "the distribution of parameter 'c'"),
}


def circle() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def test_an_objective_that_records_something_illegal_gets_an_error_with_the_limit(
    storage: PostgresStorage, run: Run
) -> None:
    cases = list(ILLEGAL.values())

    def objective(trial: Trial) -> float:
        trial.suggest_float("x", 0, 1)
        if trial.number < len(cases):
            act, message = cases[trial.number]
            with pytest.raises((ValueError, TypeError)) as caught:
                act(trial)
            assert message in str(caught.value)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 200
            raise caught.value
        return 1.0

    folder = run(objective)
    *failed, first, second = trials(storage)
    for trial, (name, (_, message)) in zip(failed, ILLEGAL.items(), strict=True):
        assert (trial.state.name, list(trial.params)) == ("FAIL", ["x"]), name
        assert message in trial.user_attrs["error"], name
    assert first.state == second.state == TrialState.COMPLETE
    assert not folder.exists()


def test_so_does_a_script_of_stock_optuna(storage: PostgresStorage) -> None:
    study = optuna.create_study(storage=storage)
    for act, message in ILLEGAL.values():
        with pytest.raises((ValueError, TypeError)) as caught:
            act(study.ask())
        assert message in str(caught.value)


def test_a_metric_of_an_illegal_name_writes_nothing_of_its_step(storage: PostgresStorage, run: Run) -> None:
    names = ["m" * (MAX_NAME + 1), "m\0", "m\ud812"]

    def objective(trial: Trial) -> float:
        if trial.number < len(names):
            trial.report(1.0, 0, fine=1.0, **{names[trial.number]: 2.0})
        return 1.0

    run(objective)
    for failed in trials(storage)[: len(names)]:
        assert failed.user_attrs["error"].startswith("ValueError: metric 'm")
        assert (failed.state, failed.intermediate_values, storage.metrics.of(failed)) == (TrialState.FAIL, {}, {})


def test_a_study_of_an_illegal_name_is_refused_and_makes_nothing(storage: PostgresStorage) -> None:
    for name in ("n" * 600, "a\0b", "\udc80"):
        with pytest.raises(ValueError, match="study name"):
            optuna.create_study(storage=storage, study_name=name)
    assert storage.study_names() == []


def test_names_as_long_as_legal_in_any_script_are_stored(storage: PostgresStorage, run: Run) -> None:
    name = "\U00010348" * MAX_NAME  # four bytes each

    def objective(trial: Trial) -> float:
        trial.set_user_attr(name, 1)
        trial.report(1.0, 0, **{name: 1.0})
        return trial.suggest_float(name, 0, 1)

    run(objective)
    first = trials(storage)[0]
    assert (list(first.params), list(first.user_attrs)) == ([name], [name])
    assert storage.metrics.of(first) == {0: {name: 1.0}}


def test_an_error_of_any_content_is_stored_and_fails_its_trial_alone(storage: PostgresStorage, run: Run) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def objective(trial: Trial) -> float:
        if trial.number == 0:
            raise Unspeakable
        if trial.number == 1:
            raise RuntimeError("\0" + "x" * 2**20)
        return 1.0

    run(objective)
    unspeakable, long, *others = trials(storage)
    assert "(its text cannot be read: RuntimeError)" in unspeakable.user_attrs["error"]
    assert long.user_attrs["error"].startswith("RuntimeError: ")
    assert len(long.user_attrs["error"]) == 2000
    assert [trial.state.name for trial in others] == ["COMPLETE", "COMPLETE"]
