"""Parameters of every type in every format that scripts read: strict, and read back as what they were."""

from __future__ import annotations

import csv
import json
import math
import shlex
import tomllib
from typing import Any

import numpy as np
import optuna
import pytest
import yaml

from studies.cli.formats import best_data, data_as, detail_lines, to_csv
from studies.cli.parameters import quoted_arguments, quoted_variables
from studies.spec.space import categorical
from studies.values import as_stored, finite, key_of, strict, to_json, to_text

INF = math.inf
PARAMS: dict[str, Any] = {
    "layers": [50, 50],
    "norm": INF,
    "clip": -INF,
    "odd": math.nan,
    "nested": {"a": [1, INF, None]},
    "empty": [None],
    "name": "adam w",
    "flag": True,
    "none": None,
    "lr": 0.1,
}
STRICT = PARAMS | {"norm": "Infinity", "clip": "-Infinity", "odd": "NaN", "nested": {"a": [1, "Infinity", None]}}


def best(kind: str) -> str:
    trial = optuna.trial.FrozenTrial(
        number=0,
        trial_id=0,
        state=optuna.trial.TrialState.COMPLETE,
        value=1.0,
        datetime_start=None,
        datetime_complete=None,
        params=PARAMS,
        distributions={name: categorical([value]) for name, value in PARAMS.items()},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )
    metrics = {"loss": math.nan}
    if kind == "table":
        return "\n".join(detail_lines(trial, metrics))
    if kind in ("env", "args"):
        return (quoted_variables if kind == "env" else quoted_arguments)(trial.params)
    return data_as(kind, {"study": "study", **best_data(trial, metrics)})


def reject(token: str) -> None:
    pytest.fail(f"{token} is not JSON")


def test_json_holds_no_number_that_is_none() -> None:
    data = json.loads(best("json"), parse_constant=reject)
    assert data["params"] == STRICT
    assert data["metrics"] == {"loss": None}


def test_yaml_and_toml_have_infinities_of_their_own() -> None:
    for read, kind in ((yaml.safe_load, "yaml"), (tomllib.loads, "toml")):
        params = read(best(kind))["params"]
        assert params["norm"] == INF
        assert params["clip"] == -INF
        assert math.isnan(params["odd"])
        assert params["layers"] == [50, 50]
    # TOML has no null: what holds one is left out as a whole, and that is said.
    assert params.keys() == PARAMS.keys() - {"none", "empty"}
    assert params["nested"] == {}
    assert [line.rpartition(" ")[2] for line in best("toml").splitlines() if line.startswith("#")] == [
        "params.nested.a", "params.empty", "params.none", "metrics.loss"
    ]  # fmt: skip


def test_text_is_text_in_the_eyes_of_every_reader_of_yaml() -> None:
    doubtful = ["1e3", "0o17", "1_000", "12:30:45", "2026-11-27", "+.INF", ".nan", "y", "No", "ON", "~", "NULL"]
    for text in doubtful:
        assert data_as("yaml", {text: text}) == f"'{text}': '{text}'"
    for text in ("adamw", "relu 6", "none", "yesterday", "e3"):
        assert data_as("yaml", {text: text}) == f"{text}: {text}"


def test_the_shell_gets_what_python_reads_back() -> None:
    found = dict(word.split("=", 1) for word in shlex.split(best("env")))
    assert float(found["NORM"]) == INF
    assert float(found["CLIP"]) == -INF
    assert math.isnan(float(found["ODD"]))
    assert json.loads(found["LAYERS"]) == [50, 50]
    assert json.loads(found["NESTED"], parse_constant=reject) == STRICT["nested"]
    words = shlex.split(best("args"))
    assert words[words.index("--norm") + 1] == "Infinity"
    assert words[words.index("--name") + 1] == "adam w"


def test_a_person_reads_every_type() -> None:
    assert "[50, 50]" in best("table")
    assert "inf" in best("table")


def test_a_cell_of_csv_is_text_that_json_reads() -> None:
    text = to_csv([["a", "b"], [to_text([1, INF]), strict(INF)]])
    assert list(csv.reader(text.splitlines()))[1] == ['[1, "Infinity"]', "Infinity"]


@pytest.mark.parametrize(
    ("given", "stored"),
    [((1, (2,)), [1, [2]]), (np.int64(3), 3), ([np.float64(0.5), np.bool_(True)], [0.5, True]), ({1: ()}, {"1": []})],
)
def test_a_choice_is_stored_as_json_reads_it(given: Any, stored: Any) -> None:
    assert as_stored(given) == stored
    assert key_of(as_stored(given)) == key_of(stored)


@pytest.mark.parametrize(
    "value", [object(), {1}, b"x", 1j, np.ones(2), [object()]], ids=lambda value: type(value).__name__
)
def test_what_json_cannot_say_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match="is of type "):
        as_stored(value)


def test_keys_tell_apart_what_python_takes_for_equal() -> None:
    assert len({key_of(value) for value in (1, 1.0, True, "1", [1], math.nan, INF)}) == 7


def test_a_measurement_that_is_not_finite_is_null() -> None:
    assert [finite(value) for value in (1.0, INF, -INF, math.nan, None)] == [1.0, None, None, None, None]
    assert to_json([INF]) == '["Infinity"]'
