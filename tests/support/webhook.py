"""A web address on 127.0.0.1 that takes messages, refuses them, or hangs."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "/services/T0/c4n4ry?token=c4n4ry"


class Webhook:
    """Takes messages while ``status`` is 200. A context manager."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        """What was taken, in order."""
        self.status = 200
        self.tries: list[float] = []
        """When it was asked, by the monotonic clock."""
        self.headers: list[dict[str, str]] = []
        self._hanging = threading.Event()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                webhook.tries.append(time.monotonic())
                webhook.headers.append(dict(self.headers))
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if webhook.status == 0:
                    webhook._hanging.wait(60)
                    return
                if self.path == SECRET and webhook.status == 200:
                    webhook.messages.append(json.loads(body))
                self.send_response(webhook.status)
                if 300 <= webhook.status < 400:
                    self.send_header("Location", SECRET)
                self.end_headers()

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}{SECRET}"

    def __enter__(self) -> Webhook:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._hanging.set()
        self._server.shutdown()
        self._server.server_close()

    def events(self, event: str) -> list[dict[str, Any]]:
        """The messages about ``event``."""
        return [message for message in self.messages if message["event"] == event]
