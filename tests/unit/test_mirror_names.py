"""Any text becomes one that MLflow takes, and can be had back."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from mlflow.utils.validation import MAX_EXPERIMENT_NAME_LENGTH, _validate_metric_name, _validate_param, _validate_tag

from studies.mirror.names import (
    MAX_EXPERIMENT,
    MAX_KEY,
    MAX_TAG,
    NAME_TAG,
    Legal,
    as_bytes,
    digest,
    digest_in,
    experiment_name,
    folder,
    text_file,
    unescape,
)

PLAIN = [
    "lr",
    "val_accuracy",
    "Adam LR",
    "layer 1.w",
    "encoder/block:0/w-1",
    "grad_x1_norm",
    "res_x128_loss",
    "_x",
    "__init__",
    "a" * 250,
]
#: Pieces of texts that are hard to keep apart once escaped.
PIECES = [
    *("_", "x", "X", "28", "_x28_", "_X28_", "_x5f_", "_x5F_", "_x_", "_x0000_", "_xd800_", "5f", "f", "0", "a", "A"),
    *(
        "(",
        "/",
        ".",
        "..",
        "//",
        " ",
        "\n",
        "\t",
        "\0",
        "\x1b[31m",
        "\x7f",
        "ü",
        "u\u0308",
        "ſ",
        "\u212a",
        "中",
        "עב",
        "\u202e",
    ),
    *("😀", "\ud800", "\udfff", "%28", "\\", "'", '"', "`", "studyhall.", "mlflow.", "_sha256_", "0" * 64, "y" * 250),
]


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    seed = random.randrange(10**6)
    print(f"seed of {request.node.name}: {seed}")
    return random.Random(seed)


def texts(draw: random.Random, count: int) -> set[str]:
    """Random texts of hard pieces, and of any code points."""
    made = {"".join(draw.choices(PIECES, k=draw.randrange(6))) for _ in range(count)}
    return made | {"".join(chr(draw.randrange(0x110000)) for _ in range(draw.randrange(1, 9))) for _ in range(count)}


def original(written: str, legal: Legal) -> str:
    """What was written, by what the run keeps of it."""
    found = digest_in(written)
    if found is None:
        return unescape(written)
    return legal.names[found] if found in legal.names else legal.texts[found]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_stays_as_it_is(name: str) -> None:
    legal = Legal()
    assert legal.key(name) == legal.value(name) == experiment_name(name) == name
    assert not legal.tags()


def test_any_name_becomes_a_key_of_its_own_and_comes_back(draw: random.Random) -> None:
    legal, seen = Legal(), {}
    for name in texts(draw, 5000):
        key = legal.key(name)
        _validate_metric_name(key)
        assert len(key) <= MAX_KEY
        assert key.isascii()
        assert original(key, legal) == name
        assert seen.setdefault(key, name) == name


def test_keys_differ_where_a_store_ignores_case(draw: random.Random) -> None:
    seen: dict[str, str] = {}
    for name in texts(draw, 5000):
        other = seen.setdefault(Legal().key(name).lower(), name)
        assert other == name or (other.isascii() == name.isascii() and other.lower() == name.lower())


def test_a_reserved_name_never_becomes_ours(draw: random.Random) -> None:
    legal = Legal()
    for name in texts(draw, 2000) | {"final_loss", "final_", "reported_a_b"}:
        ours, theirs = legal.key(f"final_{name}"), legal.key(f"final_{name}", reserved={f"final_{name}"})
        assert ours != theirs
        assert original(theirs, legal) == f"final_{name}"


def test_a_prefix_leaves_room_for_itself_and_changes_nothing_else(draw: random.Random) -> None:
    legal = Legal()
    for name in texts(draw, 2000) | {"k" * 245, "k" * 246, "k" * 4000}:
        key = legal.key(name, "user.")
        assert key.startswith("user.")
        _validate_tag(key, "")
        assert original(key.removeprefix("user."), legal) == name


def test_any_value_is_taken_and_comes_back(draw: random.Random) -> None:
    long = {piece * 7000 for piece in ("x", "😀", "\0", "_x28_", "\ud800")}
    legal = Legal()
    for text in texts(draw, 3000) | long:
        value = legal.value(text)
        assert len(value) <= MAX_TAG
        assert "\0" not in value
        value.encode()  # PostgreSQL takes nothing else
        _validate_param("key", value)
        assert original(value, legal) == text


def test_what_looks_like_a_cut_text_is_kept_whole() -> None:
    first = Legal()
    value, key = first.value("v" * 9000), first.key("k" * 4000)
    assert digest_in(value) == digest("v" * 9000)
    legal = Legal()
    assert legal.value(value) != value
    assert legal.key(key) != key
    assert original(legal.value(value), legal) == value
    assert original(legal.key(key), legal) == key
    assert legal.key(key.upper()) != legal.key(key)


def test_names_that_differ_at_their_ends_alone_stay_apart() -> None:
    for change in (Legal().key, experiment_name, Legal().value):
        assert change("n" * 6000 + "a") != change("n" * 6000 + "b")


def test_the_whole_of_a_long_name_is_in_a_tag() -> None:
    legal = Legal()
    key = legal.key("é" * 4000)
    tags = legal.tags()
    assert tags == {NAME_TAG + digest("é" * 4000): "é" * 4000}
    assert digest_in(key) == digest("é" * 4000)
    for tag, value in tags.items():
        _validate_tag(tag, value)
    assert text_file(digest("x")).startswith("text/")
    assert as_bytes("\ud800") == b"\xed\xa0\x80"


@pytest.mark.parametrize(
    "name", ["", " ", "..", "../..", "/", "x" * 512, "研究" * 256, "\x00", "\ud800", "a\nb", "_x_", "👩‍👩‍👧"]
)
def test_any_study_has_an_experiment_and_a_folder(name: str) -> None:
    written = experiment_name(name)
    assert 0 < len(written) <= MAX_EXPERIMENT <= MAX_EXPERIMENT_NAME_LENGTH
    assert digest_in(written) or unescape(written) == name
    place = folder(name)
    assert 0 < len(place) <= 40
    assert place.isascii()
    assert not set(place) & set("/\\. \0\n")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (Legal().key, ["(", "_x28_", "_X28_", "_x5f_x28_", "_x5f_x5f_x28_"]),
        (Legal().key, ["_x28(", "(x28_", "_x28_x28_"]),
        (Legal().key, ["", "_x_", "_x5f_x_", "_"]),
        (Legal().key, ["a/b", "a//b", "a/./b", "/a/b", "a/b/", "a_x2f_b"]),
        (Legal().value, ["\0", "_x0000_", "_x5f_x0000_", "", "_x_"]),
        (experiment_name, ["\0", "_x0000_", "", "_x_", "\ud800", "_xd800_"]),
    ],
)
def test_names_that_look_like_an_escaped_one_stay_apart(change: Callable[[str], str], names: list[str]) -> None:
    assert len({change(name).lower() for name in names}) == len({name.lower() for name in names})
    assert [unescape(change(name)) for name in names] == names
