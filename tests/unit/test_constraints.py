"""Constraints of a study file: what one says, and how far a value is from it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from studies import StudySpec
from studies.errors import SpecError
from studies.spec.constraints import Constraint, in_words


def test_a_violation_is_at_most_zero_where_the_bound_is_kept() -> None:
    for text, value, violation in (
        ("<= 5", 3.0, -2.0),
        ("<=5", 5.0, 0.0),
        (" >= -1e-3 ", 0.0, -1e-3),
        (">= 0.9", 0.5, 0.4),
        ("<= 5", math.inf, math.inf),
        ("<= 5", math.nan, math.inf),
    ):
        bound = Constraint.parse(text)
        assert bound.violation(value) == pytest.approx(violation)
        assert bound.value_of(bound.violation(3.0)) == pytest.approx(3.0)
    assert in_words({"ms": "<= 5", "acc": ">=0.90"}) == "ms <= 5 and acc >= 0.9"


def test_what_is_no_bound_is_refused_by_name() -> None:
    for text, words in (
        ("< 5", "constraints.ms: '< 5' has the operator '<'; legal are <= and >=, such as '<= 5'"),
        ("== 5", "has the operator '=='"),
        ("about 5", "'about 5' has no operator"),
        ("", "'' has no operator"),
        ("<= fast", "constraints.ms: '<= fast': 'fast' is not a finite number; write '<= 5'"),
        (">= nan", "'nan' is not a finite number"),
        (5, "constraints.ms = 5: should be a valid string"),
    ):
        with pytest.raises(SpecError) as caught:
            spec(constraints={"ms": text})
        assert words in str(caught.value)


def test_several_objectives_are_pruned_on_one_of_them_or_on_none() -> None:
    two: dict[str, Any] = {"directions": ["maximize", "minimize"], "metric": ["acc", "ms"]}
    assert type(spec(**two).to_pruner()).__name__ == "NopPruner"
    assert type(spec(**two, pruner={"metric": "ms"}).to_pruner()).__name__ == "MedianPruner"
    for pruner, words in (
        ({"metric": "ac"}, "pruner.metric: 'ac' is no objective; did you mean 'acc'?"),
        ({"name": "wilcoxon", "metric": "acc"}, "'wilcoxon' compares with the best trial"),
        (
            {
                "name": "patient",
                "metric": "acc",
                "options": {"patience": 1, "wrapped_pruner": {"name": "wilcoxon", "options": {}}},
            },
            "'wilcoxon' compares with the best trial",
        ),
    ):
        with pytest.raises(SpecError) as caught:
            spec(**two, pruner=pruner)
        assert words in str(caught.value)


def spec(**keys: Any) -> StudySpec:
    return StudySpec.from_dict({"name": "s", "objective": {"path": "tests:objective"}, **keys})
