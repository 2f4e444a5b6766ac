"""The work of Optuna's PyTorch example, done three ways, and its products alone: trials an hour, whole commands.

3,840 images to train on and 1,280 to validate, 10 epochs, batches of 128, one to three layers of 4 to 128 units,
dropout 0.2 to 0.5, Adam, RMSprop or SGD, a learning rate from 1e-5 to 0.1; TPE, no pruning; on the machine's CPU.

- example: a script as tutorials write it, with a ``DataLoader`` over images that are transformed one by one, in one
  process.
- two processes: two such processes that share a study in stock ``RDBStorage`` on PostgreSQL.
- studyhall: ``studyhall run``, with its embedded PostgreSQL.
- products: no way to do it, but the least that one could take: two processes that import PyTorch, and multiply the
  matrices of the trials of the arm studyhall, which has to run before it.

Each arm is a command from its start to its end; two processes and studyhall begin with an empty database that is
running. All five
rounds take five minutes on two cores. ``--rounds 1 --kept FILE``, later ``--rounds 2 --kept FILE`` and so on, does them
one by one; ``--trials`` and ``--example-trials`` must then stay as they were.

Two cores of an AMD EPYC, PyTorch 2.14, idle, five rounds (2026-11-28). Medians: 1,207, 1,992 and 18,890 trials an hour,
and of the rounds' ratios 14.7 and 9.1 times as many; the products alone would be 22.7 and 13.8 times as many. (The day
before, before updates were fused and activations lay as units by examples, it was 12.4 and 8.1.) Of the 12.2 s that 64
trials take, 8.0 are the products with the import of PyTorch, 920 GFLOP at 80 GFLOP/s of each core, as the search soon
prefers wide networks; 1.5 s more are start and end, the rest training and search.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import psycopg2
from optuna.storages import RDBStorage

from studies.storage.url import StorageURL
from tests.benchmarks.arms import in_turns, options, postgres, report
from tests.conftest import ROOT

TRAIN, VALIDATION, EPOCHS = 3_840, 1_280, 10

EXAMPLE = f'''
"""A script as tutorials write it."""

import sys

import numpy as np
import optuna
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from PIL import Image

TRAIN, EPOCHS, BATCH = {TRAIN}, {EPOCHS}, 128


class Images(Dataset):
    def __init__(self, x, y):
        self.x, self.y, self.transform = x, y, transforms.ToTensor()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.x[i].reshape(28, 28), mode="L")), int(self.y[i])


data = np.load("images.npz")
train = DataLoader(Images(data["X"][:TRAIN], data["y"][:TRAIN]), batch_size=BATCH, shuffle=True)
valid = DataLoader(Images(data["X"][TRAIN:], data["y"][TRAIN:]), batch_size=BATCH)


def define(trial):
    layers, size = [nn.Flatten()], 28 * 28
    for i in range(trial.suggest_int("n_layers", 1, 3)):
        units = trial.suggest_int(f"n_units_l{{i}}", 4, 128)
        layers += [nn.Linear(size, units), nn.ReLU(), nn.Dropout(trial.suggest_float(f"dropout_l{{i}}", 0.2, 0.5))]
        size = units
    return nn.Sequential(*layers, nn.Linear(size, 10), nn.LogSoftmax(dim=1))


def objective(trial):
    model = define(trial)
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    name = trial.suggest_categorical("optimizer", ["Adam", "RMSprop", "SGD"])
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=lr)
    for epoch in range(EPOCHS):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            F.nll_loss(model(x), y).backward()
            optimizer.step()
        model.eval()
        correct = 0
        with torch.no_grad():
            for x, y in valid:
                correct += (model(x).argmax(1) == y).sum().item()
        accuracy = correct / len(valid.dataset)
        trial.report(accuracy, epoch)
    return accuracy


trials, url = int(sys.argv[1]), (sys.argv[2:] or [None])[0]
torch.set_num_threads(int(sys.argv[3]) if len(sys.argv) > 3 else torch.get_num_threads())
optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(study_name="example", storage=url, direction="maximize", load_if_exists=True)
stop = optuna.study.MaxTrialsCallback(trials, states=None)
study.optimize(objective, n_trials=None if url else trials, callbacks=[stop] if url else [])
'''

PRODUCTS = f'''
"""The matrix products of trials of these widths: of each step, and of each epoch's evaluation."""

import json
import sys
from itertools import pairwise

import torch

TRAIN, VALIDATION, EPOCHS, BATCH = {TRAIN}, {VALIDATION}, {EPOCHS}, 128

torch.set_num_threads(1)
for widths in json.loads(sys.argv[1]):
    sizes = [784, *widths, 10]
    weights = [torch.zeros(outputs, inputs) for inputs, outputs in pairwise(sizes)]
    values, parts = ([torch.zeros(n, size) for size in sizes] for n in (BATCH, VALIDATION))
    for _ in range(EPOCHS):
        for _ in range(TRAIN // BATCH):
            for i, weight in enumerate(weights):
                torch.mm(values[i], weight.T)
                torch.mm(values[i + 1].T, values[i])
                if i:
                    torch.mm(values[i + 1], weight)
        for part, weight in zip(parts, weights, strict=False):
            torch.mm(part, weight.T)
'''

STUDY = """
name = "example"
direction = "maximize"
metric = "val_accuracy"

[objective]
path = "objectives.mlp:MLP"
args = {{ dataset = "{file}", validation = 0.25, epochs = {epochs}, fixed = {{ schedule = "constant" }} }}

[budget]
trials = {trials}

[pruner]
name = "none"

[space]
depth     = {{ type = "int", low = 1, high = 3 }}
width_1   = {{ type = "int", low = 4, high = 128 }}
width_2   = {{ type = "int", low = 4, high = 128, when = {{ depth = [2, 3] }} }}
width_3   = {{ type = "int", low = 4, high = 128, when = {{ depth = [3] }} }}
dropout   = {{ type = "float", low = 0.2, high = 0.5 }}
lr        = {{ type = "float", low = 1e-5, high = 1e-1, log = true }}
optimizer = {{ type = "categorical", choices = ["adam", "rmsprop", "sgd"] }}
"""


def main() -> None:
    """Measure the three arms in turns."""
    parser = options(__doc__ or "")
    parser.add_argument("--trials", type=int, default=64, help="of the arm studyhall (default: %(default)s)")
    parser.add_argument("--example-trials", type=int, default=8, help="of the other arms, which are slow")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--kept", metavar="FILE", help="keep each measurement there, and go on from those it has")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-example-", dir="/tmp") as name, postgres(settings.postgres) as url:
        folder = Path(name)
        folder.chmod(0o755)
        _write(folder, settings)
        measured = {
            "example": lambda _: _example(folder, settings.example_trials),
            "two processes": lambda _: _two_processes(folder, settings.example_trials, url),
            "studyhall": lambda _: _studyhall(folder, settings.trials, url),
            "products": lambda _: _products(folder, settings.trials),
        }
        wanted = settings.arms or measured
        kept = Path(settings.kept) if settings.kept else None
        report("example", settings, in_turns(settings.rounds, {name: measured[name] for name in wanted}, kept))


def _write(folder: Path, settings: argparse.Namespace) -> None:
    """The script, the study, and the images: MNIST's where they are, else noise, which takes as long."""
    raw = Path(os.environ.get("STUDYHALL_TEST_DATA", ROOT.parent / "shared" / "data")) / "MNIST" / "raw"
    count = TRAIN + VALIDATION
    if raw.is_dir():
        images = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
        labels = np.frombuffer((raw / "train-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
        x, y = images.reshape(-1, 784)[:count], labels[:count].astype(np.int64)
    else:
        draw = np.random.default_rng(0)
        x, y = draw.integers(0, 256, (count, 784), dtype=np.uint8), draw.integers(0, 10, count)
    np.savez(folder / "images.npz", X=x, y=y, X_test=x[:100], y_test=y[:100])  # which is not looked at
    (folder / "example.py").write_text(EXAMPLE)
    (folder / "products.py").write_text(PRODUCTS)
    text = STUDY.format(file=folder / "images.npz", epochs=EPOCHS, trials=settings.trials)
    (folder / "example.toml").write_text(text)


def _example(folder: Path, trials: int) -> dict[str, float]:
    return _per_hour(trials, [[sys.executable, "example.py", str(trials)]], folder)


def _two_processes(folder: Path, trials: int, url: StorageURL) -> dict[str, float]:
    own = _own_database(url)
    RDBStorage(own.sqlalchemy).engine.dispose()  # two that make the tables at once: one of them fails
    command = [sys.executable, "example.py", str(trials), own.sqlalchemy, "1"]
    return _per_hour(trials, [command, command], folder)


def _studyhall(folder: Path, trials: int, url: StorageURL) -> dict[str, float]:
    own = _own_database(url)
    studyhall, storage = str(Path(sys.executable).with_name("studyhall")), ["--storage", own.sqlalchemy]
    command = [studyhall, "run", "example.toml", *storage]
    measured = _per_hour(trials, [command], folder, STUDYHALL_HOME=str(folder / "home"))
    listed = subprocess.check_output([studyhall, "trials", "example", "--format", "json", *storage])
    params = [trial["params"] for trial in json.loads(listed)]
    widths = [[of[f"width_{i + 1}"] for i in range(of["depth"])] for of in params]
    (folder / "widths.json").write_text(json.dumps(widths))
    return measured


def _products(folder: Path, trials: int) -> dict[str, float]:
    widths = json.loads((folder / "widths.json").read_text())
    halves = [json.dumps(widths[i::2]) for i in range(2)]
    return _per_hour(trials, [[sys.executable, "products.py", half] for half in halves], folder)


def _own_database(url: StorageURL) -> StorageURL:
    """A new, empty one."""
    own = replace(url, database=f"bench_{time.monotonic_ns()}")
    connection = psycopg2.connect(**url.libpq)
    connection.autocommit = True
    connection.cursor().execute(f"create database {own.database}")
    connection.close()
    return own


def _per_hour(trials: int, commands: list[list[str]], folder: Path, **environment: str) -> dict[str, float]:
    start = time.perf_counter()
    running = [
        subprocess.Popen(
            command, cwd=folder, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}, stdout=sys.stderr
        )
        for command in commands
    ]
    if any(process.wait() for process in running):
        sys.exit(f"{commands[0]} failed")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "trials per hour": trials / seconds * 3600}


if __name__ == "__main__":
    main()
