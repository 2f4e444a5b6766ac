"""Parameters as argparse, bash and the environment get them."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from typing import Any

import pytest

from studies.cli.parameters import arguments, fill_in, quoted_arguments, quoted_variables, variables
from studies.errors import StudyhallError

#: Whatever a shell, a loader or a parser could misread.
PARAMS: dict[str, Any] = {
    "lr": 0.001,
    "shift": -1e-05,
    "weight_decay": 0,
    "spaces": "two  words ",
    "quotes": 'it\'s "quoted"',
    "dollar": "$HOME `id` $(id) \\",
    "newlines": "a\n\nb\n",
    "dash": "--lr",
    "empty": "",
    "none": None,
    "bn": True,
    "bias": False,
    "layers": [50, 50],
    "path": "p",
    "home": "h",
    "ifs": "i",
}
#: As text, where a program is given one for each.
TEXTS = {
    name: value if isinstance(value, str) else "" if value is None else json.dumps(value)
    for name, value in PARAMS.items()
}


def parsed(words: list[str], *, bn: Any) -> dict[str, Any]:
    """What argparse makes of ``words``, where booleans are options of the kind ``bn``."""
    parser = argparse.ArgumentParser()
    for name, value in PARAMS.items():
        if isinstance(value, bool) and bn:
            parser.add_argument(f"--{name}", action=bn, default=False)
        else:
            parser.add_argument(f"--{name}", default=None)
    return vars(parser.parse_args(words))


def in_bash(script: str) -> list[str]:
    """The words that a script of bash gives to a program."""
    python = f"{shlex.quote(sys.executable)} -c 'import json, sys; print(json.dumps(sys.argv[1:]))'"
    done = subprocess.run(
        ["bash", "-uc", f'PY() {{ {python} "$@"; }}\n{script}'], capture_output=True, text=True, check=True
    )
    words: list[str] = json.loads(done.stdout)
    return words


@pytest.mark.parametrize(
    ("booleans", "bn", "told"),
    [
        (None, argparse.BooleanOptionalAction, {"bn": True, "bias": False}),
        ("flag", "store_true", {"bn": True, "bias": False}),
        ("value", None, {"bn": "true", "bias": "false"}),
    ],
)
def test_argparse_reads_arguments_as_they_are_and_through_eval(booleans: str, bn: Any, told: dict[str, Any]) -> None:
    words = arguments(PARAMS, booleans)
    assert parsed(words, bn=bn) == {**TEXTS, "none": None, **told}
    assert in_bash(f"eval \"PY $(printf '%s' {shlex.quote(quoted_arguments(PARAMS, booleans))})\"") == words
    assert words[:2] == ["--lr", "0.001"]


def test_bash_reads_variables_through_eval_and_keeps_its_own() -> None:
    names = " ".join(f'"$HP_{name.upper()}"' for name in PARAMS)
    script = f'eval "$(printf %s {shlex.quote(quoted_variables(PARAMS, "HP_"))})"\nls / > /dev/null\nPY {names}'
    assert in_bash(script) == list(TEXTS.values())


def test_names_in_braces_are_filled_in_and_nothing_else() -> None:
    words = ["train.py", "lr={lr}", "{spaces}", "{layers}/{none}/{bn}", "${HOME}", "{{lr}}", "{", "{}", '{"a": 1}']
    filled = ["train.py", "lr=0.001", "two  words ", "[50, 50]/null/true", "${HOME}", "{lr}", "{", "{}", '{"a": 1}']
    assert fill_in(words, PARAMS) == (filled, True)
    assert fill_in(["a {b}", "{a b}{a}"], {"a b": 1, "b": "{a}", "a": "{b}"}) == (["a {a}", "1{b}"], True)
    assert fill_in(["train.py", "${lr}", "{{print}}", "{{ x }}"], PARAMS) == (
        ["train.py", "${lr}", "{print}", "{{ x }}"],
        False,
    )
    with pytest.raises(
        StudyhallError, match=r"\{widht\}: .* no parameter 'widht'; did you mean 'width'\? .*\{\{widht\}\}"
    ):
        fill_in(["{lr}", "{widht}"], {"lr": 1, "width": 2})


@pytest.mark.parametrize(
    "name",
    [
        *("path", "home", "ifs", "env", "ps1", "groups", "seconds", "bash_env", "LD_PRELOAD", "dyld_library_path"),
        *("PythonPath", "lc.all", "user", "cuda visible devices", "https-proxy", "studyhall_storage", "_", "é"),
    ],
)
def test_a_variable_that_others_obey_needs_a_prefix(name: str) -> None:
    with pytest.raises(StudyhallError, match=r"shells or programs obey; give --prefix HP_"):
        variables({name: "x"})
    assert list(variables({name: "x"}, "HP_").values()) == ["x"]


def test_usual_names_need_none() -> None:
    usual = "lr epochs history steps temperature model_path prompt_length node_dim hidden_size mode pgd_steps 2d"
    assert list(variables(dict.fromkeys(usual.split(), 1))) == [*usual.upper().split()[:-1], "_2D"]


@pytest.mark.parametrize(
    ("params", "prefix", "words"),
    [
        ({"a-b": 1, "a.b": 2}, "", "'a-b' and 'a.b' would both be the variable A_B"),
        ({"ath": 1}, "P", "would be the variable PATH, .*; give another --prefix"),
        ({"lr": 1}, "X=1;", r"--prefix 'X=1;': should be letters"),
    ],
)
def test_what_makes_no_variables_is_refused(params: dict[str, Any], prefix: str, words: str) -> None:
    with pytest.raises(StudyhallError, match=words):
        variables(params, prefix)
