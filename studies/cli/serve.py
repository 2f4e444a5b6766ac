"""The command that shows studies in a browser: serve."""

from __future__ import annotations

import math
import os
import secrets
import stat
import time
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from studies.cli.common import Common, common_options, home, say, until_interrupted
from studies.cli.formats import echo
from studies.cli.mirror import POLL, RestartedMirror, checked, environment, tracking_option
from studies.errors import SiteError, StorageUnreachable, StudyNotFound

if TYPE_CHECKING:
    import socket

    from studies.notify.notifier import Notifier
    from studies.serve.guard import Access
    from studies.serve.sites import Site
    from studies.storage.postgres import PostgresStorage

#: Seconds to wait for the processes to exit before they are killed.
GRACE: Final = 3.0
_PORT: Final = click.IntRange(1, 65535)


@click.command()
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--open", "opened", is_flag=True, help="Open them in a browser.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; any other needs a password.")
@click.option(
    "--dashboard-port", type=click.IntRange(1, 65535), metavar="PORT", help="Default: 8080, or the next free."
)
@click.option("--mlflow-port", type=_PORT, metavar="PORT", help="Default: 5000, or the next that is free.")
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Holds the password of the user `viewer`, who reads. [env: STUDYHALL_PASSWORD]",
)
@click.option(
    "--admin-password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Holds the password of the user `admin`, who also writes. [env: STUDYHALL_ADMIN_PASSWORD]",
)
@click.option(
    "--only",
    type=click.Choice(["dashboard", "mlflow"]),
    help="One site without the mirror: for containers.",
)
@click.option("--no-token", is_flag=True, help="Give every user and program on this machine access.")
@click.option(
    "--read-only", is_flag=True, help="Refuse all writes; read the studies as a database user without rights to write."
)
@tracking_option
@common_options
def serve(
    common: Common,
    name: str | None,
    opened: bool,
    host: str,
    dashboard_port: int | None,
    mlflow_port: int | None,
    password_file: Path | None,
    admin_password_file: Path | None,
    only: str | None,
    no_token: bool,
    read_only: bool,
    tracking_uri: str | None,
) -> None:
    """Show studies in a browser: optuna-dashboard, MLflow.

    It starts both sites and the mirror into MLflow, prints the addresses, and restarts what dies, until
    Ctrl-C. With NAME the addresses lead to that study: its trials with their curves. An address holds a
    token, new with each start, without which access is refused. With --host other machines reach the
    sites, with passwords instead of the token.
    """
    from studies.serve.sites import DASHBOARD, MLFLOW, listen

    tracking_uri = checked(tracking_uri)
    access = _access(host, password_file, admin_password_file, read_only=read_only, no_token=no_token)
    with common.open(create=not read_only) as storage, until_interrupted():
        if name is not None:
            storage.find_study(name)
        is_elsewhere = (tracking_uri or "").startswith("http")
        if is_elsewhere and (mlflow_port or only == "mlflow"):
            raise click.UsageError(
                "--mlflow-port and --only mlflow are for our MLflow, and --tracking-uri names another"
            )
        listeners = {}
        if only != "mlflow":
            listeners[DASHBOARD] = listen(host, dashboard_port, 8080, "--dashboard-port")
        if only != "dashboard" and not is_elsewhere:
            listeners[MLFLOW] = listen(host, mlflow_port, 5000, "--mlflow-port")
        shown = Shown(study=name, in_browser=opened)
        _serve(storage, listeners, access, tracking_uri, shown, read_only=read_only, is_alone=only is not None)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The pages that `serve` prints and opens."""

    study: str | None
    """The study whose pages these are; ``None`` for the sites' first pages."""
    in_browser: bool


def _serve(
    storage: PostgresStorage,
    listeners: dict[str, socket.socket],
    access: Access,
    tracking_uri: str | None,
    shown: Shown,
    *,
    read_only: bool,
    is_alone: bool,
) -> None:
    from studies.serve.sites import DASHBOARD, Site
    from studies.storage.roles import reader

    sites = [
        Site(
            name,
            listener,
            storage=reader(storage) if read_only and name == DASHBOARD else storage.location,
            tracking=tracking_uri,
            home=home(),
            access=access,
            environment=environment(),
            output=say,
            # The embedded server stops with its last user, which may be a site.
            inherit=[storage.server.fileno()] if storage.server else [],
        )
        for name, listener in listeners.items()
    ]
    notifications = _Notifications(storage, is_on=not (read_only or is_alone))
    mirrors = [] if is_alone else [RestartedMirror(storage, tracking_uri)]
    try:
        # The sites start in parallel, each with its listening socket: early requests wait instead of failing.
        for site in sites:
            site.wait_until_ready()
        _print_addresses(storage, sites, access, tracking_uri, shown.study)
        is_ready = False
        while True:
            if not is_ready and (is_ready := all(mirror.is_ready() for mirror in mirrors)) and shown.in_browser:
                for site in sites:  # only now: MLflow has no studies before the mirror is connected
                    webbrowser.open(site.entrance(shown.study))
            for process in (*sites, *(mirrors if is_ready else ())):
                process.poll()
            notifications.poll()
            time.sleep(POLL)
    finally:
        # First ask all of them to exit, then wait: they end in parallel.
        for process in (*sites, *mirrors):
            process.stop()
        for process in (*sites, *mirrors):
            process.close(GRACE)
        notifications.stop()


class _Notifications:
    """Notifications of all studies: the machines that run a study may all be dead, and only `serve` left to report it.

    Args:
        storage: where the studies are.
        is_on: whether to send any. Sending writes to the database, which `--read-only` must not.
    """

    EVERY = 10.0

    def __init__(self, storage: PostgresStorage, *, is_on: bool) -> None:
        self._storage = storage
        self._names: list[str] = []
        self._notifier: Notifier | None = None
        self._due = 0.0 if is_on else math.inf

    def poll(self) -> None:
        """Watch new studies as well. To be called about twice a second."""
        from studies.notify.notifier import Notifier

        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self.EVERY
        with suppress(StorageUnreachable, StudyNotFound):  # the next poll tries again
            names = self._storage.study_names()
            # A notifier watches the studies that it was given: others need a new one.
            if names != self._names:
                self.stop()
                records = [self._storage.find_study(name) for name in names]
                self._notifier = Notifier(self._storage, records, warn=say)
                self._notifier.start()
                self._names = names

    def stop(self) -> None:
        """Send pending notifications, and end."""
        if self._notifier:
            self._notifier.stop(1.0)
            self._notifier = None


def _print_addresses(
    storage: PostgresStorage, sites: Sequence[Site], access: Access, tracking_uri: str | None, study: str | None
) -> None:
    from studies.mirror.server import display
    from studies.serve.guard import VIEWER

    rows = {"studies": storage.where, **{site.name: site.entrance(study) for site in sites}}
    if tracking_uri and len(sites) == 1:
        rows["MLflow"] = display(tracking_uri)
    width = max(map(len, rows))
    for name, where in rows.items():
        echo(f"{name:<{width}}  {where}")
    if access.token:
        say("an address gives access to its site; programs send its token as: Authorization: Bearer TOKEN")
    elif access.anybody:
        may = "read" if access.role == VIEWER else "read and change"
        say(f"--no-token: every user and program on this machine can {may} all studies and all that MLflow holds")
    else:
        users = [name for name, word in (("viewer", access.viewer_password), ("admin", access.admin_password)) if word]
        say(f"log in as {' or '.join(users)}; passwords travel unencrypted: on a network, put TLS in front")
    if study is None:
        say(f"a study's own page is {sites[0].address}/study/NAME; to print it: studyhall serve NAME")
    say("Ctrl-C stops them")


def _access(host: str, viewer_file: Path | None, admin_file: Path | None, *, read_only: bool, no_token: bool) -> Access:
    from studies.serve.guard import ADMIN, VIEWER, Access
    from studies.serve.sites import is_loopback

    viewer = _password(viewer_file, "--password-file", "STUDYHALL_PASSWORD")
    admin = _password(admin_file, "--admin-password-file", "STUDYHALL_ADMIN_PASSWORD")
    if admin and read_only:
        raise click.UsageError("--read-only and an admin's password exclude each other: an admin may write")
    if (viewer or admin) and no_token:
        raise click.UsageError("--no-token lets everybody in, and a password does not: leave one of them out")
    if viewer or admin:
        return Access(viewer_password=viewer, admin_password=admin)
    if not is_loopback(host):
        raise SiteError(
            f"--host {host}: others could reach the sites there, so a password is needed: write one into a file that "
            "you alone can read, and give --password-file FILE (or set STUDYHALL_PASSWORD)"
        )
    return Access(
        token=None if no_token else secrets.token_urlsafe(32),
        anybody=no_token,
        role=VIEWER if read_only else ADMIN,
        # Another name in a request is one that somebody points to this machine: DNS rebinding.
        hosts=("localhost", "127.0.0.1", "::1", host),
    )


def _password(file: Path | None, option: str, variable: str) -> str | None:
    """The first line of ``file``, else the value of ``variable``."""
    if file is None:
        return os.environ.get(variable) or None
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o007:
            raise SiteError(f"{option} {file} can be read by others: make it yours alone: chmod 600 {file}")
        password = file.read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SiteError(f"{option} {file} cannot be read: {reason}") from None
    if not password:
        raise SiteError(f"{option} {file} is empty: its first line is the password")
    return password
