"""Tables: read as they are meant, or questioned; never misread in silence."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet

from objectives.data import DataError, Dataset, load
from objectives.mlp import MLP, load_model

SEED = 7
ROWS = 60
RNG = random.Random(SEED)
NOISE = [f"{RNG.gauss(0, 1):.3f}" for _ in range(ROWS)]


def table(header: str, row: Callable[[int], str], *, rows: int = ROWS) -> str:
    return "".join(f"{line}\n" for line in [header, *map(row, range(rows))])


PLAIN = table("a,y", lambda i: f"{NOISE[i]},{'cat' if i % 2 else 'dog'}")
LAST = ROWS + 2
"""The line after those of PLAIN."""


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Dataset]:
    def read(content: str | bytes, name: str = "own.csv", **options: Any) -> Dataset:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return load(name, data_dir=tmp_path, **{"target": "y", **options})

    return read


@pytest.fixture
def refusal(read: Callable[..., Dataset]) -> Callable[..., str]:
    def refusal(content: str | bytes, *args: Any, **options: Any) -> str:
        with pytest.raises(DataError) as caught:
            read(content, *args, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refusal


def features(data: Dataset) -> list[str]:
    return [column.name for column in data.columns if column.role == "feature"]


def rows(data: Dataset) -> np.ndarray:
    """All examples as they were before they were standardised, sorted."""
    x = torch.cat([part.x_NF for part in (data.train, data.validation, data.test)]).double()
    return np.sort((x * data.std_F + data.mean_F).numpy(), axis=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.CSV", PLAIN.encode()),
        ("x.csv.gz", gzip.compress(PLAIN.encode())),
        ("x.CSV.GZ", gzip.compress(PLAIN.encode())),
        ("x.csv.bz2", bz2.compress(PLAIN.encode())),
        ("x.csv.xz", lzma.compress(PLAIN.encode())),
        ("x.tsv", PLAIN.replace(",", "\t").encode()),
        ("x.TSV.gz", gzip.compress(PLAIN.replace(",", "\t").encode())),
        ("semicolons.csv", PLAIN.replace(",", ";").encode()),
        ("tabs.csv", PLAIN.replace(",", "\t").encode()),
        ("bars.csv", PLAIN.replace(",", "|").encode()),
        ("spaces.csv", PLAIN.replace(",", " , ").encode()),
        ("bom.csv", PLAIN.encode("utf-8-sig")),
        ("bom-and-quotes.csv", PLAIN.replace("a,y", '"a","y"').encode("utf-8-sig")),
        ("utf16.csv", PLAIN.encode("utf-16")),
        ("utf32.csv", PLAIN.encode("utf-32")),
        ("excel.csv", f"sep=;\r\n{PLAIN.replace(',', ';')}".encode()),
        ("excel-bom.csv", f"SEP=,\n\n{PLAIN}".encode("utf-8-sig")),
        ("excel-quoted.csv.gz", gzip.compress(f'"sep=\t"\n{PLAIN}'.replace(",", "\t").encode("utf-16"))),
        ("crlf.csv", PLAIN.replace("\n", "\r\n").encode()),
        ("cr.csv", PLAIN.replace("\n", "\r").encode()),
        ("blank-lines.csv", ("\n" + PLAIN.replace("\n", "\n\n")).encode()),
        ("no-last-newline.csv", PLAIN.rstrip().encode()),
    ],
)
def test_one_table_is_the_same_in_every_form(read: Callable[..., Dataset], name: str, content: bytes) -> None:
    expected, found = read(PLAIN), read(content, name)
    assert found.columns == expected.columns
    assert found.classes == ("cat", "dog")
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(found, part).x_NF, getattr(expected, part).x_NF)
        assert torch.equal(getattr(found, part).y_N, getattr(expected, part).y_N)


def test_parquet_is_read_by_its_types(tmp_path: Path) -> None:
    values = {"a": [float(value) for value in NOISE], "flag": [i % 3 == 0 for i in range(ROWS)]}
    y = pa.array([i % 2 for i in range(ROWS)])
    parquet.write_table(pa.table({**values, "y": y, "__index_level_0__": range(ROWS)}), tmp_path / "x.Parquet")
    data = load("x.Parquet", data_dir=tmp_path, target="y")
    assert features(data) == ["a", "flag"]
    assert data.classes == ("0", "1")
    assert np.allclose(rows(data)[:, 0], sorted(values["a"]), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (PLAIN.replace("a,y", '"a, b",y'), ["a, b"]),
        (PLAIN.replace("a,y", '"say ""a""",y'), ['say "a"']),
        (PLAIN.replace("a,y", '"two\nlines",y'), ["two\nlines"]),
        (table('a,"b;c",y', lambda i: f"{NOISE[i]},{i % 7},{i % 2}"), ["a", "b;c"]),
        (table('"a";"b,c";"y"', lambda i: f"{NOISE[i]};{i % 7};{i % 2}"), ["a", "b,c"]),
        (table("0,1,y", lambda i: f"{NOISE[i]},{i % 7},{i % 2}"), ["0", "1"]),
    ],
)
def test_names_may_be_quoted(read: Callable[..., Dataset], content: str, names: list[str]) -> None:
    assert features(read(content)) == names


@pytest.mark.parametrize(
    "cell", ["1e3", "1E+3", " 3 ", "+4", "1.", ".5", "-0.0", "1e-400", '"7"', "12345678901234567.5"]
)
def test_a_number_is_a_number(read: Callable[..., Dataset], cell: str) -> None:
    found = rows(read(f"{PLAIN}{cell},cat\n"))[:, 0]
    expected = sorted([*map(float, NOISE), float(cell.strip(' "'))])
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5 * max(map(abs, expected)))


@pytest.mark.parametrize(
    ("cell", "advice"),
    [
        ("10_19", "digits need no underscores"),
        ("1_0.5", ""),
        ("0x1F", "hexadecimal"),
        ("1,234", "thousands need no separator"),
        ("1'234.5", "thousands need no separator"),
        ("1,5", "decimals need a point"),
        ("5 %", "the percent sign should go"),
        ("€ 5", "the currency should go"),
        ("2024-01-31", "a date or time"),
        ("31.12.2024", "a date or time"),
        ("12:30", "a date or time"),
        ("１２", ""),
        ("1d5", ""),
        ("true", ""),
        ("two", ""),
    ],
)
def test_what_is_no_number_is_refused_by_name(refusal: Callable[..., str], cell: str, advice: str) -> None:
    said = refusal(f'{PLAIN}"{cell}",cat\n')
    shown = f"{cell!r} in line {LAST}{f': {advice}' if advice else ''}"
    assert (
        f"has columns that are not numbers: 'a' ({shown}); turn them into numbers, give them the role \"category\", or "
        in said
    )
    assert said.endswith('objective.args.columns = { a = "ignore" }')


def test_all_text_columns_are_named_at_once_and_can_be_left_out(
    read: Callable[..., Dataset], refusal: Callable[..., str]
) -> None:
    content = table("name,when,a,y", lambda i: f"n{i},2024-01-{i % 28 + 1:02d},{NOISE[i]},{i % 2}")
    said = refusal(content)
    assert "'name' ('n0' in line 2), 'when' ('2024-01-01' in line 2: a date or time)" in said
    assert said.endswith('{ name = "ignore", when = "ignore" }')
    assert features(read(content, columns={"name": "ignore", "when": "ignore"})) == ["a"]


@pytest.mark.parametrize("cell", ["", " ", "NaN", "NA", "n/a", "null", "None", "?", "#N/A"])
def test_missing_cells_are_said_by_column_and_count_as_the_median(
    read: Callable[..., Dataset], caplog: pytest.LogCaptureFixture, cell: str
) -> None:
    data = read(f"{PLAIN}{cell},cat\n1,cat\n{cell},dog\n")
    assert f"of the training rows: 'a' (2 of {ROWS + 3}, the first in line {LAST})" in caplog.text
    present = [*map(float, NOISE), 1.0]
    assert data.preprocessing.fill[0] == pytest.approx(np.median(present), abs=0.2)
    assert np.allclose(rows(data)[:, 0], np.sort([*present, *data.preprocessing.fill * 2]), atol=1e-6)


def test_a_category_of_many_levels_is_said_unless_it_is_declared(
    read: Callable[..., Dataset], caplog: pytest.LogCaptureFixture
) -> None:
    content = table("a,customer,y", lambda i: f"{NOISE[i % ROWS]},C{i % 60},{i % 2}", rows=300)
    assert read(content).n_features > 2
    said = "categories of many levels: customer; if they only identify, leave them out: objective.args.columns = "
    assert caplog.messages == [f'{said}{{ customer = "ignore" }}']
    caplog.clear()
    read(content, columns={"customer": "category"})
    assert not caplog.messages


def test_a_table_whose_rows_do_not_differ_is_refused(refusal: Callable[..., str]) -> None:
    assert "has no feature that differs between the training rows" in refusal(table("a,y", lambda i: f"red,{i % 2}"))


def test_a_column_without_a_cell_is_left_out_and_said(
    read: Callable[..., Dataset], caplog: pytest.LogCaptureFixture
) -> None:
    data = read(table("a,b,c,y", lambda i: f"{NOISE[i]},,NA,{i % 2}"), columns={"c": "category"})
    assert features(data) == ["a"]
    assert "left out, since all their cells are missing: 'b', 'c'" in caplog.text


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e400", "1e300"])
def test_what_float32_cannot_hold_is_refused(refusal: Callable[..., str], cell: str) -> None:
    assert f"line {LAST}, column 'a' is " in refusal(f"{PLAIN}{cell},cat\n")


@pytest.mark.parametrize("cell", ["9007199254740993", "-9007199254740993", "12345678901234567891"])
def test_whole_numbers_that_lose_digits_are_refused(refusal: Callable[..., str], cell: str) -> None:
    said = refusal(f"{PLAIN}{cell},cat\n")
    assert f"whole numbers above 2**53, which double precision rounds ({cell} in line {LAST})" in said


@pytest.mark.parametrize(
    ("kind", "cell", "message"),
    [
        (pa.int64(), 2**53 + 1, "whole numbers above 2**53"),
        (pa.uint64(), 2**64 - 1, "whole numbers above 2**53"),
        (pa.string(), "2024-01-31 is a date", "not numbers: 'a' ('2024-01-31 is a date' in row 1: a date or time)"),
        (pa.date32(), date(2024, 1, 31), "not numbers: 'a' ('2024-01-31' in row 1: a date or time)"),
        (pa.list_(pa.int8()), [1], "not numbers: 'a' ('[1]' in row 1)"),
        (pa.float64(), float("inf"), "row 1, column 'a' is inf"),
        (pa.float64(), None, "has no column left but the target 'y'"),
        (pa.string(), None, "has no column left but the target 'y'"),
    ],
)
def test_a_typed_column_that_is_no_feature_is_refused(
    tmp_path: Path, kind: pa.DataType, cell: object, message: str
) -> None:
    columns = {"a": pa.array([cell] * ROWS, kind), "y": [i % 2 for i in range(ROWS)]}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError) as caught:
        load("x.parquet", data_dir=tmp_path, target="y")
    assert message in str(caught.value)


@pytest.mark.parametrize("words", [("True", "False"), ("yes", "no"), ("YES", "No"), ("true", "no")])
def test_truth_is_1_and_0_and_said(
    read: Callable[..., Dataset], caplog: pytest.LogCaptureFixture, words: tuple[str, str]
) -> None:
    with caplog.at_level(logging.INFO):
        data = read(table("a,b,y", lambda i: f"{NOISE[i]},{words[i % 3 == 0]},{i % 2}"))
    assert set(np.round(rows(data)[:, 1], 5)) == {0, 1}
    assert data.columns[1].kind == "boolean"
    assert [record.getMessage() for record in caplog.records] == [
        "true and false, or yes and no, were read as 1 and 0: 'b'"
    ]


def test_leading_zeros_are_said(read: Callable[..., Dataset], caplog: pytest.LogCaptureFixture) -> None:
    read(table("a,zip,size,y", lambda i: f"{NOISE[i]},{i % 9 + 501:05d},0.{i % 9},{i % 2}"))
    assert [record.getMessage() for record in caplog.records] == [
        "leading zeros, as codes have, were read as numbers: 'zip' ('00501')"
    ]


# Separators and decimal commas


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_decimal_commas_are_read_where_they_separate_nothing(read: Callable[..., Dataset], separator: str) -> None:
    comma = [value.replace(".", ",") for value in NOISE]
    content = table("a;b;y", lambda i: f"{comma[i]}0;{i % 7};{i % 2}").replace(";", separator)
    assert np.allclose(rows(read(content))[:, 0], sorted(map(float, NOISE)), atol=1e-6)


def test_a_target_may_have_decimal_commas_as_well(read: Callable[..., Dataset]) -> None:
    values = [f"{i * 13 % 97}.{i % 8}5" for i in range(ROWS)]
    data = read(table("a;y", lambda i: f"{i % 7};{values[i].replace('.', ',')}"), task="regression")
    y_N = torch.cat([part.y_N for part in (data.train, data.validation, data.test)]).double()
    assert np.allclose(np.sort(y_N * data.target_std + data.target_mean), sorted(map(float, values)), atol=1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table("a;y", lambda i: f"{i % 9 + 1},{500 + i};{i % 2}"), "'a' has '1,500' in line 2: is that 1.500 or 1500?"),
        (
            table("a;b;y", lambda i: f"1,{i};{i}.5;{i % 2}"),
            "decimal commas in column 'a' ('1,0' in line 2) and points in 'b' ('0.5' in line 2); write all",
        ),
        (
            table("a;y", lambda i: f"{'1,5' if i else '1.234'};{i % 2}"),
            "decimal commas in column 'a' ('1,5' in line 3)",
        ),
        (
            table("a;y", lambda i: f"{i % 7}.5;{i % 9},{i % 10}"),
            "decimal commas in column 'y' ('0,0' in line 2) and points in 'a' ('0.5' in line 2); write all",
        ),
        (
            table("a;y", lambda i: f"{i % 7};{i % 9 + 1},{500 + i}"),
            "column 'y' has '1,500' in line 2: is that 1.500 or 1500? write it so",
        ),
        (table("a;y", lambda i: f"1.234,{i};{i % 2}"), "'a' ('1.234,0' in line 2)"),
        (table("a;b,c", lambda i: f"{i % 7};{i % 3},{i % 2}"), "may be separated by commas or semicolons"),
    ],
)
def test_a_mark_that_may_mean_two_things_is_questioned(refusal: Callable[..., str], content: str, message: str) -> None:
    assert message in refusal(content)


def test_the_target_tells_between_two_separators(refusal: Callable[..., str]) -> None:
    said = refusal(table("a;b,c", lambda i: f"{i % 7};{i % 3},{i % 2}"), target="c")
    assert "'a;b' ('0;0' in line 2: several numbers)" in said


# What is no table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; it needs a header and rows"),
        ("\n\n", "is empty; it needs a header and rows"),
        ("a,y", "has a header but no rows"),
        ("a,y\n\n", "has a header but no rows"),
        ("y\n" + "cat\ndog\n" * 20, "has no column left but the target 'y'; it needs a feature"),
        (PLAIN + "1\n", f"line {LAST} has 1 cell, and the header 2"),
        (PLAIN + "1,cat,9\n", f"line {LAST} has 3 cells, and the header 2"),
        (PLAIN + '"1\n2",cat\n1,cat,9\n', f"line {LAST + 2} has 3 cells, and the header 2"),
        (PLAIN + "# the end\n", f"line {LAST} has 1 cell, and the header 2; comment lines are not skipped"),
        ("# exported\n" + PLAIN, "has no column 'y'; its columns: # exported; is its first line a header?"),
        (PLAIN + '"1,cat\n' + PLAIN, f'line {LAST} opens a quote (") that is not closed'),
        (PLAIN + '1,"cat\n' + PLAIN, f'line {LAST} opens a quote (") that is not closed'),
        (PLAIN + '1,"cat\n2,"dog"\n3,cat\n', f'line {LAST} opens a quote (") that is not closed'),
        (PLAIN + '1,"cat\n2,dog', f'line {LAST} opens a quote (") that is not closed'),
        (PLAIN + '1,"cat\n' + PLAIN * 500, f'line {LAST} opens a quote (") that is not closed'),
        (PLAIN.replace("a,y", 'a,"y'), 'line 1 opens a quote (") that is not closed'),
        (f"sep=,\n{PLAIN}" + '"1,cat\n', f'line {LAST + 1} opens a quote (") that is not closed'),
        (f"sep=,\n{PLAIN}1\n", f"line {LAST + 1} has 1 cell, and the header 2"),
        (f"sep=,\n{PLAIN}x,cat\n", f"('x' in line {LAST + 1})"),
        ("sep=:\n" + PLAIN, "says in its first line that ':' separates its cells; legal are commas, semicolons, tabs"),
        ("sep=;\n", "is empty; it needs a header and rows"),
        (PLAIN.replace("a,y", "a,x"), "has no column 'y'; its columns: a, x"),
        (PLAIN.replace("a,y", "5.1,0.2"), "has only numbers in its first line (5.1, 0.2); it needs a header"),
        (table("a,a,y", lambda i: f"{i},{i},{i % 2}"), "has the column 'a' twice; each needs a name of its own"),
        (table("a, a,y", lambda i: f"{i},{i},{i % 2}"), "has the column 'a' twice; each needs a name of its own"),
        (PLAIN.replace("cat", "kätzchen").encode("latin-1"), "line 3 has the byte 0xe4, which in Latin-1 is 'ä'; save"),
        (PLAIN.encode("utf-16-le"), "is not text (it has NUL bytes"),
        (b"PK\x03\x04\x00\x00" + bytes(100), "is not text (it has NUL bytes"),
    ],
)
def test_what_is_no_table_is_refused_with_the_line(
    refusal: Callable[..., str], content: str | bytes, message: str
) -> None:
    assert message in refusal(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv.gz", PLAIN.encode(), "cannot be read to its end"),
        ("x.csv.gz", gzip.compress(PLAIN.encode())[:-12], "cannot be read to its end"),
        ("x.csv.xz", lzma.compress(PLAIN.encode())[:-12], "cannot be read to its end"),
        ("x.csv.bz2", bz2.compress(PLAIN.encode())[:-12], "cannot be read to its end"),
        ("x.parquet", PLAIN.encode(), "is not a Parquet file or is torn"),
        ("x.parquet", b"", "is not a Parquet file or is torn"),
        ("x.parquet.gz", b"", "is unknown; known: "),
        ("x.csv.zst", b"", "is unknown; known: "),
        ("x.xlsx", b"", "a path to a file that ends in .npz, .csv, .tsv, .parquet (as text also .gz, .bz2, .xz)"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    refusal: Callable[..., str], name: str, content: bytes, message: str
) -> None:
    assert message in refusal(content, name)


# Roles


@pytest.mark.parametrize(
    ("header", "row", "name"),
    [
        (",a,y", lambda i: f"{i},{NOISE[i]},{i >= 30}", "Unnamed: 0"),
        (",a,y", lambda i: f"r{i * 7 % 60},{NOISE[i]},{i >= 30}", "Unnamed: 0"),
        ("Unnamed: 0,a,y", lambda i: f"{i},{NOISE[i]},{i >= 30}", "Unnamed: 0"),
        ("a,y,", lambda i: f"{NOISE[i]},{i >= 30},", "Unnamed: 2"),
        ("k,a,y", lambda i: f"{i},{NOISE[i]},{i >= 30}", "k"),
        ("a,y,Case", lambda i: f"{NOISE[i]},{i >= 30},{i + 1}", "Case"),
        ("n,a,y", lambda i: f"{60 - i},{NOISE[i]},{i >= 30}", "n"),
        ("n,a,y", lambda i: f"{59 - i}.0,{NOISE[i]},{i >= 30}", "n"),
        ("Id,a,y", lambda i: f"{1000 + i},{NOISE[i]},{i >= 30}", "Id"),
        ("index,a,y", lambda i: f"{i * 7 % 60},{NOISE[i]},{i >= 30}", "index"),
        ("row_number,a,y", lambda i: f"{60 - i},{NOISE[i]},{i >= 30}", "row_number"),
    ],
)
def test_what_only_numbers_the_rows_is_left_out_and_said(
    read: Callable[..., Dataset],
    caplog: pytest.LogCaptureFixture,
    header: str,
    row: Callable[[int], str],
    name: str,
) -> None:
    data = read(table(header, row))
    assert features(data) == ["a"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("left out")
    key = f'"{name}"' if " " in name else name
    assert said.endswith(f'objective.args.columns = {{ {key} = "feature" }}')


@pytest.mark.parametrize(
    ("header", "row", "roles"),
    [
        ("k,a,y", lambda i: f"{i},{NOISE[i]},{i >= 30}", {"k": "feature"}),
        (",a,y", lambda i: f"{i},{NOISE[i]},{i >= 30}", {"Unnamed: 0": "feature"}),
        ("id,a,y", lambda i: f"{i % 40},{NOISE[i]},{i >= 30}", {}),
        ("year,a,y", lambda i: f"{1900 + i},{NOISE[i]},{i >= 30}", {}),
        ("k,a,y", lambda i: f"{i if i != 50 else 49},{NOISE[i]},{i >= 30}", {}),
    ],
)
def test_a_column_that_does_more_or_is_declared_stays(
    read: Callable[..., Dataset],
    caplog: pytest.LogCaptureFixture,
    header: str,
    row: Callable[[int], str],
    roles: dict[str, str],
) -> None:
    assert len(features(read(table(header, row), columns=roles))) == 2
    assert not caplog.records


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"b": "ignore"}, "has no column 'b'; its columns: a, y"),
        ({"y": "feature"}, "columns gives the target 'y' a role; leave it out there"),
        ({"a": "ignore"}, "has no column left but the target 'y'; it needs a feature"),
    ],
)
def test_a_role_that_cannot_be_is_refused(refusal: Callable[..., str], columns: dict[str, str], message: str) -> None:
    assert message in refusal(PLAIN, columns=columns)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"columns": {"a": "label"}}, "columns.a = 'label'; it must be one of feature, category, ignore"),
        ({"columns": ["a"]}, "columns = ['a']; it must name columns and their roles"),
        ({"target": 3}, "target = 3; it must be the name of a column"),
        ({"columns": {"a": "ignore"}}, "columns = {'a': 'ignore'} is about a table, and 'digits' is none"),
    ],
)
def test_an_argument_that_is_no_role_is_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"columns|target") as caught:
        MLP("digits", data_dir="unused", **args)
    assert message in str(caught.value)


# Labels


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes", "yes "),
        ("Yes", "YES"),
        (" a", "a"),
        ("1", "1.0"),
        ("1", "01"),
        ("1", "1e0"),
        ("a-b", "a_b"),
        ("ﬁt", "fit"),
        ("p", "p\u200b"),
        ("\ufeffp", "p"),
    ],
)
def test_two_spellings_of_one_label_are_questioned(refusal: Callable[..., str], one: str, other: str) -> None:
    said = refusal(table("a,y", lambda i: f'{NOISE[i]},"{(one, "else", other)[i % 3]}"'))
    assert f"the labels {one!r} (20 rows) and {other!r} (20 rows) look like one; spell them alike" in said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            lambda i: f"{NOISE[i]},{i * 0.37:.2f}",
            f"target 'y' has {ROWS} different numbers from 0 to 21.83 in {ROWS} rows",
        ),
        (
            lambda i: f"{NOISE[i]},{i * 17}",
            'looks like regression: give objective.args.task = "regression", with direc',
        ),
        (lambda i: f"{NOISE[i]},{i % 12 / 4}", "target 'y' has 12 different numbers"),
        (
            lambda i: f"{NOISE[i]},{'' if i == 5 else i % 2}",
            f"target 'y' is missing in 1 of {ROWS} rows ('', the first in",
        ),
        (lambda i: f"{NOISE[i]},{'NA' if i % 3 else i % 2}", "target 'y' is missing in 40 of 60 rows ('NA', the first"),
        (lambda i: f"{NOISE[i]},x", "all labels are x; a classifier needs at least two classes"),
        (
            lambda i: f"{NOISE[i]},{'z' if i == 3 else i % 2}",
            "class z has 1 of 60 examples; each of the 3 classes needs",
        ),
    ],
)
def test_a_target_that_is_no_class_is_questioned(
    refusal: Callable[..., str], row: Callable[[int], str], message: str
) -> None:
    assert message in refusal(table("a,y", row))


def test_a_target_of_numbers_is_standardised_where_regression_is_asked_for(read: Callable[..., Dataset]) -> None:
    data = read(table("a,y", lambda i: f"{NOISE[-i]},{i * 17}"), task="regression")
    parts = (data.train, data.validation, data.test)
    assert (data.task, data.classes) == ("regression", ())
    assert [len(part) for part in parts] == [43, 5, 12]
    assert (float(data.train.y_N.mean()), float(data.train.y_N.std(unbiased=False))) == pytest.approx((0, 1), abs=1e-6)
    told = sorted(float(y) * data.target_std + data.target_mean for part in parts for y in part.y_N)
    assert told == pytest.approx([i * 17 for i in range(ROWS)], abs=1e-3)


def test_numbers_are_classes_where_classification_is_asked_for(read: Callable[..., Dataset]) -> None:
    data = read(table("a,y", lambda i: f"{NOISE[i % ROWS]},{i % 12 / 4}", rows=20 * 12), task="classification")
    assert data.classes == tuple(str(i / 4) if i % 4 else str(float(i // 4)) for i in range(12))


def test_a_regression_of_text_is_refused(refusal: Callable[..., str]) -> None:
    said = refusal(table("a,y", lambda i: f"{NOISE[i]},{'yes' if i % 2 else 1.5}"), task="regression")
    assert "target 'y' holds 'yes', which is not a number; regression needs numbers" in said


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (lambda i: i * 1e50, "target 'y' holds 5.9e+51; every number must be finite as a float32: divide all by a"),
        (lambda i: -i * 1e200, "target 'y' holds -5.9e+201; every number must be finite"),
        (lambda i: i * 1e-160, "the target differs by 5.6e-159, which float32 hardly tells from 0: multiply all by"),
        (lambda i: i * 1e-200, "which float32 hardly tells from 0: multiply all by a constant"),
        (lambda _: 5, "target 'y' is 5 in all rows; regression needs numbers that differ"),
        (lambda i: "inf" if i == 7 else i / 7, "target 'y' holds 'inf' in 1 of 60 rows, and numbers in the others"),
        (lambda i: "1e999" if i == 7 else i / 7, "regression needs finite numbers: remove these rows"),
    ],
)
def test_a_target_that_no_regression_can_have_is_refused(
    refusal: Callable[..., str], number: Callable[[int], object], message: str
) -> None:
    said = refusal(table("a,y", lambda i: f"{NOISE[i]},{number(i)}"), task="regression", split_seed=2)
    assert message in said


def test_a_target_that_is_constant_in_the_training_rows_alone_is_refused(refusal: Callable[..., str]) -> None:
    split = {"on": "t", "after": 49}
    said = refusal(table("t,a,y", lambda i: f"{i},{NOISE[i]},{max(i, 54)}"), task="regression", split=split)
    assert "the target is 54 in all 45 training rows; regression needs numbers that differ" in said


def test_an_infinite_number_among_numbers_is_named_before_it_is_a_class(
    read: Callable[..., Dataset], refusal: Callable[..., str]
) -> None:
    said = refusal(table("a,y", lambda i: f"{NOISE[i]},{'-inf' if i == 3 else i / 7}"))
    assert "target 'y' holds '-inf' in 1 of 60 rows, and numbers in the others; regression needs finite numbers" in said
    assert said.endswith('remove these rows, and give objective.args.task = "regression"')
    data = read(table("a,y", lambda i: f"{NOISE[i]},{(1, 2, 'inf')[i % 3]}"))
    assert data.classes == ("1", "2", "inf")


def test_many_numbers_in_an_npz_are_a_regression_with_its_own_test_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    y_test = np.array([-1.0, 1000.25])
    np.savez(
        tmp_path / "x.npz", X=rng.normal(size=(400, 2)), y=np.arange(400) / 7, X_test=np.zeros((2, 2)), y_test=y_test
    )
    with pytest.raises(DataError, match=r"y has 400 different numbers .* looks like regression"):
        load("x.npz", data_dir=tmp_path)
    data = load("x.npz", data_dir=tmp_path, task="regression")
    assert (data.test.y_N * data.target_std + data.target_mean).tolist() == pytest.approx(y_test, rel=1e-5)


@pytest.mark.parametrize("classes", [12, 100])
def test_many_classes_of_whole_numbers_are_classes(read: Callable[..., Dataset], classes: int) -> None:
    data = read(table("a,y", lambda i: f"{i % 7},{i % classes}", rows=20 * classes))
    assert data.classes == tuple(map(str, range(classes)))


# Standardising


@pytest.mark.parametrize("value", ["0.1", "-3e-9", "1234567.89", "0", "1e30"])
def test_a_constant_column_counts_as_0_for_ever_and_is_said(
    tmp_path: Path, read: Callable[..., Dataset], caplog: pytest.LogCaptureFixture, value: str
) -> None:
    data = read(table("a,c,y", lambda i: f"{NOISE[i]},{value},{i % 2}"))
    assert float(data.train.x_NF[:, 1].abs().max()) == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"constant in the training rows, and therefore always 0 for the model: c (always {float(value):g})"
    ]
    mlp = MLP("own.csv", epochs=1, target="y", data_dir=tmp_path)
    mlp.finalize({}, seed=0, device="cpu", directory=tmp_path, progress=lambda *_: None)
    predicted = load_model(tmp_path).predict({"a": [0.5, 0.5], "c": [float(value), 7e7]})
    assert predicted.loc[0].equals(predicted.loc[1])


@pytest.mark.parametrize("values", [(0.3, 0.1 + 0.2), (0.1, 0.1 + 2e-17), (1e15, 1e15 + 0.125)])
def test_a_column_that_differs_by_rounding_alone_is_constant(
    read: Callable[..., Dataset], values: tuple[float, float]
) -> None:
    data = read(table("a,c,y", lambda i: f"{NOISE[i]},{values[i % 2]!r},{i % 2}"))
    assert float(data.train.x_NF[:, 1].abs().max()) == 0


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
@pytest.mark.parametrize("scale", [1e-160, 1e-200, 1e-310, 1e-320])
def test_a_column_whose_squares_are_0_is_constant_and_said(
    read: Callable[..., Dataset], caplog: pytest.LogCaptureFixture, scaling: str, scale: float
) -> None:
    data = read(table("a,c,y", lambda i: f"{NOISE[i]},{i % 3 * scale!r},{i % 2}"), scaling=scaling)
    assert float(data.train.x_NF[:, 1].abs().max()) == 0
    assert "constant in the training rows, and therefore always 0 for the model: c" in caplog.text


def test_normal_scores_of_values_that_nearly_touch_are_finite(read: Callable[..., Dataset]) -> None:
    data = read(table("c,y", lambda i: f"{(0, 1e-320, 1)[i % 3]!r},{i % 2}"), scaling="quantile")
    assert len(torch.unique(data.train.x_NF)) == 2
    assert torch.isfinite(data.train.x_NF).all()


def test_a_column_that_is_nearly_constant_stays(read: Callable[..., Dataset]) -> None:
    data = read(table("a,c,y", lambda i: f"{i % 7},{0.1 if i % 2000 else 0.2},{i % 2}", rows=10_000))
    assert len(torch.unique(data.train.x_NF[:, 1])) == 2


@pytest.mark.parametrize("offset", [1_700_000_000, -(2**40), 2**52 - 64])
def test_a_large_offset_keeps_its_digits_in_training_and_in_the_kept_model(tmp_path: Path, offset: int) -> None:
    (tmp_path / "own.csv").write_text(table("t,y", lambda i: f"{offset + 40 * (i % 2) + i % 9},{i % 2}"))
    data = load("own.csv", data_dir=tmp_path, target="y")
    assert np.allclose(rows(data)[:, 0] - offset, sorted(40 * (i % 2) + i % 9 for i in range(ROWS)), atol=1e-4)
    mlp = MLP("own.csv", epochs=30, target="y", data_dir=tmp_path)
    mlp.finalize({"lr": 1e-2}, seed=0, device="cpu", directory=tmp_path, progress=lambda *_: None)
    predicted = load_model(tmp_path).predict({"t": [offset + 4, offset + 44]})
    assert predicted["prediction"].tolist() == ["0", "1"]


def test_the_kept_model_says_its_columns(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(table(",a,flag,y", lambda i: f"{i},{NOISE[i]},{i % 3 == 0},{i % 2}"))
    mlp = MLP("own.csv", epochs=1, target="y", data_dir=tmp_path)
    mlp.finalize({}, seed=0, device="cpu", directory=tmp_path, progress=lambda *_: None)
    assert json.loads((tmp_path / "model.json").read_text())["preprocessing"]["columns"] == [
        {"name": "Unnamed: 0", "role": "ignore", "kind": "unread"},
        {"name": "a", "role": "feature", "kind": "number"},
        {"name": "flag", "role": "feature", "kind": "boolean"},
        {"name": "y", "role": "target", "kind": "text"},
    ]


def test_blocks_change_nothing(read: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    content = table("a,b,note,y", lambda i: f'{i % 7}.5,{i * i},"x\n{i}",{i % 2}', rows=3000)
    whole = read(content, columns={"note": "ignore"})
    monkeypatch.setattr("objectives.data.delimited.BLOCK_BYTES", 300)
    monkeypatch.setattr("objectives.data.delimited.BLOCKS_AT_A_TIME", 2)
    cut = read(content, columns={"note": "ignore"})
    assert torch.equal(cut.train.y_N, whole.train.y_N)
    assert torch.allclose(cut.train.x_NF, whole.train.x_NF, atol=1e-6)


def test_row_groups_and_pieces_of_them_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {"a": [i % 7 + 0.5 for i in range(3000)], "b": [i * i for i in range(3000)]}
    columns["a"][2500] = float("nan")
    source = pa.table({**columns, "y": [i % 2 for i in range(3000)]})
    parquet.write_table(source, tmp_path / "x.parquet", row_group_size=700)
    monkeypatch.setattr("objectives.data.table.BLOCK_CELLS", 300)
    monkeypatch.setattr("objectives.data.columnar.CELLS_AT_A_TIME", 1)
    load("x.parquet", data_dir=tmp_path, target="y")
    assert "'a' (1 of 3000, the first in row 2501)" in caplog.text
    data = load("x.parquet", data_dir=tmp_path, target="y", columns={"a": "ignore"})
    assert np.allclose(rows(data)[:, 0], sorted(columns["b"]), rtol=1e-4, atol=1)


# Threads

REFUSE = """
import pathlib, sys
from objectives.data.table import read_table
read_table(pathlib.Path(sys.argv[1]), "y", {})
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.csv.xz"])
def test_a_process_that_refuses_a_table_exits_with_its_error(tmp_path: Path, name: str) -> None:
    rows = PLAIN.replace("dog", "Cat").encode()
    (tmp_path / name).write_bytes({"csv": bytes, "gz": gzip.compress, "xz": lzma.compress}[name.split(".")[-1]](rows))
    # Several: threads of pyarrow that had a file of Python ended one in two of them by SIGABRT.
    command = [sys.executable, "-c", REFUSE, str(tmp_path / name)]
    for _ in range(4):
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (found.returncode, "look like one" in found.stderr) == (1, True)


def test_pyarrow_s_threads_get_no_file_of_python(read: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    real = csv.open_csv
    monkeypatch.setattr(csv, "open_csv", lambda file, **options: given.append(file) or real(file, **options))
    for name, content in {
        "x.csv": PLAIN.encode(),
        "x.csv.gz": gzip.compress(PLAIN.encode()),
        "x.csv.xz": lzma.compress(PLAIN.encode()),
        "utf16.csv": PLAIN.encode("utf-16"),
    }.items():
        read(content, name)
        assert isinstance(given[-1], pa.OSFile | pa.CompressedInputStream)


# Memory

MEASURE = """
import resource, sys
from pathlib import Path
import sklearn.model_selection, objectives.data.table  # what is imported while the table is read
from objectives.data import load
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
load(sys.argv[2], data_dir=Path(sys.argv[1]), target="y")
print(peak() - before)
"""
COUNT, PIXELS = 20_000, 784


def whole_numbers_as_text(file: Path) -> None:
    rows = np.random.default_rng(SEED).integers(0, 256, (200, PIXELS))
    lines = [",".join(map(str, row)) for row in rows]
    with file.open("w") as stream:
        stream.write(",".join(f"pixel{i}" for i in range(PIXELS)) + ",y\n")
        stream.writelines(f"{lines[i * 7 % 200]},{i % 10}\n" for i in range(COUNT))


def double_precision_in_one_group(file: Path) -> None:
    rng = np.random.default_rng(SEED)
    features = {f"f{i}": rng.normal(3, 1, COUNT) for i in range(PIXELS)}
    parquet.write_table(pa.table({**features, "y": np.arange(COUNT) % 10}), file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write"), [("own.csv", whole_numbers_as_text), ("own.parquet", double_precision_in_one_group)]
)
def test_reading_takes_at_most_three_times_the_table_in_float32(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), name], capture_output=True, text=True, timeout=600, check=True
    )
    assert int(done.stdout) <= 3 * 4 * COUNT * PIXELS
