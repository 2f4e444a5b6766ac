"""The proxy that other tests put between a client and PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from studies.storage.embedded.binaries import account_for, find_binaries
from studies.storage.url import StorageURL
from tests.conftest import Server
from tests.support.proxy import Proxy, When
from tests.support.waiting import GUARD


@pytest.fixture
def database(separate_server: Server) -> Iterator[StorageURL]:
    """A database with a table ``seen``, reached directly."""
    with separate_server.database() as url:
        execute(url, "create table seen (word text)")
        yield url


@pytest.fixture
def proxy(database: StorageURL) -> Iterator[Proxy]:
    with Proxy(database) as running:
        yield running


@pytest.fixture
def in_background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def connect(url: StorageURL) -> Any:
    connection = psycopg2.connect(**url.libpq)
    connection.autocommit = True
    return connection


def execute(url: StorageURL, sql: str) -> list[Any]:
    with closing(connect(url)) as connection:
        return run(connection, sql)


def run(connection: Any, sql: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else []


def seen(database: StorageURL) -> list[str]:
    return [word for (word,) in execute(database, "select word from seen order by word")]


def test_queries_and_large_answers_pass_unchanged(proxy: Proxy) -> None:
    assert execute(proxy.url, "select 1, 'wörd'") == [(1, "wörd")]
    assert len(execute(proxy.url, "select i, repeat('x', 100) from generate_series(1, 100000) i")) == 100000
    assert execute(proxy.url, f"select length('{'y' * 3_000_000}')") == [(3_000_000,)]


def test_the_embedded_server_is_reached_by_its_socket(embedded_server: Server) -> None:
    with Proxy(embedded_server.url) as proxy:
        assert execute(proxy.url, "select 1") == [(1,)]


def test_an_error_of_the_server_passes_and_the_connection_goes_on(proxy: Proxy) -> None:
    with closing(connect(proxy.url)) as connection:
        with pytest.raises(psycopg2.errors.DivisionByZero):
            run(connection, "select 1 / 0")
        assert run(connection, "select 1") == [(1,)]


def test_the_server_may_refuse_the_login(proxy: Proxy) -> None:
    with pytest.raises(psycopg2.OperationalError, match="does not exist"):
        psycopg2.connect(**{**proxy.url.libpq, "dbname": "none"})


def test_statements_are_listed_until_reset(proxy: Proxy) -> None:
    with closing(connect(proxy.url)) as connection:
        run(connection, "select 1")
        run(connection, "select 2")
        assert proxy.statements == ["select 1", "select 2"]
        proxy.reset()
        run(connection, "select 3")
    assert proxy.statements == ["select 3"]


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_each_protocol_is_counted_with_its_texts(proxy: Proxy, mode: str, home: Any, tmp_path: Any) -> None:
    pgbench(proxy.url, mode, "select 1;\nselect 2;\n", home, tmp_path)
    assert [text.rstrip(";") for text in proxy.statements] == ["select 1", "select 2"] * 3


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_each_protocol_is_broken_after_the_commit(
    database: StorageURL, proxy: Proxy, mode: str, home: Any, tmp_path: Any
) -> None:
    proxy.break_after(2, containing="insert")
    with pytest.raises(subprocess.CalledProcessError):
        pgbench(proxy.url, mode, "select 1;\ninsert into seen values ('here');\n", home, tmp_path)
    assert proxy.fired
    assert seen(database) == ["here"] * 2


def pgbench(url: StorageURL, mode: str, script: str, home: Any, folder: Any) -> None:
    """Run ``script`` three times on one connection."""
    file = folder / "script"
    file.write_text(script)
    program = find_binaries(account_for(home), home) / "pgbench"
    (host, port), *_ = url.hosts
    argv = [program, "-n", "-t", "3", "-M", mode, "-f", file, "-h", host, "-p", str(port), "-U", url.user]
    env = {"PGPASSWORD": url.password or ""}
    subprocess.run([*map(str, argv), url.database], check=True, capture_output=True, env=env)


def test_a_round_trip_takes_the_delay_twice(proxy: Proxy) -> None:
    with closing(connect(proxy.url)) as connection:
        proxy.delay = 0.02
        begin = time.monotonic()
        for _ in range(5):
            run(connection, "select 1")
        taken = time.monotonic() - begin
    assert taken >= 0.2


def test_connections_do_not_delay_one_another(proxy: Proxy, in_background: Callable[..., Future[Any]]) -> None:
    connections = [connect(proxy.url) for _ in range(4)]
    proxy.delay = 1.0
    begin = time.monotonic()
    for future in [in_background(run, connection, "select 1") for connection in connections]:
        future.result()
    taken = time.monotonic() - begin
    for connection in connections:
        connection.close()
    assert 2 <= taken < 6  # one after the other: 8


def test_a_large_answer_is_delayed_once_not_piece_by_piece(proxy: Proxy) -> None:
    with closing(connect(proxy.url)) as connection:
        proxy.delay = 1.0
        begin = time.monotonic()
        run(connection, "select repeat('x', 10000000)")  # over 150 pieces
        assert time.monotonic() - begin < 120


def test_broken_before_a_query_the_server_never_saw_it(database: StorageURL, proxy: Proxy) -> None:
    proxy.break_before()
    with pytest.raises(psycopg2.OperationalError):
        execute(proxy.url, "insert into seen values ('lost')")
    assert proxy.fired
    assert seen(database) == []


def test_broken_after_a_query_it_is_committed_but_the_client_cannot_know(database: StorageURL, proxy: Proxy) -> None:
    proxy.break_after()
    with pytest.raises(psycopg2.OperationalError):
        execute(proxy.url, "insert into seen values ('kept') returning word")
    assert proxy.fired
    assert seen(database) == ["kept"]


def test_a_break_fires_once(database: StorageURL, proxy: Proxy) -> None:
    proxy.break_before()
    with pytest.raises(psycopg2.OperationalError):
        execute(proxy.url, "select 1")
    execute(proxy.url, "insert into seen values ('later')")
    assert seen(database) == ["later"]


def test_a_break_counts_from_now_over_all_connections(database: StorageURL, proxy: Proxy) -> None:
    execute(proxy.url, "insert into seen values ('0')")
    proxy.break_before(3)
    with closing(connect(proxy.url)) as connection:
        execute(proxy.url, "insert into seen values ('1')")
        run(connection, "insert into seen values ('2')")
        assert not proxy.fired
        with pytest.raises(psycopg2.OperationalError):
            execute(proxy.url, "insert into seen values ('3')")
        assert proxy.fired
        run(connection, "insert into seen values ('4')")
    assert seen(database) == ["0", "1", "2", "4"]


def test_a_break_may_count_only_queries_with_a_text(database: StorageURL, proxy: Proxy) -> None:
    proxy.break_after(2, containing="insert")
    with closing(connect(proxy.url)) as connection:
        run(connection, "select 1")
        run(connection, "insert into seen values ('1')")
        run(connection, "select 2")
        with pytest.raises(psycopg2.OperationalError):
            run(connection, "insert into seen values ('2')")
    assert seen(database) == ["1", "2"]


def test_the_commit_of_a_transaction_may_be_broken(database: StorageURL, proxy: Proxy) -> None:
    for word, break_commit in (("before", proxy.break_before), ("after", proxy.break_after)):
        with closing(psycopg2.connect(**proxy.url.libpq)) as connection:
            run(connection, f"insert into seen values ('{word}')")
            break_commit(containing="COMMIT")
            with pytest.raises(psycopg2.OperationalError):
                connection.commit()
    assert seen(database) == ["after"]


def test_a_hook_sees_each_query_before_and_after(database: StorageURL, proxy: Proxy) -> None:
    told: list[tuple[int, str, When, list[str]]] = []
    proxy.on_query(lambda n, text, when: told.append((n, text, when, seen(database))))
    with closing(connect(proxy.url)) as connection:
        run(connection, "insert into seen values ('1')")
        run(connection, "select 2")
        proxy.on_query(None)
        run(connection, "select 3")
    assert told == [
        (1, "insert into seen values ('1')", "before", []),
        (1, "insert into seen values ('1')", "after", ["1"]),
        (2, "select 2", "before", ["1"]),
        (2, "select 2", "after", ["1"]),
    ]


def test_a_hook_that_blocks_holds_up_its_own_connection_alone(
    proxy: Proxy, in_background: Callable[..., Future[Any]]
) -> None:
    held, released = threading.Event(), threading.Event()

    def hold(_n: int, text: str, when: When) -> None:
        if (text, when) == ("select 'held'", "after"):
            held.set()
            assert released.wait(GUARD)

    proxy.on_query(hold)
    answer = in_background(execute, proxy.url, "select 'held'")
    assert held.wait(GUARD)
    assert execute(proxy.url, "select 'free'") == [("free",)]
    assert not answer.done()
    released.set()
    assert answer.result() == [("held",)]


@pytest.mark.parametrize(("point", "kept"), [("before", []), ("after", ["killed"])])
def test_a_process_may_be_killed_exactly_before_or_after_a_query(
    database: StorageURL, proxy: Proxy, point: When, kept: list[str]
) -> None:
    program = (
        "import psycopg2, sys; c = psycopg2.connect(sys.stdin.read()); c.autocommit = True; "
        "c.cursor().execute(\"insert into seen values ('killed')\"); print('answered')"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def kill(_n: int, _text: str, when: When) -> None:
        if when == point:
            process.kill()
            process.wait()

    proxy.on_query(kill)
    said, _ = process.communicate(psycopg2.extensions.make_dsn(**proxy.url.libpq).encode())
    assert (process.returncode, said) == (-9, b"")
    assert seen(database) == kept


def test_what_a_hook_raises_fails_the_test(database: StorageURL) -> None:
    def fail(_n: int, _text: str, _when: When) -> None:
        raise ProcessLookupError("nobody to kill")

    proxy = Proxy(database)
    proxy.__enter__()
    proxy.on_query(fail)
    with pytest.raises(psycopg2.OperationalError):
        execute(proxy.url, "select 1")
    with pytest.raises(ProcessLookupError, match="nobody to kill"):
        proxy.__exit__()


def test_down_cuts_and_refuses_and_up_accepts_on_the_same_port(proxy: Proxy) -> None:
    with closing(connect(proxy.url)) as connection:
        for _ in range(2):
            proxy.down()
            with pytest.raises(psycopg2.OperationalError, match="Connection refused"):
                connect(proxy.url)
            proxy.up()
            assert execute(proxy.url, "select 1") == [(1,)]
        with pytest.raises(psycopg2.OperationalError):
            run(connection, "select 1")


def test_down_may_be_called_by_a_hook(database: StorageURL, proxy: Proxy) -> None:
    proxy.on_query(lambda _n, _text, when: proxy.down() if when == "after" else None)
    with pytest.raises(psycopg2.OperationalError):
        execute(proxy.url, "insert into seen values ('kept')")
    assert seen(database) == ["kept"]


def test_while_it_hangs_nothing_passes_and_nothing_breaks(
    database: StorageURL, proxy: Proxy, in_background: Callable[..., Future[Any]]
) -> None:
    with closing(connect(proxy.url)) as connection:
        proxy.hang()
        answer = in_background(run, connection, "insert into seen values ('late') returning word")
        with pytest.raises(TimeoutError):
            answer.result(timeout=0.3)
        assert seen(database) == []
        with pytest.raises(psycopg2.OperationalError, match="timeout"):
            psycopg2.connect(**{**proxy.url.libpq, "connect_timeout": "2"})
        proxy.up()
        assert answer.result(timeout=300) == [("late",)]


def test_an_answer_under_way_hangs_too(proxy: Proxy, in_background: Callable[..., Future[Any]]) -> None:
    answered = threading.Event()

    def hang(_n: int, _text: str, when: When) -> None:
        if when == "after":
            proxy.hang()
            answered.set()

    proxy.on_query(hang)
    answer = in_background(execute, proxy.url, "select 1")
    assert answered.wait(GUARD)
    with pytest.raises(TimeoutError):
        answer.result(timeout=0.3)
    proxy.up()
    assert answer.result(timeout=300) == [(1,)]


def test_down_ends_what_hangs(proxy: Proxy, in_background: Callable[..., Future[Any]]) -> None:
    with closing(connect(proxy.url)) as connection:
        proxy.hang()
        answer = in_background(run, connection, "select 1")
        proxy.down()
        with pytest.raises(psycopg2.OperationalError):
            answer.result(timeout=300)


def test_copy_passes_although_a_hook_is_set(database: StorageURL, proxy: Proxy, tmp_path: Any) -> None:
    proxy.on_query(lambda *_: None)
    file = tmp_path / "words"
    file.write_text("one\ntwo\n")
    with closing(connect(proxy.url)) as connection, file.open() as words, connection.cursor() as cursor:
        cursor.copy_expert("copy seen from stdin", words)
    assert seen(database) == ["one", "two"]


def test_the_end_leaves_nothing_behind(database: StorageURL) -> None:
    before = set(threading.enumerate())
    with Proxy(database) as proxy:
        connection = connect(proxy.url)
        assert run(connection, "select 1") == [(1,)]
    assert set(threading.enumerate()) <= before
    with closing(connection), pytest.raises(psycopg2.OperationalError):
        run(connection, "select 1")
    with pytest.raises(psycopg2.OperationalError, match="Connection refused"):
        connect(proxy.url)
