"""Splits by groups and in the order of time: no group and no time on two sides, and every bad one by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from objectives.data import DataError, Dataset, load
from objectives.mlp import MLP

SEED = 5
N = 600
START = date(2022, 1, 1)


def rows() -> dict[str, Any]:
    """Thirty patients, each of one class; two rows a day, in no order."""
    print("seed", SEED)
    rng = random.Random(SEED)
    days = [i // 2 for i in range(N)]
    rng.shuffle(days)
    patients = [rng.randrange(30) for _ in range(N)]
    return {
        "number": list(range(1000, 1000 + N)),
        "patient": [f"P{patient:02d}" for patient in patients],
        "date": [(START + timedelta(days=day)).isoformat() for day in days],
        "y": [patient % 3 for patient in patients],
    }


Load = Callable[..., Dataset]


@pytest.fixture
def read(tmp_path: Path) -> Load:
    def read(changes: dict[str, Any] | None = None, **options: Any) -> Dataset:
        pd.DataFrame({**rows(), **(changes or {})}).to_csv(tmp_path / "own.csv", index=False)
        return load(
            "own.csv", data_dir=tmp_path, target="y", **{"columns": {"number": "feature", "date": "ignore"}, **options}
        )

    return read


def parts_of(data: Dataset, column: str) -> list[list[Any]]:
    """A column's cells in the training, validation and test rows."""
    cells = rows()[column]
    parts = (data.train, data.validation, data.test)
    numbers = [(part.x_NF[:, 0].double() * data.std_F[0] + data.mean_F[0]).round().int() - 1000 for part in parts]
    return [[cells[i] for i in part.tolist()] for part in numbers]


def test_a_group_is_on_one_side_in_parts_and_folds(read: Load) -> None:
    for options in ({}, {"task": "regression"}, {"split_seed": 1, "validation": 0.3}, {"validation": 0.75}):
        data = read(split={"by": "patient"}, **options)
        assert [column.name for column in data.columns if column.role == "feature"] == ["number"]
        train, validation, test = parts_of(data, "patient")
        assert not set(train) & set(validation)
        assert not (set(train) | set(validation)) & set(test)
        assert len(test) == pytest.approx(0.2 * N, rel=0.3)
        assert len(validation) == pytest.approx(options.get("validation", 0.1) * 0.8 * N, rel=0.5)
        joined = np.array(train + validation)
        folds = data.folds(4, 0)
        assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(len(joined)))
        assert not any(set(joined[fit]) & set(joined[held_out]) for fit, held_out in folds)
    again = read(split={"by": "patient"})
    assert parts_of(again, "number") == parts_of(read(split={"by": "patient"}), "number")


def test_validation_rows_are_later_than_training_rows_and_test_rows_latest(read: Load) -> None:
    data = read(split={"on": "date"})
    train, validation, test = parts_of(data, "date")
    assert max(train) < min(validation) <= max(validation) < min(test)
    assert [len(part) for part in (train, validation, test)] == [432, 48, 120]
    joined = np.array(train + validation)
    for fit, held_out in data.folds(5, 0):
        assert max(joined[fit]) < min(joined[held_out])


def test_rows_after_a_time_are_for_testing(read: Load) -> None:
    dates = rows()["date"]
    hours = [f"{day}T10:30:00Z" for day in dates]
    for changes, after, first in (
        ({}, "2022-09-30", "2022-10-01"),
        ({}, "2022-09-30T00:00", "2022-10-01"),
        ({}, "2022-09-29T23:59:59", "2022-09-30"),
        ({"date": hours}, "2022-09-30", "2022-10-01"),  # the whole day is not after it
        ({"date": hours}, "2022-09-30T10:00+00:00", "2022-09-30"),
        ({"date": [day.replace("-", "") for day in dates]}, 20220930, "2022-10-01"),
        ({"date": [f" {day} 00:00" for day in dates]}, "2022-09-30", "2022-10-01"),
    ):
        data = read(changes, split={"on": "date", "after": after})
        assert min(parts_of(data, "date")[2]) == first, (changes, after)
        assert max(map(max, parts_of(data, "date")[:2])) < first


def test_typed_times_order_rows_and_a_time_may_be_a_feature_as_well(tmp_path: Path, read: Load) -> None:
    frame = pd.DataFrame(rows())
    frame["date"] = pd.to_datetime(frame["date"])
    frame.to_parquet(tmp_path / "own.parquet")
    split = {"on": "date", "after": "2022-09-30"}
    data = load(
        "own.parquet", data_dir=tmp_path, target="y", columns={"number": "feature", "patient": "ignore"}, split=split
    )
    assert min(parts_of(data, "date")[2]) == "2022-10-01"
    days = [datetime.fromisoformat(day).timetuple().tm_yday for day in rows()["date"]]
    data = read({"date": days}, split={"on": "date"}, columns={"number": "feature", "date": "feature"})
    assert [column.name for column in data.columns if column.role == "feature"] == ["number", "patient", "date"]
    assert max(parts_of(data, "date")[0]) < min(parts_of(data, "date")[2])


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("patient", 'split = \'patient\'; it must be { by = "COLUMN" } for groups, or { on = "COLUMN", after = '),
        ({}, "split = {}; it must be"),
        ({"group": "patient"}, "split = {'group': 'patient'}; it must be"),
        ({"by": 3}, "split.by = 3; it must be the name of a column"),
        ({"by": "patient", "on": "date"}, "names both by and on; it must be"),
        ({"after": "2022-09-30"}, "has after and not on, the column with the times; it must be"),
        ({"by": "patient", "after": 3}, "split.after = 3; it must be text or a number, with split.on; it must"),
        ({"on": "date", "after": True}, "split.after = True; it must be text or a number"),
        ({"by": "patent"}, "has no column 'patent'; did you mean 'patient'?"),
        ({"by": "y"}, "split names the target 'y'; it must name another column"),
        ({"by": "one"}, "split.by = 'one': the column has 1 different values, and each of the three parts needs"),
        ({"by": "class"}, "split by 'class' leaves"),
        ({"on": "one"}, "split.on = 'one' leaves no row for training and validation: the column goes from 7 to 7"),
        ({"on": "date", "after": "2032"}, "split.after = '2032'; split.on = 'date' has dates, give one such as"),
        ({"on": "date", "after": 2022}, "split.after = 2022; split.on = 'date' has dates, give one such as"),
        ({"on": "one", "after": "2022-01-31"}, "split.after = '2022-01-31'; split.on = 'one' has numbers, give one"),
        (
            {"on": "date", "after": "2030-01-31"},
            "leaves no row for testing: the column goes from 2022-01-01 to 2022-10-27",
        ),
        ({"on": "date", "after": "2020-01-31"}, "leaves no row for training and validation: the column goes from"),
        ({"on": "patient"}, "' in line "),
        ({"on": "odd"}, "'31.12.2022' in line 7 is no date or number; write dates as 2024-01-31"),
        ({"on": "zones"}, "split.on = 'zones': some times have a time zone and some have none; write dates as"),
        ({"on": "gaps"}, "split.on = 'gaps': 2 of 600 cells are missing, the first in line 5; fill them"),
        ({"by": "gaps"}, "split.by = 'gaps': 2 of 600 cells are missing, the first in line 5; fill them"),
    ],
)
def test_a_split_that_cannot_be_is_refused_by_name(read: Load, split: Any, message: str) -> None:
    dates, classes = rows()["date"], rows()["y"]
    changes = {
        "one": [7] * N,
        "class": classes,
        "odd": [*dates[:5], "31.12.2022", *dates[6:]],
        "zones": [f"{day}T00:00{'Z' * (i % 2)}" for i, day in enumerate(dates)],
        "gaps": [*dates[:3], "", "n/a", *dates[5:]],
    }
    ignored = dict.fromkeys(("one", "odd", "zones", "gaps", "patient", "date"), "ignore")
    with pytest.raises(DataError) as caught:
        read(changes, split=split, columns=ignored)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_share_that_leaves_no_time_for_training_is_named(read: Load) -> None:
    with pytest.raises(DataError, match=r"validation = 0\.999: of \d+ rows in the order of split\.on = 'date' that"):
        read(split={"on": "date"}, validation=0.999)


def test_arrays_are_split_by_an_array_of_the_file(tmp_path: Path) -> None:
    known = rows()
    x = np.array(known["number"])[:, None]
    days = np.array(known["date"], "datetime64[D]")
    arrays = {"X": x, "y": np.array(known["y"]), "patient": np.array(known["patient"]), "bytes": x[:, 0].astype("S")}
    arrays |= {"day": days, "gaps": np.where(days == days[3], np.datetime64("NaT"), days), "odd": x[:, 0] + 0j}

    def read(split: dict[str, Any], **more: Any) -> Dataset:
        np.savez(tmp_path / "own.npz", **arrays, **more)
        return load("own.npz", data_dir=tmp_path, split=split)

    train, validation, test = map(set, parts_of(read({"by": "patient"}), "patient"))
    assert not train & validation | (train | validation) & test
    for split in ({"on": "day"}, {"on": "day", "after": "2022-09-30"}):
        train, validation, test = map(set, parts_of(read(split), "date"))
        assert max(train) < min(validation) <= max(validation) < min(test)
    assert min(test) == "2022-10-01"
    own_test = read({"on": "day"}, X_test=x[:9], y_test=arrays["y"][:9])
    earlier, later, _ = parts_of(own_test, "date")
    assert (max(earlier) < min(later), len(own_test.test)) == (True, 9)
    assert len(read({"on": "bytes"}).test) == N / 5

    for split, more, message in (
        (
            {"by": "patent"},
            {},
            "split.by = 'patent': there is no such array; add one with a cell for each example; it ",
        ),
        ({"by": "y"}, {}, "split.by = 'y': it must name another array"),
        ({"on": "short"}, {"short": days[1:]}, "split.on = 'short': the array has shape (599,); it must be (600,), a"),
        ({"by": "odd"}, {}, "split.by = 'odd': the array holds complex128; legal are text, numbers and datetime64"),
        ({"on": "gaps"}, {}, "split.on = 'gaps': 2 of 600 cells are missing, the first in gaps["),
        ({"on": "patient"}, {}, " is no date or number; write dates as 2024-01-31"),
        (
            {"on": "day", "after": "2022-09-30"},
            {"X_test": x, "y_test": arrays["y"]},
            "split.after = '2022-09-30': the file has a test set, X_test; leave after or X_test out",
        ),
    ):
        with pytest.raises(DataError) as caught:
            read(split, **more)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_folds_that_the_groups_or_times_do_not_allow_are_refused(tmp_path: Path, read: Load) -> None:
    read()
    args: dict[str, Any] = {"target": "y", "data_dir": tmp_path, "epochs": 1, "columns": {"date": "ignore"}}
    with pytest.raises(ValueError, match=r"folds = 40; at most 2\d are possible: each needs a group"):
        MLP("own.csv", folds=40, split={"by": "patient"}, **args)
    with pytest.raises(ValueError, match=r"folds = 240; at most 239 are possible: each needs a time of its own, and"):
        MLP("own.csv", folds=240, split={"on": "date"}, **args)
    mlp = MLP("own.csv", folds=3, split={"on": "date"}, **args)
    (metrics,) = mlp.curves({"lr": 1e-2})
    assert metrics["val_accuracy"] > 0
    with pytest.raises(DataError, match=r"split = .* is about a table, and 'digits' is none; leave it out"):
        MLP("digits", split={"by": "patient"}, data_dir=tmp_path)
