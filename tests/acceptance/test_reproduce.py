"""A trial again, by the installed command; and a worker with other data."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.conftest import Shell

NET = """
import hashlib, pathlib

class Net:
    def __init__(self, data_dir):
        self.data = pathlib.Path(data_dir, "train.csv").read_bytes()

    def fingerprint(self):
        return {"train.csv": hashlib.sha256(self.data).hexdigest()}

    def __call__(self, trial):
        trial.report(len(self.data) + trial.suggest_float("x", 0, 1), 0, seed=trial.seed)
        return trial.params["x"]
"""


@pytest.mark.slow
def test_other_data_are_refused_and_a_reproduction_says_that_they_differ(shell: Shell) -> None:
    (shell.folder / "net.py").write_text(NET)
    (shell.folder / "train.csv").write_text("1,2\n")
    here = ["--data-dir", str(shell.folder)]
    shell.data("run", "net.py:Net", "--name", "n", "--trials", "2", "--workers", "1", *here)
    again = ["reproduce", "n", "1", "--objective", "net.py:Net", *here]
    assert shell.data(*again) == "trial 1 of n matches bit by bit: 1 step and the result\n"

    (shell.folder / "train.csv").write_text("1,2\n3,4\n")
    shell.data("extend", "n", "--trials", "3")
    refused = shell.run("work", "n", "--objective", "net.py:Net", "--workers", "1", *here)
    assert refused.returncode == 1
    assert "the data set 'train.csv' of study 'n' has the fingerprint" in refused.stderr.splitlines()[-1]
    data = json.loads(shell.data(*again, "--format", "json"))
    (difference,) = data["differences"]
    assert (data["exact"], difference["name"], round(difference["difference"])) == (False, "reported value", 4)
    assert data["then"]["data train.csv"] != data["now"]["data train.csv"]
    assert "data train.csv: " in shell.data(*again)
