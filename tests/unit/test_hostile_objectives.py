"""A study never chooses code: paths that lead from an allowed place to another, and what stays allowed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from studies.errors import ObjectiveError
from studies.objective import build, is_allowed, require_allowed

#: An allowed package that imports, re-exports and wraps what is not its own.
NETS = """
import functools
import logging
import os
import pathlib
import subprocess
from os import path as osp
from pathlib import Path
from subprocess import Popen, check_output, run as launch

from elsewhere import Foreign, foreign, marker
import elsewhere

log = logging.getLogger("x")
shell = functools.partial(os.system)
popen = functools.partial(functools.partial(subprocess.Popen), shell=True)
unlink = Path("x").unlink
instance = Foreign()
number, secret = 3, "c4n4ry"
join = "".join
system = os.system


class Trap(type):
    @property
    def lazy(cls):
        marker("metaclass property")

    def __getattr__(cls, name):
        marker("metaclass getattr")


class Net(Foreign, metaclass=Trap):
    process = Popen
    module = subprocess
    own_run = staticmethod(subprocess.run)
    made = classmethod(Foreign.make.__func__)

    class Inner:
        shell = os.system

        def __call__(self, trial):
            return 1.0

    @property
    def prop(self):
        marker("property")

    @staticmethod
    def static(trial):
        return 2.0

    @classmethod
    def of_class(cls, trial):
        return 3.0

    def __call__(self, trial):
        return 0.0


class Writer:
    def __init__(self, text=""):
        marker("constructor")


class Bound:
    def __call__(self, trial):
        return 4.0

    def method(self, trial):
        return 5.0


def objective(trial):
    return 6.0


def needs_two(trial, other):
    marker("called")


def decorated_by(function):
    @functools.wraps(function)
    def wrapper(trial):
        return function(trial)

    return wrapper


wrapped = elsewhere.decorate(objective)
half = functools.partial(lambda scale, trial: scale, 7.0)
bound = Bound()
method = bound.method
anonymous = lambda trial: 8.0


def __getattr__(name):
    if name == "__path__":  # which Python itself asks for
        raise AttributeError
    marker("module getattr")
    return os.system
"""

ELSEWHERE = """
import functools
import os


def marker(what):
    with open(os.environ["MARKER"], "a") as file:
        file.write(what + "\\n")


def foreign(trial):
    marker("foreign function")


def decorate(function):
    @functools.wraps(function)
    def wrapper(trial):
        return function(trial)

    return wrapper


class Foreign:
    @classmethod
    def make(cls, trial):
        marker("foreign class method")

    def inherited(self):
        marker("foreign method")

    def __call__(self, trial):
        marker("foreign instance")
"""
#: What must not even be imported.
MINED = 'import os\nopen(os.environ["MARKER"], "a").write(f"imported {__file__}\\n")\ndef f(trial): return 0.0\n'

HOSTILE = [
    # Through a module's imports.
    "lab.nets:subprocess.Popen",
    "lab.nets:os.system",
    "lab.nets:osp.os.system",
    "lab.nets:elsewhere.foreign",
    "lab.nets:pathlib.Path",
    "lab.nets:functools.partial",
    "lab.nets:Net.module.Popen",
    "lab.nets:logging.os.system",
    "objectives.mlp:torch.ctypes.util.subprocess.Popen",
    "objectives.mlp:np.f2py.os.system",
    "objectives.data:os.system",
    # At what was defined elsewhere.
    "lab.nets:Popen",
    "lab.nets:launch",
    "lab.nets:check_output",
    "lab.nets:Path",
    "lab.nets:system",
    "lab.nets:foreign",
    "lab.nets:Foreign",
    "lab.nets:Foreign.make",
    "lab.nets:Net.make",
    "lab.nets:Net.made",
    "lab.nets:Net.inherited",
    "lab.nets:Net.process",
    "lab.nets:Net.own_run",
    "lab.nets:Net.Inner.shell",
    "objectives.mlp:torch",
    "objectives.mlp:Path",
    "objectives.mlp:load.__globals__",
    # At what is no function or class, or is one in disguise.
    "lab.nets:shell",
    "lab.nets:popen",
    "lab.nets:unlink",
    "lab.nets:instance",
    "lab.nets:log",
    "lab.nets:log.info",
    "lab.nets:join",
    "lab.nets:number",
    "lab.nets:secret",
    "lab.nets:secret.upper",
    "lab.nets:subprocess",
    "lab.nets:elsewhere",
    # Through instances, dunders, properties, metaclasses, and a module's own __getattr__.
    "lab.nets:bound.method",
    "lab.nets:shell.func",
    "lab.nets:Net.__init__.__globals__",
    "lab.nets:Net.__subclasses__",
    "lab.nets:Net.__class__",
    "lab.nets:Net.__call__",
    "lab.nets:Net.mro",
    "lab.nets:Net.prop",
    "lab.nets:Net.prop.fget",
    "lab.nets:Net.lazy",
    "lab.nets:Net.nothing",
    "lab.nets:nothing",
    "lab.nets:__builtins__",
    "lab.nets:__loader__.load_module",
    "lab.nets:objective.__code__",
    # That could be called and do harm, but not as f(trial).
    "lab.nets:needs_two",
    "lab.nets:Writer",
    # Other modules.
    "lab:nets.subprocess.Popen",
    "lab:nets",
    "lab.nets.os:system",
    "lab.nets.subprocess:Popen",
    "os:system",
    "elsewhere:foreign",
    "laboratory:f",
    "builtins:exec",
    ".lab.nets:objective",
    "lab.:objective",
    "lab..nets:objective",
    "lab.nets :objective",
    " lab.nets:objective",
    "lab.nets\n:objective",
    "lab/nets:objective",
    "lab.nets.:objective",
    "lаb.nets:objective",  # a Cyrillic а
    "ｌab.nets:objective",
    "objectives.:f",
    "objectives..mlp:MLP",
    # Names that are none.
    "lab.nets:",
    "lab.nets:.objective",
    "lab.nets:objective.",
    "lab.nets:Net..Inner",
    "lab.nets:objective()",
    "lab.nets: objective",
    "lab.nets:ｏbjective",
    "lab.nets",
    ":objective",
    "",
    # Files beyond the allowed ones.
    "{}/mined.py:f",
    "{}/allowed/../mined.py:f",
    "{}/allowed/link.py:f",
    "{}/allowed/linked/mined.py:f",
    "{}/allowed/script.py:system",
    "{}/allowed/script.py:helped.__globals__",
    "{}/allowed.py:f",
    "{}/allowedly/mined.py:f",
    "{}/allowed/folder.py:f",
    "{}/allowed/nothing.py:f",
    "{}/allowed/nul\0.py:f",
    "{}/allowed/\ud800.py:f",
    "{}/allowed/" + "x" * 5000 + ".py:f",
    "objectives./../../../..{}/mined.py:f",
    "lab./../mined.py:f",
    "lab.nets/../../mined.py:f",
    "file://{}/mined.py:f",
    "~/mined.py:f",
    "/dev/stdin.py:f",
    "mined.py:f",
    "mined:f",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With an allowed package, an allowed folder, and mined files around them."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "installed")])
    before = set(sys.modules)
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    monkeypatch.setenv("HOME", str(tmp_path))
    files = {
        "installed/lab/__init__.py": "from lab import nets\n",
        "installed/lab/nets.py": NETS,
        "installed/elsewhere.py": ELSEWHERE,
        "installed/laboratory.py": MINED,
        "mined.py": MINED,
        "allowed.py": MINED,
        "allowedly/mined.py": MINED,
        "allowed/script.py": "from helper import helped\nfrom os import system\n",
        "allowed/helper.py": "def helped(trial): return 9.0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "allowed" / "folder.py").mkdir()
    (tmp_path / "allowed" / "link.py").symlink_to(tmp_path / "mined.py")
    (tmp_path / "allowed" / "linked").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_hostile_path_is_one_line_and_runs_nothing(folder: Path, path: str) -> None:
    path = path.replace("{}", str(folder))
    allow = ["lab.", f"{folder}/allowed/", "objectives"]
    for args in ({}, {"args": ["sh", "-c", f"touch {folder}/marker"]}):
        with pytest.raises(ObjectiveError) as caught:
            build(path, args, allow=allow, data_dir=folder)
        assert len(str(caught.value).splitlines()) == 1
        assert "c4n4ry" not in str(caught.value)
        assert not (folder / "marker").exists()
    assert "mined" not in sys.modules


def test_the_hostile_paths_are_many() -> None:
    assert len(set(HOSTILE)) >= 40


@pytest.mark.parametrize("path", [path for path in HOSTILE if path.isprintable() and "objectives" not in path])
def test_without_permission_not_even_the_module_is_imported(folder: Path, path: str) -> None:
    with pytest.raises(ObjectiveError):
        require_allowed(path.replace("{}", str(folder)), (), "study")
    with pytest.raises(ObjectiveError):
        build(path.replace("{}", str(folder)), {}, allow=(), data_dir=folder)
    assert not {"lab", "elsewhere", "laboratory", "mined"} & set(sys.modules)
    assert not (folder / "marker").exists()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lab.nets:objective", 6.0),
        ("lab.nets:Net", 0.0),
        ("lab.nets:Net.Inner", 1.0),
        ("lab.nets:Net.static", 2.0),
        ("lab.nets:Net.of_class", 3.0),
        ("lab.nets:bound", 4.0),
        ("lab.nets:method", 5.0),
        ("lab.nets:wrapped", 6.0),
        ("lab.nets:half", 7.0),
        ("lab.nets:anonymous", 8.0),
        ("{}/allowed/script.py:helped", 9.0),
        ("{}/allowed/../allowed/helper.py:helped", 9.0),
    ],
)
def test_what_an_allowed_module_defines_is_allowed(folder: Path, path: str, value: float) -> None:
    path = path.replace("{}", str(folder))
    assert build(path, {}, allow=["lab", f"{folder}/allowed"], data_dir=folder)(None) == value


def test_what_its_operator_names_in_full_may_be_defined_anywhere(folder: Path) -> None:
    def built(path: str) -> Callable[[Any], Any]:
        return build(path, {}, allow=[path], data_dir=folder)

    assert type(built("lab.nets:instance")).__name__ == "Foreign"
    assert built("lab.nets:bound.method")(None) == 5.0
    assert isinstance(built("lab.nets:shell"), functools.partial)
    with pytest.raises(ObjectiveError, match=r"leads through 'subprocess', which is a module \(subprocess\)"):
        built("lab.nets:subprocess.run")
    with pytest.raises(ObjectiveError, match="is defined in 'elsewhere', which this machine does not allow"):
        build("lab.nets:instance", {}, allow=["lab.nets:bound", "lab"], data_dir=folder)


def test_a_relative_prefix_is_of_the_current_folder(folder: Path) -> None:
    assert is_allowed(f"{folder}/allowed/script.py:helped", ["allowed/"])
    assert is_allowed(f"{folder}/allowed/script.py:helped", ["allowed/script.py:helped"])
    assert is_allowed("allowed/script.py:helped", [f"{folder}/allowed/script.py"])
    assert not is_allowed(f"{folder}/allowed/link.py:f", [f"{folder}/allowed/"])


@pytest.mark.parametrize("stem", ["copy", "objectives", "studies", "json", "torch", "__main__"])
def test_a_script_with_another_modules_name_takes_nobodys_place(folder: Path, stem: str) -> None:
    (folder / f"{stem}.py").write_text("class Net:\n    def __call__(self, trial): return 1.5\n")
    before = sys.modules.get(stem)
    net = build(f"{folder}/{stem}.py:Net", {}, allow=[f"{folder}/{stem}.py"], data_dir=folder)
    assert net(None) == 1.5
    assert sys.modules.get(stem) is before
    assert getattr(sys.modules[type(net).__module__], "Net") is type(net)  # noqa: B009  # as pickle finds it


def test_what_lies_beside_a_script_comes_after_python_and_what_is_installed(folder: Path) -> None:
    for name in ("copy", "colorsys", "objectives", "beside"):
        (folder / "allowed" / f"{name}.py").write_text("def here(): return 2.5\n")
    (folder / "allowed" / "script.py").write_text(
        "import beside, colorsys\nfrom objectives import mlp\ncolorsys.rgb_to_hsv\ndef f(trial): return beside.here()\n"
    )
    assert build(f"{folder}/allowed/script.py:f", {}, allow=[f"{folder}/allowed/"], data_dir=folder)(None) == 2.5
