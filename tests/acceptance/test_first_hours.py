"""A new user's first hours: a training loop of their own, its direction, and its way to a second machine."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from studies import PostgresStorage
from tests.acceptance.conftest import Shell
from tests.conftest import ROOT
from tests.support.waiting import eventually

Look = Callable[[], PostgresStorage]

#: A user's own loop: as a function, and as a class that saves its work and writes down its epochs.
TRAIN = """
import io
import os
import signal

import torch

X = torch.linspace(-1, 1, 64).unsqueeze(1)


def fit(trial, epochs=3, first=0, model=None, after=lambda epoch: None):
    model = model or torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    for epoch in range(first, epochs):
        loss = ((model(X) - 3 * X) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.report(-loss.item(), epoch)
        after(epoch)
    return -loss.item()


class Net:
    def __init__(self, epochs):
        self.epochs = epochs

    def __call__(self, trial):
        model, first = torch.nn.Linear(1, 1), 0
        if saved := trial.restore():
            model.load_state_dict(torch.load(io.BytesIO(saved.state)))
            first = saved.step + 1

        def after(epoch):
            with open(os.environ["DIARY"], "a") as diary:
                print(os.environ["WHERE"], epoch, file=diary)
            buffer = io.BytesIO()
            torch.save(model.state_dict(), buffer)
            trial.checkpoint(epoch, buffer.getvalue())
            if os.environ["WHERE"] == "here" and epoch == 2:  # this machine loses its power
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

        return fit(trial, self.epochs, first, model, after)
"""

#: Runs the objective of docs/writing-objectives.md as it stands; tells of its steps, dies in the third and waits for a
#: pause in the sixth.
DISTURBED = """
import os
import signal
import time
from pathlib import Path

import documented

HERE = Path(__file__).parent


def objective(trial):
    report = trial.report

    def disturbed(value, step, **metrics):
        report(value, step, **metrics)
        with (HERE / "steps").open("a") as steps:
            print(step, file=steps)
        if step == 3 and not (HERE / "died").exists():
            (HERE / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 6 and not (HERE / "paused").exists():
            (HERE / "paused").touch()
            while not trial.stop_requested:
                time.sleep(0.1)

    trial.report = disturbed
    return documented.objective(trial)
"""


@pytest.fixture
def there(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Another machine on the same storage: a home of its own, and nothing of the first one's files."""
    folder = tmp_path_factory.mktemp("there")
    return Shell(shell.url, folder, folder / "home")


def say(shell: Shell, *command: str | Path, status: int = 0) -> str:
    """What a command says on standard error."""
    done = shell.run(*command)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_objective_s_own_direction_is_taken_or_demanded(shell: Shell) -> None:
    (shell.folder / "net.py").write_text(
        "class Net:\n    direction = 'maximize'\n\n    def __call__(self, trial):\n        return 1.0\n"
    )
    run = ("run", "net.py:Net", "--trials", "1", "--workers", "1")
    assert "it maximizes value" in say(shell, *run)
    assert 'direction = "maximize"' in shell.data("show", "net-Net")

    say(shell, "create", "net.py:Net", "--trials", "1", "--name", "s")  # which does not look at the objective
    refused = say(shell, *run, "--name", "s", status=1)
    change = "studyhall extend s --direction maximize"
    assert "study 's' minimizes value, but its objective 'net.py:Net' is to be maximized" in refused
    assert f"; change it with: {change}\n" in refused
    say(shell, *change.split()[1:])
    assert "it maximizes value" in say(shell, *run, "--name", "s")


def test_the_direction_is_said_and_can_be_given_and_changed(shell: Shell) -> None:
    assumed = say(shell, "create", "script.py:objective", "--name", "s", "--trials", "1").splitlines()[0]
    assert "it minimizes value, as no direction was given" in assumed
    change = re.search(r"change that with: studyhall (.*)", assumed)
    assert change
    for command in (change[1], "extend s --direction minimize", "extend s --direction maximize"):
        say(shell, *shlex.split(command))
    assert 'direction = "maximize"' in shell.data("show", "s")
    # The same command goes on, whatever was assumed; one that says otherwise does not.
    command = ("run", "script.py:objective", "--name", "s", "--trials", "1", "--workers", "1")
    refused = say(shell, *command, "--direction", "minimize", status=1)
    assert 'direction is "maximize", not "minimize"; as no trial has finished, change it with: ' in refused
    assert say(shell, *command).splitlines()[0] == "study 's' goes on: 1 worker; it maximizes value"
    assert re.match(r"best of s: trial 0 with value = \S+ \(maximized\)\n", shell.data("best", "s"))
    refused = say(shell, "extend", "s", "--direction", "minimize", status=2)
    assert "study 's' maximizes value, and by that 1 trial finished already; run it anew with another" in refused
    refused = say(shell, *command, "--direction", "minimize", status=1)
    assert 'not "minimize"; work on it as it is with: studyhall work s --objective script.py:objective; or' in refused
    assert "has 1 objective, not 2: give --direction once" in say(
        shell, "extend", "s", *("--direction", "minimize") * 2, status=2
    )
    said = say(shell, "create", "script.py:two", "--name", "two", "--direction", "minimize", "--direction", "maximize")
    assert "it minimizes value_0 and maximizes value_1" in said


@pytest.mark.slow
def test_a_function_goes_from_one_machine_to_another_and_back(shell: Shell, there: Shell, look: Look) -> None:
    (shell.folder / "train.py").write_text(TRAIN)
    copies = there.folder / "my copies"
    copies.mkdir()
    shutil.copy(shell.folder / "train.py", copies)
    created = say(shell, "create", "train.py:fit", "--name", "lab", "--trials", "1", "--direction", "maximize")
    hint = re.search(r"run it with: studyhall (.*)", created)
    assert hint
    assert hint[1] == "work lab --objective train.py:fit"
    say(shell, *shlex.split(hint[1]), "--workers", "1")

    # There the path is another one, and has to be said.
    say(shell, "extend", "lab", "--trials", "+1")
    refused = say(there, "work", "lab", status=1)
    assert (
        "study 'lab' runs the script train.py:fit; say where it lies on this machine: --objective path/to/" in refused
    )
    work = ("work", "lab", "--workers", "1", "--objective", f"{copies}/train.py:fit")
    say(there, *work)
    assert "script_sha256" not in look().trials(look().find_study("lab"))[1].user_attrs

    # A copy that was edited is refused, here as there, and marked where its user goes on.
    say(shell, "extend", "lab", "--trials", "+1")
    with (copies / "train.py").open("a") as file:
        file.write("# a better idea\n")
    refused = say(there, *work, status=1)
    assert re.search(
        r"was made with train\.py of SHA-256 \w{12}…, and \S+ copies/train\.py has \w{12}…: bring", refused
    )
    run = ("run", f"{copies}/train.py:fit", "--name", "lab", "--trials", "3", "--workers", "1")
    refused = say(there, *run, status=1)
    assert re.search(
        r"its script has changed: SHA-256 \w{12}… then, \w{12}… now; run this one all the same, .* --allow-changed;",
        refused,
    )
    say(there, *run, "--allow-changed")
    for command, is_told in ((("show", "lab", "2"), True), (("show", "lab", "1"), False)):
        assert ("run by a changed script, not the study's: SHA-256" in shell.data(*command)) == is_told
    assert [trial.state.name for trial in look().trials(look().find_study("lab"))] == ["COMPLETE"] * 3

    for wrong, message in (
        ("train.py:Net", "belongs to no study named here: 'lab' runs train.py:fit: give --objective train.py:fit"),
        ("nowhere.py:fit", "no file 'nowhere.py' for the objective"),
    ):
        assert message in say(shell, "work", "lab", "--objective", wrong, status=1)
    usage = say(shell, "work", "lab", "--objective", "lab.train:fit", status=2)
    assert "an objective in a module has no path: --allow lab.train:fit" in usage


@pytest.mark.slow
def test_a_class_goes_on_elsewhere_from_its_checkpoint_when_its_machine_is_lost(shell: Shell, there: Shell) -> None:
    diary = shell.folder / "diary"
    for machine, where in ((shell, "here"), (there, "there")):
        (machine.folder / f"{where}.py").write_text(TRAIN)  # the same content, by another name
        machine.environment |= {"DIARY": str(diary), "WHERE": where}
    (shell.folder / "net.toml").write_text(
        'name = "net"\ndirection = "maximize"\nbudget = { trials = 1 }\ncheckpoints = { every = 0 }\n'
        'objective = { path = "here.py:Net", args = { epochs = 5 } }\n'
    )
    assert shell.run("run", "net.toml", "--workers", "1", "--lease", "3").returncode == -9
    say(there, "work", "net", "--objective", "there.py:Net", "--workers", "1", "--lease", "3")
    assert diary.read_text().splitlines() == ["here 0", "here 1", "here 2", "there 3", "there 4"]
    assert "1 of 1 trials done (1 complete)" in shell.data("status", "net")


def test_a_package_is_imported_by_its_name_wherever_it_is_installed(shell: Shell, there: Shell) -> None:
    for machine in (shell, there):
        (machine.folder / "lab").mkdir()
        (machine.folder / "lab" / "__init__.py").touch()
        (machine.folder / "lab" / "nets.py").write_text("def fit(trial):\n    return trial.suggest_float('x', 0, 1)\n")
    say(shell, "create", "lab.nets:fit", "--name", "packed", "--trials", "1")
    allow = re.search(r"if you trust it: (--allow \S+)", say(there, "work", "packed", status=1))
    assert allow
    say(there, "work", "packed", "--workers", "1", *allow[1].split())
    assert "1 of 1 trials done (1 complete)" in shell.data("status", "packed")


def test_the_readmes_first_script_runs_as_it_stands(shell: Shell, look: Look) -> None:
    block = next(iter(re.findall(r"```python\n(# train.py\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)))
    (shell.folder / "train.py").write_text(block)
    done = shell.run("run", "train.py:objective", "--direction", "minimize", "--trials", "2", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "it minimizes value\n" in done.stderr
    assert look().status(look().find_study("train-objective")).finished == 2


@pytest.mark.slow
def test_the_documented_objective_survives_kill_9_and_a_pause_as_it_stands(shell: Shell, look: Look) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "writing-objectives.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "trial.restore()" in block]
    (shell.folder / "documented.py").write_text(block)
    (shell.folder / "disturbed.py").write_text(DISTURBED)
    settings = ("--trials", "1", "--workers", "1", "--set", "checkpoints.every=0", "--lease", "3")
    with shell.start("run", "disturbed.py:objective", "--name", "own", "--direction", "maximize", *settings) as run:
        try:
            eventually((shell.folder / "paused").exists)
            say(shell, "pause", "own")
            eventually(lambda: look().status(look().find_study("own")).trials["waiting"] == 1)
            say(shell, "resume", "own")
            _, said = run.communicate(timeout=300)
        except BaseException:
            run.kill()
            raise
    assert run.returncode == 0, said
    assert "died: ended by signal 9 (SIGKILL)" in said
    # Killed in step 3, before it was saved; given back in step 6, which was.
    steps = list(map(int, (shell.folder / "steps").read_text().split()))
    assert steps == [*range(4), *range(3, 7), *range(7, 20)]
    (trial,) = look().trials(look().find_study("own"))
    assert trial.state.name == "COMPLETE"
    assert sorted(trial.intermediate_values) == list(range(20))


def test_the_shell_completes_studies_and_presets(shell: Shell) -> None:
    for name in ("shapes", "shades"):
        say(shell, "create", "script.py:objective", "--name", name)

    def completed(*words: str, **environment: str) -> list[str]:
        line = {"COMP_WORDS": shlex.join(["studyhall", *words]), "COMP_CWORD": str(len(words))}
        done = shell.run(_STUDYHALL_COMPLETE="bash_complete", **line, **environment)
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line.startswith("plain,")]

    assert completed("status", "sha") == ["shades", "shapes"]
    assert completed("work", "shades", "shap") == ["shapes"]
    assert completed("run", "dig") == ["digits"]
    say(shell, "enqueue", "shapes", "x=1")
    assert completed("cancel", "shapes", "") == completed("best", "shapes", "--trial", "") == ["0"]
    assert completed("retry", "shapes", "") == []
    assert completed("trials", "shapes", "--columns", "number,val") == ["number,value"]
    assert completed("status", "sha", STUDYHALL_STORAGE="postgresql://nobody:x@127.0.0.1:1/none") == []
    home = shell.folder / "no home"
    assert completed("status", "sha", STUDYHALL_STORAGE="", STUDYHALL_HOME=str(home)) == []
    assert not home.exists()
    assert "did you mean 'shapes'?" in say(shell, "status", "SHAPES", status=1)
