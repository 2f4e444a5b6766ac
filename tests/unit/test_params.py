"""NAME=VALUE, read against a space."""

from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studies.errors import SpecError
from studies.spec.params import read_params
from studies.spec.space import observed_space


def test_parameters_are_read_against_what_trials_had() -> None:
    space = observed_space(
        [
            ("c", CategoricalDistribution((None, True, "true", 0.5))),
            ("n", IntDistribution(1, 3, step=2)),
            ("n", IntDistribution(0, 6, step=3)),
            ("x", FloatDistribution(0, 1, step=0.25)),
        ]
    )
    given = {"c=null": None, "c=true": True, "c=0.50": 0.5, "n=5": 5, "x=0.75": 0.75, "x=1": 1.0}
    for text, value in given.items():
        (read,) = read_params([text], space).values()
        assert (read, type(read)) == (value, type(value))
    for text in ("c=1", "n=7", "n=1.5", "x=0.3", "y=1"):
        with pytest.raises(SpecError, match=r"should be|no parameter 'y' is known; known: c, n, x"):
            read_params([text], space)
