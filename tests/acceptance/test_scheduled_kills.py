"""A study with a scheduler whose workers are killed: paused and promoted trials end as undisturbed ones."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import closing, suppress

import pytest

from studies import PostgresStorage
from tests.acceptance.conftest import Shell
from tests.acceptance.faults import is_lost

SPEC = """
name = "{name}"
seed = 5
direction = "maximize"
[objective]
path = "objectives.mlp:MLP"
args = {{ dataset = "digits", epochs = 27 }}
[budget]
trials = 24
{budget}
[sampler]
name = "random"
[checkpoints]
every = 0
{how}
[space]
width = {{ type = "int", low = 16, high = 64 }}
dropout = {{ type = "float", low = 0.2, high = 0.5 }}
"""
SLOTS = 4
WORKERS = 2
EPOCHS = 50


@pytest.mark.slow
def test_paused_and_promoted_trials_end_bit_by_bit_like_undisturbed_ones(shell: Shell) -> None:
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    (shell.folder / "whole.toml").write_text(SPEC.format(name="whole", budget="", how='[pruner]\nname = "none"'))
    (shell.folder / "cut.toml").write_text(
        SPEC.format(name="cut", budget=f"epochs = {EPOCHS}", how='[scheduler]\nname = "halving"')
    )
    assert shell.run("run", "whole.toml", "--workers", str(WORKERS)).returncode == 0
    shell.data("create", "cut.toml")
    kills = 0
    with closing(PostgresStorage(shell.url)) as storage:
        record = storage.find_study("cut")
        command = shell.start("work", "cut", "--workers", str(WORKERS), "--slots", str(SLOTS), "--lease", "3")
        with command as process:
            due = 2
            while process.poll() is None:
                now = storage.status(record)
                if now.epochs >= due and now.ended is None and now.workers:
                    with suppress(ProcessLookupError):
                        os.kill(draw.choice(now.workers).pid, signal.SIGKILL)
                        kills += 1
                    due = now.epochs + draw.randint(1, 6)
                time.sleep(0.02)
            assert process.returncode == 0, process.communicate()[1]
        whole = storage.trials(storage.find_study("whole"))
        cut = storage.trials(record)
        now = storage.status(record)
        left = storage.database.execute("select count(*) as n from studyhall.checkpoints")
    assert kills, f"seed {seed}"
    # A trial whose worker was killed before its first report has no value to be pruned with: it waits for an extension.
    begun = [(trial, undisturbed) for trial, undisturbed in zip(cut, whole, strict=False) if trial.intermediate_values]
    assert {trial.state.name for trial, _ in begun if not is_lost(trial)} <= {"COMPLETE", "PRUNED"}, f"seed {seed}"
    states = {trial.state.name for trial in cut if not is_lost(trial)}
    assert states <= {"COMPLETE", "PRUNED", "WAITING"}, f"seed {seed}"
    for trial, undisturbed in begun:
        last = len(trial.intermediate_values)
        assert trial.params == undisturbed.params
        assert trial.intermediate_values == dict(list(undisturbed.intermediate_values.items())[:last]), f"seed {seed}"
        if not is_lost(trial):
            end = undisturbed.value if trial.state.name == "COMPLETE" else trial.intermediate_values[last]
            assert trial.value == end, f"seed {seed}"
    reported = sum(len(trial.intermediate_values) for trial in cut)
    assert now.epochs == reported
    assert EPOCHS <= reported < EPOCHS + SLOTS * WORKERS or now.ended == "complete", f"seed {seed}"
    assert left == [{"n": 0}]
