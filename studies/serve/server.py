"""The HTTP server of a site: uvicorn with timeouts. By itself it waits forever for a silent client (slowloris)."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds for the headers of a request, from the connection or the previous answer on.
HEADERS: Final = 10.0
#: Seconds without progress of a client that reads an answer.
READING: Final = 60.0


class Deadlines(H11Protocol):
    """A connection that is closed when its client is silent, or reads nothing.

    The bodies of requests are not watched here: the guard refuses them with a reason.
    """

    headers_within = HEADERS
    reading_within = READING
    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.headers_within, self._end)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._stop_if_busy()

    def on_response_complete(self) -> None:
        # The rest of a refused body gets as much time as new headers.
        self._stop()
        self._deadline = self.loop.call_later(self.headers_within, self._end)
        super().on_response_complete()  # starts the next request, if it has already arrived
        self._stop_if_busy()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(self.reading_within, self.transport.abort)

    def resume_writing(self) -> None:
        if self._reading:
            self._reading.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        if self._reading:
            self._reading.cancel()
        super().connection_lost(exc)

    def _stop_if_busy(self) -> None:
        if self.conn.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY):
            self._stop()

    def _stop(self) -> None:
        if self._deadline:
            self._deadline.cancel()

    def _end(self) -> None:
        is_in_headers = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if is_in_headers and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()


def serve(application: Any, descriptor: int) -> None:
    """Serve on a listening socket, until a signal."""
    config = uvicorn.Config(
        application, http=Deadlines, log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])
