"""What the tests of faults share: an objective that keeps a diary, workers to kill, and chaos itself."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg2
from optuna.trial import FrozenTrial, TrialState

from studies import PostgresStorage
from studies.storage.url import StorageURL
from tests.conftest import ROOT
from tests.support.pgbouncer import start_pgbouncer
from tests.support.postgres import DEBIAN_15, SCRATCH, Postgres, start_postgres
from tests.support.waiting import eventually

SCRIPT = '''
"""An objective that writes into a diary what it does, and its worker what the database acknowledged."""

import json
import os
import time

from studies.errors import LeaseLost
from studies.storage.leases import Leases
from tests.support.pool import Pool

EPOCHS = int(os.environ["EPOCHS"])
EPOCH_SECONDS = float(os.environ["EPOCH_SECONDS"])
POISON = int(os.environ.get("POISON", "0"))


def note(event, **details):
    line = json.dumps({"event": event, "pid": os.getpid(), "at": time.time(), **details}) + "\\n"
    diary = os.open(os.environ["DIARY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(diary, line.encode())  # a single write: whole, or not at all, among those of other processes
    os.close(diary)


def noted(method, event):
    def wrapped(self, updates, **options):
        answers = method(self, updates, **options)
        for update, answer in zip(updates, answers):
            if isinstance(answer, LeaseLost):
                note("refused", trial=update.claim.number, epoch=update.claim.epoch, what=method.__name__)
            elif event:
                note(event, trial=update.claim.number, state=update.state, values=update.values)
        return answers

    return wrapped


def noted_checkpoint(self, claim, **options):
    try:
        return save_checkpoint(self, claim, **options)
    except LeaseLost:
        note("refused", trial=claim.number, epoch=claim.epoch, what="save_checkpoint")
        raise


Leases.write_many = noted(Leases.write_many, None)
Leases.finish_many = noted(Leases.finish_many, "told")
save_checkpoint, Leases.save_checkpoint = Leases.save_checkpoint, noted_checkpoint


def steps(trial):
    x = trial.suggest_float("x", -10, 10)
    # Each value tells under which claim of the trial it was made: see _WATCH in faults.py.
    by = trial._holder.lease.claim.epoch * 1e-6
    if POISON and trial.number % POISON == POISON - 1:
        trial.set_user_attr("poison", 1)  # see _CONSTRAINT in faults.py
    kept = trial.restore()
    loss = round(x * x, 2) if kept is None else float(kept.state)
    for step in range(0 if kept is None else kept.step + 1, EPOCHS):
        note("epoch", trial=trial.number, step=step)
        end = time.monotonic() + EPOCH_SECONDS
        while time.monotonic() < end:
            if trial.stop_requested:
                trial.checkpoint(step - 1, repr(loss).encode())
                raise trial.Interrupted
            time.sleep(min(0.05, EPOCH_SECONDS))
        loss = round(loss - 0.1, 2)
        note("trained", trial=trial.number, step=step)
        yield loss + by, step, repr(loss).encode()
    note("returns", trial=trial.number)
    return loss + by


pool = Pool(steps)


def objective(trial):
    return pool(trial)
'''

# Whoever writes a value to a trial must hold it, or have held it last: the claim that a value names is the
# newest one at the moment when it is written.
_WATCH = """
create table written (trial_id integer, value float8, by integer, holder integer);
create function watch() returns trigger language plpgsql as $$
declare
    number numeric := (to_jsonb(new) ->> tg_argv[0])::numeric;
begin
    insert into written values (new.trial_id, number, round((number - round(number, 2)) * 1000000),
        (select epoch from studyhall.leases where trial_id = new.trial_id));
    return new;
end $$;
create trigger watch before insert or update on trial_intermediate_values
    for each row execute function watch('intermediate_value');
create trigger watch before insert or update on trial_values for each row execute function watch('value');
"""

# What a trial writes is refused, by a rule that no client knows of.
_CONSTRAINT = "alter table trial_user_attributes add constraint poison check (key <> 'poison')"

Entry = dict[str, Any]


class Fleet:
    """Supervisors with their workers on one database, from the installed command. A context manager.

    Args:
        url: the storage.
        folder: an empty folder, for the script, the diary and Studyhall's home.
        epochs: of each trial.
        epoch_seconds: how long one takes.
        slots: how many trials a worker trains at once; 0 for an objective that takes one.
    """

    study = "faults"

    def __init__(self, url: StorageURL, folder: Path, *, epochs: int, epoch_seconds: float, slots: int = 0) -> None:
        self.url = url
        self._objective = "script.py:pool" if slots else "script.py:objective"
        self._slots = ["--slots", str(slots)] if slots else []
        self.folder = folder
        self.diary = folder / "diary"
        self.home = folder / "home"
        (folder / "script.py").write_text(SCRIPT)
        self.environment = {
            **os.environ,
            "STUDYHALL_STORAGE": url.sqlalchemy,
            "STUDYHALL_HOME": str(self.home),
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT),
            "DIARY": str(self.diary),
            "EPOCHS": str(epochs),
            "EPOCH_SECONDS": str(epoch_seconds),
            "COLUMNS": "200",
        }
        self.supervisors: list[subprocess.Popen[str]] = []
        self._outputs: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        processes = [psutil.Process(s.pid) for s in self.supervisors if s.poll() is None]
        for process in [*(child for p in processes for child in p.children()), *processes]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for supervisor in self.supervisors:
            supervisor.wait()

    def run(
        self, *, trials: int, workers: int, lease: float = 3, settings: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """Start ``studyhall run``; a checkpoint is due after each epoch."""
        settings = ["checkpoints.every=0", *settings]
        if not any(setting.startswith("budget.max_failures") for setting in settings):
            settings.append("budget.max_failures=1")
        arguments = ["run", self._objective, *self._slots, "--name", self.study, "--trials", str(trials)]
        arguments += [word for setting in settings for word in ("--set", setting)]
        return self._start(*arguments, "--workers", str(workers), "--lease", str(lease))

    def work(self, *, workers: int, lease: float = 3) -> subprocess.Popen[str]:
        """Start ``studyhall work``."""
        script = f"{self.folder}/{self._objective}"
        options = ["--objective", script, *self._slots, "--workers", str(workers), "--lease", str(lease)]
        return self._start("work", self.study, *options)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        self._outputs.append(self.folder / f"output-{len(self._outputs)}")
        with self._outputs[-1].open("w") as output:
            started = subprocess.Popen(
                [str(Path(sys.executable).with_name("studyhall")), *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                text=True,
            )
        self.supervisors.append(started)
        return started

    @property
    def output(self) -> str:
        """All that the supervisors said."""
        return "".join(path.read_text() for path in self._outputs)

    def entries(self, *events: str) -> list[Entry]:
        """What stands in the diary of these events."""
        text = self.diary.read_text() if self.diary.exists() else ""
        found = [json.loads(line) for line in text.splitlines()]
        return [entry for entry in found if entry["event"] in events]

    def workers(self) -> list[psutil.Process]:
        """The worker processes that are there."""
        found = []
        for supervisor in self.supervisors:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(supervisor.pid).children():
                    with suppress(psutil.NoSuchProcess):
                        if "studies.worker.process" in child.cmdline():
                            found.append(child)
        return found

    def busy_workers(self) -> list[psutil.Process]:
        """Those that have begun to train: only these count as killed at work."""
        begun = {entry["pid"] for entry in self.entries("epoch")}
        return [worker for worker in self.workers() if worker.pid in begun]

    @contextmanager
    def look(self, url: StorageURL | None = None) -> Iterator[PostgresStorage]:
        """The storage, to see what is there."""
        with closing(PostgresStorage(url or self.url, create=False)) as storage:
            yield storage


@contextmanager
def new_folder() -> Iterator[Path]:
    """A folder, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="studyhall-faults-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def own_postgres(parent: Path = SCRATCH) -> Iterator[Postgres]:
    """A server that may be killed: Debian's 15 where it is installed, else the wheel's 18."""
    with start_postgres(DEBIAN_15 if DEBIAN_15.is_dir() else None, parent=parent) as postgres:
        yield postgres


def watch_writes(postgres: Postgres) -> None:
    """From now on remember by which claim each value is written, and who holds its trial then."""
    with closing(psycopg2.connect(postgres.url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(_WATCH)


def strangers_writes(postgres: Postgres) -> list[tuple[Any, ...]]:
    """The values that were written by others than the trial's newest claim: trial, value, by which, which was it.

    The value of a pruned trial is its last report, which may be of an earlier claim, and was judged then.
    """
    with closing(psycopg2.connect(postgres.url)) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from written")
        assert cursor.fetchone() > (0,)
        cursor.execute(
            "select * from written w where by is distinct from holder and not exists ("
            "select from written earlier where earlier.trial_id = w.trial_id and earlier.value = w.value"
            " and earlier.by = earlier.holder)"
        )
        return cursor.fetchall()


@dataclass(kw_only=True)
class Figures:
    """What a run under chaos came through."""

    seed: int
    budget: int
    workers: int
    pgbouncer: bool
    poison: int
    slots: int
    seconds: float = 0.0
    kills: int = 0
    stops: int = 0
    restarts: int = 0
    deaths: int = 0
    refused: int = 0
    """Writes of workers whose trial was another's, or over."""
    pruned: int = 0
    failed: int = 0
    """For what they wrote."""
    lost: int = 0
    """Trials that failed by their third death: a slow machine leaves no time to report between the kills."""
    epochs: int = 0
    """Trained, redone ones included."""
    redone: int = 0
    """Of these, trained once more."""
    torn: int = 0
    """Begun, and not ended."""


@dataclass
class _Faults:
    """When the next fault of each kind is due, in seconds from the start."""

    dice: random.Random
    restarts: list[float]
    kill_at: float = 0.0
    stop_at: float = 0.0
    stopped: dict[psutil.Process, float] = field(default_factory=dict)


def chaos(
    seed: int,
    *,
    budget: int = 200,
    workers: int = 8,
    epochs: int = 20,
    epoch_seconds: float = 0.1,
    restarts: Sequence[float] = (8, 18),
    lease: float = 3,
    pgbouncer: bool = False,
    poison: int = 0,
    slots: int = 0,
    limit: float = 400,
) -> Figures:
    """Run a study while workers are killed and stopped and PostgreSQL is killed and started again.

    Args:
        seed: of all that is left to chance here.
        budget: trials.
        workers: of two supervisors.
        epochs: of each trial that is not pruned.
        epoch_seconds: how long one takes.
        restarts: when PostgreSQL is killed, in seconds after the first epoch.
        lease: of a trial, in seconds.
        pgbouncer: have all connections go through one, in transaction mode.
        slots: as of :class:`Fleet`; they share the epoch's seconds, as in a program that trains them in step.
        poison: one trial in so many writes something that the database refuses; 0 for none.
        limit: seconds after which the study must be over.

    Raises:
        AssertionError: something was lost, doubled, stuck or let through.
    """
    figures = Figures(seed=seed, budget=budget, workers=workers, pgbouncer=pgbouncer, poison=poison, slots=slots)
    with ExitStack() as stack:
        folder, postgres = stack.enter_context(new_folder()), stack.enter_context(own_postgres())
        url = postgres.url
        if pgbouncer:
            url = stack.enter_context(start_pgbouncer(url)).url
        PostgresStorage(postgres.url).close()
        watch_writes(postgres)
        parsed = StorageURL.parse(url)
        fleet = stack.enter_context(
            Fleet(parsed, folder, epochs=epochs, epoch_seconds=epoch_seconds / max(1, slots), slots=slots)
        )
        if poison:
            postgres.execute(_CONSTRAINT)
            fleet.environment["POISON"] = str(poison)
        fleet.run(trials=budget, workers=workers // 2, lease=lease, settings=["budget.max_failures=1000"])
        eventually(lambda: fleet.entries("epoch"), "the first epoch")
        fleet.work(workers=workers - workers // 2, lease=lease)
        eventually(lambda: len(fleet.busy_workers()) == workers, "all workers at work")
        began = time.monotonic()
        try:
            _make_faults(fleet, postgres, figures, random.Random(seed), restarts, lease, limit)
            figures.seconds = round(time.monotonic() - began, 1)
            _judge(fleet, postgres, figures)
        except BaseException:
            sys.stderr.write(f"{asdict(figures)}\n{fleet.output[-6000:]}\n")
            raise
    return figures


def _make_faults(
    fleet: Fleet,
    postgres: Postgres,
    figures: Figures,
    dice: random.Random,
    restarts: Sequence[float],
    lease: float,
    limit: float,
) -> None:
    """Until the study is over."""
    faults = _Faults(dice, list(restarts), kill_at=dice.uniform(1, 2.5), stop_at=dice.uniform(2, 5))
    began = time.monotonic()
    while any(supervisor.poll() is None for supervisor in fleet.supervisors):
        now = time.monotonic() - began
        assert now < limit, f"the study is not over after {limit:g} s"
        for worker in [worker for worker, until in faults.stopped.items() if until <= now]:
            del faults.stopped[worker]
            with suppress(psutil.NoSuchProcess):
                worker.resume()
        if faults.restarts and faults.restarts[0] <= now:
            faults.restarts.pop(0)
            postgres.kill()
            postgres.start()
            figures.restarts += 1
        if faults.kill_at <= now:
            if victims := fleet.busy_workers():
                with suppress(psutil.NoSuchProcess):
                    dice.choice(victims).kill()
                    figures.kills += 1
            faults.kill_at = now + dice.uniform(1, 2.5)
        if faults.stop_at <= now:
            if victims := [worker for worker in fleet.busy_workers() if worker not in faults.stopped]:
                with suppress(psutil.NoSuchProcess):
                    worker = dice.choice(victims)
                    worker.suspend()
                    figures.stops += 1
                    faults.stopped[worker] = now + lease + dice.uniform(0.5, 2)
            faults.stop_at = now + dice.uniform(8, 15)
        time.sleep(0.05)


def is_lost(trial: FrozenTrial) -> bool:
    """Whether it failed because three workers were killed on it before they could report anything."""
    return trial.state == TrialState.FAIL and "workers died on this trial" in trial.user_attrs["error"]


def _judge(fleet: Fleet, postgres: Postgres, figures: Figures) -> None:
    budget, output = figures.budget, fleet.output
    trained = Counter((entry["trial"], entry["step"]) for entry in fleet.entries("trained"))
    figures.epochs = trained.total()
    figures.redone = trained.total() - len(trained)
    figures.torn = len(fleet.entries("epoch")) - trained.total()
    figures.refused = len(fleet.entries("refused"))
    figures.deaths = output.count("| died: ")

    with fleet.look(StorageURL.parse(postgres.url)) as storage:
        record = storage.find_study(fleet.study)
        trials, best, attempts = storage.trials(record), storage.find_best(record), storage.leases.attempts(record)
    states = Counter(trial.state.name for trial in trials)
    lost = {trial.number for trial in trials if is_lost(trial)}
    figures.pruned, figures.failed, figures.lost = states["PRUNED"], states["FAIL"] - len(lost), len(lost)
    assert states.keys() <= {"COMPLETE", "PRUNED", "FAIL"}, states
    assert states["COMPLETE"] + states["PRUNED"] == budget
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert attempts.keys() == set(range(len(trials)))
    poisoned = {trial.number for trial in trials if figures.poison and (trial.number + 1) % figures.poison == 0} - lost
    assert {trial.number for trial in trials if trial.state == TrialState.FAIL} == poisoned | lost
    assert figures.kills + figures.stops >= 3 * len(lost)
    assert all(attempts[number].times >= 3 for number in lost), attempts
    for number in poisoned:
        assert trials[number].user_attrs["error"].startswith("the database refuses the attribute 'poison': ")
        assert list(trials[number].params) == ["x"]

    # No result that was acknowledged is lost, and none was acknowledged twice with different words.
    for told in fleet.entries("told"):
        trial = trials[told["trial"]]
        assert (trial.state.name, trial.values if told["values"] else None) == (told["state"], told["values"])
    for trial in trials:
        if trial.state == TrialState.FAIL:
            continue
        steps = max(trial.intermediate_values) + 1
        assert sorted(trial.intermediate_values) == list(range(steps))
        assert (steps == int(fleet.environment["EPOCHS"])) or trial.state == TrialState.PRUNED
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert best is not None
    assert best.number == min(complete, key=lambda trial: (trial.value, trial.number)).number
    for told in fleet.entries("told"):
        assert told["state"] != "COMPLETE" or told["values"][0] >= best.value

    assert strangers_writes(postgres) == []
    assert [supervisor.returncode for supervisor in fleet.supervisors] == [0] * len(fleet.supervisors)
    assert "Traceback" not in output
    assert "unexpected error in the lease keeper" not in output
    unusual = [line for line in output.splitlines() if "| died: " in line and "ended by signal 9 (SIGKILL)" not in line]
    assert not unusual
    # A fault costs each trial that it meets less than an epoch. How many there are depends on the machine's speed.
    met = figures.kills + figures.stops + figures.restarts * figures.workers
    assert figures.redone <= met * max(1, figures.slots)
    assert not list(fleet.home.glob("results/*/*.json")), "results that nobody told"
