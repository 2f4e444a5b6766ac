"""``studyhall serve``: it keeps both sites up, stops them together, and says what it cannot do."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg2
import pytest

from studies import PostgresStorage, StudySpec
from studies.errors import SiteError
from studies.serve.sites import listen
from studies.storage.embedded.server import EmbeddedServer
from studies.storage.url import StorageURL
from tests.acceptance.conftest import Shell
from tests.support.postgres import SCRATCH, free_port
from tests.support.sites import COMMAND, Hall, ask, mlflow_database, serving, surroundings
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

SPEC = {"name": "s", "objective": {"path": "objectives.mlp:MLP"}}
EXPERIMENTS = "/ajax-api/2.0/mlflow/experiments/search?max_results=9"


class Own:
    """An embedded server with a study, for the sites to show."""

    def __init__(self, home: Path, folder: Path, url: StorageURL) -> None:
        self.home = home
        self.folder = folder
        self.url = url
        self.environment = surroundings(STUDYHALL_HOME=str(home))

    def execute(self, sql: str, url: StorageURL | None = None) -> list[tuple[object, ...]]:
        with closing(psycopg2.connect(**(url or self.url).libpq)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    # Not the home that the tests share: this server is killed.
    home = Path(tempfile.mkdtemp(prefix="studyhall-home-", dir=SCRATCH))
    home.chmod(0o755)
    server = EmbeddedServer(home)
    try:
        url = server.start()
        with closing(PostgresStorage(url)) as storage:
            storage.create_study(StudySpec.from_dict(SPEC))
        yield Own(home, tmp_path_factory.mktemp("own"), url)
    finally:
        server.stop(force=True)
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def hall(own: Own) -> Iterator[Hall]:
    """The sites as anybody starts them: on the embedded server, with nothing said."""
    with serving(own.folder, own.environment) as hall:
        yield hall


def works(hall: Hall) -> bool:
    """Whether both sites show the study."""
    with suppress(OSError):
        shown = ask(hall.dashboard, "GET", "/api/studies", timeout=120)
        mirrored = ask(hall.mlflow, "GET", EXPERIMENTS, timeout=120)
        return '"study_name": "s"' in shown.body and '"name":"s"' in "".join(mirrored.body.split())
    return False


def is_free(address: str) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", urlsplit(address).port or 0)) != 0


def is_over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_it_prints_the_addresses_of_both_sites_once_they_answer(hall: Hall, own: Own) -> None:
    assert [line.split()[0] for line in hall.said.splitlines()] == ["studies", "optuna-dashboard", "MLflow"]
    assert str(own.home) in hall.said
    assert [ask(site, "GET", path).status for site, path in ((hall.dashboard, "/dashboard"), (hall.mlflow, "/"))] == [
        200,
        200,
    ]
    eventually(lambda: works(hall))


def test_only_this_machine_reaches_them(hall: Hall) -> None:
    listening = psutil.Process(hall.process.pid).net_connections("tcp")
    ports = {urlsplit(site).port for site in (hall.dashboard, hall.mlflow)}
    assert {(c.laddr.ip, c.laddr.port) for c in listening if c.status == "LISTEN"} == {("127.0.0.1", p) for p in ports}


def test_another_page_in_the_browser_of_this_machine_reads_and_writes_nothing(hall: Hall) -> None:
    new = b'{"study_name": "new", "directions": ["minimize"], "name": "new"}'
    for site, path in ((hall.dashboard, "/api/studies"), (hall.mlflow, "/ajax-api/2.0/mlflow/experiments/create")):
        assert ask(site, "GET", "/", headers={"Host": "evil.example"}).status == 403
        for origin in ("http://evil.example", "http://localhost:1", "null"):
            answer = ask(site, "POST", path, body=new, headers={"Origin": origin})
            assert answer.status == 403
            assert not [name for name in answer.headers if name.startswith("access-control-allow")]
    assert "new" not in ask(hall.dashboard, "GET", "/api/studies").body


def test_who_is_at_this_machine_may_write_without_a_password(hall: Hall) -> None:
    study = ask(hall.dashboard, "GET", "/api/studies").body.partition('"study_id": ')[2].partition(",")[0]
    note = b'{"version": 1, "body": "seen"}'
    assert ask(hall.dashboard, "PUT", f"/api/studies/{study}/note", body=note).status == 204
    assert "seen" in ask(hall.dashboard, "GET", f"/api/studies/{study}").body


def test_sites_that_are_killed_come_back_at_the_same_addresses(hall: Hall) -> None:
    killed = hall.children("studies.serve.process")
    assert len(killed) == 2
    for child in killed:
        child.kill()
    eventually(lambda: works(hall))
    assert not {child.pid for child in killed} & {child.pid for child in hall.children()}
    for site in ("optuna-dashboard", "MLflow"):
        assert f"{site} ended: exit status -9; starting it again" in hall.complaints


def test_sites_work_again_after_the_embedded_server_was_killed(hall: Hall, own: Own) -> None:
    eventually(lambda: works(hall))
    (before,) = own.execute("select pg_postmaster_start_time()")
    (file,) = (own.home / "postgresql").glob("*/postmaster.pid")
    os.kill(int(file.read_text().split()[0]), signal.SIGKILL)
    eventually(lambda: works(hall))
    assert own.execute("select pg_postmaster_start_time()") != [before]


def test_read_only_lets_nobody_write_and_killed_it_leaves_no_process(hall: Hall, own: Own) -> None:
    folder = own.folder / "second"
    folder.mkdir()
    with serving(folder, own.environment, "--read-only") as second:
        places = [urlsplit(site).port for site in (hall.dashboard, hall.mlflow, second.dashboard, second.mlflow)]
        assert len(set(places)) == 4  # the usual ports are in use
        eventually(lambda: works(second))
        users = own.execute("select usename from pg_stat_activity where backend_type = 'client backend'")
        assert ("studyhall_reader",) in users
        for site, path in ((second.dashboard, "/api/studies"), (second.mlflow, "/ajax-api/2.0/mlflow/runs/create")):
            answer = ask(site, "POST", path, body=b'{"study_name": "n", "directions": ["minimize"]}')
            assert (answer.status, "can look" in answer.body) == (403, True)
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            own.execute(
                "delete from trials",
                StorageURL.parse(own.url.sqlalchemy.replace(f"://{own.url.user}", "://studyhall_reader", 1)),
            )
        children = second.children()
        assert len(children) == 3
        assert second.stop(signal.SIGKILL) == -signal.SIGKILL
        eventually(lambda: all(map(is_over, children)))
        assert "Traceback" not in second.complaints


def test_ctrl_c_stops_all_and_frees_the_ports_that_were_asked_for(own: Own, tmp_path: Path) -> None:
    ports = [free_port(), free_port()]  # not the usual ones, which another test may take at once
    options = ("--dashboard-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    with serving(tmp_path, own.environment, *options) as hall:
        assert [urlsplit(site).port for site in (hall.dashboard, hall.mlflow)] == ports
        children = hall.children()
        assert hall.stop(signal.SIGINT) == 130
        assert len(children) == 3
        assert all(map(is_over, children))
        assert is_free(hall.dashboard)
        assert is_free(hall.mlflow)
        assert "Traceback" not in hall.complaints


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_ends_it_while_it_starts_ends_its_processes(own: Own, tmp_path: Path, number: signal.Signals) -> None:
    said = tmp_path / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [COMMAND, "serve"], env=own.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        serve = psutil.Process(process.pid)
        eventually(lambda: len(serve.children()) == 3 or process.poll() is not None)
        children = serve.children()
        process.send_signal(number)
        assert process.wait(timeout=300) == (-number if number == signal.SIGKILL else 130)
        assert len(children) == 3
        eventually(lambda: all(map(is_over, children)))
        assert "Traceback" not in said.read_text()
    finally:
        process.kill()
        process.wait()


def test_tables_of_an_older_mlflow_are_left_alone_with_the_way_to_upgrade_them(hall: Hall, own: Own) -> None:
    eventually(lambda: works(hall))  # so the tables are there
    database = mlflow_database(own.url)
    ((revision,),) = own.execute("select version_num from alembic_version", database)
    own.execute("update alembic_version set version_num = '451aebb31d03'", database)  # MLflow 1.0's
    try:
        done = subprocess.run(
            [COMMAND, "serve"], env=own.environment, capture_output=True, text=True, timeout=300, cwd=own.folder
        )
        left = own.execute("select version_num from alembic_version", database)
    finally:
        own.execute(f"update alembic_version set version_num = '{revision}'", database)
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: MLflow cannot start: ")
    assert 'mlflow db upgrade "$(studyhall mirror --print-uri)"' in last
    assert left == [("451aebb31d03",)]


def test_of_ports_in_use_the_next_free_one_is_taken_unless_one_was_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with listen("127.0.0.1", None, port, "--mlflow-port") as found:
            assert found.getsockname()[1] > port
        with pytest.raises(SiteError, match=f"port {port} of 127.0.0.1 is in use: .*--mlflow-port"):
            listen("127.0.0.1", port, 5000, "--mlflow-port")


@pytest.mark.parametrize("option", ["--dashboard-port", "--mlflow-port"])
def test_a_port_in_use_that_was_asked_for_is_an_error(shell: Shell, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        done = shell.run("serve", option, str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"error: port {port} of 127.0.0.1 is in use: end what uses it, choose another {option}, "
        "or leave that out to take one that is free"
    ]


@pytest.mark.parametrize(
    ("option", "contents", "mode", "words"),
    [
        ("--password-file", b"secret\n", 0o644, "can be read by others: make it yours alone: chmod 600 password"),
        ("--admin-password-file", b"secret\n", 0o604, "can be read by others"),
        ("--password-file", b"", 0o600, "is empty: its first line is the password"),
        ("--admin-password-file", b"\nsecret\n", 0o600, "is empty"),
        ("--password-file", b"\xff\xfe\n", 0o600, "cannot be read: it is not text"),
        ("--password-file", None, 0o600, "cannot be read: No such file or directory"),
    ],
)
def test_a_password_file_that_will_not_do_is_an_error(
    shell: Shell, option: str, contents: bytes | None, mode: int, words: str
) -> None:
    file = shell.folder / "password"
    if contents is not None:
        file.write_bytes(contents)
        file.chmod(mode)
        assert stat.S_IMODE(file.stat().st_mode) == mode
    done = shell.run("serve", "--host", "0.0.0.0", option, "password")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {option} password {words}")
    assert "secret" not in line


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (
            ("--host", "0.0.0.0"),
            1,
            "error: --host 0.0.0.0: others could reach the sites there, so a password is needed",
        ),
        (("--host", "::"), 1, "--password-file FILE"),
        (("--host", "nowhere.invalid", "--password-file", "password"), 1, "error: host 'nowhere.invalid' is not known"),
        (("--host", "192.0.2.1", "--password-file", "password"), 1, "error: 192.0.2.1 is no address of this machine"),
        (("--tracking-uri", "ftp://me:secret@there"), 1, "error: the tracking URI 'ftp://***@there' cannot be used"),
        (("--read-only", "--admin-password-file", "password"), 2, "exclude each other"),
        (("--tracking-uri", "http://there", "--mlflow-port", "5000"), 2, "are for our MLflow, and --tracking-uri"),
        (("--dashboard-port", "70000"), 2, "70000 is not in the range"),
    ],
)
def test_bad_input_is_one_clear_error(shell: Shell, arguments: tuple[str, ...], status: int, words: str) -> None:
    file = shell.folder / "password"
    file.touch(0o600)
    file.write_text("secret")
    done = shell.run("serve", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.lower().startswith("error: ")]) == 1
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
