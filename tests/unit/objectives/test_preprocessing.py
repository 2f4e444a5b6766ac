"""From raw rows to features: the same as ever, fitted on training rows alone, and the same again from JSON."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from objectives.data import ROLES, SCALINGS, DataError, Dataset, Part, Preprocessing, load
from objectives.data.preprocessing import MAX_LEVELS, MIN_ROWS
from objectives.data.table import open_table

CATS = ("cat", "dog")


def rows_of_numbers() -> dict[str, list[Any]]:
    """500 rows by formula; ``c`` is constant, ``big`` has a large offset."""
    return {
        "a": [i * 37 % 101 / 8 for i in range(500)],
        "flag": [i % 3 == 0 for i in range(500)],
        "big": [1_700_000_000 + i * i for i in range(500)],
        "c": [0.1] * 500,
        "y": [CATS[i * i % 7 >= 3] for i in range(500)],
    }


def write_csv(file: Path, columns: dict[str, list[Any]]) -> None:
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    file.write_text("\n".join(lines) + "\n")


def digests(data: Dataset) -> list[str]:
    def digest(part: Part) -> str:
        return hashlib.sha256(part.stored_NF.numpy().tobytes() + part.y_N.numpy().tobytes()).hexdigest()[:16]

    return [digest(part) for part in (data.train, data.validation, data.test)]


def test_a_study_stored_earlier_gets_the_same_parts_to_the_bit(tmp_path: Path) -> None:
    """Digests of 2026-11-27, before there was a :class:`Preprocessing`."""
    write_csv(tmp_path / "classes.csv", rows_of_numbers())
    numbers = {
        "a": [i * 37 % 101 / 8 for i in range(500)],
        "b": [i * i % 97 for i in range(500)],
        "y": [i * i % 89 / 4 for i in range(500)],
    }
    write_csv(tmp_path / "numbers.csv", numbers)
    x = (np.arange(2400) * 7919 % 1009 / 16).reshape(600, 4)
    np.savez(tmp_path / "own.npz", X=x, y=np.arange(600) % 3)
    expected: list[tuple[str, dict[str, Any], list[str]]] = [
        ("digits", {}, ["a246842e2c3f6000", "0e8f2eadbc8567ac", "3ea49a6c5c1f0810"]),
        (
            "digits",
            {"split_seed": 1, "validation": 0.2},
            ["726ee7833a9dc7ea", "2df931cd3f336a3b", "129a3226aba58c9b"],
        ),
        ("classes.csv", {"target": "y"}, ["22df187d6f357568", "07c8bbf2fb397f45", "6ece8508e0f73bfd"]),
        (
            "numbers.csv",
            {"target": "y", "task": "regression", "split_seed": 3},
            ["3e15a0b71f2d0ded", "b2c8704a27250b48", "337ced9f2a46a29f"],
        ),
        ("own.npz", {}, ["e7e3b18d81a7f24a", "cfce3eeed69ff322", "d11275ba1c83ff4b"]),
    ]
    for dataset, args, parts in expected:
        assert digests(load(dataset, data_dir=tmp_path, **args)) == parts, (dataset, args)
    digits, table = load("digits", data_dir=tmp_path), load("classes.csv", data_dir=tmp_path, target="y")
    assert (digits.mean_F.item(), digits.std_F.item()) == pytest.approx((4.880909442901611, 6.013703346252441))
    assert table.std_F.tolist() == pytest.approx([3.64377263, 0.48412292, 73550.56851558, float("inf")])


def features_of(data: Dataset) -> torch.Tensor:
    return torch.cat([part.x_NF for part in (data.train, data.validation, data.test)])


def test_raw_rows_in_every_form_become_the_features_of_training(tmp_path: Path) -> None:
    columns = rows_of_numbers()
    write_csv(tmp_path / "own.csv", columns)
    data = load("own.csv", data_dir=tmp_path, target="y", columns={"c": "ignore"})
    stored = json.loads(json.dumps(data.preprocessing.to_data(), allow_nan=False))
    again = Preprocessing.from_data(stored)
    assert again.to_data() == stored
    shuffled = {name: columns[name] for name in ("big", "y", "a", "flag")}
    forms: list[Any] = [
        open_table(tmp_path / "own.csv", "a"),
        pd.DataFrame(columns),
        pd.DataFrame(shuffled).drop(columns="y"),
        pa.table(shuffled),
        columns,
    ]
    found = [again.transform(form) for form in forms]
    assert all(np.array_equal(found[0], other) for other in found[1:])
    # As the parts keep the order of the rows, their rows are those of the table, each once.
    assert sorted(map(bytes, found[0])) == sorted(map(bytes, features_of(data).numpy()))


def test_raw_pixels_become_the_features_of_training(tmp_path: Path) -> None:
    data = load("digits", data_dir=tmp_path)
    preprocessing = Preprocessing.from_data(json.loads(json.dumps(data.preprocessing.to_data())))
    pixels = data.test.stored_NF.numpy()
    for rows in (pixels, pixels.reshape(-1, 8, 8).astype(np.float64), pd.DataFrame(pixels)):
        assert torch.equal(torch.from_numpy(preprocessing.transform(rows)), data.test.x_NF)


def test_a_missing_cell_counts_as_the_median_of_the_training_rows(tmp_path: Path) -> None:
    write_csv(tmp_path / "own.csv", rows_of_numbers())
    preprocessing = load("own.csv", data_dir=tmp_path, target="y", columns={"c": "ignore"}).preprocessing
    medians = dict(zip(preprocessing.names, preprocessing.fill, strict=True))
    filled, missing = ({"a": [value], "flag": [True], "big": [2]} for value in (medians["a"], None))
    assert np.array_equal(preprocessing.transform(missing), preprocessing.transform(filled))


@pytest.fixture
def preprocessing(tmp_path: Path) -> Preprocessing:
    write_csv(tmp_path / "own.csv", rows_of_numbers())
    return load("own.csv", data_dir=tmp_path, target="y").preprocessing


GOOD = {"a": [1.5, 2], "flag": [True, None], "big": [3, 4], "c": [0.1, 7]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop("a"), "the rows have no column 'a'; needed are a, flag, big, c"),
        (lambda rows: rows.update(bigg=rows.pop("big")), "the rows have no column 'big'; is it 'bigg'?"),
        (lambda rows: rows.update(z=[1, 2]), "the rows have the column 'z', which was not there in training; leave it"),
        (lambda rows: rows.update(a=["1.5", "x"]), "column 'a' has '1.5' in row 1; in training it held numbers"),
        (lambda rows: rows.update(a=[1, "x"]), "column 'a' is not of one type ("),
        (lambda rows: rows.update(a=3), "column 'a' is 3; give a list with a cell for each row"),
        (lambda rows: rows.update(a="34"), "column 'a' is '34'; give a list with a cell for each row"),
        (lambda rows: rows.update(a=[1]), "the columns are not equally long: a 1, flag 2, big 2, c 2"),
        (lambda rows: rows.update(big=[1, 1e300]), "row 2, column 'big' is 1e+300; every feature must be finite"),
    ],
)
def test_rows_of_another_kind_are_refused_by_name(
    preprocessing: Preprocessing, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rows = dict(GOOD)
    change(rows)
    with pytest.raises(ValueError, match="column") as caught:
        preprocessing.transform(rows)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_table_is_refused(preprocessing: Preprocessing, tmp_path: Path) -> None:
    digits = load("digits", data_dir=tmp_path).preprocessing
    for transformation, rows, message in (
        (preprocessing, np.zeros((2, 4)), "an array has no columns; give a table with the columns a, flag, big, c"),
        (preprocessing, [GOOD], "rows are list; give a pandas or pyarrow table, or a dict of columns"),
        (digits, np.zeros((2, 63)), r"the array has shape \(2, 63\); it must have 64 features per example"),
        (digits, np.full((2, 64), np.inf), "not finite as a float32"),
        (digits, np.full((2, 64), "x"), "the array holds <U1; it must hold numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            transformation.transform(rows)
    with pytest.raises(ValueError, match=r"is no description of a preprocessing \(KeyError: 'fill'\)"):
        Preprocessing.from_data({"columns": []})
    assert preprocessing.transform({name: [] for name in GOOD}).shape == (0, 4)


# Missing cells and categories

SEED = 11


def mixed_rows(n: int = 400) -> dict[str, list[Any]]:
    """``city`` decides the class; rare cities, and gaps in ``age`` and in ``city``."""
    rng = random.Random(SEED)
    print("seed", SEED)
    cities = [rng.choice(["Oslo", "Rome", "Lima"]) for _ in range(n)]
    rows: dict[str, list[Any]] = {
        "city": [f"Village {i // 2}" if i < 6 else "" if i % 20 == 6 else city for i, city in enumerate(cities)],
        "age": ["" if i % 10 == 3 else round(rng.gauss(40, 9), 1) for i in range(n)],
        "smoker": [rng.choice(["yes", "no"]) if i > n // 2 else "yes" for i in range(n)],
        "plan": [rng.choice(["yes", "no", "unknown"]) if i > n // 2 else "yes" for i in range(n)],
        "zip": [f"{rng.randrange(4):05d}" for i in range(n)],
        "y": [int(city == "Rome") for city in cities],
    }
    return rows


DECLARED: dict[str, Any] = {"zip": "category"}


def test_categories_and_missing_cells_become_indicators(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = mixed_rows()
    write_csv(tmp_path / "own.csv", columns)
    # In blocks of few rows: `plan` is yes and no for a while, and only then a category.
    monkeypatch.setattr("objectives.data.delimited.BLOCK_BYTES", 1000)
    caplog.set_level("INFO")
    data = load("own.csv", data_dir=tmp_path, target="y", columns=DECLARED)
    assert "read as categories: 'city' (7 levels), 'plan' (3 levels), 'zip' (4 levels)" in caplog.text
    preprocessing = Preprocessing.from_data(json.loads(json.dumps(data.preprocessing.to_data())))
    assert preprocessing == data.preprocessing
    assert preprocessing.feature_names == (
        *("age", "smoker", "age is missing"),
        *("city is missing", "city = Lima", "city = Oslo", "city = Rome", "city is rare"),
        *("plan = no", "plan = unknown", "plan = yes"),
        *("zip = 00000", "zip = 00001", "zip = 00002", "zip = 00003"),
    )
    assert data.n_features == len(preprocessing.feature_names)
    frame = pd.DataFrame({**columns, "age": pd.to_numeric(pd.Series(columns["age"]))}).replace({"": None})
    frame["smoker"] = frame["smoker"] == "yes"
    found = preprocessing.transform(frame)
    assert sorted(map(bytes, found)) == sorted(map(bytes, features_of(data).numpy()))
    assert np.array_equal(found, preprocessing.transform(open_table(tmp_path / "own.csv", "y")))


def test_unknown_levels_and_missing_cells_are_legal_later(tmp_path: Path) -> None:
    write_csv(tmp_path / "own.csv", mixed_rows())
    preprocessing = load("own.csv", data_dir=tmp_path, target="y", columns=DECLARED).preprocessing
    row = {"age": [None], "smoker": [None], "city": ["Atlantis"], "plan": [None], "zip": [" 00002 "]}
    found = dict(zip(preprocessing.feature_names, preprocessing.transform(row)[0].tolist(), strict=True))
    assert {name for name, value in found.items() if value == 1} == {"age is missing", "city is rare", "zip = 00002"}
    with pytest.raises(ValueError, match=r"column 'zip' holds numbers; in training it held text: '00000', '00001'"):
        preprocessing.transform({**row, "zip": [2]})
    with pytest.raises(ValueError, match=r"column 'age' is true or false; in training it held numbers"):
        preprocessing.transform({**row, "age": [True]})


def test_nothing_of_validation_and_test_rows_is_in_any_statistic(tmp_path: Path) -> None:
    """Marks them with extreme numbers, levels of their own and missing cells; training rows stay as they are."""
    columns = mixed_rows()
    for number, name in enumerate(("plain", "marked")):
        write_csv(tmp_path / f"{name}.csv", {"row": list(range(400, 800)), **columns})
        if number:
            continue
        plain = load("plain.csv", data_dir=tmp_path, target="y", columns={**DECLARED, "row": "feature"})
        held_out = torch.cat([plain.validation.x_NF[:, 0], plain.test.x_NF[:, 0]]).double()
        rows = (held_out * plain.std_F[0] + plain.mean_F[0]).round().int().tolist()
        for i in (row - 400 for row in rows):
            columns["age"][i] = "" if i % 2 else 1e30
            columns["city"][i] = f"Marked {i % 3}"
            columns["zip"][i] = "" if i % 2 else "marked"
    marked = load("marked.csv", data_dir=tmp_path, target="y", columns={**DECLARED, "row": "feature"})
    assert marked.preprocessing == plain.preprocessing
    assert torch.equal(marked.train.x_NF, plain.train.x_NF)
    assert not torch.equal(marked.test.x_NF, plain.test.x_NF)
    assert "arked" not in json.dumps(marked.preprocessing.to_data())


# Heavy tails


def test_a_quantile_scaling_has_no_tail(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    print("seed", SEED)
    income = np.exp(3 * rng.normal(size=1000))
    columns = {"income": income, "flag": rng.random(1000) < 0.3, "c": np.full(1000, 0.1), "y": (income > 1).astype(int)}
    pd.DataFrame(columns).to_csv(tmp_path / "own.csv", index=False)
    data = load("own.csv", data_dir=tmp_path, target="y", scaling="quantile")
    income_N, flag_N, constant_N = data.train.x_NF.T
    assert (float(income_N.mean()), float(income_N.std(correction=0))) == pytest.approx((0, 1), abs=1e-4)
    assert float(income_N.abs().max()) < 4
    assert float(load("own.csv", data_dir=tmp_path, target="y").train.x_NF[:, 0].max()) > 10
    assert len(flag_N.unique()) == 2
    assert float(constant_N.abs().max()) == 0
    preprocessing = Preprocessing.from_data(json.loads(json.dumps(data.preprocessing.to_data(), allow_nan=False)))
    assert preprocessing == data.preprocessing
    found = preprocessing.transform(pd.DataFrame(columns))
    assert sorted(map(bytes, found)) == sorted(map(bytes, features_of(data).numpy()))
    assert np.array_equal(np.argsort(found[:, 0], kind="stable")[50:-50], np.argsort(income, kind="stable")[50:-50])
    far = preprocessing.transform({"income": [1e30, income.max()], "flag": [True] * 2, "c": [5] * 2})
    assert np.array_equal(far[0], far[1])


def test_a_scaling_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for scaling, message in (
        ("robust", "scaling = 'robust'; it must be one of standard, quantile"),
        ("quantile", "scaling = 'quantile' is for numbers with a tail, and the data are bytes; leave it out"),
    ):
        with pytest.raises(DataError, match=message):
            load("digits", data_dir=tmp_path, scaling=scaling)


def test_every_arg_of_the_data_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "tables.md").read_text(encoding="utf-8")
    options = [name for name in signature(load).parameters if name not in ("data_dir", "task")]
    assert all(f"| `{name}` |" in page for name in options), options
    assert all(f'"{scaling}"' in page for scaling in SCALINGS)
    assert all(f'"{role}"' in page for role in ROLES)
    numbers = {str(MAX_LEVELS), {5: "five"}[MIN_ROWS]}
    assert all(number in page for number in numbers), numbers
