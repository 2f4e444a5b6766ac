"""Start the sites, wait until they answer, restart one that dies, stop them together."""

from __future__ import annotations

import errno
import http.client
import ipaddress
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final
from urllib.parse import quote

from studies.errors import SiteError
from studies.processes import Child, Restarted
from studies.serve.guard import Access
from studies.serve.pages import STUDY
from studies.serve.process import DASHBOARD, MLFLOW, Setup
from studies.storage.url import StorageURL

__all__ = ["DASHBOARD", "MLFLOW", "Site", "is_loopback", "listen"]

#: How many ports to try, from the default on.
TRIES: Final = 100
#: Seconds for a site to answer; MLflow is slow to start.
PATIENCE: Final = 120.0


def is_loopback(host: str) -> bool:
    """Whether ``host`` is a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int | None, usual: int, option: str) -> socket.socket:
    """A listening socket.

    Args:
        host: a name or an address of this machine.
        port: asked for; ``None``: ``usual``, or the next one that is free.
        usual: the port when none is asked for.
        option: of the command line, for the message.

    Raises:
        SiteError: the port is in use, or there is no such address here.
    """
    for candidate in [port] if port is not None else range(usual, usual + TRIES):
        try:
            # Resolved before: the family decides between IPv4 and IPv6, which create_server does not guess.
            family, _, _, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            return socket.create_server((address[0], candidate), family=family, backlog=128)
        except socket.gaierror:
            raise SiteError(f"host {host!r} is not known: give an address of this machine, such as 127.0.0.1") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise SiteError(f"{host} is no address of this machine; 0.0.0.0 means all that it has") from None
            if error.errno == errno.EACCES:
                raise SiteError(f"port {candidate} is reserved to root: choose {option} above 1023") from None
            if error.errno != errno.EADDRINUSE:
                raise
    if port is None:
        raise SiteError(f"the ports {usual} to {usual + TRIES - 1} of {host} are all in use: choose one by {option}")
    raise SiteError(
        f"port {port} of {host} is in use: end what uses it, choose another {option}, "
        "or leave that out to take one that is free"
    )


class Site(Restarted):
    """One site: its process and its socket, which outlives the process: a restart keeps the port.

    Args:
        name: :data:`DASHBOARD` or :data:`MLFLOW`.
        listener: where it is served.
        storage: of the studies.
        tracking: MLflow's database; ``None`` for the one beside the studies.
        home: of Studyhall, for MLflow's artifacts.
        access: who may do what.
        environment: of the process.
        output: is given each line that the process writes, and told of its deaths.
        inherit: open files for it to hold.
    """

    def __init__(
        self,
        name: str,
        listener: socket.socket,
        *,
        storage: StorageURL,
        tracking: str | None = None,
        home: Path,
        access: Access,
        environment: Mapping[str, str],
        output: Callable[[str], None],
        inherit: Sequence[int] = (),
    ) -> None:
        self._listener = listener
        self._token = access.token
        setup = Setup(
            site=name,
            descriptor=listener.fileno(),
            storage=storage.sqlalchemy,
            tracking=tracking,
            home=str(home),
            access=asdict(access),
        )

        def start() -> Child:
            return Child(
                "studies.serve.process",
                setup,
                environment=environment,
                output=lambda line: output(f"{name} | {line}"),
                inherit=[listener.fileno(), *inherit],
            )

        super().__init__(name, start, output)

    @property
    def address(self) -> str:
        """The address for a browser."""
        host, port = self._listener.getsockname()[:2]
        if ipaddress.ip_address(host).is_unspecified:
            # 0.0.0.0 is an address to listen at; a browser needs a name.
            host = socket.gethostname()
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def entrance(self, study: str | None = None) -> str:
        """The address with the token, if there is one; of the page of a study, if one is named."""
        path = "" if study is None else f"{STUDY}{quote(study, safe='')}"
        return f"{self.address}{path or '/'}?token={self._token}" if self._token else f"{self.address}{path}"

    def wait_until_ready(self) -> None:
        """Wait until it answers.

        Raises:
            SiteError: it cannot start.
        """
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if why := self.cause_of_death:
                raise SiteError(f"{self.name} cannot start: {why}")
            if time.monotonic() > deadline:
                raise SiteError(f"{self.name} does not answer at {self.address} after {PATIENCE:.0f} s")
            time.sleep(0.05)

    def close(self, within: float) -> None:
        """Stop the process for good, and close the socket."""
        super().close(within)
        self._listener.close()

    def _answers(self) -> bool:
        host, port = self._listener.getsockname()[:2]
        connection = http.client.HTTPConnection(host, port, timeout=1.0)
        try:
            connection.request("GET", "/")
            # 401 is an answer, too: a viewer without a token is turned away by a site that works.
            return connection.getresponse().status < 500
        except OSError:
            return False
        finally:
            connection.close()
