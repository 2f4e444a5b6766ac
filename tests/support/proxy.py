"""A TCP proxy in front of a PostgreSQL server that slows, cuts or stops the connections at a chosen query.

It reads the frames of PostgreSQL's protocol (version 3, unencrypted), so that it knows where a query begins
and when the server has finished it (ReadyForQuery: what it did is committed). One thread per connection.

    with Proxy(server_url) as proxy:
        proxy.break_after(1, containing="insert")
        ...                                  # connect to proxy.url
        assert proxy.fired
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from studies.storage.url import StorageURL

When = Literal["before", "after"]
Hook = Callable[[int, str, When], None]

_CANCEL, _SSL, _GSS = 80877102, 80877103, 80877104
"""Codes that stand where a start-up message has the protocol's version."""
_CHUNK: Final = 1 << 16  # bytes
_TIMER_SLACK: Final = 100e-6
"""Seconds by which Linux wakes a sleeper too late: so much earlier the proxy begins to look at the clock."""
_PATIENCE: Final = 10.0
"""Seconds that the end waits for a hook to return."""


class Proxy:
    """Listens on a free port of 127.0.0.1 while its ``with`` block runs; clients connect to ``url``.

    All counts are over all connections, in the order in which the queries reached the proxy. A query is a
    simple Query or an Execute of the extended protocol.
    """

    def __init__(self, server: StorageURL, *, delay: float = 0.0) -> None:
        """Stand in front of ``server``: its first host, or its socket directory.

        Args:
            delay: seconds added on each way: a round trip takes twice as much longer. May be changed any time.
        """
        self.delay = delay
        self.statements: list[str] = []
        """The text of each query since the start or ``reset``."""
        self.hook: Hook | None = None
        self._hook_error: BaseException | None = None
        self._server = server
        self._break: _Break | None = None
        self._state: Literal["up", "hung", "down"] = "down"
        self._changed = threading.Condition()  # guards everything here and each session's settled
        self._sessions: set[_Session] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        # Bound, but never listening: it keeps the port ours while we are down and refuse.
        self._port_holder = _bound_to(0)
        self._port = int(self._port_holder.getsockname()[1])

    def __enter__(self) -> Proxy:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._port_holder.close()
        for session in self._threads:
            session.join(timeout=_PATIENCE)
        if any(session.is_alive() for session in self._threads):
            raise RuntimeError("a hook of the proxy still blocks its connection")
        if self._hook_error is not None:
            raise self._hook_error

    @property
    def url(self) -> StorageURL:
        """The server's URL, by way of the proxy."""
        return replace(self._server, hosts=(("127.0.0.1", self._port),))

    def reset(self) -> None:
        """Forget the statements counted so far."""
        with self._changed:
            self.statements = []

    def break_before(self, n: int = 1, *, containing: str = "") -> None:
        """Cut the connection of the ``n``-th query from now before the query reaches the server.

        Fires once. Replaces an earlier break.

        Args:
            n: 1 is the next query.
            containing: count only those whose text contains this.
        """
        self._set_break(_Break("before", n, containing))

    def break_after(self, n: int = 1, *, containing: str = "") -> None:
        """Like :meth:`break_before`, but when the server has finished the query, and nothing of its answer was
        passed on. (Except that COPY FROM STDIN is asked for its data.)"""
        self._set_break(_Break("after", n, containing))

    def refuse(self, sqlstate: str, n: int = 1, *, containing: str = "") -> None:
        """Like :meth:`break_before`, but answer the query with an error of this SQLSTATE, in the server's place.

        For a simple Query, outside of a transaction, which is all that our own clients send.
        """
        self._set_break(_Break("before", n, containing, sqlstate=sqlstate))

    @property
    def fired(self) -> bool:
        """Whether the last break or refusal that was asked for has met its query."""
        return self._break is not None and self._break.fired

    def on_query(self, hook: Hook | None) -> None:
        """Call ``hook(n, text, when)`` at each query, at the points of :meth:`break_before` and :meth:`break_after`.

        It is called in the connection's own thread and may block: the others go on. ``n`` is the query's place in
        ``statements``, from 1. Where the client is gone when the hook returns, the connection ends there: what it
        was about to send is not sent. What the hook raises is raised at the end of the ``with`` block.
        """
        self.hook = hook

    def down(self) -> None:
        """Cut every connection, and refuse new ones until ``up``. A connection in a hook is cut when that returns."""
        with self._changed:
            listener, self._listener, self._state = self._listener, None, "down"
            self._doom_all()
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # wakes its thread
        for thread in [thread for thread in self._threads if thread.name == "accept"]:
            thread.join()
        if listener is not None:
            listener.close()
        with self._changed:
            self._doom_all()  # and those that were accepted meanwhile
        self._settle()

    def hang(self) -> None:
        """Pass nothing on, either way, and keep the connections open, until ``up``; new ones find no answer.

        What was sent meanwhile arrives after ``up``, as it does when a network heals.
        """
        with self._changed:
            self._state = "hung"
        self._settle()

    def up(self) -> None:
        """Work normally, after ``down`` or ``hang``."""
        with self._changed:
            self._state = "up"
            self._changed.notify_all()
            if self._listener is None:
                self._listener = _bound_to(self._port)
                self._listener.listen(128)
                self._spawn(threading.Thread(target=self._accept, args=(self._listener,), name="accept", daemon=True))

    def _doom_all(self) -> None:
        for session in self._sessions:
            session.doomed = True

    def _set_break(self, wanted: _Break) -> None:
        with self._changed:
            self._break = wanted

    def _spawn(self, thread: threading.Thread) -> None:
        self._threads = [known for known in self._threads if known.is_alive()] + [thread]
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # down
            session = _Session(self, client)
            with self._changed:
                self._sessions.add(session)
                self._spawn(session)

    def _settle(self) -> None:
        """Wait until every session has seen the new state: it has ended, stands still, or is in a hook."""
        with self._changed:
            self._changed.notify_all()
            for session in self._sessions:
                session.wake()
            self._changed.wait_for(lambda: all(session.settled for session in self._sessions))

    # What a session calls.

    def connect(self) -> socket.socket:
        host, port = self._server.hosts[0]
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port or 5432}")
            return server
        return socket.create_connection((host, port or 5432))

    def arrived(self, text: str) -> _Query:
        """Count a query that has reached the proxy."""
        with self._changed:
            self.statements.append(text)
            query = _Query(len(self.statements), text)
            if self._break is not None and self._break.meets(text):
                query.broken = self._break
            return query

    def wait_while_hung(self, session: _Session) -> None:
        if self._state == "up" and not session.doomed:
            return
        with self._changed, self._settled(session):
            self._changed.wait_for(lambda: session.doomed or self._state != "hung")
        session.check_doom()

    def call_hook(self, session: _Session, query: _Query, when: When) -> None:
        hook = self.hook
        if hook is not None:
            with self._settled(session):
                try:
                    hook(query.n, query.text, when)
                except BaseException as error:
                    self._hook_error = error
                    raise _Cut from error
            session.check_doom()
            session.check_client()

    def ended(self, session: _Session) -> None:
        with self._changed:
            self._sessions.discard(session)
            self._changed.notify_all()

    @contextmanager
    def _settled(self, session: _Session) -> Iterator[None]:
        with self._changed:
            session.settled = True
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                session.settled = False


@dataclass
class _Break:
    """The wish to cut a connection at one query."""

    when: When
    left: int
    containing: str
    fired: bool = False
    sqlstate: str | None = None
    """Instead of being cut, the query is answered with this error."""

    def meets(self, text: str) -> bool:
        """Count ``text``; whether it is the one."""
        if self.containing not in text:
            return False
        self.left -= 1
        return self.left == 0


@dataclass
class _Query:
    n: int
    text: str
    broken: _Break | None = None

    def check_break(self, when: When) -> None:
        if self.broken is not None and self.broken.when == when:
            self.broken.fired = True  # first: the client may look as soon as it is cut
            raise _Refused(self.broken.sqlstate) if self.broken.sqlstate else _Cut


@dataclass
class _Exchange:
    """What one ReadyForQuery of the server answers: the start-up, a Query, or all up to a Sync."""

    queries: list[_Query] = field(default_factory=list)
    watched: bool = False
    """Its answer is held back until it is whole."""


class _Cut(Exception):
    """End this connection, hard."""


class _Refused(Exception):
    """Answer with the error of this SQLSTATE, and pass nothing on."""

    def answer(self) -> bytes:
        """ErrorResponse and ReadyForQuery."""
        fields = b"".join(
            part + text.encode() + b"\0"
            for part, text in ((b"S", "ERROR"), (b"V", "ERROR"), (b"C", str(self)), (b"M", "refused by the proxy"))
        )
        return b"E" + struct.pack("!I", len(fields) + 5) + fields + b"\0" + b"Z" + struct.pack("!I", 5) + b"I"


class _Lane:
    """One direction of a connection: what was read and is to be sent, each piece not before it is due."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.ended = False
        self.buffer = bytearray()
        """The beginning of a message whose rest has not come yet."""
        self.outgoing = bytearray()
        self._waiting: deque[tuple[float, bytes]] = deque()

    def put(self, data: bytes, delay: float) -> None:
        if data:
            self._waiting.append((time.monotonic() + delay, data))

    def flush(self) -> None:
        """Send what is due, as far as the target takes it."""
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            self.outgoing += self._waiting.popleft()[1]
        with suppress(BlockingIOError):
            while self.outgoing:
                del self.outgoing[: self.target.send(self.outgoing)]

    @property
    def due(self) -> float | None:
        """When the next piece is to be sent."""
        return self._waiting[0][0] if self._waiting else None

    @property
    def done(self) -> bool:
        return self.ended and not self.outgoing and not self._waiting

    def message(self, *, typed: bool = True) -> bytes | None:
        """Take the next whole message from the buffer."""
        at = 1 if typed else 0  # the message's type is not counted in its length
        if len(self.buffer) < at + 4:
            return None
        size = at + int(struct.unpack_from("!I", self.buffer, at)[0])
        if len(self.buffer) < size:
            return None
        message = bytes(self.buffer[:size])
        del self.buffer[:size]
        return message


class _Session(threading.Thread):
    """One client's connection, and the connection to the server that belongs to it."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        super().__init__(name="session", daemon=True)
        self.doomed = False
        """To be cut as soon as its thread looks."""
        self.settled = False
        """Stands still: passes nothing before it has looked at the proxy's state again."""
        self._proxy = proxy
        self._client = client
        self._woken, self._waker = socket.socketpair()
        self._starting = True
        self._asked_for_encryption = False
        self._exchanges: deque[_Exchange] = deque()
        self._open: _Exchange | None = None  # of the extended protocol, until its Sync
        self._prepared: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}
        self._held: list[bytes] = []

    def wake(self) -> None:
        self._waker.send(b"!")

    def check_doom(self) -> None:
        if self.doomed:
            raise _Cut

    def check_client(self) -> None:
        """Cut where the client is gone: a process that was killed sends nothing more."""
        try:
            if not self._client.recv(1, socket.MSG_PEEK):
                raise _Cut
        except BlockingIOError:
            pass

    def run(self) -> None:
        server: socket.socket | None = None
        hard = True
        try:
            server = self._proxy.connect()
            self._pump(server)
            hard = False
        except (_Cut, OSError):
            pass  # the other side learns it by a reset
        finally:
            for end in (self._client, server):
                if end is not None:
                    _close(end, hard)
            self._proxy.ended(self)
            self._woken.close()
            self._waker.close()

    def _pump(self, server: socket.socket) -> None:
        for end in (self._client, server):
            end.setblocking(False)
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        requests, answers = _Lane(self._client, server), _Lane(server, self._client)
        self._answers = answers
        while True:
            self._proxy.wait_while_hung(self)
            requests.flush()
            answers.flush()
            if requests.done or answers.done:
                return
            ready = self._wait(requests, answers)
            if self._woken in ready:
                self._woken.recv(_CHUNK)
                continue  # look at the proxy's state before anything is passed
            if self._client in ready:
                _receive(requests)
                self._take_requests(requests)
            if server in ready:
                _receive(answers)
                self._take_answers(answers)

    def _wait(self, *lanes: _Lane) -> list[socket.socket]:
        """Wait for data, for room, or for the time when data is due; return who has data."""
        due = min((lane.due for lane in lanes if lane.due is not None), default=None)
        timeout = None if due is None else max(0.0, due - time.monotonic() - _TIMER_SLACK)
        sources = [lane.source for lane in lanes if not lane.ended]
        full = [lane.target for lane in lanes if lane.outgoing]
        return select.select([self._woken, *sources], full, [], timeout)[0]

    # The client's side.

    def _take_requests(self, lane: _Lane) -> None:
        passed = []
        while (message := lane.message(typed=not self._starting)) is not None:
            if self._starting:
                self._start_up(int(struct.unpack_from("!I", message, 4)[0]))
            else:
                try:
                    self._request(message[:1], message[5:])
                except _Refused as refused:
                    self._exchanges.pop()
                    self._answers.put(refused.answer(), self._proxy.delay)
                    continue
            passed.append(message)
        lane.put(b"".join(passed), self._proxy.delay)

    def _start_up(self, code: int) -> None:
        if code in (_SSL, _GSS):
            self._asked_for_encryption = True
        elif code != _CANCEL:
            self._starting = False
            self._exchanges.append(_Exchange())

    def _request(self, kind: bytes, body: bytes) -> None:
        match kind:
            case b"Q":
                self._exchanges.append(exchange := _Exchange())
                self._query(exchange, _text(body[:-1]))
            case b"F":  # a function call, of libpq's PQfn
                self._exchanges.append(_Exchange())
            case b"P":
                name, text, _ = body.split(b"\0", 2)
                self._prepared[name] = _text(text)
                self._extended()
            case b"B":
                portal, name, _ = body.split(b"\0", 2)
                self._portals[portal] = self._prepared.get(name, "")
                self._extended()
            case b"E":
                self._query(self._extended(), self._portals.get(body.split(b"\0", 1)[0], ""))
            case b"D" | b"C":
                self._extended()
            case b"S":
                self._extended()
                self._open = None

    def _extended(self) -> _Exchange:
        if self._open is None:
            self._exchanges.append(exchange := _Exchange())
            self._open = exchange
        return self._open

    def _query(self, exchange: _Exchange, text: str) -> None:
        query = self._proxy.arrived(text)
        exchange.queries.append(query)
        exchange.watched |= query.broken is not None or self._proxy.hook is not None
        self._proxy.call_hook(self, query, "before")
        query.check_break("before")

    # The server's side.

    def _take_answers(self, lane: _Lane) -> None:
        passed = []
        if self._asked_for_encryption and lane.buffer:
            self._asked_for_encryption = False
            if lane.buffer[0] in b"SG":
                raise _Cut  # what follows could not be read
            passed.append(bytes(lane.buffer[:1]))
            del lane.buffer[:1]
        while (message := lane.message()) is not None:
            self._held.append(message)
            if self._may_pass(message[:1]):
                passed += self._held
                self._held.clear()
        if lane.ended:
            passed += self._held  # such as the reason why the server ends the session
        lane.put(b"".join(passed), self._proxy.delay)

    def _may_pass(self, kind: bytes) -> bool:
        if kind == b"Z" and self._exchanges:
            for query in self._exchanges.popleft().queries:
                self._proxy.call_hook(self, query, "after")
                query.check_break("after")
            return True
        # G asks for the data of COPY FROM STDIN: held back, it would stop the query for ever.
        return kind == b"G" or not self._exchanges or not self._exchanges[0].watched


def _receive(lane: _Lane) -> None:
    data = lane.source.recv(_CHUNK)
    lane.buffer += data
    lane.ended = not data


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _bound_to(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # beside the one that holds the port
    bound.bind(("127.0.0.1", port))
    return bound


def _close(end: socket.socket, hard: bool) -> None:
    if hard:
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    end.close()
