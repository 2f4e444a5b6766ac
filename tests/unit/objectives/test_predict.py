"""Predictions from raw rows: of tables and arrays, and what is refused by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from objectives import load_model
from objectives.export import export, inputs_of
from objectives.mlp import MLP
from objectives.predict import main


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a table with an ignored column, numbers, yes and no, and a category."""
    folder = tmp_path_factory.mktemp("people")
    rows = [
        f"{i},{i % 7 + 0.5},{'yes' if i % 3 else 'no'},{'abc'[i % 3]},{'low' if i % 7 < 4 else 'high'}"
        for i in range(200)
    ]
    (folder / "own.csv").write_text("id,size,flag,kind,y\n" + "\n".join(rows) + "\n")
    mlp = MLP("own.csv", epochs=8, target="y", data_dir=folder)
    mlp.finalize({"lr": 1e-2}, seed=0, device="cpu", directory=folder, progress=lambda *_: None, ensemble=2)
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 1
    return capsys.readouterr().err.strip()


def test_every_kind_of_table_gives_the_same_predictions(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (people / "rows.csv").write_text("kind,flag,size\na,yes,0.5\n,no,6.5\nnew,,\n")
    main([str(people), str(people / "rows.csv")])
    printed = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(printed.columns) == ["prediction", "probability_high", "probability_low"]
    assert list(printed["prediction"])[:2] == ["low", "high"]
    assert printed[["probability_high", "probability_low"]].sum(axis=1).to_numpy() == pytest.approx(1)
    model = load_model(people)
    frame = pd.read_csv(people / "rows.csv")
    frame.to_parquet(people / "rows.parquet")
    main([str(people), str(people / "rows.parquet")])
    columns = {"size": [0.5, 6.5, None], "flag": [True, False, None], "kind": ["a", None, "new"], "y": ["low"] * 3}
    others = [pd.read_csv(io.StringIO(capsys.readouterr().out)), model.predict(frame), model.predict(columns)]
    for other in others:
        assert list(other["prediction"]) == list(printed["prediction"])
        assert np.allclose(other.iloc[:, 1:], printed.iloc[:, 1:], atol=1e-6)
    assert len(model.predict({name: [] for name in columns})) == 0
    assert len(model.predict(model.example)) == 1


def test_rows_that_are_not_those_of_the_training_are_refused_by_name(
    people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = people / "bad.csv"
    for text, message in {
        "size,flag\n1,yes\n": "the rows have no column 'kind'",
        "size,flag,kind,colour\n1,yes,a,red\n": "the rows have the column 'colour', which was not there in training",
        "sise,flag,kind\n1,yes,a\n": "the rows have no column 'size'; is it 'sise'?",
        "size,flag,kind\nbig,yes,a\n": "column 'size' has 'big' in line 2; in training it held numbers",
        "size,flag,kind\n1,maybe,a\n": "column 'flag' has 'maybe' in line 2; in training it held yes and no, or",
        "size,flag,kind\n1,yes,a\n1,,a\n1,maybe,a\n": "column 'flag' has 'maybe' in line 4; in training it held yes",
        "size;flag;kind\n1;yes;a\n40,706;no;a\n": "column 'size' has '40,706' in line 3: is that 40.706 or 40706?",
        "size,flag,kind\n1,1,a\n1,0,a\n1,3,a\n": "column 'flag' has '3' in line 4; in training it held yes and no",
        "size,flag,kind\n1,yes,a,b\n": "line 2 has 4 cells, and the header 3",
    }.items():
        rows.write_text(text)
        told = said(capsys, people, rows)
        assert told.startswith(f"error: cannot predict from {rows}: ")
        assert message in told
    assert "no such file" in said(capsys, people, people / "none.csv")
    assert "is no table; the model takes .csv" in said(capsys, people, people / "model.json")
    assert "holds no model that can be read" in said(capsys, people / "none", rows)
    damaged = people.parent / "damaged"
    damaged.mkdir()
    for name in ("model.json", "weights.safetensors"):
        (damaged / name).write_bytes((people / name).read_bytes()[:-100])
    assert "holds no model that can be read" in said(capsys, damaged, rows)


def test_a_frame_is_refused_where_a_name_comes_twice_or_text_became_true_and_false(people: Path) -> None:
    model = load_model(people)
    frame = pd.DataFrame({"size": [0.5], "flag": [True], "kind": ["a"]})
    twice = pd.concat([frame, frame[["size"]]], axis=1)
    for rows in (twice, pa.table([[0.5], [True], ["a"], [1.5]], names=list(twice.columns))):
        with pytest.raises(ValueError, match="the rows have the column 'size' twice"):
            model.predict(rows)
    for cells, what in ((3, "numbers"), (True, "true and false")):
        with pytest.raises(ValueError, match=f"^column 'kind' holds {what}; in training it held text: 'a', 'b', 'c'$"):
            model.predict(frame.assign(kind=cells))


def test_arrays_are_predicted_from_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.arange(120.0).reshape(60, 2) % 7
    np.savez(tmp_path / "own.npz", X=x, y=x.sum(axis=1))
    mlp = MLP("own.npz", epochs=2, task="regression", data_dir=tmp_path)
    mlp.finalize({}, seed=0, device="cpu", directory=tmp_path, progress=lambda *_: None)
    np.save(tmp_path / "rows.npy", x)
    printed = []
    for name in ("rows.npy", "own.npz"):
        main([str(tmp_path), str(tmp_path / name)])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].splitlines()[0] == "prediction"
    np.save(tmp_path / "rows.npy", x[:, :1])
    assert "the array has shape (60, 1); it must have 2 features" in said(capsys, tmp_path, tmp_path / "rows.npy")
    np.savez(tmp_path / "other.npz", Z=x)
    assert "has no array X; it holds: Z" in said(capsys, tmp_path, tmp_path / "other.npz")
    assert "is no array; the model takes .npy" in said(capsys, tmp_path, tmp_path / "model.json")


def test_a_number_with_a_large_offset_keeps_its_digits_and_is_tested_as_it_is_predicted(tmp_path: Path) -> None:
    x = np.arange(120.0)[:, None] % 31
    x[60:] += 0.5
    y = 1.7e9 + 10 * x[:, 0]  # seconds since 1970, of which float32 knows multiples of 128
    np.savez(tmp_path / "own.npz", X=x, y=y, X_test=x, y_test=y)
    mlp = MLP("own.npz", epochs=20, task="regression", data_dir=tmp_path)
    metrics = mlp.finalize({"lr": 1e-2}, seed=0, device="cpu", directory=tmp_path, progress=lambda *_: None)
    model = load_model(tmp_path)
    predicted = model.predict(x)["prediction"].to_numpy()
    assert len(np.unique(predicted)) == len(np.unique(x))
    assert metrics["test_rmse"] == pytest.approx(float(np.sqrt(np.square(predicted - y).mean())), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        {"normalization": "batch", "activation": "gelu", "skip": True, "depth": 3, "width": 16},
        {"normalization": "layer", "activation": "silu", "depth": 1},
        {"depth": 0},
    ],
)
def test_every_kind_of_model_is_exported_and_predicts_the_same(tmp_path: Path, params: dict[str, object]) -> None:
    import onnxruntime

    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 4))
    np.savez(tmp_path / "own.npz", X=x, y=1.7e9 + x.sum(axis=1) * 90)
    mlp = MLP("own.npz", epochs=2, task="regression", scaling="quantile", data_dir=tmp_path)
    mlp.finalize(params, seed=0, device="cpu", directory=tmp_path, progress=lambda *_: None, ensemble=2)
    session = onnxruntime.InferenceSession(export(tmp_path))
    model = load_model(tmp_path)
    (found,) = session.run(None, inputs_of(model, x))
    assert np.abs(found - model.predict(x)["prediction"].to_numpy()).max() < 1e-5 * model.target_std
