"""Optuna's samplers and pruners by their short names, as a study file names them."""

from __future__ import annotations

import optuna
import pytest

from studies.spec.study import StudySpec
from tests.support.spec import BASE, sampled, spec_with


@pytest.mark.parametrize("name", ["tpe", "random", "cmaes", "qmc", "nsgaii", "nsgaiii", "bruteforce", "gp"])
def test_every_sampler_is_built_by_its_short_name(name: str) -> None:
    if name == "gp":
        pytest.importorskip("torch")
    spec = StudySpec.from_dict(
        {**BASE, "space": {"x": {"type": "int", "low": 0, "high": 9}}, "sampler": {"name": name}}
    )
    assert 0 <= sampled(spec, 0)["x"] <= 9


def test_a_grid_is_made_of_the_space() -> None:
    space = {"x": {"type": "float", "low": 0, "high": 1, "step": 0.5}, "y": {"type": "categorical", "choices": "ab"}}
    space["y"]["choices"] = ["a", "b"]
    spec = StudySpec.from_dict({**BASE, "space": space, "sampler": {"name": "grid"}})
    assert spec.combinations == 6


def test_a_sampler_may_hold_another() -> None:
    options = "{fixed_params={width=64},base_sampler={name='random'}}"
    spec = spec_with(f"sampler={{name='partialfixed',options={options}}}")
    assert sampled(spec, 3)["width"] == 64


@pytest.mark.parametrize("name", ["none", "median", "hyperband", "successivehalving", "wilcoxon"])
def test_every_pruner_is_built_by_its_short_name(name: str) -> None:
    assert isinstance(spec_with(f"pruner.name={name}").to_pruner(), optuna.pruners.BasePruner)


def test_a_pruner_may_hold_another() -> None:
    spec = spec_with("pruner={name='patient',options={patience=2,wrapped_pruner={name='median'}}}")
    assert isinstance(spec.to_pruner(), optuna.pruners.PatientPruner)
