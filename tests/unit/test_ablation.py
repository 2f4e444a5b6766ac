"""The path from a configuration to the best trial, on trials made by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial

from studies.report.ablation import Step, ablation
from studies.report.data import StudyData
from studies.spec.space import read_space
from studies.storage.records import Status

SPACE = read_space(
    {
        "lr": {"type": "float", "low": 1e-4, "high": 1.0, "log": True},
        "optimizer": {"type": "categorical", "choices": ["sgd", "adamw"]},
        "momentum": {"type": "float", "low": 0.0, "high": 1.0, "when": {"optimizer": ["sgd"]}},
        "width": {"type": "int", "low": 1, "high": 9, "step": 4},
    }
)


def loss(params: dict[str, Any]) -> float:
    return float(10 * params["lr"] + params.get("momentum", -2.0) + (params["optimizer"] == "adamw") * 1.0)


def study(space: dict[str, Any], sign: int = 1) -> StudyData:
    draw = random.Random(0)
    trials: list[FrozenTrial] = []
    for number in range(300):
        params = {"lr": 10 ** draw.uniform(-4, 0), "optimizer": draw.choice(["sgd", "adamw"]), "width": 5}
        if params["optimizer"] == "sgd":
            params["momentum"] = draw.random()
        distributions = {name: SPACE[name].distribution() for name in params}
        trials.append(create_trial(params=params, distributions=distributions, value=sign * loss(params)))
        trials[-1].number = number
    return StudyData(
        name="s",
        directions=[StudyDirection.MINIMIZE if sign == 1 else StudyDirection.MAXIMIZE],
        trials=trials,
        status=Status(study="s", budget=None, trials={}, paused=False, ended=None, best=None, workers=[]),
        metric_names=["value"],
        space=space,
    )


def names(steps: Sequence[Step]) -> list[set[str]]:
    return [{*step.changed, *step.dropped} for step in steps]


@pytest.mark.parametrize("sign", [1, -1])
def test_what_improves_the_value_most_comes_first_with_what_depends_on_it(sign: int) -> None:
    steps = ablation(study(dict(SPACE), sign), {"lr": 1.0})
    assert dict(steps[0].changed) == {"lr": 1.0, "optimizer": "sgd", "momentum": 0.5, "width": 5}
    assert names(steps)[1:] == [{"lr"}, {"optimizer", "momentum"}]
    assert list(steps[2].dropped) == ["momentum"]
    values = [sign * step.predicted for step in steps]
    assert values == sorted(values, reverse=True)


def test_a_configuration_that_is_not_given_is_the_middle_of_the_space() -> None:
    (first, *_) = ablation(study(dict(SPACE)))
    assert dict(first.changed) == {"lr": pytest.approx(0.01), "optimizer": "sgd", "momentum": 0.5, "width": 5}


def test_without_a_study_file_the_parameters_are_those_of_the_best_trial() -> None:
    steps = ablation(study({}))
    assert set(steps[0].changed) == {"lr", "optimizer", "width"}
