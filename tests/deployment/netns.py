"""A database and three workers' hosts in network namespaces of this machine: ``make test-netns``, as root.

    python tests/deployment/netns.py

One host is cut off for longer than its lease: its packets are dropped, and nobody is told. Its trial must be finished
by another; what it writes when it is back must be refused, and it must go on with a new trial; and the budget be exact.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import psycopg2

from studies import PostgresStorage
from studies.storage.embedded.binaries import account_for
from studies.storage.records import StudyRecord
from studies.storage.url import StorageURL
from tests.support.postgres import DEBIAN_15, Postgres, start_postgres

BRIDGE = "shtest"
NETWORK = "10.213.87"
HOSTS = (1, 2, 3)
LEASE = 6.0
CUT_OFF = 14.0
BUDGET = 18
SCRIPT = """
import json
import os
import time


def objective(trial):
    state = trial.restore()
    first = json.loads(state.state)["step"] + 1 if state else 0
    x = trial.suggest_float("x", 0, 1)
    for step in range(first, 8):
        time.sleep(0.5)
        trial.report(x, step)
        trial.checkpoint(step, lambda: json.dumps({"step": step}).encode())
        with open(os.environ["DIARY"], "a") as diary:
            print(trial.number, step, file=diary)
        if trial.should_prune():
            raise trial.Pruned
    trial.set_user_attr("finished_on", os.environ["WHERE"])
    return x
"""


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("network namespaces need root: sudo make test-netns")
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="studyhall-netns-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o755)
        (folder / "script.py").write_text(SCRIPT)
        stack.enter_context(network())
        url = stack.enter_context(database())
        try:
            run(folder, url)
        except BaseException:
            for log in sorted(folder.glob("log-*")):
                print(log.name, log.read_text()[-2000:])
            raise
    print("netns: all is well")


def run(folder: Path, url: StorageURL) -> None:
    environment = {**os.environ, "STUDYHALL_STORAGE": url.sqlalchemy, "STUDYHALL_HOME": str(folder / "home")}
    studyhall = Path(sys.executable).with_name("studyhall")
    create = ["create", "script.py:objective", "--name", "cut", "--trials", str(BUDGET)]
    settings = ["--set", "checkpoints.every=0", "--set", "sampler.name=random", "--set", "pruner.name=none"]
    subprocess.run([studyhall, *create, *settings], cwd=folder, env=environment, check=True)
    with closing(PostgresStorage(url)) as storage, ExitStack() as stack:
        record = storage.find_study("cut")
        workers = {host: stack.enter_context(worker(studyhall, folder, environment, host)) for host in HOSTS}
        wait(lambda: len(running(storage, record)) == 3, "three running trials")
        victim = trial_of(folder, 2)
        said(f"host 2 is cut off in the middle of trial {victim}")
        cut(2)
        time.sleep(CUT_OFF)
        attempt = storage.leases.attempts(record)[victim]
        assert attempt.times == 2, f"trial {victim} was begun {attempt.times} times"
        heal(2)
        said("host 2 is back")
        for process in workers.values():
            assert process.wait(timeout=300) == 0
        look(storage, record, folder, victim)


def look(storage: PostgresStorage, record: StudyRecord, folder: Path, victim: int) -> None:
    """That everything is as it should be in the end."""
    trials, attempts = storage.trials(record), storage.leases.attempts(record)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * BUDGET
    assert storage.status(record).ended == "complete"
    for trial in trials:
        assert list(trial.intermediate_values) == list(range(8)), trial.number
    assert attempts[victim].times == 2
    assert sorted(attempt.times for attempt in attempts.values()) == [1] * (BUDGET - 1) + [2]
    finisher = trials[victim].user_attrs["finished_on"]
    assert finisher in ("1", "3"), f"trial {victim} was finished on host {finisher}"
    # It trained on meanwhile, and nothing of that arrived.
    diary = [line.split() for line in (folder / "diary-2").read_text().splitlines()]
    mine = [int(number) for number, _ in diary]
    after = mine[len(mine) - mine[::-1].index(victim) :]
    assert after, "host 2 did not go on with another trial"
    by_host = {host: sum(trial.user_attrs["finished_on"] == str(host) for trial in trials) for host in HOSTS}
    said(f"trial {victim} was finished on host {finisher}; trials finished on each host: {by_host}")
    assert by_host[2] >= 2
    log = (folder / "log-2").read_text()
    assert f"trial {victim} was taken over while this worker was silent: dropped" in log, log


@contextmanager
def network() -> Iterator[None]:
    """A bridge, and four namespaces on it."""
    ip("link", "add", BRIDGE, "type", "bridge")
    try:
        ip("address", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        forward("-I")
        for host in (0, *HOSTS):
            name, outside, inside = namespace(host), f"{BRIDGE}{host}", f"{BRIDGE}{host}i"
            ip("netns", "add", name)
            ip("link", "add", outside, "type", "veth", "peer", "name", inside)
            ip("link", "set", inside, "netns", name)
            ip("link", "set", outside, "master", BRIDGE, "up")
            ip("-n", name, "address", "add", f"{NETWORK}.{host + 1}/24", "dev", inside)
            ip("-n", name, "link", "set", inside, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for host in (0, *HOSTS):
            subprocess.run(["ip", "netns", "del", namespace(host)], check=False, capture_output=True)
        ip("link", "del", BRIDGE)
        forward("-D")


@contextmanager
def database() -> Iterator[StorageURL]:
    """PostgreSQL in the first namespace."""
    with start_postgres(DEBIAN_15 if DEBIAN_15.is_dir() else None) as postgres:
        postgres.stop()
        with (postgres.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {NETWORK}.0/24 scram-sha-256\n")
        url = StorageURL.parse(postgres.url.replace("127.0.0.1", f"{NETWORK}.1"))
        process = subprocess.Popen(inside_of(postgres), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait(lambda: answers(url), "PostgreSQL")
            yield url
        finally:
            process.send_signal(2)
            process.wait(timeout=300)


def inside_of(postgres: Postgres) -> list[str]:
    """The command that runs the server in its namespace, as its own account."""
    account = account_for(postgres.data)
    binary = DEBIAN_15 / "postgres"
    who = ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"]
    where = ["ip", "netns", "exec", namespace(0)]
    settings = ["-c", "listen_addresses=*", "-c", "unix_socket_directories=", "-c", "fsync=off"]
    return [*where, *who, str(binary), "-D", str(postgres.data), "-p", str(postgres.port), *settings]


@contextmanager
def worker(studyhall: Path, folder: Path, environment: dict[str, str], host: int) -> Iterator[subprocess.Popen[bytes]]:
    """A worker on a host, with a home of its own."""
    own = {"STUDYHALL_HOME": str(folder / f"home-{host}"), "WHERE": str(host), "DIARY": str(folder / f"diary-{host}")}
    command = ["ip", "netns", "exec", namespace(host), studyhall, "work", "cut", "--workers", "1"]
    with (folder / f"log-{host}").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--lease", str(LEASE), "--objective", str(folder / "script.py:objective")],
            cwd=folder,
            env={**environment, **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=300)


def cut(host: int) -> None:
    """Drop what goes to and from a host; it sees nothing but silence."""
    subprocess.run(["bridge", "link", "set", "dev", f"{BRIDGE}{host}", "state", "0"], check=True)


def heal(host: int) -> None:
    subprocess.run(["bridge", "link", "set", "dev", f"{BRIDGE}{host}", "state", "3"], check=True)


def running(storage: PostgresStorage, record: StudyRecord) -> list[int]:
    """The trials that have got somewhere."""
    return [t.number for t in storage.trials(record) if t.state.name == "RUNNING" and t.intermediate_values]


def trial_of(folder: Path, host: int) -> int:
    return int((folder / f"diary-{host}").read_text().splitlines()[-1].split()[0])


def forward(how: str) -> None:
    """Where a Docker engine runs, it drops what goes over others' bridges."""
    if shutil.which("iptables"):
        subprocess.run(["iptables", how, "FORWARD", "-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT"], check=False)


def namespace(host: int) -> str:
    return f"{BRIDGE}-{host}"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def answers(url: StorageURL) -> bool:
    try:
        psycopg2.connect(**{**url.libpq, "connect_timeout": "2"}).close()
    except psycopg2.OperationalError:
        return False
    return True


def wait(condition: object, what: str) -> None:
    deadline = time.monotonic() + 120
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline, f"no sign of {what}"
        time.sleep(0.1)


def said(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


if __name__ == "__main__":
    main()
