"""The command ``studyhall`` in processes that are forked from one that has imported it.

Importing takes half a second of each command, of which the tests run hundreds. A forked command is a process like
any other: it has its own environment, folder and output, takes signals and can be killed.
"""

from __future__ import annotations

import atexit
import gc
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

COMMAND: Final = str(Path(sys.executable).with_name("studyhall"))
"""As it was installed."""
#: What most commands import as they run, and Optuna's storage, which takes as long as all the rest.
_IMPORTED: Final = [
    *("studies.cli", "studies.session", "studies.doctor", "studies.progress", "studies.cli.watch_picture"),
    *("studies.storage.reader", "studies.storage.embedded.server", "studies.spec.source", "studies.spec.samplers"),
    *("optuna.storages._rdb.models", "alembic.command", "sqlalchemy.dialects.sqlite", "numpy.random", __name__),
]
#: What Python and its libraries read as they start.
_READ_AT_START: Final = ("PYTHON", "LC_", "LANG", "OPTUNA_", "OMP_")


def start(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Command | subprocess.Popen[str]:
    """Start ``studyhall`` with pipes for its output, and nothing to read.

    Args:
        argv: its path, and its arguments.
        cwd: the folder in which it runs.
        env: all of its environment.
    """
    if sys.platform == "linux" and argv[0] == COMMAND and _at_start(env) == _at_start(os.environ):
        return Command(argv, cwd, env)
    return subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}


class Command:
    """A forked command, with those methods of :class:`subprocess.Popen` that the tests use."""

    def __init__(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.args = list(argv)
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)
        try:
            self._process = _context().Process(
                target=_run, args=(self.args, str(cwd), dict(env), DupFd(out_end), DupFd(err_end))
            )
            self._process.start()
        finally:
            os.close(out_end)
            os.close(err_end)
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """As of its end; minus the signal's number where one ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read all output and wait for the end."""
        read: dict[str, str] = {}
        pipes = {"out": self.stdout, "err": self.stderr}
        readers = [
            threading.Thread(target=lambda name=name, pipe=pipe: read.update({name: _rest(pipe)}), daemon=True)
            for name, pipe in pipes.items()
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        if len(read) < len(pipes):  # a process that it started holds the pipe
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return read["out"], read["err"]

    def send_signal(self, number: signal.Signals | int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait()


def _rest(pipe: io.TextIOWrapper) -> str:
    if pipe.closed:
        return ""
    with pipe:
        return pipe.read()


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)  # until the next start of the server, which all of a process share
    return context


def _run(argv: list[str], cwd: str, env: dict[str, str], out: DupFd, err: DupFd) -> None:
    """Be the command."""
    gc.freeze()  # No collection copies the pages that are shared with the server.
    for number, end in enumerate((os.open(os.devnull, os.O_RDWR), out.detach(), err.detach())):
        os.dup2(end, number)
        os.close(end)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww"))
    sys.stderr.reconfigure(errors="backslashreplace", line_buffering=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = argv
    sys.path[:] = [str(Path(COMMAND).parent), *_PATH]
    import studies.cli

    try:
        studies.cli.main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends a process without them
        try:
            sys.stderr.flush()
        except OSError:  # whoever read it has left: Python ignores that at its end, multiprocessing does not
            os.dup2(0, 2)


#: Of the process that has imported the command, which pytest has not changed.
_PATH: Final = [folder for folder in sys.path if folder]
