"""Every command that a message suggests can be typed: it is found in the source, and click takes it."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import optuna
import pytest
from click.testing import CliRunner

from studies import PostgresStorage
from studies.cli import studyhall
from studies.errors import StudyhallError

ROOT = Path(__file__).parents[2]
#: Stands for whatever is filled in: it is a study's name, a trial's number and a file's name as well.
FILLED_IN = "1"
#: A command within a text follows a colon or a bracket, and ends where the sentence goes on.
TYPED = re.compile(r"(?:^|: |\(|\$\()studyhall ((?:[^\s;,)`'\"]+|'[^']*')(?: (?:[^\s;,)`'\"]+|'[^']*'))*)")


def suggestions() -> Iterator[tuple[str, ...]]:
    """The words of each, once."""
    found: dict[tuple[str, ...], None] = {}
    for file in sorted((ROOT / "studies").rglob("*.py")):
        for words in suggested_in(ast.parse(file.read_text())):
            if words[:2] == ["db", "grant"]:
                words[2] = "viewer"  # one of two words, whatever else is filled in
            if "--direction" in words[:-1]:
                words[words.index("--direction") + 1] = "minimize"  # likewise
            if words and words[0] in studyhall.commands:
                found[tuple(words)] = None
    yield from found


def suggested_in(tree: ast.Module) -> Iterator[list[str]]:
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "command":
            yield [text(argument) for argument in node.args if not isinstance(argument, ast.Starred)]
        elif isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in inner:
            for found in TYPED.finditer(text(node)):
                yield shlex.split(found[1].rstrip(".:"))


def text(node: ast.expr) -> str:
    """A text with what is filled in; so is whatever is no text."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(map(text, node.values)) if isinstance(node, ast.JoinedStr) else FILLED_IN


SUGGESTIONS = list(suggestions())
#: They need an option that follows in the text or a parameter's name, do not end, or need a server of their own: their
#: own tests run them.
NOT_RUN = (
    ["extend"],
    ["exec"],
    ["importance", FILLED_IN, "NAME=VALUE"],
    ["run"],
    ["watch"],
    ["work"],
    ["serve"],
    ["mirror"],
    ["launch"],
    ["db", "stop"],
    ["db", "restore"],
    ["db", "grant"],
)


def test_suggestions_are_found() -> None:
    assert {("best", FILLED_IN), ("db", "upgrade"), ("run", "digits")} <= set(SUGGESTIONS)


@pytest.mark.parametrize("words", SUGGESTIONS, ids=" ".join)
def test_a_suggested_command_can_be_typed(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / FILLED_IN).touch()
    command: click.Command = studyhall
    context = click.Context(studyhall, info_name="studyhall", **studyhall.context_settings)
    rest = list(words)
    while isinstance(command, click.Group) and rest:
        found = command.get_command(context, rest.pop(0))
        assert found is not None
        command = found
    command.make_context(command.name, rest, parent=context)


def test_suggested_commands_run(storage: PostgresStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each does what it says, or tells in one line what is in its way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDYHALL_STORAGE", storage.location.sqlalchemy)
    monkeypatch.setenv("STUDYHALL_HOME", str(tmp_path))
    study = optuna.create_study(storage=storage, study_name=FILLED_IN)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    for words in SUGGESTIONS:
        if any(list(words[: len(no)]) == no for no in NOT_RUN):
            continue
        done = CliRunner().invoke(studyhall, words)
        if done.exit_code:
            assert isinstance(done.exception, StudyhallError | SystemExit), (words, done.exception)
            assert done.exit_code == 1, (words, done.output)
            assert "\n" not in str(done.exception), words
