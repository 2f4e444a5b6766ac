"""Importing and building objectives: what works, and what is said where it does not."""

from __future__ import annotations

import gc
import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from studies.errors import ObjectiveError
from studies.importing import import_file
from studies.objective import build, check_constraints, directions_of, is_allowed
from studies.spec.script import Script, find
from studies.trial import as_values

SCRIPT = """
import helper_beside_the_script

number = 3

def objective(trial):
    return helper_beside_the_script.VALUE

def takes_nothing():
    return 1.0

class Net:
    parameters = frozenset({"lr", "width"})

    def __init__(self, epochs: int, *, data_dir=None):
        if epochs < 1:
            raise ValueError(f"epochs = {epochs}; at least 1")
        self.epochs, self.data_dir = epochs, data_dir

    def __call__(self, trial):
        return self.epochs

class NotCallable:
    pass

class Broken:
    def __init__(self):
        raise OSError("disk on fire")

    def __call__(self, trial):
        return 1.0
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delitem(sys.modules, "script", raising=False)  # another test's
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper_beside_the_script.py").write_text("VALUE = 42\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    return str(tmp_path / "script.py")


def test_a_script_runs_with_the_content_that_was_read_and_no_other(script: str, tmp_path: Path) -> None:
    allow = (script,)
    file = Path(script)
    content = file.read_bytes()
    with pytest.raises(ObjectiveError, match="has changed since its workers were started; start them again"):
        build(f"{script}:objective", {}, allow=allow, data_dir=tmp_path, sha256=hashlib.sha256(b"").hexdigest())
    sha256 = hashlib.sha256(content).hexdigest()
    assert build(f"{script}:objective", {}, allow=allow, data_dir=tmp_path, sha256=sha256)(None) == 42
    assert not list(tmp_path.rglob("script.*.pyc"))  # which might be of a content before


def test_a_study_finds_its_script_by_content_and_else_by_name(tmp_path: Path) -> None:
    for folder, name, content in (("a", "train", "1"), ("b", "renamed", "1"), ("c", "train", "2"), ("d", "other", "3")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(content)
    original, renamed, edited, other = (
        Script.read(f"{tmp_path}/{path}.py:f") for path in ("a/train", "b/renamed", "c/train", "d/other")
    )
    stored = ("train.py:f", original.sha256)
    assert find(*stored, [other, edited, original], "s") is original
    assert find(*stored, [other, renamed], "s") is renamed
    assert find(*stored, [other, edited], "s", allow_changed=True) is edited
    assert find(*stored, [other], "s", allow_changed=True) is None
    assert find("train.py:g", original.sha256, [original], "s", allow_changed=True) is None
    assert find("/old/train.py:f", None, [other, edited], "s") is edited
    assert find("lab.nets:f", None, [other], "s") is None
    with pytest.raises(ObjectiveError, match=r"study 's' was made with train\.py of SHA-256 .*--allow-changed"):
        find(*stored, [edited], "s")


def test_a_function_in_a_file_imports_what_lies_beside_it(script: str, tmp_path: Path) -> None:
    assert build(f"{script}:objective", {}, allow=[script], data_dir=tmp_path)(None) == 42


@pytest.mark.usefixtures("script")
def test_a_module_in_the_current_folder_is_found(tmp_path: Path) -> None:
    assert build("script:objective", {}, allow=["script"], data_dir=tmp_path)(None) == 42


def test_a_class_is_built_with_its_args_and_given_the_data_directory(script: str, tmp_path: Path) -> None:
    net = build(f"{script}:Net", {"epochs": 5}, allow=[script], space=("lr",), data_dir=tmp_path)
    assert (net.epochs, net.data_dir) == (5, tmp_path)


@pytest.mark.parametrize(
    ("path", "args", "message"),
    [
        ("{}:objectiv", {}, "has no 'objectiv'; did you mean 'objective'?"),
        ("{}:number", {}, "is not callable (it is of type int); name a function or a class"),
        ("{}:objective", {"epochs": 1}, "is a function, which takes no objective.args (epochs)"),
        (
            "{}:takes_nothing",
            {},
            "cannot be called with one trial: too many positional arguments; it should be f(trial)",
        ),
        ("{}:NotCallable", {}, "are not callable; give the class a __call__(self, trial)"),
        ("{}:Net", {}, "does not accept objective.args: missing a required argument: 'epochs'; it takes: epochs"),
        ("{}:Net", {"epoch": 1}, "did you mean 'epochs'?"),
        ("{}:Net", {"epochs": 0}, "epochs = 0; at least 1"),
        ("{}:Net", {"epochs": 1, "data_dir": "/etc"}, "leave out objective.args.data_dir, and give --data-dir DIR"),
        ("{}:Broken", {}, "OSError: disk on fire"),
        ("/nowhere/x.py:f", {}, "no file '/nowhere/x.py' for the objective"),
        ("nowhere.at.all:f", {}, "no module 'nowhere' for objective 'nowhere.at.all'; install it here"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    script: str, tmp_path: Path, path: str, args: dict[str, object], message: str
) -> None:
    with pytest.raises(ObjectiveError) as caught:
        build(path.format(script), args, allow=[path.format(script)], data_dir=tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(2)", "calls sys.exit(2) when it is imported; put what is a program under: if __name__"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import nowhere_at_all", "nowhere_at_all"),
    ],
)
@pytest.mark.usefixtures("script")
def test_a_file_that_does_not_import_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ObjectiveError) as caught:
        build(f"{tmp_path}/broken.py:f", {}, allow=[f"{tmp_path}/"], data_dir=tmp_path)
    assert message in str(caught.value)


def test_an_objective_says_its_directions_in_optuna_s_words_or_not_at_all() -> None:
    for direction, found in ((None, None), ("minimize", ["minimize"]), (["maximize", "minimize"],) * 2):
        assert directions_of("net.py:Net", SimpleNamespace(direction=direction)) == found
    assert directions_of("net.py:f", len) is None
    with pytest.raises(ObjectiveError, match=r"has direction = 'up'; it must be 'minimize' or 'maximize'"):
        directions_of("net.py:Net", SimpleNamespace(direction="up"))


def test_a_constraint_on_what_the_objective_does_not_report_is_refused() -> None:
    net = SimpleNamespace(metrics={"latency_ms", "parameters"})
    check_constraints("net.py:Net", net, ["latency_ms"])
    check_constraints("net.py:f", len, ["anything"])
    with pytest.raises(ObjectiveError, match=r"reports no metric 'latency' \(constraints.latency\); did you mean 'lat"):
        check_constraints("net.py:Net", net, ["latency"])


def test_a_space_with_a_name_that_the_objective_does_not_know_is_refused(script: str, tmp_path: Path) -> None:
    with pytest.raises(ObjectiveError, match=r"no parameter 'widht' \(space.widht\); did you mean 'width'"):
        build(f"{script}:Net", {"epochs": 5}, allow=[script], space=("lr", "widht"), data_dir=tmp_path)


def test_a_study_may_choose_only_what_the_operator_allows() -> None:
    assert is_allowed("objectives.mlp:MLP", ())
    assert not is_allowed("objectivesx:f", ())
    assert not is_allowed("os:system", ())
    assert is_allowed("lab.nets:Net", ("lab",))
    assert is_allowed("lab.nets:Net", ("lab.",))
    assert not is_allowed("labour:f", ("lab",))
    assert is_allowed("/srv/script.py:f", ("/srv/script.py",))
    assert is_allowed("/srv/script.py:f", ("/srv/script.py:f",))
    assert not is_allowed("anything:f", ("",))
    assert not is_allowed("/srv/script.py:g", ("/srv/script.py:f",))
    assert is_allowed("/srv/a/script.py:f", ("/srv/",))
    assert not is_allowed("/srv/../etc/script.py:f", ("/srv/",))
    assert not is_allowed("/srvs/script.py:f", ("/srv",))


def test_what_an_objective_returns_is_numbers_or_a_reason() -> None:
    assert as_values(1, 1) == [1.0]
    assert as_values((1, 2.5), 2) == [1.0, 2.5]
    assert as_values(float("nan"), 1) == "the objective returned nan"
    way_out = "which is not a number; return one, such as loss.item()"
    shown = {"None": None, "'x'": "x", "'1.5'": "1.5", "an object of type int": 10**5000, "array([1., 1.])": np.ones(2)}
    for name, value in shown.items():
        assert as_values(value, 1) == f"the objective returned {name}, {way_out}"
    assert str(as_values(10**400, 1)).startswith("the objective returned 1000")
    assert as_values(range(2), 2) == [0.0, 1.0]
    assert as_values(1.0, 2) == (
        "the objective returned 1 value, and the study has 2 directions; return one value for each, "
        "or run it anew with another --name and a --direction for each value"
    )


def test_what_a_script_chooses_of_the_garbage_collector_stays_and_nothing_else_changes(tmp_path: Path) -> None:
    before = gc.get_threshold()
    plain, chooses = tmp_path / "plain_gc.py", tmp_path / "chooses_gc.py"
    plain.write_text("x = 1\n")
    chooses.write_text("import gc\ngc.disable()\ngc.set_threshold(5, 5, 5)\n")
    try:
        import_file(plain)
        assert (gc.isenabled(), gc.get_threshold()) == (True, before)
        import_file(chooses)
        assert (gc.isenabled(), gc.get_threshold()[:2]) == (False, (5, 5))
    finally:
        gc.enable()
        gc.set_threshold(*before)
