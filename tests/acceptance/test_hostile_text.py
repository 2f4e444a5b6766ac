"""Studies that stock Optuna made, whose every text wants to steer the terminal, the log or the page."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from studies import PostgresStorage, StudySpec
from tests.acceptance.conftest import Shell

pytestmark = pytest.mark.slow

#: A terminal's title, its screen cleared, a line of its own, right to left, C1, no width, a page's script.
EVIL = "\x1b]0;title\x07\x1b[2J\nerror: forged\r\u202eexe\x9b31m\u200b\u2028</script><script>alert(1)</script>$x^{"
HALF = "half \ud83d"
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
LOCALES = ({}, {"LC_ALL": "C", "LANG": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"})
#: Commands for people, and those whose output is data.
PEOPLES = (
    *(("ls",), ("status", EVIL), ("best", EVIL), ("trials", EVIL), ("show", EVIL, "2")),
    *(("show", EVIL, "1"), ("doctor",)),
)
DATAS = (
    *(("ls", "--format", "json"), ("best", EVIL, "--format", "json"), ("status", EVIL, "--format", "json")),
    *(("trials", EVIL, "--format", "json"), ("trials", EVIL, "--format", "csv"), ("best", EVIL, "--format", "toml")),
)
#: Runs each command in a process forked from this one: Python starts once, in the locale that it finds.
COMMANDS = """
import json, os, sys
import studies.cli, studies.doctor, studies.storage.reader
for number, arguments in enumerate(json.loads(sys.argv[1])):
    if not (child := os.fork()):
        for end, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), end)
        sys.argv[:] = ["studyhall", *arguments]
        studies.cli.main()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def stock_storage(shell: Shell) -> optuna.storages.RDBStorage:
    """Optuna's own, beside our tables."""
    PostgresStorage(shell.url).close()
    return optuna.storages.RDBStorage(shell.url.sqlalchemy)


@pytest.fixture
def evil(shell: Shell) -> Shell:
    """A shell with such a study, of three trials, one of which failed."""
    storage = stock_storage(shell)
    study = optuna.create_study(storage=storage, study_name=EVIL)
    study.set_user_attr(EVIL, EVIL)
    distributions = {EVIL[:60]: CategoricalDistribution([EVIL, HALF]), "x": FloatDistribution(0, 1)}
    for value, choice in ((0.5, EVIL), (0.25, HALF)):
        study.add_trial(
            optuna.create_trial(
                params={EVIL[:60]: choice, "x": value},
                distributions=distributions,
                value=value,
                intermediate_values={0: 1.0, 1: value},
                user_attrs={EVIL: EVIL},
            )
        )
    failed = {"error": f"ValueError: {EVIL}{HALF}", "traceback": f"Traceback:\n\tline {EVIL}{HALF}"}
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=failed))
    storage.remove_session()
    storage.engine.dispose()
    return shell


Done = subprocess.CompletedProcess[bytes]


def checked(done: Done) -> str:
    out = done.stdout.decode("latin-1" if b"\xf6" in done.stdout else "utf-8")
    err = done.stderr.decode()
    assert done.returncode == 0, err
    assert "Traceback (most recent call last)" not in err
    for text in (out, err):
        assert not (found := UNSAFE.search(text)), (found, text)
        assert not re.search("^error: forged", text, re.MULTILINE), text
    return out


def run(shell: Shell, *arguments: str) -> Done:
    return subprocess.run(
        [shell.command, *arguments],
        cwd=shell.folder,
        env=shell.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
    )


def run_all(shell: Shell, locale: dict[str, str], *commands: tuple[str, ...]) -> Iterator[Done]:
    """Run commands in a locale, with Python's start and imports once for all of them."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMMANDS, json.dumps(commands)],
        cwd=shell.folder,
        env={**shell.environment, **locale},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    for number, status in enumerate(map(int, done.stdout.split())):
        out, err = ((shell.folder / f"{number}.{end}").read_bytes() for end in ("out", "err"))
        yield subprocess.CompletedProcess(commands[number], status, out, err)


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_in_any_locale_people_see_it_and_nothing_else_and_data_hold_it_escaped(
    evil: Shell, locale: dict[str, str]
) -> None:
    results = run_all(evil, locale, *PEOPLES, *DATAS)
    for done in islice(results, 5):
        assert r"\x1b]0;title\x07\x1b[2J" in checked(done), done.args
    for done in islice(results, 2):
        checked(done)

    ((row,), best, status, rows) = (json.loads(checked(done)) for done in islice(results, 4))
    assert row["name"] == EVIL
    assert best["study"] == EVIL
    assert best["params"][EVIL[:60]] == HALF
    assert status["best"] == best
    assert rows[2]["error"] == f"ValueError: {EVIL}{HALF}"
    csv, refused = results
    assert csv.returncode == 0
    assert refused.returncode == 1
    assert refused.stderr.decode().startswith("error: a value holds half a character")


def test_a_shell_that_evaluates_it_gets_the_values_and_runs_nothing(shell: Shell) -> None:
    value = "x'; touch pwned; $(touch pwned) `touch pwned`\n touch pwned #"
    name = "a'; touch pwned; b"
    storage = stock_storage(shell)
    study = optuna.create_study(storage=storage, study_name="env")
    distributions = {name: CategoricalDistribution([value])}
    study.add_trial(optuna.create_trial(params={name: value}, distributions=distributions, value=1.0))
    storage.remove_session()
    storage.engine.dispose()
    for script in (
        'eval "$(studyhall best env --format env)"; printf %s "$A___TOUCH_PWNED__B"',
        'eval "set -- $(studyhall best env --format args)"; printf %s "$2"',
    ):
        path = f"{Path(shell.command).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=shell.folder,
            env={**shell.environment, "PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.stdout == value, done.stderr
    assert not (shell.folder / "pwned").exists()


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["trials", EVIL], ["trials", EVIL, "--format", "csv"], ["show", EVIL, "2"], ["watch", EVIL]],
    ids=str,
)
def test_a_terminal_is_steered_by_our_colours_alone(evil: Shell, arguments: list[str]) -> None:
    leader, follower = pty.openpty()
    environment = {**evil.environment, "TERM": "xterm", "COLUMNS": "200", "LINES": "40"}
    with subprocess.Popen(
        [evil.command, *arguments], cwd=evil.folder, env=environment, stdin=follower, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        shown = b""
        seen = re.compile(rb"\x1b\]0;|\x9b|\xe2\x80\xae|\\x1b\]0;t")
        with suppress(OSError):  # its end
            while chunk := os.read(leader, 65536):
                shown += chunk
                if seen.search(shown):
                    process.terminate()  # and go on reading: who writes to a full terminal does not end
        os.close(leader)
    found = seen.search(shown)
    assert found, shown
    assert found[0] == rb"\x1b]0;t"


def test_reports_and_plots_hold_it_as_text(evil: Shell) -> None:
    checked(run(evil, "report", EVIL, "-o", "report.html"))
    page = (evil.folder / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "\x1b" not in page
    for kind in ("history", "slice"):
        for ending in ("png", "html"):
            checked(run(evil, "plot", EVIL, kind, "-o", f"{kind}.{ending}"))
            assert b"<script>alert(1)" not in (evil.folder / f"{kind}.{ending}").read_bytes()


def test_what_a_worker_prints_keeps_its_colours_and_steers_nothing(shell: Shell) -> None:
    (shell.folder / "loud.py").write_text(
        "def f(trial):\n    print('\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07 \\x1b[2J \\u202e tab\\t.', flush=True)\n"
        "    raise ValueError('\\x1b[2J\\nerror: forged')\n"
    )
    done = shell.run(
        *("run", "loud.py:f", "--name", "loud", "--workers", "1", "--trials", "1"),
        *("--set", "budget.max_failures=1"),
    )
    assert r"red \x1b]0;title\x07 \x1b[2J \u202e tab" in done.stderr
    assert not UNSAFE.search(done.stderr), done.stderr
    assert not re.search("^error: forged", done.stderr, re.MULTILINE)


@pytest.mark.parametrize("store", ["/etc", "{}/../..", "s3://somebody/else"])
def test_a_study_chooses_no_place_for_checkpoints(
    shell: Shell, store: str, look: Callable[[], PostgresStorage]
) -> None:
    data = {
        "name": "stored",
        "objective": {"path": f"{shell.folder}/script.py:objective"},
        "budget": {"trials": 1},
        "checkpoints": {"store": os.path.normpath(store.replace("{}", str(shell.folder))).replace("s3:/", "s3://")},
    }
    look().create_study(StudySpec.from_dict(data))
    place = data["checkpoints"]["store"]  # type: ignore[index]
    work = ("work", "stored", "--workers", "1", "--allow", f"{shell.folder}/script.py", "--allow", "/")
    done = shell.run(*work)
    assert done.returncode == 1
    assert f"study 'stored' keeps checkpoints in {place!r}, which this machine does not allow" in done.stderr
    assert f"--allow store={place}" in done.stderr


def test_an_allowed_place_is_used(shell: Shell, look: Callable[[], PostgresStorage]) -> None:
    (shell.folder / "shared").mkdir()
    spec = {
        "name": "stored",
        "objective": {"path": f"{shell.folder}/script.py:objective"},
        "budget": {"trials": 1},
        "checkpoints": {"store": f"{shell.folder}/shared"},
    }
    look().create_study(StudySpec.from_dict(spec))
    shell.data(
        "work", "stored", "--workers", "1", "--allow", f"{shell.folder}/", "--allow", f"store={shell.folder}/shared"
    )


@pytest.mark.parametrize("target", ["real", "nowhere"])
def test_finalize_replaces_a_link_and_not_what_it_leads_to(shell: Shell, target: str) -> None:
    (shell.folder / "final.py").write_text(
        "class Net:\n    def __call__(self, trial): return 1.0\n"
        "    def finalize(self, params, *, seed, device, directory, progress):\n"
        "        (directory / 'weights').write_text('w')\n        return {'accuracy': 1.0}\n"
    )
    shell.data("run", "final.py:Net", "--name", "net", "--workers", "1", "--trials", "1")
    (shell.folder / "real").mkdir()
    (shell.folder / "out").symlink_to(target)
    shell.data("finalize", "net", "--trial", "0", "--out", "out", "--objective", "final.py:Net")
    assert not (shell.folder / "out").is_symlink()
    assert (shell.folder / "out" / "weights").read_text() == "w"
    assert not list((shell.folder / "real").iterdir())
    assert not (shell.folder / "nowhere").exists()


def test_a_backup_goes_through_no_link(shell: Shell) -> None:
    shell.data("create", "script.py:objective")
    (shell.folder / "victim").write_text("mine")
    for name in ("link.dump", ".link.dump.part"):
        (shell.folder / name).symlink_to("victim" if name.startswith(".") else "nowhere")
    shell.data("db", "backup", "link.dump")
    assert not (shell.folder / "link.dump").is_symlink()
    assert not (shell.folder / "nowhere").exists()
    assert (shell.folder / "victim").read_text() == "mine"
    (shell.folder / "link2.dump").symlink_to("victim")
    assert "is there already" in shell.run("db", "backup", "link2.dump").stderr
    assert (shell.folder / "victim").read_text() == "mine"
