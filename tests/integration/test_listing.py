"""What trials and ls list: every value, every attribute, in the order and the columns that were asked for."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from studies import PostgresStorage, StudySpec
from studies.cli import studyhall
from studies.cli.formats import print_columns
from studies.storage.records import Claim
from tests.conftest import Server

Say = Callable[..., str]
SPACE = {"x": FloatDistribution(-10, 10), "value": IntDistribution(0, 9)}


def spec(name: str, **more: object) -> StudySpec:
    return StudySpec.model_validate({"name": name, "objective": {"path": "script:f"}, "budget": {"trials": 9}, **more})


@pytest.fixture(scope="module")
def storage(separate_server: Server) -> Iterator[PostgresStorage]:
    with separate_server.database() as url:
        storage = PostgresStorage(url)
        one, _ = storage.create_study(spec("one", direction="maximize", metric="score"))
        study = storage.load_study(one)
        for number, (value, state) in enumerate(
            [(1.0, "COMPLETE"), (3.0, "COMPLETE"), (math.inf, "COMPLETE"), (None, "PRUNED"), (None, "FAIL")]
        ):
            study.add_trial(
                create_trial(
                    state=TrialState[state],
                    value=value,
                    params={"x": number - 2.5, "value": number},
                    distributions=SPACE,
                    intermediate_values={1: 0.5} if state == "PRUNED" else {},
                    user_attrs={"error": "E: no", "traceback": "T"}
                    if state == "FAIL"
                    else {"n": [number], "note": "a,b", **({"script_sha256": "5ec1"} if number == 1 else {})},
                )
            )
        two, _ = storage.create_study(spec("two", directions=["minimize", "maximize"], metric=["loss", "acc"]))
        for values in ([1.0, 2.0], [0.5, -math.inf]):
            storage.load_study(two).add_trial(
                create_trial(values=values, params={"x": 1.0}, distributions={"x": SPACE["x"]})
            )
        yield storage
        storage.close()


@pytest.fixture
def say(storage: PostgresStorage) -> Say:
    """The standard output of a command."""

    def run(line: str, status: int = 0) -> str:
        done = CliRunner().invoke(studyhall, line.split(), env={"STUDYHALL_STORAGE": storage.location.sqlalchemy})
        assert done.exit_code == status, done.output
        return done.stdout if status == 0 else done.stderr

    return run


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_attribute_and_every_value_is_listed(say: Say) -> None:
    data = json.loads(say("trials one --format json"))
    assert [trial["user_attrs"] for trial in data[-2:]] == [{"n": [3], "note": "a,b"}, {}]
    assert data[-1]["error"] == "E: no"
    # What a worker notes of a changed script is no attribute of the objective's.
    assert [trial["script_sha256"] for trial in data] == [None, "5ec1", None, None, None]
    assert json.loads(say("best one --trial 1 --format json"))["script_sha256"] == "5ec1"
    listed = rows(say("trials one --format csv"))
    assert ",".join(listed[0]) == (
        "number,state,value,steps,start,complete,seconds,worker,attempts,error,script_sha256,"
        "params_x,params_value,user_attrs_n,user_attrs_note"
    )
    assert [row["user_attrs_n"] for row in listed] == ["[0]", "[1]", "[2]", "[3]", ""]
    assert [row["value"] for row in listed] == ["1.0", "3.0", "", "", ""]
    assert say("trials one").splitlines()[1].endswith("x=-2.5 value=0; n=[0] note=a,b")
    shown = say("show one 0").splitlines()
    assert shown[shown.index("attributes:") + 1 :] == ["  n     [0]", "  note  a,b"]
    listed = rows(say("trials two --format csv"))
    assert [(row["values_loss"], row["values_acc"]) for row in listed] == [("1.0", "2.0"), ("0.5", "")]
    assert say("trials two").splitlines()[1].split()[:4] == ["0", "complete", "1", "2"]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ("", "0 1 2 3 4"),
        ("--limit 2", "0 1"),
        ("--state COMPLETE --state Fail", "0 1 2 4"),
        ("--sort -# --limit 1", "4"),
        ("--sort -score --limit 1", "1"),
        ("--sort -number --limit 2", "4 3"),
        ("--sort value", "0 1 2 3 4"),
        ("--sort -value", "1 0 2 3 4"),
        ("--sort -value --limit 3", "1 0 2"),
        ("--sort -x --state pruned --state complete", "3 2 1 0"),
        ("--sort -params_value --limit 1", "4"),
        ("--sort -n", "3 2 1 0 4"),
        ("--sort error --limit 1", "4"),
        ("--state running", ""),
    ],
)
def test_trials_come_in_the_order_that_was_asked_for(say: Say, options: str, numbers: str) -> None:
    assert [row["number"] for row in rows(say(f"trials one --format csv {options}"))] == numbers.split()
    assert [str(trial["number"]) for trial in json.loads(say(f"trials one --format json {options}"))] == numbers.split()
    assert [line.split()[0] for line in say(f"trials one {options}").splitlines()[1:]] == numbers.split()


def test_columns_are_chosen_by_name_in_every_format(say: Say) -> None:
    chosen = "--columns params_value,number,x,seconds --limit 1"
    assert say(f"trials one --format csv {chosen}") == "params_value,number,params_x,seconds\n0,0,-2.5,0.0\n"
    assert json.loads(say(f"trials one --format json {chosen}")) == [
        {"params_value": 0, "number": 0, "params_x": -2.5, "seconds": 0.0}
    ]
    assert [line.split() for line in say(f"trials one {chosen}").splitlines()] == [
        ["params_value", "number", "params_x", "seconds"], ["0", "0", "-2.5", "0"]
    ]  # fmt: skip
    assert say("trials two --format csv --columns acc --limit 1") == "values_acc\n2.0\n"
    table = say("trials one --columns #,state,score,time --limit 1").splitlines()  # by the headings of the table
    assert [line.split() for line in table] == [["number", "state", "value", "seconds"], ["0", "complete", "1", "0"]]
    for wrong in ("--columns number,stat", "--sort stat"):
        assert "there is no column 'stat'; did you mean 'state'?" in say(f"trials one {wrong}", status=1)
    for nothing in ("--columns=", "--sort="):
        assert "there is no column ''; known: number, state, value, " in say(f"trials one {nothing}", status=1)


def test_a_trial_of_several_attempts_took_no_longer_than_is_shown(storage: PostgresStorage, say: Say) -> None:
    record, _ = storage.create_study(spec("again"))
    for is_last in (False, True):
        claim = storage.leases.claim(record, "w", 30)
        assert isinstance(claim, Claim)
        if is_last:
            storage.set_trial_state_values(claim.trial_id, TrialState.COMPLETE, [1.0])
        else:
            storage.leases.requeue(claim, {})
    assert " ≤ " in say("trials again").splitlines()[1]
    assert ", with the pauses between its attempts\n" in say("show again 0")


def test_only_a_complete_trial_is_finalized(say: Say) -> None:
    assert "trial 3 of study 'one' is PRUNED; only COMPLETE trials can be finalized" in say("finalize one --trial 3", 1)
    assert "choose one with --trial N out of: studyhall best two" in say("finalize two", 1)


def test_a_terminal_gets_a_line_for_each_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    print_columns(["#", "value", "parameters"], [[str(i), "0.5", "lr=0.1 width=2 " * 9] for i in range(3)])
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 4
    assert all(len(line) <= 40 and line.endswith("…") for line in lines[1:])


def test_ls_says_how_each_study_stands_and_what_is_best(storage: PostgresStorage, say: Say) -> None:
    for name in ("idle", "paused", "stopped", "complete", "running"):
        record, _ = storage.create_study(spec(name, budget={"trials": 1}))
        study = storage.load_study(record)
        if name == "paused":
            storage.budgets.pause(record)
        elif name == "stopped":
            storage.budgets.stop(record, "by hand")
        elif name == "complete":
            study.add_trial(create_trial(value=2.5))
        elif name == "running":
            study.ask()
    listed = {row["name"]: row for row in json.loads(say("ls --format json"))}
    states = {name: listed[name]["state"] for name in ("idle", "paused", "stopped", "complete", "running", "one")}
    assert states == {name: name for name in states if name != "one"} | {"one": "idle"}
    assert (listed["complete"]["best"], listed["two"]["best"], listed["idle"]["best"]) == (2.5, None, None)
    lines = {line.split()[0]: line.split()[1:4] for line in say("ls").splitlines()}
    assert lines["complete"] == ["complete", "2.5", "1/1"]
    assert lines["one"][:2] == ["idle", "inf"]
    assert max(map(len, say("ls").splitlines())) <= 80


def test_a_worker_that_trains_several_trials_is_one_worker(storage: PostgresStorage, say: Say) -> None:
    record, _ = storage.create_study(spec("pooled"))
    storage.workers.register([record], worker_id="w", host="alpha", pid=7, device="cuda:0", slots=4)
    for step in (3, 5):
        claim = storage.leases.claim(record, "w", 30)
        assert isinstance(claim, Claim)
        storage.leases.write(claim, {}, step=step)
    (worker,) = json.loads(say("status pooled --format json"))["workers"]
    assert 0 <= worker.pop("seen_seconds_ago") < 60
    assert worker == {
        **{"id": "w", "host": "alpha", "pid": 7, "device": "cuda:0", "slots": 4, "trial": 0, "step": 3},
        "trials": [{"number": 0, "step": 3}, {"number": 1, "step": 5}],
    }
    assert say("status pooled").splitlines()[-1].split()[:6] == ["alpha", "7", "cuda:0", "4", "0–1", "3–5"]
    assert "has 1 worker, seen" in say("delete pooled --yes", status=1)
