"""What the benchmarks share: the servers, the arms' table, the objective, and taking turns."""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna

from studies.storage.url import StorageURL
from tests.support.postgres import DEBIAN_15, start_postgres

SERVERS = {"15": DEBIAN_15, "18": None}
"""Where PostgreSQL's programs are, by major version; 18 is the wheel's."""


def options(description: str) -> argparse.ArgumentParser:
    """A parser with the options that each benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--postgres", choices=SERVERS, default="18", help="major version (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each arm, in turns (default: %(default)s)")
    return parser


@contextmanager
def postgres(version: str) -> Iterator[StorageURL]:
    """A new server that writes to the disk as a real one does, gone at the end."""
    directory = SERVERS[version]
    if directory is not None and not directory.is_dir():
        sys.exit(f"no PostgreSQL in {directory}")
    with start_postgres(directory, fsync="on") as server:
        yield StorageURL.parse(server.url)


def suggest(trial: optuna.Trial) -> float:
    """Ask for four parameters, one of each kind; return a loss with its minimum within."""
    x = trial.suggest_float("x", -5, 5)
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    width = trial.suggest_int("width", 16, 512)
    kind = trial.suggest_categorical("kind", ["relu", "tanh", "gelu"])
    return (x - 1) ** 2 + (math.log10(rate) + 3) ** 2 + abs(width - 128) / 128 + (kind != "gelu")


def in_turns(
    rounds: int, arms: Mapping[str, Callable[[int], dict[str, float]]], kept: Path | None = None
) -> dict[str, dict[str, float]]:
    """Measure each arm once per round, one after the other, so that a slow minute of the machine hits all alike.

    Args:
        arms: by name, what measures once, given the round's number, and returns its figures by name.
        kept: a file that gets a line of JSON for each measurement; those that it has already are not measured again,
            so that the rounds of a long benchmark may be run one by one.

    Returns:
        For each arm, the median of each figure.
    """
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for line in kept.read_text().splitlines() if kept and kept.exists() else ():
        of = json.loads(line)
        if of["arm"] in figures:
            figures[of["arm"]].append(of["figures"])
    for number in range(rounds):
        for name, measure in arms.items():
            if len(figures[name]) > number:
                continue
            gc.collect()
            figures[name].append(measure(number))
            if kept:
                with kept.open("a") as file:
                    file.write(json.dumps({"arm": name, "figures": figures[name][-1]}) + "\n")
            told = ", ".join(f"{key} {value:.4g}" for key, value in figures[name][-1].items())
            print(f"round {number + 1} of {rounds}: {name}: {told}", file=sys.stderr)
    return {name: _medians(taken) for name, taken in figures.items()}


def _medians(taken: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(figure[key] for figure in taken) for key in taken[0]}


def report(benchmark: str, settings: argparse.Namespace, arms: dict[str, dict[str, float]]) -> None:
    """A table for a person on stderr, one line of JSON on stdout."""
    columns = list(dict.fromkeys(key for figures in arms.values() for key in figures))
    print("".join(f"{cell:>24}" for cell in ["medians", *columns]), file=sys.stderr)
    for name, figures in arms.items():
        cells = [f"{figures[key]:.4g}" if key in figures else "-" for key in columns]
        print("".join(f"{cell:>24}" for cell in [name, *cells]), file=sys.stderr)
    result: dict[str, Any] = {"benchmark": benchmark, **vars(settings), "arms": _rounded(arms)}
    print(json.dumps(result))


def _rounded(arms: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: {key: float(f"{value:.4g}") for key, value in figures.items()} for name, figures in arms.items()}
