"""A study file of each kind of parameter, and what trials draw from it."""

from __future__ import annotations

import copy
from typing import Any

import optuna

from studies.spec.source import override
from studies.spec.study import StudySpec

BASE: dict[str, Any] = {
    "name": "study",
    "direction": "maximize",
    "objective": {"path": "package.module:callable", "args": {"epochs": 5}},
    "budget": {"trials": 10},
    "sampler": {"name": "tpe"},
    "pruner": {"name": "median"},
    "space": {
        "momentum": {"type": "float", "low": 0.0, "high": 0.9, "when": {"optimizer": ["sgd"]}},
        "lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
        "width": {"type": "int", "low": 32, "high": 512, "log": True},
        "optimizer": {"type": "categorical", "choices": ["adamw", "sgd"]},
    },
}


def spec_with(*settings: str) -> StudySpec:
    data = copy.deepcopy(BASE)
    for setting in settings:
        override(data, setting)
    return StudySpec.from_dict(data, "my.toml")


def sampled(spec: StudySpec, number: int) -> dict[str, Any]:
    """The parameters of trial ``number`` of an empty study."""
    study = optuna.create_study(direction="maximize", sampler=spec.to_sampler(number), pruner=spec.to_pruner())
    trial = study.ask()
    spec.suggest(trial)
    return trial.params
