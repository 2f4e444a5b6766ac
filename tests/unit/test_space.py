"""The search space: conditions, and the corners by which an objective is asked."""

from __future__ import annotations

from studies.spec.space import corners, read_space
from tests.support.spec import sampled, spec_with


def test_a_parameter_is_sampled_only_when_its_condition_holds() -> None:
    spec = spec_with()
    drawn = [sampled(spec, number) for number in range(20)]
    assert {params["optimizer"] for params in drawn} == {"adamw", "sgd"}
    for params in drawn:
        assert ("momentum" in params) == (params["optimizer"] == "sgd")


def test_the_corners_of_a_space_are_its_extremes_alone_and_in_pairs_where_the_conditions_allow() -> None:
    data = {
        "lr": {"type": "float", "low": 0.1, "high": 1.0},
        "optimizer": {"type": "categorical", "choices": ["adamw", "sgd"]},
        "momentum": {"type": "float", "low": 0.5, "high": 0.5, "when": {"optimizer": ["sgd"]}},
    }
    found = list(corners(read_space(data)))
    sgd = {"optimizer": "sgd", "momentum": 0.5}
    assert found[:5] == [{"lr": 0.1}, {"lr": 1.0}, {"optimizer": "adamw"}, {"optimizer": "sgd"}, sgd]
    pairs = [{"lr": lr, "optimizer": name} for lr in (0.1, 1.0) for name in ("adamw", "sgd")]
    assert found[5:] == [*pairs, {"lr": 0.1, **sgd}, {"lr": 1.0, **sgd}, sgd]
