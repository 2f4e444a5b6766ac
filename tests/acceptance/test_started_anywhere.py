"""An ordinary installation, started in a folder whose files have the names of our, Python's and others' modules."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from studies import PostgresStorage
from tests.acceptance.conftest import Shell
from tests.conftest import ROOT

SHADOWS = (
    *("studies", "objectives", "copy", "random", "json", "typing", "signal", "uuid"),
    *("torch", "numpy", "optuna", "mlflow", "psycopg2", "uvicorn", "sitecustomize_of_nobody"),
)
SHADOW = 'raise SystemExit("a file of the current folder was imported")\n'
SCRIPT = """
import beside

CHOICES = {"adam", "sgd", "lion", "rmsprop", "adagrad"}


def objective(trial):
    trial.set_user_attr("order", list(CHOICES))
    return beside.VALUE
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command of an ordinary, not an editable, installation."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in ("studies", "objectives"):
        shutil.copytree(ROOT / name, packages / name)
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    command = folder / "bin" / "studyhall"
    command.write_text(f"#!{folder}/bin/python\nimport sys\nfrom studies.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)
    return str(command)


@pytest.fixture
def shadowed(shell: Shell, installed: str) -> Shell:
    """A shell with that command, in a folder full of shadows."""
    shell.command = installed
    for name in SHADOWS:
        (shell.folder / f"{name}.py").write_text(SHADOW)
    (shell.folder / "beside.py").write_text("VALUE = 2.5\n")
    (shell.folder / "ours.py").write_text(SCRIPT)
    return shell


def test_the_installation_is_an_ordinary_one(installed: str) -> None:
    python = Path(installed).with_name("python")
    argv = [python, "-P", "-c", "import studies, objectives; print(studies.__file__, objectives.__file__)"]
    found = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert all(file.startswith(str(Path(installed).parents[1])) for file in found)


@pytest.mark.slow
def test_no_file_of_the_current_folder_takes_the_place_of_a_module(shadowed: Shell) -> None:
    short = ("--name", "shadow", "--trials", "1", "--workers", "1", "--set", "objective.args.epochs=1")
    for command in (
        ("run", "digits", *short),
        ("mirror", "shadow", "--once"),
        ("finalize", "shadow", "--seeds", "1", "--workers", "1", "--out", shadowed.folder / "final"),
    ):
        done = shadowed.run(*command)
        assert done.returncode == 0, done.stderr
        assert "was imported" not in done.stderr


@pytest.mark.parametrize("target", ["ours.py:objective", "ours:objective", "nested/ours.py:objective"])
def test_an_objective_of_the_current_folder_imports_what_lies_beside_it(shadowed: Shell, target: str) -> None:
    (shadowed.folder / "nested").mkdir()
    for name in ("ours.py", "beside.py", "copy.py", "torch.py", "studies.py"):
        shutil.copy(shadowed.folder / name, shadowed.folder / "nested")
    done = shadowed.run("run", target, "--name", "own", "--trials", "1", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert shadowed.data("best", "own", "--format", "json").count("2.5")


@pytest.mark.parametrize(
    "name", ["copy", "objectives", *(pytest.param(name, marks=pytest.mark.slow) for name in ("studies", "random"))]
)
def test_an_objective_in_a_file_of_such_a_name_runs(shadowed: Shell, name: str) -> None:
    (shadowed.folder / f"{name}.py").write_text("def f(trial):\n    return trial.suggest_float('x', 0, 1)\n")
    done = shadowed.run("run", f"{name}.py:f", "--name", "own", "--trials", "1", "--workers", "1")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_sites_start_there(shadowed: Shell) -> None:
    shadowed.data("create", "ours.py:objective", "--name", "own")
    with shadowed.start("serve") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            printed = [process.stdout.readline() for _ in range(3)]
            assert [line.split()[0] for line in printed] == ["studies", "optuna-dashboard", "MLflow"], printed
        finally:
            process.terminate()
            assert "was imported" not in process.stderr.read()


def test_a_set_has_one_order_in_every_worker(shell: Shell, look: Callable[[], PostgresStorage]) -> None:
    (shell.folder / "beside.py").write_text("VALUE = 2.5\n")
    (shell.folder / "ours.py").write_text(SCRIPT)
    shell.data("create", "ours.py:objective", "--name", "sets", "--trials", "3")
    for trials in ("1", "2", "3"):
        shell.data("extend", "sets", "--trials", trials)
        shell.data("work", "sets", "--workers", "1", "--objective", "ours.py:objective")
    storage = look()
    orders = [trial.user_attrs["order"] for trial in storage.trials(storage.find_study("sets"))]
    assert len(orders) == 3
    assert orders.count(orders[0]) == 3


def test_who_sets_a_hash_seed_has_it(shell: Shell, look: Callable[[], PostgresStorage]) -> None:
    (shell.folder / "seeded.py").write_text(
        "import os, sys\ndef f(trial):\n    assert not os.environ.get('PYTHONSAFEPATH')\n"
        "    return float(os.environ['PYTHONHASHSEED'])\n"
    )
    for name, environment, seed in (("own", {"PYTHONHASHSEED": "7"}, 7.0), ("ours", {}, 0.0)):
        done = shell.run("run", "seeded.py:f", "--name", name, "--trials", "1", "--workers", "1", **environment)
        assert done.returncode == 0, done.stderr
        storage = look()
        assert storage.best(storage.find_study(name)).value == seed
