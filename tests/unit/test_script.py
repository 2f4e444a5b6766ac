"""A script is read before it is run: what it lacks is said with what is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies.errors import ObjectiveError
from studies.spec.script import Script
from studies.spec.source import read_target, take_script


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def objective(trial): 1 / 0", None),
        ("class Net:\n    def __call__(self, trial): ...\nobjective = Net()", None),
        ("import sys\nif sys.argv:\n    from lab import objective", None),
        ("from lab import *", None),
        ("def __getattr__(name): ...", None),
        ("globals()['objec' + 'tive'] = print", None),
        ("def make():\n    global objective\n    def objective(trial): ...", None),
        ("import os\ndef objetive(trial): ...", "train.py has no 'objective'; did you mean 'objetive'?"),
        ("import objectives\ndef f(objective): objective = 1", "train.py has no 'objective'; known: f"),
        ("x = '\\d'\n", "train.py has no 'objective'; known: x"),
        ("def f():\n    return (", "train.py, line 2: '(' was never closed; correct the file, then try again"),
        ("x = '\0'", "train.py: source code string cannot contain null bytes; correct"),
    ],
)
def test_a_script_is_looked_at_before_it_is_run(tmp_path: Path, source: str, message: str | None) -> None:
    (tmp_path / "train.py").write_text(source)
    data = read_target(f"{tmp_path}/train.py:objective")
    if message is None:
        script = take_script(data)
        assert isinstance(script, Script)
        return
    with pytest.raises(ObjectiveError) as caught:
        take_script(data)
    assert str(caught.value).startswith(message)
