"""PostgreSQL is stopped, hung, read-only, or its disk is full: no worker ends, no result is lost, training goes on.

2 seconds here; 30 and 120 with ``STUDYHALL_LONG_OUTAGES=1``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg2
import pytest

from studies import PostgresStorage
from studies.storage.url import StorageURL
from tests.acceptance.faults import Fleet, new_folder, own_postgres
from tests.support.proxy import Proxy
from tests.support.waiting import GUARD, eventually

pytestmark = pytest.mark.slow

SECONDS = [2, 30, 120] if os.environ.get("STUDYHALL_LONG_OUTAGES") else [2]
EPOCH = 0.25
NO_PRUNING = ("pruner.name=none", "sampler.name=random")


@dataclass(frozen=True, kw_only=True)
class Server:
    """A PostgreSQL that can go away and come back."""

    url: StorageURL
    """By which workers reach it."""
    direct: StorageURL
    go_away: Callable[[], None]
    come_back: Callable[[], None]


@contextmanager
def stopped() -> Iterator[Server]:
    with own_postgres() as postgres:
        url = StorageURL.parse(postgres.url)
        yield Server(url=url, direct=url, go_away=postgres.stop, come_back=postgres.start)


@contextmanager
def hung() -> Iterator[Server]:
    with own_postgres() as postgres, Proxy(StorageURL.parse(postgres.url)) as proxy:
        yield Server(url=proxy.url, direct=StorageURL.parse(postgres.url), go_away=proxy.hang, come_back=proxy.up)


@contextmanager
def read_only() -> Iterator[Server]:
    """As a standby is before its promotion, and a server at a cloud provider whose disk is full."""
    begin = ("alter system set default_transaction_read_only = on", "select pg_reload_conf()")
    end = ("set default_transaction_read_only = off", "alter system reset default_transaction_read_only", begin[1])
    with own_postgres() as postgres:
        url = StorageURL.parse(postgres.url)
        yield Server(
            url=url,
            direct=url,
            go_away=lambda: postgres.execute(*begin),
            come_back=lambda: postgres.execute(*end),
        )


@contextmanager
def full() -> Iterator[Server]:
    """On a disk of its own that is filled to the last byte. A server that can't write its log crashes."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    with new_folder() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "studyhall", str(folder)], check=True)
        try:
            with own_postgres(folder) as postgres:
                url, ballast = StorageURL.parse(postgres.url), folder / "ballast"

                def fill() -> None:
                    with ballast.open("wb", buffering=0) as file, suppress(OSError):
                        while True:
                            file.write(bytes(4096))
                    # What is free in its files is used up as well.
                    with suppress(psycopg2.Error):
                        postgres.execute(
                            "create table filler as select repeat('x', 1000) from generate_series(1, 100000)"
                        )

                def empty() -> None:
                    ballast.unlink()
                    postgres.start()  # where it has crashed

                yield Server(url=url, direct=url, go_away=fill, come_back=empty)
        finally:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(params=[stopped, hung], ids=lambda kind: kind.__name__)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One that answers nothing while it is away; a test may ask for other ways to be away."""
    with request.param() as server:
        PostgresStorage(server.direct).close()
        yield server


in_any_way = pytest.mark.parametrize(
    "server", [stopped, hung, read_only, full], ids=lambda kind: kind.__name__.replace("_", "-"), indirect=True
)


@contextmanager
def fleet_on(server: Server, *, epochs: int, slots: int = 0) -> Iterator[Fleet]:
    seconds = EPOCH / max(1, slots)  # they share it
    with new_folder() as folder, Fleet(server.url, folder, epochs=epochs, epoch_seconds=seconds, slots=slots) as fleet:
        yield fleet


def begin(fleet: Fleet, *, trials: int, workers: int, lease: float) -> None:
    """Start workers, and wait until each of them has trained for a while."""
    fleet.run(trials=trials, workers=workers, lease=lease, settings=NO_PRUNING)
    eventually(lambda: len({entry["pid"] for entry in fleet.entries("trained")}) == workers, "all at work")


def pids(fleet: Fleet) -> list[int]:
    return sorted(worker.pid for worker in fleet.workers())


def reports(server: Server) -> int:
    connection = psycopg2.connect(**server.direct.libpq)
    try:
        with connection.cursor() as cursor:
            cursor.execute("select count(*) from trial_intermediate_values")
            return sum(count for (count,) in cursor.fetchall())
    finally:
        connection.close()


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone, or waits for its supervisor to notice."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def results(fleet: Fleet) -> list[Path]:
    return list(fleet.home.glob("results/*/*.json"))


def require_complete(fleet: Fleet, server: Server, *, trials: int, redone: int = 0) -> None:
    """The study is over as if nothing had been: each trial complete, and each epoch trained once."""
    with fleet.look(server.direct) as storage:
        found = storage.trials(storage.find_study(fleet.study))
        assert [(trial.number, trial.state.name) for trial in found] == [(n, "COMPLETE") for n in range(trials)]
        assert all(trial.params for trial in found)
        epochs = int(fleet.environment["EPOCHS"])
        assert all(sorted(trial.intermediate_values) == list(range(epochs)) for trial in found)
        for told in fleet.entries("told"):
            assert found[told["trial"]].values == told["values"]
    trained = Counter((entry["trial"], entry["step"]) for entry in fleet.entries("trained"))
    assert trained.total() - len(trained) <= redone
    assert not results(fleet)
    assert "Traceback" not in fleet.output


class TestShortOutages:
    """A class of its own, as below: ``--dist loadscope`` runs it beside the other tests."""

    @in_any_way
    @pytest.mark.parametrize("slots", [0, 4])
    @pytest.mark.parametrize("seconds", SECONDS)
    def test_an_outage_shorter_than_the_lease_interrupts_nothing(
        self, server: Server, seconds: int, slots: int
    ) -> None:
        workers, trials = 2, 2 * max(2, slots)
        with fleet_on(server, epochs=2 * seconds * 4, slots=slots) as fleet:
            begin(fleet, trials=trials, workers=workers, lease=seconds + 30)
            before, began = pids(fleet), time.time()
            server.go_away()
            time.sleep(seconds)
            ended = time.time()
            server.come_back()
            told = reports(server)
            eventually(lambda: reports(server) > told + workers, "new reports")
            assert pids(fleet) == before
            during = Counter(e["pid"] for e in fleet.entries("trained") if began < e["at"] < ended)
            # A report waits for a second, and a checkpoint may, too; then training goes on. In two seconds it may not.
            assert all(during[pid] >= (seconds - 3) / EPOCH * 0.7 for pid in before), during
            assert fleet.supervisors[0].wait(timeout=GUARD + 4 * seconds) == 0, fleet.output
            assert "| died: " not in fleet.output
            require_complete(fleet, server, trials=trials)
            with fleet.look(server.direct) as storage:
                attempts = storage.leases.attempts(storage.find_study(fleet.study))
                assert {attempt.times for attempt in attempts.values()} == {1}


def test_a_result_that_waits_on_the_disk_is_told_by_the_next_worker_and_its_trial_not_run_again(
    server: Server,
) -> None:
    with fleet_on(server, epochs=8) as fleet:
        begin(fleet, trials=3, workers=1, lease=90)  # once it is over, training waits for the database
        server.go_away()
        eventually(lambda: results(fleet), "a result on the disk")
        [number] = {entry["trial"] for entry in fleet.entries("returns")} - {
            entry["trial"] for entry in fleet.entries("told")
        }
        workers = fleet.workers()
        for worker in workers:
            worker.kill()
        eventually(lambda: all(has_ended(worker) for worker in workers), "it is dead")
        server.come_back()
        assert fleet.supervisors[0].wait(timeout=GUARD) == 0, fleet.output
        require_complete(fleet, server, trials=3)
        assert [entry["trial"] for entry in fleet.entries("returns")].count(number) == 1


def test_a_worker_that_is_asked_to_stop_during_an_outage_ends_at_once(server: Server) -> None:
    with fleet_on(server, epochs=40) as fleet:
        begin(fleet, trials=2, workers=2, lease=10)
        server.go_away()
        time.sleep(1)
        workers = fleet.workers()
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        eventually(lambda: all(has_ended(worker) for worker in workers), "both have ended")
        server.come_back()
        fleet.supervisors[0].wait(timeout=GUARD)
        assert "| died: " not in fleet.output
        assert "Traceback" not in fleet.output


@pytest.mark.parametrize("server", [stopped], indirect=True)
def test_a_study_that_ended_before_an_outage_is_reported_after_it(server: Server) -> None:
    with fleet_on(server, epochs=4) as fleet:
        begin(fleet, trials=2, workers=1, lease=30)
        supervisor, workers = psutil.Process(fleet.supervisors[0].pid), fleet.workers()
        supervisor.suspend()  # it sees the end of the study during the outage only
        eventually(lambda: all(has_ended(worker) for worker in workers), "the study is over")
        server.go_away()
        supervisor.resume()
        # Said while it watches, and again when it is about to report.
        eventually(lambda: fleet.output.count("waiting for the database") > 1, "it waits")
        server.come_back()
        assert fleet.supervisors[0].wait(timeout=GUARD) == 0, fleet.output
        require_complete(fleet, server, trials=2)
        assert "2 of 2 trials done (2 complete)" in fleet.output


class TestPreemption:
    @pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 0), (signal.SIGTERM, 130)])
    @pytest.mark.parametrize(
        ("server", "is_away"),
        [(stopped, False), (stopped, True), (hung, True)],
        ids=["up", "stopped", "hung"],
        indirect=["server"],
    )
    def test_a_preempted_machine_gives_its_trials_back(
        self, server: Server, number: signal.Signals, status: int, is_away: bool
    ) -> None:
        epochs = 24
        with fleet_on(server, epochs=epochs) as fleet:
            begin(fleet, trials=2, workers=2, lease=10)
            if is_away:
                server.go_away()
                time.sleep(1)
            began = time.monotonic()
            fleet.supervisors[0].send_signal(number)
            assert fleet.supervisors[0].wait(timeout=GUARD) == status, fleet.output
            assert time.monotonic() - began < 30  # what Slurm gives by default
            if is_away:
                server.come_back()
            else:
                with fleet.look(server.direct) as storage:
                    trials = storage.trials(storage.find_study(fleet.study))
                    assert [trial.state.name for trial in trials] == ["WAITING"] * 2
                    assert all(storage.leases.checkpoints(trial._trial_id) for trial in trials)
            fleet.work(workers=2, lease=30)
            assert fleet.supervisors[1].wait(timeout=GUARD) == 0, fleet.output
            # What was trained while the database was away was never told, and nowhere kept.
            require_complete(fleet, server, trials=2, redone=2 * epochs if is_away else 0)


@pytest.mark.parametrize(
    "settings",
    [("statement_timeout = '100ms'",), ("idle_session_timeout = '200ms'",), ("lock_timeout = '1ms'",)],
    ids=lambda settings: settings[0].partition(" ")[0],
)
def test_a_server_that_ends_statements_and_sessions_early_ends_no_worker(settings: tuple[str, ...]) -> None:
    with own_postgres() as postgres:
        direct = StorageURL.parse(postgres.url)
        PostgresStorage(direct).close()
        postgres.execute(*(f"alter role postgres set {setting}" for setting in settings))
        with fleet_on(Server(url=direct, direct=direct, go_away=list, come_back=list), epochs=6) as fleet:
            fleet.run(trials=12, workers=3, lease=30, settings=NO_PRUNING)
            assert fleet.supervisors[0].wait(timeout=GUARD) == 0, fleet.output
            assert "| died: " not in fleet.output
            require_complete(
                fleet, Server(url=direct, direct=direct, go_away=list, come_back=list), trials=12, redone=6
            )
