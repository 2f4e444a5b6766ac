"""Clients that begin to say something and never end: they are closed, and hold up nobody else.

A real server with the limits of a site, but for their length: a fraction of a second instead of a minute where a
test waits for one to pass, an hour where none may.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
import uvicorn
from a2wsgi import WSGIMiddleware

from studies.serve import server
from studies.serve.bodies import Limits
from studies.serve.guard import MLFLOW_STREAMS, Access, Guard
from studies.serve.server import Deadlines

STREAM = "/api/2.0/mlflow-artifacts/artifacts/1/weights.pt"
SHORT, LONG = 0.3, 3600.0
THREADS = 8
#: What a test waits for at most; only one that fails does.
GUARD = 120


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Says how much it was told; at /large, more than the system's buffers hold."""
    told = len(environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/large":
        return (b"x" * 2**16 for _ in range(1000))
    return [str(told).encode()]


@contextmanager
def site(
    *,
    body: float = LONG,
    headers: float = LONG,
    reading: float = LONG,
    largest: int = 1000,
    access: Access | None = None,
) -> Iterator[int]:
    """A site on a port, as :mod:`studies.serve.process` makes it."""
    pages = WSGIMiddleware(application, workers=THREADS, send_queue_size=0)  # type: ignore[arg-type]
    guard = Guard(
        pages,
        access or Access(anybody=True),
        streams=MLFLOW_STREAMS,
        limits=Limits(seconds=body, largest=largest),
    )
    protocol = type("Protocol", (Deadlines,), {"headers_within": headers, "reading_within": reading})
    config = uvicorn.Config(guard, http=protocol, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=asyncio.run, args=(running.serve(sockets=[listener]),))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            # An answer that is still being written would find the loop closed.
            pages.executor.shutdown(cancel_futures=True)
            running.should_exit = True
            thread.join(GUARD)
            assert not thread.is_alive()


def sent(port: int, text: str) -> socket.socket:
    """A connection on which this was said, and no more."""
    client = socket.create_connection(("127.0.0.1", port), timeout=GUARD)
    client.sendall(text.encode())
    return client


def all_of(client: socket.socket) -> bytes:
    """What it is told until it is closed."""
    told = bytearray()
    try:
        while piece := client.recv(65536):
            told += piece
    except ConnectionResetError:
        pass
    return bytes(told)


def get(port: int, path: str = "/") -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=GUARD)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def post(length: int, body: str = "", path: str = "/", method: str = "POST", more: str = "") -> str:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{more}\r\n{body}"


CHUNKED = f"PUT {STREAM} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel"
UNFINISHED = {
    "no body": post(100),
    "half a body": post(100, "x" * 50),
    "half a chunk": CHUNKED.replace(f"PUT {STREAM}", "POST /"),
    "a GET with a body": post(100, "x", method="GET"),
    "a body that waits to be asked for": post(100, more="Expect: 100-continue\r\n"),
    "half the headers": "POST / HTTP/1.1\r\nHost: x\r\nX-Pad",
    "half a line": "GE",
    "nothing": "",
}


@pytest.mark.parametrize("kind", UNFINISHED)
@pytest.mark.parametrize("count", [12, 100])
def test_those_who_do_not_end_their_request_hold_up_nobody(kind: str, count: int) -> None:
    with site() as port, ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(closing(sent(port, UNFINISHED[kind])))
        assert [get(port) for _ in range(3)] == [200] * 3


def test_those_who_read_no_answer_hold_up_nobody() -> None:
    with site() as port, ExitStack() as stack:
        for _ in range(3 * THREADS):
            stack.enter_context(closing(sent(port, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n")))
        assert [get(port) for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("kind", ["no body", "half a body", "half a chunk", "a GET with a body"])
def test_a_body_that_does_not_come_is_answered_with_408(kind: str) -> None:
    with site(body=SHORT) as port, closing(sent(port, UNFINISHED[kind])) as client:
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 408
        assert b"did not arrive within" in response.read()


@pytest.mark.parametrize("begun", [CHUNKED, post(100, "x" * 50, STREAM, "PUT"), post(100, "", STREAM, "PUT")])
def test_a_stream_that_stops_is_answered_with_408(begun: str) -> None:
    with site(body=SHORT) as port, closing(sent(port, begun)) as client:
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 408


def test_a_stream_may_take_longer_than_a_pause_and_be_larger_than_a_whole_body() -> None:
    pieces = 8
    with site(body=4.0, largest=10) as port, closing(sent(port, post(10 * pieces, "", STREAM, "PUT"))) as client:
        for _ in range(pieces):
            time.sleep(0.6)
            client.sendall(b"x" * 10)
        response = http.client.HTTPResponse(client)
        response.begin()
        assert (response.status, response.read()) == (200, b"80")


@pytest.mark.parametrize(
    "said",
    [
        post(1001),
        post(10**18),
        post(1001, "x" * 1001),
        f"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n{'x' * 1001}\r\n",
    ],
)
def test_a_body_that_is_too_large_is_answered_with_413(said: str) -> None:
    with site() as port, closing(sent(port, said)) as client:
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 413
        assert b"1000 bytes" in response.read()


@pytest.mark.parametrize("kind", ["half the headers", "half a line"])
def test_headers_that_do_not_come_are_answered_with_408(kind: str) -> None:
    with site(headers=SHORT) as port, closing(sent(port, UNFINISHED[kind])) as client:
        assert all_of(client).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "said", ["", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTT", post(10**6)]
)
def test_a_connection_on_which_nothing_is_said_is_closed(said: str) -> None:
    # The last one is refused for its size, and sends neither its body nor anything else.
    with site(headers=SHORT) as port, closing(sent(port, said)) as client:
        told = all_of(client)
    assert told.count(b"HTTP/1.1 ") == said.count("HTTP/1.1") + said.endswith("HTT")


def test_headers_and_a_refused_body_that_drip_gain_no_time() -> None:
    with site(headers=1.0) as port:
        for said in ("GET / HTTP/1.1\r\nHost: x\r\n", post(10**6)):
            with closing(sent(port, said)) as client:
                assert drips_until_closed(client)


def drips_until_closed(client: socket.socket) -> bool:
    """Whether it is closed although a byte is said four times a second."""
    for _ in range(4 * GUARD):
        time.sleep(0.25)
        try:
            client.sendall(b"x")
        except OSError:
            return True
    return False


def test_whoever_reads_nothing_of_an_answer_is_cut_off() -> None:
    with site(reading=SHORT) as port, closing(sent(port, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n")) as client:
        time.sleep(2 * SHORT)
        assert len(all_of(client)) < 1000 * 2**16


def test_a_slow_request_and_a_long_answer_are_no_reason_to_close() -> None:
    with site(headers=SHORT) as port, closing(sent(port, post(2, "x"))) as client:
        time.sleep(2 * SHORT)
        client.sendall(b"x")
        response = http.client.HTTPResponse(client)
        response.begin()
        assert (response.status, response.read()) == (200, b"2")


def test_whoever_may_not_come_in_is_refused_before_a_body_is_read() -> None:
    with site(access=Access(token="t")) as port, closing(sent(port, post(10**6))) as client:
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 401


def test_the_limits_of_a_site_are_long_enough_for_people() -> None:
    assert (server.HEADERS, server.READING, Limits().seconds) == (10.0, 60.0, 60.0)
    assert Limits().largest >= 10 * 2**20  # what MLflow's pages send as one artifact
