"""The training code on a GPU: what the tests show on a CPU, shown there, and the cost of a step. Run: make test-gpu

Needs one GPU and no database. Each line is a check that passed; the last one is the figures as JSON.

One H200, PyTorch 2.11, 2026-11-27, medians of 5, milliseconds per step and trial
(batch 128, dropout, AdamW, 784 features):

| depth x width | one at a time, autograd | 1 slot | 8 slots | 32 slots | 128 slots |
|---|---|---|---|---|---|
| 1 x 64  | 1.25 | 0.429 | 0.052 | 0.0093 | 0.0043 |
| 2 x 128 | 1.65 | 0.655 | 0.078 | 0.020 | 0.0085 |
| 2 x 256 | 1.67 | 0.694 | 0.083 | 0.021 | 0.016 |

Tried and not used, when a step of one slot of 1 x 64 still took 0.557 ms: a step as a CUDA graph takes 0.21 instead of
0.47 ms for 32 slots of 1 x 64, 0.59 instead of 0.81 of 2 x 256, and no less for 128 slots: more slots hide the launches
as well. TF32 takes a tenth off a graph, and nothing off a step that waits for launches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from objectives.data import Part
from objectives.hyperparameters import Hyperparameters
from objectives.member import Examples, Member, Task
from objectives.mlp import MLP
from objectives.stack import Stack
from tests.benchmarks.bench_training import BATCH, CLASSES, DROPOUT, EXAMPLES, FEATURES, one_at_a_time, shapes
from tests.unit.objectives.conftest import RecordingTrial
from tests.unit.objectives.test_pool import Source

DEVICE = "cuda"
FOLDER = tempfile.gettempdir()
PARAMS = {"lr": 5e-3, "dropout": 0.2, "depth": 2, "width": 60}


def trials(count: int, **params: Any) -> list[Any]:
    return [RecordingTrial(params={**PARAMS, **params}, seed=i, device=DEVICE) for i in range(count)]


def differences(found: Any, expected: Any) -> Iterator[float]:
    """Of each report: relative ones of the losses."""
    assert [step for step, _, _ in found] == [step for step, _, _ in expected]
    for (_, _, ours), (_, _, theirs) in zip(found, expected, strict=True):
        yield abs(ours["val_loss"] - theirs["val_loss"]) / theirs["val_loss"]


def a_trial_ends_in_a_pool_as_it_does_alone() -> None:
    mlp = MLP("digits", epochs=8, data_dir=FOLDER)  # 8 epochs of 12 steps: 96 steps
    alone = trials(1)
    mlp.train(Source(list(alone)), 1, device=DEVICE)
    company = trials(12)
    for i, each in enumerate(company[1:], 1):
        each.params["width"] = 33 + 2 * i  # padded, and of three buckets
    company[1].params["lr"] = 1e30
    company[1].params["optimizer"] = "sgd"
    company[2].prune_at = 2
    mlp.train(Source(list(company)), 5, device=DEVICE)
    most = max(differences(company[0].reports, alone[0].reports))
    assert most < 1e-3, most
    print(f"a trial in a pool differs from itself alone by at most {most:.1e} of the loss")


def a_trial_on_a_gpu_is_that_of_a_cpu() -> None:
    mlp = MLP("digits", epochs=3, data_dir=FOLDER)
    here, there = trials(1), trials(1)
    there[0].device = "cpu"
    mlp.train(Source(list(here)), 1, device=DEVICE)
    mlp.train(Source(list(there)), 1)
    most = max(differences(here[0].reports, there[0].reports))
    assert most < 1e-2, most
    print(f"a trial on the GPU differs from the CPU's by at most {most:.1e} of the loss after 36 steps")


def nothing_in_an_epoch_waits_for_the_device(part: Part) -> None:
    stack = Stack(members(part, depth=2, width=64, slots=4))
    stack.run_epoch()
    planned = stack.plan(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for steps in planned:
            for k in range(len(steps)):
                stack.train_on(steps, k)
            stack.record(steps, len(steps))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    print("no operator within an epoch waits for the device")


def a_pool_that_runs_out_of_memory_halves_its_slots() -> None:
    """Really: the memory that this process may take is limited."""
    mlp = MLP("digits", epochs=2, data_dir=FOLDER)
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[1]
    # 6 layers of 4096 units: 0.34 GB of weights, 1.4 GB with gradients and moments; 4 of them, not 32.
    torch.cuda.set_per_process_memory_fraction(8e9 / free)
    source = Source(trials(8, depth=6, width=4096))
    waiting = list(source.waiting)
    source.end = lambda results: ends(source, results)  # type: ignore[method-assign]
    mlp.train(source, 8, device=DEVICE)
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
    assert {each.seed for each in waiting} == set(source.results)
    left = LEFT[:]
    assert left, "it never ran out of memory"
    print(f"8 trials on too small a GPU: {len(left)} times left for want of memory, all complete in the end")


LEFT: list[int] = []


def ends(source: Source, results: Sequence[Any]) -> None:
    """As a study does: who is left waits again."""
    for result in results:
        if result.state == "left":
            LEFT.append(result.trial.seed)
            assert len(LEFT) < 64
            source.waiting.append(RecordingTrial(params=result.trial.params, seed=result.trial.seed, device=DEVICE))
        else:
            assert result.state == "complete", (result.state, result.error)
            source.results[result.trial.seed] = result


def members(part: Part, *, depth: int, width: int, slots: int) -> list[Member]:
    task = Task(n_features=FEATURES, classes=tuple(map(str, range(CLASSES))))
    hyperparameters = Hyperparameters(depth=depth, width=width, dropout=DROPOUT, batch_size=BATCH)
    return [Member(hyperparameters, task, Examples(part=part), None, epochs=1000, seed=s) for s in range(slots)]


def figures(part: Part, wanted: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds per step and trial, medians of the rounds."""
    found: dict[str, dict[str, float]] = {}
    for depth, width in shapes(wanted):
        loop = one_at_a_time(part, depth, width)
        stacks = {slots: Stack(members(part, depth=depth, width=width, slots=slots)) for slots in (1, 8, 32, 128)}
        arms = {"loop": lambda loop=loop: loop(422)} | {
            f"{slots} slots": stack.run_epoch for slots, stack in stacks.items()
        }
        times: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(rounds + 1):
            for name, run in arms.items():
                torch.cuda.synchronize()
                start = time.perf_counter()
                run()
                torch.cuda.synchronize()
                if turn:
                    slots = int(name.split()[0]) if "slots" in name else 1
                    times[name].append((time.perf_counter() - start) * 1000 / 422 / slots)
        found[f"{depth} x {width}"] = {name: float(f"{statistics.median(of):.3g}") for name, of in times.items()}
        print(f"{depth} x {width}:", found[f"{depth} x {width}"], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="1x64,2x256")
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
    part = Part(
        stored_NF=torch.randint(0, 256, (EXAMPLES, FEATURES), dtype=torch.uint8),
        y_N=torch.randint(0, CLASSES, (EXAMPLES,)),
        mean_F=torch.tensor([127.5]),
        std_F=torch.tensor([73.9]),
    ).to(torch.device(DEVICE))
    a_trial_ends_in_a_pool_as_it_does_alone()
    a_trial_on_a_gpu_is_that_of_a_cpu()
    nothing_in_an_epoch_waits_for_the_device(part)
    a_pool_that_runs_out_of_memory_halves_its_slots()
    found = figures(part, settings.shapes, settings.rounds)
    print(json.dumps({"device": torch.cuda.get_device_name(), "ms_per_step_and_trial": found}))


if __name__ == "__main__":
    main()
