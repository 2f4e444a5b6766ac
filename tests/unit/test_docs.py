"""The documentation agrees with the code: generated pages, links, and every command and example that a page shows."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from docs.generate import PAGES, page
from studies.cli import studyhall
from studies.errors import StudyhallError
from studies.spec.sections import MAX_INTEGER
from studies.spec.study import StudySpec
from tests.conftest import ROOT
from tests.unit.test_architecture import LAYERS

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.md")])
#: Fenced blocks: their language and their text.
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(document: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(document.read_text()) if language in languages]


def anchors(document: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(script: str) -> Iterator[list[str]]:
    """The arguments of each call of studyhall in a shell script, those within $(…) included."""
    for line in re.sub(r"\\\n\s*", "", script).splitlines():
        for found in re.finditer(r"(?:^|\$ |\$\(|&& |; |[A-Z]+=\S+ )studyhall (.*)", line):
            call = found[1].partition(")")[0] if found[0].startswith("$(") else found[1]
            lexer = shlex.shlex(re.sub(r"\$\(.*?\)", "X", call), posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words = itertools.takewhile(lambda word: not re.fullmatch(r"[|&;<>]+", word), lexer)
            yield [word.removeprefix("~/") for word in words]


def parse(words: list[str]) -> None:
    """Parse a call as the command line does, and run nothing. Raises :exc:`click.ClickException`."""
    context = click.Context(studyhall, info_name="studyhall", **studyhall.context_settings)
    command: click.Command = studyhall
    while isinstance(command, click.Group):
        name, words = words[0], words[1:]
        if name not in command.commands:
            raise click.UsageError(f"no command {name!r}")
        command = command.commands[name]
    command.make_context(command.name, words, parent=context)


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == page(name), "run: python -m docs.generate"


def test_the_bounds_of_the_study_file_are_exact() -> None:
    assert f"to {MAX_INTEGER:,} " in page("study-file.md")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_link_leads_somewhere() -> None:
    broken = []
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", document.read_text())):
            if re.match(r"https?://|mailto:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (document.parent / path).resolve() if path else document
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                broken.append(f"{document.relative_to(ROOT)}: {link}")
    assert not broken


def test_every_page_is_in_the_index_and_in_the_site() -> None:
    index, site = (ROOT / "docs" / "index.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    pages = {file.name for file in (ROOT / "docs").glob("*.md")}
    assert {name for name in pages if f"({name})" not in index} == {"index.md"}
    assert {name for name in pages if f"- docs/{name}\n" not in site and f": docs/{name}\n" not in site} == set()


def test_every_command_that_is_shown_parses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies" / "train.py").touch()  # --objective names a file that is there
    wrong, count = [], 0
    for document in DOCUMENTS:
        for words in (words for script in blocks(document, "bash", "console") for words in commands(script)):
            count += 1
            try:
                parse(words)
            except click.exceptions.Exit:
                pass
            except (click.ClickException, StudyhallError) as error:
                wrong.append(f"{document.relative_to(ROOT)}: studyhall {shlex.join(words)}: {error}")
    assert not wrong
    assert count > 50  # so that a pattern that finds none is noticed


def test_every_example_is_of_its_language() -> None:
    for document in DOCUMENTS:
        for python in blocks(document, "python"):
            compile(python, str(document), "exec")
        for toml in blocks(document, "toml"):
            data = tomllib.loads(toml)
            StudySpec.from_dict({"name": "s", "objective": {"path": "train.py:f"}} | data, str(document))
        for script in blocks(document, "bash"):
            subprocess.run(["bash", "-n", "-c", script], check=True)


def test_the_picture_of_the_packages_is_that_of_the_imports() -> None:
    pictures = blocks(ROOT / "docs" / "architecture.md", "mermaid")
    (rows,) = [
        re.findall(r'^    \w+\["(.*)"\]$', picture, re.MULTILINE) for picture in pictures if "definition" in picture
    ]
    shown = [name for row in rows for name in re.split(r" · |<br>", row)]
    assert shown[: len(LAYERS)] == [layer.removeprefix("studies.") for layer in LAYERS]
