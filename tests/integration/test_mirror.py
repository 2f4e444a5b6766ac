"""The mirror: MLflow holds what the database does, whatever happens to the mirror."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from studies import PostgresStorage
from studies.errors import StudyNotFound, TrackingError
from studies.mirror import study_mirror as mirror
from studies.mirror.launcher import MirrorProcess
from studies.mirror.leftovers import sweep
from studies.mirror.server import configure, prepare_database
from studies.mirror.study_mirror import StudyMirror
from studies.storage.database import Database
from studies.storage.records import StudyRecord
from studies.storage.url import StorageURL
from tests.conftest import Server
from tests.support.mirrored import assert_same, begin, claim, finish, report, run, runs_of, stock_study
from tests.support.waiting import eventually

KILLS = int(os.environ.get("STUDYHALL_MIRROR_KILLS", "4"))  # here, as a test sees no such variables
Follow = Callable[[StudyRecord], StudyMirror]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def databases(separate_server: Server) -> Iterator[StorageURL]:
    """A database for the studies of this file's tests, with MLflow's beside it."""
    configure()
    with separate_server.database() as url:
        yield url


@pytest.fixture(scope="module")
def tracking(databases: StorageURL) -> str:
    return prepare_database(databases)


@pytest.fixture(scope="module")
def client(tracking: str) -> MlflowClient:
    return MlflowClient(tracking)


@pytest.fixture
def storage(databases: StorageURL) -> Iterator[PostgresStorage]:
    storage = PostgresStorage(databases)
    yield storage
    storage.close()


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    seed = random.randrange(10**6)
    print(f"seed of {request.node.name}: {seed}")
    return random.Random(seed)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.name.removeprefix("test_")[:100]


@pytest.fixture
def follow(storage: PostgresStorage, client: MlflowClient, tmp_path: Path) -> Follow:
    """A mirror of a study in this process, which knows nothing yet."""
    return lambda record: StudyMirror(storage, record, client, artifacts=tmp_path.as_uri())


def processes(
    storage: PostgresStorage, tracking: str, record: StudyRecord, home: Path, count: int, *, once: bool = True
) -> list[MirrorProcess]:
    return [
        MirrorProcess(
            storage,
            tracking=tracking,
            home=home,
            studies=(record.name,),
            once=once,
            environment=dict(os.environ),
            output=print,
        )
        for _ in range(count)
    ]


def test_a_study_mirrored_twice_has_one_run_for_each_trial(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, draw: random.Random, name: str
) -> None:
    record = begin(storage, name, 9)
    run(storage, record, 11, 6, draw)  # two of them fail
    assert follow(record).catch_up() == 11
    assert_same(storage, record, client)
    again = follow(record)
    assert again.catch_up() == 0
    assert again.count == 11
    assert_same(storage, record, client)
    parent, _ = runs_of(client, name)
    best = storage.best(record)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"best_val_accuracy": best.value}
    assert parent.data.tags["best_trial"] == str(best.number)
    assert parent.data.tags["spec"].startswith(f'name = "{name}"')


def test_a_running_trial_is_there_with_its_curve_and_goes_on(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, draw: random.Random, name: str
) -> None:
    record = begin(storage, name, 3)
    following = follow(record)
    running = claim(storage, record)
    for steps in (range(0, 1), range(1, 4), range(4, 5)):
        report(storage, running, steps, draw)
        assert following.catch_up() == 1
        assert following.catch_up() == 0
        assert_same(storage, record, client)
        assert runs_of(client, name)[1][0].info.status == "RUNNING"
    storage.leases.requeue(running, {})
    following.catch_up()
    assert runs_of(client, name)[1][0].info.status == "SCHEDULED"
    running = claim(storage, record)
    # Another mirror, which has seen nothing of this, takes over in the middle of the trial.
    report(storage, running, range(5, 7), draw)
    follow(record).catch_up()
    assert_same(storage, record, client)
    finish(storage, running, "COMPLETE", draw)
    following.catch_up()
    assert_same(storage, record, client)
    assert runs_of(client, name)[1][0].data.tags["attempts"] == "2"


def test_times_are_those_of_the_steps_and_not_of_the_mirror(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, draw: random.Random, name: str
) -> None:
    record = begin(storage, name, 1)
    running = claim(storage, record)
    began = time.time()
    report(storage, running, range(0, 1), draw)
    time.sleep(0.3)
    report(storage, running, range(1, 2), draw)
    finish(storage, running, "COMPLETE", draw)
    time.sleep(0.5)
    follow(record).catch_up()
    (only,) = runs_of(client, name)[1].values()
    first, second = sorted(m.timestamp / 1000 for m in client.get_metric_history(only.info.run_id, "val_loss"))
    assert began - 0.1 < first < began + 0.3
    assert 0.25 < second - first < 0.5


def test_failures_and_prunings_have_their_reasons(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, draw: random.Random, name: str
) -> None:
    record = begin(storage, name, 4)
    run(storage, record, 4, 3, draw)
    follow(record).catch_up()
    runs = runs_of(client, name)[1]
    assert runs[3].data.tags["reason"] == "ValueError: too wide"
    assert runs[1].data.tags["reason"] == "pruned at step 1"
    assert "reason" not in runs[0].data.tags


@pytest.mark.first
class TestKilledMirrors:
    """A class of its own: ``--dist loadscope`` runs it beside the other tests."""

    @pytest.mark.slow
    def test_mirrors_killed_at_random_leave_one_run_for_each_trial(
        self,
        storage: PostgresStorage,
        tracking: str,
        client: MlflowClient,
        draw: random.Random,
        name: str,
        home: Path,
    ) -> None:
        trials = 160
        record = begin(storage, name, trials)
        worker = threading.Thread(target=lambda: run(PostgresStorage(storage.location), record, trials, 8, draw))
        worker.start()
        kills = random.Random(draw.random())
        most = trials + 1
        kept = Database(StorageURL.parse(tracking))

        def runs() -> int:
            sql = "select count(*) from runs join experiments using (experiment_id) where experiments.name = %(name)s"
            return int(kept.execute(sql, {"name": name})[0]["count"])

        written: list[int] = []
        for number in range(KILLS):
            (process,) = processes(storage, tracking, record, home, 1, once=False)
            while not any(event["event"] == "connected" for event in process.new_events()):
                assert process.popen.poll() is None
                time.sleep(0.01)
            # Every other one while it writes, however slow the machine is.
            if number % 2:
                eventually(lambda: process.popen.poll() is not None or written[-1] < runs() or runs() == most)  # noqa: B023
                assert process.popen.poll() is None, process.last_events
            time.sleep(kills.uniform(0.02, 1.2))
            process.kill()
            written.append(runs())
        worker.join()
        kept.close()
        print(f"runs after each kill: {written}")
        assert len(set(written)) > 1, "no kill met a mirror that was writing"
        (last,) = processes(storage, tracking, record, home, 1)
        assert last.wait(300) == 0
        assert_same(storage, record, client)


@pytest.mark.first
class TestMirrorsAtOnce:
    """A class of its own: ``--dist loadscope`` runs it beside the other tests."""

    @pytest.mark.slow
    def test_four_mirrors_at_once_leave_one_run_for_each_trial(
        self,
        storage: PostgresStorage,
        tracking: str,
        client: MlflowClient,
        draw: random.Random,
        name: str,
        home: Path,
    ) -> None:
        record = begin(storage, name, 60)
        run(storage, record, 60, 4, draw)
        mirrors = processes(storage, tracking, record, home, 4)
        assert [process.wait(300) for process in mirrors] == [0] * 4, [process.last_events for process in mirrors]
        assert_same(storage, record, client)


def test_a_run_or_an_experiment_that_a_person_deletes(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, draw: random.Random, name: str
) -> None:
    record = begin(storage, name, 3)
    run(storage, record, 2, 3, draw)
    following = follow(record)
    following.catch_up()
    parent, runs = runs_of(client, name)
    client.delete_run(runs[1].info.run_id)
    follow(record).catch_up()
    assert_same(storage, record, client)

    client.delete_run(parent.info.run_id)
    run(storage, record, 1, 3, draw)
    with pytest.raises(MlflowException, match="must be in the 'active' state"):
        following.catch_up()
    following.catch_up()  # it asks MLflow anew
    assert_same(storage, record, client)

    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)
    with pytest.raises(TrackingError, match=f"the experiment '{name}' was deleted in MLflow: restore it with: mlflow"):
        follow(record).catch_up()


def test_a_study_that_a_backup_brought_back_replaces_the_trials_that_are_no_more(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, draw: random.Random, name: str, tmp_path: Path
) -> None:
    record = begin(storage, name, 4)
    run(storage, record, 2, 3, draw)
    follow(record).catch_up()
    trial = storage.trials(record)[1]
    # As if a backup had been restored, and another trial been given the number since.
    storage.database.execute(
        "update trials set datetime_start = datetime_start + interval '1 s' where trial_id = %(id)s",
        {"id": trial._trial_id},
    )
    with_backup = PostgresStorage(storage.location)
    StudyMirror(with_backup, record, client, artifacts=tmp_path.as_uri()).catch_up()
    assert_same(with_backup, record, client)
    with_backup.close()


def test_a_study_of_optunas_own_with_odd_names_and_two_objectives(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, name: str
) -> None:
    record = stock_study(storage, name)
    follow(record).catch_up()
    parent, runs = runs_of(client, name)
    assert len(runs) == 3
    assert runs[0].data.params.keys() == {"learning rate _x28_log_x29_", "kind"}
    assert runs[0].data.metrics["value_0"] == runs[0].data.metrics["final_value_0"] == 0.5
    assert runs[0].data.metrics["value_1"] > 1e300
    assert runs[0].data.tags["user.note"] == '{"by": "hand"}'
    assert parent.info.status == "RUNNING"


def test_an_extension_goes_on_in_the_same_run(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, draw: random.Random, name: str
) -> None:
    record = begin(storage, name, 2)
    run(storage, record, 2, 2, draw)
    following = follow(record)
    following.catch_up()
    first = runs_of(client, name)[0]
    storage.budgets.extend(record, more_trials=1)
    following.catch_up()
    assert runs_of(client, name)[0].info.status == "RUNNING"
    run(storage, record, 1, 2, draw)
    following.catch_up()
    parent = runs_of(client, name)[0]
    assert (parent.info.run_id, parent.info.status) == (first.info.run_id, "FINISHED")
    assert "trials = 3" in parent.data.tags["spec"]
    assert_same(storage, record, client)


def test_the_spec_is_an_artifact(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, draw: random.Random, name: str, tmp_path: Path
) -> None:
    record = begin(storage, name, 1)
    run(storage, record, 1, 2, draw)
    follow(record).catch_up()
    parent, _ = runs_of(client, name)
    (file,) = tmp_path.rglob("study.toml")
    assert parent.info.run_id in str(file)
    assert file.read_text() == parent.data.tags["spec"]


def test_a_place_for_artifacts_that_cannot_be_written_holds_up_no_curve(
    storage: PostgresStorage,
    client: MlflowClient,
    draw: random.Random,
    name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    record = begin(storage, name, 1)
    run(storage, record, 1, 2, draw)
    told: list[tuple[int, int]] = []
    mirror = StudyMirror(
        storage, record, client, artifacts=(tmp_path / "file").as_uri(), progress=lambda *of: told.append(of)
    )
    mirror.catch_up()
    assert told == [(1, 1)]
    assert_same(storage, record, client)
    assert "MLflow does not take study.toml as an artifact" in caplog.text


def test_a_deleted_study_leaves_mlflow_and_another_of_its_name_begins_anew(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, draw: random.Random, name: str
) -> None:
    record, other = begin(storage, name, 3), begin(storage, f"{name} beside it", 1)
    run(storage, record, 3, 2, draw)
    run(storage, other, 1, 2, draw)
    following = follow(record)
    following.catch_up()
    follow(other).catch_up()
    storage.delete(record)
    again = begin(storage, name, 1)
    with pytest.raises(StudyNotFound):
        following.catch_up()
    # Another database's study of that name may have its runs in the same experiment.
    (experiment,) = {run.info.experiment_id for run in runs_of(client, name)[1].values()}
    foreign = {"studyhall.study": "foreign", "studyhall.trial": "study", "studyhall.database": "another"}
    kept = client.create_run(experiment, tags=foreign).info.run_id
    run(storage, again, 1, 2, draw)
    assert sweep(storage, client) == 1
    assert sweep(storage, client) == 0
    assert client.get_run(kept).info.lifecycle_stage == "active"
    client.delete_run(kept)
    follow(again).catch_up()
    assert_same(storage, again, client)
    assert_same(storage, other, client)


def test_the_best_values_history_is_whole_whenever_the_mirror_came(
    storage: PostgresStorage, client: MlflowClient, follow: Follow, name: str
) -> None:
    record = begin(storage, name, 5)
    live = follow(record)
    values = [0.2, 0.5, 0.4, 0.7, 0.6]
    for value in values:
        storage.leases.finish(claim(storage, record), "COMPLETE", [value], {})
        live.catch_up()
    parent, _ = runs_of(client, name)

    def history() -> list[tuple[int, float]]:
        found = client.get_metric_history(parent.info.run_id, "best_val_accuracy")
        return sorted((metric.step, metric.value) for metric in found)

    assert history() == [(1, 0.2), (2, 0.5), (4, 0.7), (5, 0.7)]
    # One that begins when all is over writes the same, and so nothing.
    follow(record).catch_up()
    assert history() == [(1, 0.2), (2, 0.5), (4, 0.7), (5, 0.7)]
    final = {"trial": 3, "metrics": {"test_accuracy": 0.65}, "at": "2026-01-02T03:04:05+00:00", "looks": 1,
             "directory": "box:/home/me/s-final"}  # fmt: skip
    storage.set_study_user_attr(record.study_id, "final", final)
    follow(record).catch_up()
    parent, _ = runs_of(client, name)
    assert parent.data.metrics == {"best_val_accuracy": 0.7, "test_accuracy": 0.65}
    assert parent.data.tags["final.trial"] == "3"
    assert parent.data.tags["final.directory"] == "box:/home/me/s-final"


def test_trials_beyond_a_chunk_and_steps_beyond_a_batch(
    storage: PostgresStorage,
    client: MlflowClient,
    follow: Follow,
    draw: random.Random,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirror, "CHUNK", 2)
    record = begin(storage, name, 5)
    run(storage, record, 4, 3, draw)
    long = claim(storage, record)
    report(storage, long, range(0, 450), draw)  # 1,800 metrics
    finish(storage, long, "COMPLETE", draw)
    follow(record).catch_up()
    assert_same(storage, record, client)


def test_tables_of_another_mlflow_are_refused_with_what_to_do(separate_server: Server) -> None:
    with separate_server.database() as url:
        uri = prepare_database(url)
        connection = psycopg2.connect(**StorageURL.parse(uri).libpq)
        with connection, connection.cursor() as cursor:
            cursor.execute("update alembic_version set version_num = '728d730b5ebd'")
        connection.close()
        with pytest.raises(TrackingError, match=r"tables of MLflow at .* are another MLflow's: .* mlflow db upgrade"):
            prepare_database(url)
