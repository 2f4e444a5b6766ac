"""The mirror takes whatever a study holds, and what MLflow refuses nevertheless keeps nothing else out."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import mlflow.artifacts
import optuna
import psycopg2
import pytest
from mlflow import MlflowClient
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from optuna.trial import TrialState, create_trial

from studies import PostgresStorage
from studies.mirror.launcher import MirrorProcess
from studies.mirror.names import NAME_TAG, digest_in, experiment_name, text_file, unescape
from studies.mirror.server import configure, database_of, prepare_database
from studies.mirror.study_mirror import StudyMirror
from studies.storage.records import StudyRecord
from studies.storage.url import StorageURL
from tests.conftest import Server
from tests.support.mirrored import assert_same, begin, claim, finish, report, runs_of
from tests.support.mlflow_server import mlflow_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning",
        "ignore::FutureWarning",
        "ignore::UserWarning",
        "ignore::optuna.exceptions.ExperimentalWarning",
    ),
]
slow = partial(pytest.param, marks=pytest.mark.slow)
"""A case that starts MLflow's server, or makes its tables anew, takes seconds."""
NOTES = distribution_to_json(CategoricalDistribution(["poison", "sugar"]))
#: Names of parameters, metrics and attributes.
NAMES = [
    *("", ".", "..", "/", "../x", "a//b", "/abs", " ", "a\nb", "tab\t", "\x1b[31m", "(", "_x28_", "LR", "lr"),
    *(
        "größe",
        "学习率",
        "קצב",
        "👩‍👩‍👧",
        "mlflow.runName",
        "mlflow.parentRunId",
        "studyhall.trial",
        "state",
        "n" * 512,
    ),
]
#: Names of studies.
STUDIES = [
    *("", " ", "\n", "..", "../..", "/", "a//b/../c", "Default", "0", 'it\'s "quoted" `so` \\', "%s 100%", "x" * 257),
    *("x" * 512, "研究" * 200, "دراسة", "👩‍👩‍👧 \u202e", "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "_x28_", "n" * 253),
]
VALUES = [
    "",
    "\x00",
    "a\x00b",
    "\ud800",
    "_x0000_",
    "x" * 5000,
    "x" * 5001,
    "é\x01" * 300_000,
    [1, {"a": None}],
    math.nan,
]


@pytest.fixture(autouse=True)
def _settings() -> None:
    configure()


@pytest.fixture(scope="module")
def databases(separate_server: Server) -> Iterator[StorageURL]:
    """A database for the studies of this file's tests, with MLflow's beside it."""
    configure()
    with separate_server.database() as url:
        prepare_database(url)
        yield url


@pytest.fixture(scope="module", params=["database", slow("server")])
def client(request: pytest.FixtureRequest, databases: StorageURL) -> Iterator[MlflowClient]:
    """Of MLflow's database, and of a server on it, in turn."""
    uri = database_of(databases).sqlalchemy
    if request.param == "database":
        yield MlflowClient(uri)
        return
    with mlflow_server(uri) as server:
        yield MlflowClient(server.uri)


@pytest.fixture
def storage(databases: StorageURL) -> Iterator[PostgresStorage]:
    with closing(PostgresStorage(databases)) as storage:
        yield storage
        for name in storage.study_names():
            storage.delete(storage.find_study(name))


Follow = Callable[[str], StudyMirror]


@pytest.fixture
def follow(storage: PostgresStorage, client: MlflowClient, tmp_path: Path) -> Follow:
    """A mirror of a study in this process, which knows nothing yet."""
    places = None if client.tracking_uri.startswith("http") else tmp_path.as_uri()
    return lambda name: StudyMirror(storage, storage.find_study(name), client, artifacts=places)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.name.removeprefix("test_")[:100]


def whole(client: MlflowClient, run: mlflow.entities.Run, written: str) -> str:
    """The original of a name or value, by what its run keeps."""
    found = digest_in(written)
    if found is None:
        return unescape(written)
    if kept := run.data.tags.get(NAME_TAG + found):
        return unescape(kept)
    uri = f"runs:/{run.info.run_id}/{text_file(found)}"
    file = Path(mlflow.artifacts.download_artifacts(uri, tracking_uri=client.tracking_uri))
    return file.read_bytes().decode("utf-8", "surrogatepass")


def test_any_name_and_value_of_a_trial_is_there_and_can_be_had_back(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, name: str
) -> None:
    study = optuna.create_study(storage=storage, study_name=name)
    study.add_trial(
        create_trial(
            params=dict.fromkeys(NAMES, 0.5),
            distributions=dict.fromkeys(NAMES, FloatDistribution(0, 1)),
            user_attrs=dict(zip(NAMES, [*VALUES, *["plain"] * len(NAMES)], strict=False)),
            intermediate_values={-7: math.nan, 0: math.inf, 1: -math.inf, 2**31 - 1: 5e-324},
            value=0.25,
        )
    )
    mirror = follow(name)
    assert (mirror.catch_up(), mirror.refused) == (1, {})
    assert follow(name).catch_up() == 0
    run = runs_of(client, name)[1][0]
    assert run.info.status == "FINISHED"
    assert run.data.params.keys() >= {"LR", "lr", "state", "mlflow.runName"}  # what is legal stays
    assert sorted(whole(client, run, key) for key in run.data.params) == sorted(NAMES)
    attributes = {
        whole(client, run, key.removeprefix("user.")): whole(client, run, value)
        for key, value in run.data.tags.items()
        if key.startswith("user.")
    }
    texts = [value for value in VALUES if isinstance(value, str)]
    assert attributes == dict(zip(NAMES, [*texts, '[1, {"a": null}]', "NaN", *["plain"] * len(NAMES)], strict=False))
    curve = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "value")}
    assert curve.keys() == {-7, 0, 1, 2**31 - 1}
    assert math.isnan(curve[-7])
    assert curve[0] == -curve[1] > 1e308
    assert curve[2**31 - 1] == 5e-324


@pytest.mark.parametrize("study", STUDIES, ids=range(len(STUDIES)))
def test_a_study_of_any_name_is_there_once(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, study: str, tmp_path: Path
) -> None:
    made = optuna.create_study(storage=storage, study_name=study, directions=["minimize", "maximize"])
    made.enqueue_trial({"x": 0.5})
    made.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=2)
    made.tell(made.ask(), state=TrialState.FAIL)
    made.ask()
    for _ in range(2):
        mirror = follow(study)
        mirror.catch_up()
        assert mirror.refused == {}
    parent, runs = runs_of(client, experiment_name(study))
    assert sorted(runs) == [0, 1, 2, 3]
    assert whole(client, parent, experiment_name(study)) == study
    experiment = client.get_experiment(parent.info.experiment_id)
    if experiment.name != "Default" and not client.tracking_uri.startswith("http"):
        assert Path(experiment.artifact_location.removeprefix("file://")).parent == tmp_path
    for run in (parent, *runs.values()):  # the same names come again, by another client
        client.delete_run(run.info.run_id)


def test_more_params_than_a_request_takes_and_values_longer_than_mlflow_takes(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, name: str
) -> None:
    study = optuna.create_study(storage=storage, study_name=name)
    choices = [f"{i}" + "é" * 6000 for i in range(2)]
    study.add_trial(
        create_trial(
            params={f"p{i}": choices[i % 2] for i in range(230)},
            distributions={f"p{i}": CategoricalDistribution(choices) for i in range(230)},
            user_attrs={f"a{i}": "👩" * 5000 for i in range(230)},
            value=1.0,
        )
    )
    follow(name).catch_up()
    run = runs_of(client, name)[1][0]
    assert run.info.status == "FINISHED"
    assert {whole(client, run, run.data.params[f"p{i}"]) for i in (0, 1, 228, 229)} == set(choices)
    assert len(run.data.params) == 230
    assert sum(value == "👩" * 5000 for value in run.data.tags.values()) == 230


def test_a_metric_of_a_name_of_ours_stays_apart(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, name: str
) -> None:
    record = begin(storage, name, 1)
    running = claim(storage, record)
    names = {"val_accuracy": 0.1, "final_val_accuracy": 0.2, "reported_val_accuracy": 0.3, "final_loss": 0.4}
    points = [{"step": 0, "name": key, "value": value} for key, value in names.items()]
    storage.leases.write(running, {"reports": [{"step": 0, "value": 0.5}], "metrics": points}, step=0)
    storage.leases.finish(running, "COMPLETE", [0.6], {})
    follow(name).catch_up()
    assert runs_of(client, name)[1][0].data.metrics == {
        "val_accuracy": 0.1,
        "final_x005f_val_accuracy": 0.2,
        "reported_x005f_val_accuracy": 0.3,
        "final_loss": 0.4,
        "reported_val_accuracy": 0.5,
        "final_val_accuracy": 0.6,
    }


@pytest.mark.parametrize(
    "began", [datetime(1969, 7, 20), datetime(1900, 1, 1), datetime(1970, 1, 1), datetime(9998, 12, 31)]
)
def test_a_trial_of_any_year_is_there(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, name: str, began: datetime
) -> None:
    study = optuna.create_study(storage=storage, study_name=name)
    trial = create_trial(value=1.0, intermediate_values={0: 1.0})
    trial.datetime_start = trial.datetime_complete = began
    study.add_trial(trial)
    for _ in range(2):
        mirror = follow(name)
        mirror.catch_up()
        assert mirror.refused == {}
    run = runs_of(client, name)[1][0]
    assert run.info.start_time == run.info.end_time
    assert run.data.metrics == {"value": 1.0, "final_value": 1.0}


@pytest.fixture
def refusing(databases: StorageURL) -> Iterator[None]:
    """MLflow's database refuses what holds the word *poison*."""
    # MLflow tries a refused tag again for ten seconds: of tags, only those of attributes.
    tables = {"params": "value", "tags": "case when key like 'user.%' then value else '' end", "experiments": "name"}
    with closing(psycopg2.connect(**database_of(databases).libpq)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        for table, column in tables.items():
            cursor.execute(
                f"alter table {table} add constraint no_poison check ({column} not like '%poison%') not valid"
            )
        yield
        for table in tables:
            cursor.execute(f"alter table {table} drop constraint if exists no_poison")


def poisoned(storage: PostgresStorage, name: str, numbers: tuple[int, ...] = (1, 3), trials: int = 5) -> StudyRecord:
    """A study of which MLflow refuses some trials."""
    record, draw = begin(storage, name, trials), random.Random(0)
    for number in range(trials):
        running = claim(storage, record)
        report(storage, running, range(2), draw)
        note = {"name": "note", "value": 0 if number in numbers else 1, "distribution": NOTES}
        storage.leases.finish(running, "COMPLETE", [0.5], {"params": [note]})
    return record


@pytest.mark.first
@pytest.mark.usefixtures("refusing")
class TestRefused:
    """A class of its own: ``--dist loadscope`` runs it beside the other tests."""

    def test_a_trial_that_is_refused_keeps_no_other_one_out_and_comes_later(
        self, storage: PostgresStorage, databases: StorageURL, client: MlflowClient, follow: Follow, name: str
    ) -> None:
        record = poisoned(storage, name)
        mirror = follow(name)
        mirror.catch_up()
        assert mirror.refused_trials == [1, 3]
        assert mirror.count == 3
        parent, runs = runs_of(client, name)
        assert [number for number, run in sorted(runs.items()) if run.info.status == "FINISHED"] == [0, 2, 4]
        assert parent.data.tags["studyhall.refused"] == "1, 3"
        assert mirror.catch_up() == 0  # nothing is sent again and again
        with (
            closing(psycopg2.connect(**database_of(databases).libpq)) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("alter table params drop constraint no_poison")
        mirror.retry()
        mirror.catch_up()
        assert mirror.refused == {}
        parent, _ = runs_of(client, name)
        assert "studyhall.refused" not in parent.data.tags
        assert_same(storage, record, client)

    def test_a_running_trial_that_was_refused_is_whole_when_it_is_taken(
        self, storage: PostgresStorage, client: MlflowClient, follow: Follow, name: str
    ) -> None:
        draw = random.Random(0)
        record = begin(storage, name, 1)
        running = claim(storage, record)
        report(storage, running, range(0, 3), draw)
        storage.set_trial_user_attr(running.trial_id, "note", "poison")
        mirror = follow(name)
        mirror.catch_up()
        assert mirror.refused_trials == [0]
        storage.set_trial_user_attr(running.trial_id, "note", "sugar")
        report(storage, running, range(3, 5), draw)
        mirror.catch_up()
        assert mirror.refused == {}
        assert_same(storage, record, client)
        finish(storage, running, "COMPLETE", draw)
        mirror.catch_up()
        assert_same(storage, record, client)

    def test_a_study_that_is_refused_keeps_no_other_one_out(
        self, storage: PostgresStorage, client: MlflowClient, home: Path, request: pytest.FixtureRequest
    ) -> None:
        kind = request.node.callspec.params["client"]
        first, partly, second, whole = names = [f"{name} {kind}" for name in ("a poison", "b", "c poison", "d")]
        for name in names:
            poisoned(storage, name, numbers=(0,) if name == partly else (), trials=2)
        process = MirrorProcess(
            storage, tracking=client.tracking_uri, home=home, once=True, environment=dict(os.environ), output=print
        )
        assert process.wait(600) == 1
        refused = [event["message"] for event in process.new_events() if event["event"] == "refused"]
        assert [message.partition(": ")[0] for message in refused] == [
            f"study {first!r}",
            f"study {partly!r}, trial 0",
            f"study {second!r}",
        ]
        assert not any("\n" in message for message in refused)
        assert process.last_events["error"]["message"] == (
            f"3 of 4 studies not in MLflow as they are: {first!r}, {partly!r}, {second!r}; the reasons are above"
        )
        assert len(runs_of(client, whole)[1]) == 2
        assert runs_of(client, partly)[0].data.tags["studyhall.refused"] == "0"


@pytest.mark.parametrize("suffix", ["-ü\"x'100%", *(slow(end) for end in (" of ours", "n" * 30, "é" * 10, "x" * 23))])
def test_a_database_of_any_name_has_mlflow_beside_it(separate_server: Server, suffix: str, tmp_path: Path) -> None:
    with separate_server.database() as url:
        named = replace(url, database=f"{url.database}"[: 63 - len(suffix.encode())] + suffix)
        beside = database_of(named)
        assert len((beside.database or "").encode()) <= 63
        assert beside.database != named.database
        with closing(psycopg2.connect(**url.libpq)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("create database " + psycopg2.extensions.quote_ident(named.database or "", cursor))
            try:
                with closing(PostgresStorage(named)) as storage:
                    record = begin(storage, "s", 1)
                    finish(storage, claim(storage, record), "FAIL", None)  # type: ignore[arg-type]
                    client = MlflowClient(prepare_database(named))
                    StudyMirror(storage, record, client, artifacts=tmp_path.as_uri()).catch_up()
                    assert len(runs_of(client, "s")[1]) == 1
            finally:
                for database in (named.database, beside.database):
                    name = psycopg2.extensions.quote_ident(database or "", cursor)
                    cursor.execute(f"drop database if exists {name} with (force)")


@pytest.mark.parametrize(
    ("schema", "options"),
    [
        ("My Lab", '-c search_path="My\\ Lab"'),
        slow("lab", "-csearch_path=lab"),
        slow("lab", "-c statement_timeout=60000 -c search_path=nowhere,lab"),
        slow("öl", "--search_path=öl -c lock_timeout=30s"),
    ],
)
def test_studies_in_a_schema_of_their_own_have_mlflow_beside_them(
    separate_server: Server, schema: str, options: str, tmp_path: Path
) -> None:
    with separate_server.database() as url:
        with closing(psycopg2.connect(**url.libpq)) as connection, connection, connection.cursor() as cursor:
            cursor.execute("create schema " + psycopg2.extensions.quote_ident(schema, cursor))
        own = replace(url, options=tuple(sorted({**dict(url.options), "options": options}.items())))
        with closing(PostgresStorage(own)) as storage:
            record = begin(storage, "s", 1)
            finish(storage, claim(storage, record), "FAIL", None)  # type: ignore[arg-type]
            for _ in range(2):
                client = MlflowClient(prepare_database(own))
                StudyMirror(storage, record, client, artifacts=tmp_path.as_uri()).catch_up()
                assert len(runs_of(client, "s")[1]) == 1
        with closing(psycopg2.connect(**database_of(own).libpq)) as connection, connection.cursor() as cursor:
            cursor.execute("select distinct table_schema from information_schema.tables where table_name = 'runs'")
            assert cursor.fetchall() == [(schema,)]
