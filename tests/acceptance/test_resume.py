"""A trial that is killed and left, and gone on with by other workers, ends as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from studies import PostgresStorage
from tests.acceptance.conftest import Shell

SCRIPT = """
import hashlib
import io
import os
import signal
from pathlib import Path

import torch

from objectives.mlp import MLP

EPOCHS = 8


def flat(value):
    # The same tensors may be pickled in several ways.
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), tuple(value.shape), value.numpy().tobytes()]
    if isinstance(value, dict):
        return [[key, flat(item)] for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))]
    return [flat(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)


class Disturbed(MLP):
    \"\"\"Writes down a hash of all that each checkpoint holds, and is killed and left on the way.\"\"\"

    def __init__(self, log, disturb, *, data_dir):
        super().__init__("digits", epochs=EPOCHS, data_dir=data_dir)
        self.log = Path(log)
        self.disturb = disturb

    def __call__(self, trial):
        keep = trial.checkpoint

        def checkpoint(step, state):
            data = state()
            held = flat(torch.load(io.BytesIO(data), weights_only=True))
            with self.log.open("a") as log:
                print(trial.number, step, hashlib.sha256(repr(held).encode()).hexdigest(), file=log)
            keep(step, data)

        trial.checkpoint = checkpoint
        report = trial.report

        def disturbed(value, step, **metrics):
            report(value, step, **metrics)
            marker = self.log.with_suffix(f".{trial.number}.{step}")
            if self.disturb.get(str(step)) and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), getattr(signal, self.disturb[str(step)]))

        trial.report = disturbed
        return super().__call__(trial)
"""

SPEC = """
name = "{name}"
direction = "maximize"
[objective]
path = "disturbed.py:Disturbed"
args = {{ log = "{log}", disturb = {disturb} }}
[budget]
trials = 1
[checkpoints]
every = 0
[pruner]
name = "none"
[space]
width = {{ type = "int", low = 16, high = 64 }}
dropout = {{ type = "float", low = 0.2, high = 0.5 }}
"""


def run(shell: Shell, name: str, disturb: str) -> tuple[list[dict[str, Any]], dict[tuple[str, str], set[str]], str]:
    """Run the study to its end; its trials, the hashes by trial and step, and what was said on the way."""
    log = shell.folder / f"{name}.log"
    (shell.folder / f"{name}.toml").write_text(SPEC.format(name=name, log=log, disturb=disturb))
    told = ""
    for _ in range(6):
        done = shell.run("run", f"{name}.toml", "--workers", "1")
        told += done.stderr
        if done.returncode == 0:
            break
    assert done.returncode == 0, told
    hashes: dict[tuple[str, str], set[str]] = {}
    for line in log.read_text().splitlines():
        number, step, digest = line.split()
        hashes.setdefault((number, step), set()).add(digest)
    storage = PostgresStorage(shell.url)
    record = storage.find_study(name)
    trials = [
        {
            "state": trial.state.name,
            "value": trial.value,
            "params": trial.params,
            "reports": trial.intermediate_values,
            "metrics": storage.metrics.of(trial),
        }
        for trial in storage.trials(record)
    ]
    attempts = [attempt.times for attempt in storage.leases.attempts(record).values()]
    storage.close()
    return trials, hashes, f"{attempts} {told}"


@pytest.mark.slow
def test_a_killed_and_a_left_trial_end_bit_by_bit_like_an_undisturbed_one(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "disturbed.py").write_text(SCRIPT)
    undisturbed, hashes, _ = run(shell, "undisturbed", "{}")
    disturbed, hashes_again, told = run(shell, "disturbed", '{ 2 = "SIGKILL", 5 = "SIGUSR1" }')
    assert told.startswith("[3]"), told
    assert disturbed == undisturbed
    # Weights, moments, generators and position after each epoch, the last ones included.
    assert hashes_again == hashes
    assert all(len(digests) == 1 for digests in hashes.values())
