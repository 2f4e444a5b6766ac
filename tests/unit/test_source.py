"""What a person names to run: a preset, a study file or a callable, with settings of keys."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from objectives.mlp import MLP
from studies.errors import ObjectiveError, SpecError
from studies.spec.source import override, preset_names, read_target, take_script
from studies.spec.space import corners, read_space
from studies.spec.study import StudySpec
from tests.support.spec import BASE, spec_with


@pytest.mark.parametrize("setting", ["budget.trials", "=3", "budget..trials=3", ".=3"])
def test_a_setting_that_is_not_key_and_value_is_refused(setting: str) -> None:
    with pytest.raises(SpecError, match="is not KEY=VALUE"):
        override({}, setting)


def test_a_setting_below_a_value_is_refused() -> None:
    with pytest.raises(SpecError, match=r"objective\.path is a value, not a table"):
        override(copy.deepcopy(BASE), "objective.path.x=3")


def test_another_sampler_or_pruner_drops_the_options_of_the_one_before() -> None:
    assert spec_with("pruner.name=none").pruner.options == {}
    data = {**BASE, "pruner": {"name": "hyperband", "options": {"min_resource": 3}}}
    override(data, "pruner.name=hyperband")
    assert data["pruner"]["options"] == {"min_resource": 3}
    override(data, "pruner.name=none")
    assert data["pruner"] == {"name": "none"}


def test_a_direction_is_set_in_one_spelling_alone() -> None:
    data = {**BASE, "direction": "maximize"}
    override(data, "directions=['minimize', 'maximize']")
    assert "direction" not in data
    with pytest.raises(SpecError, match="direction and directions are both given; keep one"):
        StudySpec.from_dict({**data, "direction": "maximize"})


def test_settings_are_read_as_toml_and_else_as_text() -> None:
    data: dict[str, Any] = {}
    for setting in ("a.b=3", "a.c=1e-3", "a.d=[1, 2]", "a.e=true", "a.f=plain text", "a.g='3'", "a.h=x=y"):
        override(data, setting)
    assert data["a"] == {"b": 3, "c": 1e-3, "d": [1, 2], "e": True, "f": "plain text", "g": "3", "h": "x=y"}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_legal_and_named_like_its_file(name: str) -> None:
    assert StudySpec.from_dict(read_target(name), name).name == name


def test_what_the_presets_without_a_download_may_sample_is_legal(tmp_path: Path) -> None:
    for name in ("digits", "diabetes", "linear-regression"):
        spec = StudySpec.from_dict(read_target(name), name)
        objective = MLP(**spec.objective.args, data_dir=tmp_path)
        assert objective.direction == spec.direction
        for params in corners(read_space(read_target(name)["space"])):
            objective.check_params(params)


def test_a_study_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(tomli_w.dumps(BASE))
    assert StudySpec.from_dict(read_target(str(file)), str(file)) == spec_with()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"name = ", "not TOML: Invalid value"), (b"\xff\xfe", "not UTF-8 text"), (b"[a]\n[a]", "not TOML")],
)
def test_a_malformed_study_file_is_refused_with_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(SpecError, match=message) as caught:
        read_target(str(file))
    assert "bad.toml" in str(caught.value)


def test_a_missing_study_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read the study file '.*none\.toml': No such file"):
        read_target(str(tmp_path / "none.toml"))


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean 'digits'"):
        read_target("digit")


def test_a_callable_is_a_study_named_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_target("script.py:objective") == {
        "name": "script-objective",
        "objective": {"path": f"{tmp_path}/script.py:objective"},
    }
    assert read_target("package.module:f")["name"] == "module-f"


def test_a_target_without_its_file_or_callable_says_what_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("def fit(trial): ...")
    for given, meant in (("train", "train.py:fit"), ("train.py", "train.py:fit"), ("train.other", "train.py:other")):
        with pytest.raises(SpecError, match=f"did you mean '{meant}'"):
            read_target(given)


def test_a_script_is_sought_beside_the_study_file_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(tomli_w.dumps({**BASE, "objective": {"path": "script.py:f"}}))
    assert read_target(str(file))["objective"]["path"] == f"{tmp_path}/script.py:f"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (None, "objective"),
        ("def helper(x): ...\ndef objective(trial): ...\ndef main(): ...\n", "objective"),
        ("def helper(x, y): ...\ndef tune(trial, fast=True): ...\ndef main(): ...\n", "tune"),
        ("import sys; sys.exit(1)\n", "objective"),
        ("def broken(\n", "objective"),
    ],
)
def test_a_script_without_a_callable_is_asked_for_one(tmp_path: Path, text: str | None, meant: str) -> None:
    file = tmp_path / "script.py"
    if text:
        file.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_target(str(file))
    named = f"name the callable in it too: did you mean {f'{file}:{meant}'!r}?"
    assert str(caught.value) == f"{str(file)!r} is a file; {named}"


def test_a_scripts_path_becomes_its_name_and_hash(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("f = None\n")
    data: dict[str, Any] = {"objective": {"path": f"{tmp_path}/train.py:f"}}
    script = take_script(data)
    assert script
    assert script.path == f"{tmp_path}/train.py:f"
    assert data["objective"] == {"path": "train.py:f", "sha256": script.sha256}
    assert script.sha256 == hashlib.sha256(b"f = None\n").hexdigest()
    for ours in ({"path": "lab.nets:f"}, {"path": 3}, {}):
        assert take_script({"objective": ours}) is None
    with pytest.raises(SpecError, match=r"objective.sha256 = 'aa': \S+train\.py has "):
        take_script({"objective": {"path": f"{tmp_path}/train.py:f", "sha256": "aa"}})
    for nowhere in ("nowhere.py:f", "nul\0.py:f", f"{tmp_path}.py:f"):
        with pytest.raises(ObjectiveError, match="no file"):
            take_script({"objective": {"path": nowhere}})
