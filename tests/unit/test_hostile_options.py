"""No option of a sampler or pruner, and no argument of an objective, names code or shows what is in a file."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from objectives.mlp import MLP
from studies import StudySpec
from studies.errors import ObjectiveError, SpecError
from studies.objective import build
from studies.spec.samplers import PRUNERS, SAMPLERS

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}, "n": {"type": "int", "low": 0, "high": 4}}
HOSTILE = [
    "mined:f",
    "mined",
    "{}/mined.py:f",
    "__import__('mined')",
    "!!python/object/apply:os.system [touch marker]",
    {"name": "mined:f"},
    {"name": "tpe", "options": {"gamma": "mined:f"}},
    {"__reduce__": ["os.system", "touch marker"]},
    ["mined:f"],
]


def options() -> list[tuple[str, str, str]]:
    import inspect

    found = []
    for kind, catalog in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        for name, made in catalog.items():
            found += [(kind, name, option) for option in inspect.signature(made).parameters]
    return found


@pytest.fixture
def mined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mined.py").write_text("open('marker', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name", "option"), options())
def test_no_option_is_code(mined: Path, kind: str, name: str, option: str) -> None:
    for value in HOSTILE:
        value = value.replace("{}", str(mined)) if isinstance(value, str) else value
        data = {"name": "s", "objective": {"path": "objectives.mlp:MLP"}, "space": SPACE}
        data[kind] = {"name": name, "options": {option: value}}
        # Optuna ignores that one, whatever it says.
        is_ignored = option == "restart_strategy"
        with suppress(SpecError) if is_ignored else pytest.raises(SpecError, match=r"\A[^\n]+\Z"):
            StudySpec.from_dict(data)
        assert not (mined / "marker").exists()
        assert "mined" not in sys.modules


@pytest.mark.parametrize("name", ["mined:f", "optuna.samplers.TPESampler", "os.system", "TPESampler", "", "../tpe"])
@pytest.mark.parametrize("kind", ["sampler", "pruner"])
def test_no_name_is_code(mined: Path, kind: str, name: str) -> None:
    data = {"name": "s", "objective": {"path": "objectives.mlp:MLP"}, kind: {"name": name}}
    with pytest.raises(SpecError, match="is unknown"):
        StudySpec.from_dict(data)
    assert not (mined / "marker").exists()


@pytest.mark.parametrize("path", ["secret", "../secret.npz", "{}/secret.npz", "/etc/passwd", "/dev/stdin", "{}/.csv"])
def test_a_data_set_that_is_none_shows_nothing_that_is_in_it(mined: Path, path: str) -> None:
    folder = mined / "data"
    folder.mkdir()
    for name in ("secret", "secret.npz"):
        (mined / name).write_text("root:x:0:c4n4ry\nroot:x:1:c4n4ry\n")
    args: dict[str, Any] = {"dataset": path.replace("{}", str(mined))}
    with pytest.raises(ObjectiveError) as caught:
        build("objectives.mlp:MLP", args, allow=[], data_dir=folder)
    assert len(str(caught.value).splitlines()) == 1
    assert "c4n4ry" not in str(caught.value)


def test_the_mlp_is_what_is_built(tmp_path: Path) -> None:
    assert isinstance(build("objectives.mlp:MLP", {"dataset": "digits"}, allow=[], data_dir=tmp_path), MLP)
