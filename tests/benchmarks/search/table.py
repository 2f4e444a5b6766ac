"""Makes ``mlp_curves.npz``: learning curves of this project's MLP, trained by its own pools.

    python -m tests.benchmarks.search.table

1,000 random configurations × 27 epochs × 2 seeds, on the data set ``digits`` and on 5,000 images of
MNIST; the validation accuracy of each epoch, in ten-thousandths. A core needs two hours, a GPU (``--device cuda``)
minutes. Every ``--chunk`` configurations are written: the command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torchvision.datasets import MNIST

from objectives.mlp import MLP
from objectives.pool import Report, Result
from tests.benchmarks.search.tasks import DATA, MLP_SPACE, MLP_TABLE, at
from tests.benchmarks.search.tasks import MLP_CONFIGS as CONFIGS

EPOCHS, SEEDS = 27, 2
#: What an epoch that a diverged training no longer had counts as.
DIVERGED: Final = 0
DATA_SETS: Final = ("digits", "mnist5000")


@dataclass
class _Trial:
    """A configuration as a trial that nobody stops."""

    place: int
    params: dict[str, Any]
    seed: int
    device: str
    stop_requested = False
    Interrupted = KeyboardInterrupt

    def should_prune(self) -> bool:
        return False

    def checkpoint(self, step: int, state: Any) -> None:
        """Nothing is kept."""

    def restore(self) -> None:
        return None


class _Source:
    """Trials for a pool, and the curves that it reports: shape (configurations, seeds, epochs)."""

    def __init__(self, configs: Sequence[Mapping[str, Any]], device: str) -> None:
        self._left = [
            _Trial(i, dict(config), seed, device) for i, config in enumerate(configs) for seed in range(SEEDS)
        ]
        self.curves = np.full((len(configs), SEEDS, EPOCHS), DIVERGED, dtype=np.uint16)

    @property
    def is_over(self) -> bool:
        return not self._left

    def take(self, count: int) -> list[_Trial]:
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def report(self, reports: Sequence[Report]) -> None:
        for report in reports:
            self.curves[report.trial.place, report.trial.seed, report.step - 1] = round(report.value * 10_000)

    def end(self, results: Sequence[Result]) -> None:
        for result in results:
            if result.error is not None and "loss" not in str(result.error):
                raise result.error

    def wait(self) -> None:
        """Nothing to wait for."""


def _mnist5000(folder: Path) -> Path:
    """The first 5,000 training images of MNIST, as a file of arrays."""
    mnist = MNIST(DATA, train=True, download=False)
    file = folder / "mnist5000.npz"
    np.savez(file, X=mnist.data[:5000].reshape(5000, -1).numpy(), y=mnist.targets[:5000].numpy())
    return file


def _write(arrays: Mapping[str, np.ndarray], configs: Sequence[Mapping[str, Any]]) -> None:
    beside = MLP_TABLE.with_suffix(".part.npz")
    np.savez_compressed(beside, configs=np.array(json.dumps(configs)), **arrays)
    beside.replace(MLP_TABLE)


def main() -> None:
    """Train what is missing of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="PyTorch's name (default: %(default)s)")
    parser.add_argument("--slots", type=int, help="trials side by side (default: as the device suits)")
    parser.add_argument(
        "--chunk", type=int, default=20, help="configurations between two writes (default: %(default)s)"
    )
    settings = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    configs = [{name: at(of, rng.random()) for name, of in MLP_SPACE.items()} for _ in range(CONFIGS)]
    arrays: dict[str, np.ndarray] = {}
    if MLP_TABLE.exists():
        with np.load(MLP_TABLE) as stored:
            arrays = {name: stored[name] for name in DATA_SETS if name in stored}
    with tempfile.TemporaryDirectory() as folder:
        for name in DATA_SETS:
            dataset = "digits" if name == "digits" else str(_mnist5000(Path(folder)))
            objective = MLP(dataset, epochs=EPOCHS, data_dir=folder)
            done = arrays.get(name, np.empty((0, SEEDS, EPOCHS), dtype=np.uint16))
            while len(done) < CONFIGS:
                source = _Source(configs[len(done) : len(done) + settings.chunk], settings.device)
                objective.train(source, settings.slots, device=settings.device)
                done = np.concatenate([done, source.curves])
                _write({**arrays, name: done}, configs)
                print(f"{name}: {len(done)} of {CONFIGS}", file=sys.stderr, flush=True)
            arrays[name] = done


if __name__ == "__main__":
    main()
