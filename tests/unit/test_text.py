"""Text from the database: what a terminal, a log and each format show of it."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import sys
import tomllib
from typing import Any

import pytest
import yaml
from optuna.trial import FrozenTrial, create_trial
from rich.cells import cell_len

from studies.cli.formats import (
    best_data,
    data_as,
    detail_lines,
    echo,
    echo_data,
    print_columns,
    to_csv,
    to_json,
    to_toml,
)
from studies.errors import StudyhallError
from studies.text import coloured, printable, ranges

HOSTILE = {
    "\x1b[2J\x1b]0;title\x07": r"\x1b[2J\x1b]0;title\x07",
    "a\nb\r\nc": r"a\nb\r\nc",
    "tab\there": r"tab\there",
    "nul\0": r"nul\x00",
    "\x7f\x9b31m\x85": r"\x7f\x9b31m\x85",
    "evil\u202egnp.exe\u2066": r"evil\u202egnp.exe\u2066",
    "zero\u200bwidth\ufeff": r"zero\u200bwidth\ufeff",
    "line\u2028paragraph\u2029": r"line\u2028paragraph\u2029",
    "half \ud83d": r"half \ud83d",
    "tag\U000e0041": r"tag\U000e0041",
}
PLAIN = ["", "mnist", "größe – ½", "学習率　×２", "عربي", "🙂", "a b", r"a\x1b"]


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items(), ids=map(ascii, HOSTILE))
def test_what_cannot_be_seen_is_written_as_python_writes_it(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert coloured(text.replace("\t", "")) == shown.replace(r"\t", "")


@pytest.mark.parametrize("text", PLAIN)
def test_what_can_be_seen_stays(text: str) -> None:
    assert printable(text) == text


def test_any_text_becomes_one_visible_line() -> None:
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    draw = random.Random(seed)
    for _ in range(2000):
        text = "".join(chr(draw.choice([draw.randrange(0x110000), draw.randrange(0x300)])) for _ in range(20))
        shown = printable(text)
        shown.encode()
        assert len(shown.splitlines()) == 1
        assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E for c in shown)


def test_a_users_own_program_keeps_its_colours_and_nothing_else() -> None:
    assert coloured("\t\x1b[1;31mred\x1b[0m\x1b[2J") == "        \x1b[1;31mred\x1b[0m\\x1b[2J"
    assert coloured("\x1b]8;;http://evil\x07link") == r"\x1b]8;;http://evil\x07link"


def best(text: str) -> FrozenTrial:
    import optuna

    params = {"x": text, text: 1}
    distributions = {
        "x": optuna.distributions.CategoricalDistribution([text]),
        text: optuna.distributions.IntDistribution(0, 1),
    }
    return create_trial(value=1.0, params=params, distributions=distributions)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("text", [*HOSTILE, *filter(None, PLAIN)], ids=ascii)
def test_formats_hold_the_same_text_in_visible_characters(
    text: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    is_half = "\ud83d" in text
    read: dict[str, Any] = {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}
    for kind, load in read.items():
        if is_half and kind == "toml":
            with pytest.raises(StudyhallError, match="holds half a character"):
                data_as(kind, {"study": text, **best_data(best(text), {})})
            continue
        written = data_as(kind, {"study": text, **best_data(best(text), {})})
        assert load(written)["study"] == text
        assert load(written)["params"] == {"x": text, text: 1}
        assert written.replace("\n", "").isprintable() or "\u3000" in text
        written.encode(encoding)


@pytest.mark.parametrize("text", [*HOSTILE, *PLAIN, "\r", "a,b", 'quo"te', "=1+1"], ids=ascii)
def test_csv_is_read_back(text: str) -> None:
    written = to_csv([[text, "b"], [text, 1], [None, text]])
    rows = list(csv.reader(io.StringIO(written, newline="")))
    assert rows == [[text, "b"], [text, "1"], ["", text]]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_people_read_is_lines_of_visible_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_columns([text, "b"], [[text, text], ["x", "y"]])
    echo(*detail_lines(best(text), {text: 1.0}), text)
    written = capsys.readouterr().out
    assert len(written.split("\n")) == 3 + 6 + 1 + 1
    assert written.replace("\n", "").isprintable()


@pytest.mark.parametrize("params", [{}, {"lr": 0.1}])
@pytest.mark.parametrize("metrics", [{}, {"loss": 0.5}])
def test_the_best_has_one_empty_line_before_each_part(params: dict[str, float], metrics: dict[str, float]) -> None:
    trial = best("x")
    trial._params = params
    text = "\n".join(["best", *detail_lines(trial, metrics)])
    assert "\n\n\n" not in text
    assert text.count("\n\n") == len(params) + len(metrics)
    assert not text.endswith("\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["n" * 512, "学" * 512, "a study of many words " * 24, "\u202e" * 200])
def test_no_long_name_stretches_a_table_beyond_a_terminal(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    tables = [
        (["study", "done", "began"], [[name, "17", "3 s ago"], ["short", "8", "2 s ago"]], "3 s ago"),
        (["worker", "device", "seen"], [[name, name, "3 s ago"]], "3 s ago"),
        (["step", name, name + "b"], [["1", "0.5", "0.25"]], "0.25"),
        (["#", "state", "parameters"], [["1", "complete", f"lr=0.1 {name}=3 depth=4"]], "complete"),
    ]
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        for header, rows, seen in tables:
            stream.seek(0)
            stream.truncate()
            print_columns(header, rows)
            shown = re.sub("\x1b\\[\\d*m", "", stream.getvalue())
            assert seen in shown
            assert (printable(name) in shown) != stream.isatty()
            assert (max(map(cell_len, shown.splitlines())) <= 60) == stream.isatty()
        *_, parameter = detail_lines(best(name), {})
        assert (cell_len(parameter) <= 60) == ("…" in parameter) == stream.isatty()


def test_data_are_escaped_where_a_person_looks_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, shown in ((Terminal(), "a\\x1b[2J\nb\n"), (io.StringIO(), "a\x1b[2J\nb\n")):
        monkeypatch.setattr(sys, "stdout", stream)
        echo_data("a\x1b[2J\nb")
        assert stream.getvalue() == shown


def test_json_and_toml_of_plain_text_are_left_readable() -> None:
    assert to_json({"größe": "½"}) == '{"größe": "½"}'
    assert to_toml({"größe": "½"}) == '"größe" = "½"'


def test_numbers_in_a_row_become_a_range() -> None:
    assert [ranges([]), ranges([5]), ranges([3, 7, 8]), ranges([0, 1, 2, 9, 11, 12])] == [
        "–",
        "5",
        "3, 7–8",
        "0–2, 9, 11–12",
    ]
