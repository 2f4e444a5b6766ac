"""The report and single plots: the command, and the files in a real Chromium without a network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json

from studies import PostgresStorage, StudySpec
from studies.report.plot_kinds import PLOTS
from studies.storage.url import StorageURL
from tests.acceptance.conftest import Shell
from tests.conftest import Server
from tests.support.browser import open_chromium, open_page
from tests.support.postgres import PASSWORD

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EVIL = "<script>window.pwned = 1</script>"
TRIALS, STEPS = 1000, 20
#: What is drawn from random() in each parameter's own representation, as Optuna stores it.
PARAMS = {
    "lr": (FloatDistribution(1e-4, 1e-1, log=True), "power(10, -4 + 3 * random())"),
    "width": (IntDistribution(16, 512), "floor(16 + 497 * random())"),
    EVIL: (FloatDistribution(0, 1), "random()"),
    "act": (CategoricalDistribution(["relu", "gelu", EVIL]), "floor(3 * random())"),
}
FILL = """
    select setseed(0.5);
    insert into trials (number, study_id, state, datetime_start, datetime_complete)
    select n, {study}, (array['COMPLETE', 'PRUNED', 'PRUNED', 'COMPLETE', 'PRUNED']::trialstate[])[1 + n % 5],
        timestamp '2030-01-01' + n / 4 * interval '1 minute', timestamp '2030-01-01' + (n / 4 + 1) * interval '1 minute'
    from generate_series(0, {trials} - 1) n;
    update trials set state = 'FAIL' where study_id = {study} and number % 50 = 7;
    insert into trial_user_attributes (trial_id, key, value_json)
    select trial_id, 'error', to_json('ValueError: {evil}'::text)::text from trials
    where study_id = {study} and state = 'FAIL';
    insert into trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
    select trial_id, step, 1 - 1.0 / step + random() / 10, 'FINITE'
    from trials, generate_series(1, case when state = 'COMPLETE' then {steps} else 1 + number % 7 end) step
    where study_id = {study};
    insert into studyhall.metrics (trial_id, step, name, value)
    select trial_id, step, name, case when name like '%loss' then 2 - intermediate_value else intermediate_value end
    from trial_intermediate_values join trials using (trial_id),
        unnest(array['train_loss', 'train_accuracy', 'val_loss', 'val_accuracy']) name
    where study_id = {study};
    insert into trial_values (trial_id, objective, value, value_type)
    select trial_id, 0, intermediate_value, 'FINITE' from trial_intermediate_values join trials using (trial_id)
    where study_id = {study} and state = 'COMPLETE' and step = {steps};
    update studyhall.leases l set worker_id = 'w' || number % 4, epoch = 1, seconds = 30
    from trials t where t.trial_id = l.trial_id and t.study_id = {study};
"""
PARAM = """
    insert into trial_params (trial_id, param_name, param_value, distribution_json)
    select trial_id, %s, {drawn}, %s from trials where study_id = {study}
"""


def fill(url: StorageURL, name: str) -> None:
    """A study of a thousand trials, as four workers would have left it."""
    spec = {
        "name": name,
        "direction": "maximize",
        "metric": "val_accuracy",
        "objective": {"path": "objectives.mlp:MLP", "args": {"dataset": "digits"}},
        "budget": {"trials": TRIALS, "max_failures": TRIALS},
    }
    with closing(PostgresStorage(url)) as storage:
        record, _ = storage.create_study(StudySpec.from_dict(spec))
        for number in range(4):
            storage.workers.register(
                [record], worker_id=f"w{number}", host=f"box{number // 2}", pid=1, device=f"cuda:{number % 2}"
            )
    given = {"study": record.study_id, "trials": TRIALS, "steps": STEPS, "evil": EVIL}
    with closing(psycopg2.connect(**url.libpq)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(FILL.format(**given))
        for param, (distribution, drawn) in PARAMS.items():
            sql = PARAM.format(**given, drawn=drawn)
            cursor.execute(sql, (param, distribution_to_json(distribution)))


@dataclass(frozen=True)
class Visit:
    """A page in Chromium, and what it asked for and complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, file: Path) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-drawn]", state="attached")

    def column(self, number: int) -> list[str]:
        found: list[str] = self.page.eval_on_selector_all(
            f"#trials tbody tr:not([hidden]) td:nth-child({number})", "cells => cells.map(cell => cell.textContent)"
        )
        return found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    with open_page(chromium, offline=True) as page:
        yield Visit(page)


@pytest.fixture(scope="module")
def thousand(separate_server: Server, tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Shell]:
    """A shell with a study of a thousand trials, of an awkward name, and its report in report.html."""
    with separate_server.database() as url:
        fill(url, EVIL)
        shell = Shell(url, tmp_path_factory.mktemp("thousand"), home)
        done = shell.run("report", EVIL, "-o", "report.html")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert done.stderr.startswith("wrote report.html (")
        yield shell


@pytest.fixture(scope="module")
def opened(thousand: Shell, chromium: Browser) -> Iterator[Visit]:
    """The report of the thousand trials in a browser."""
    with open_page(chromium, offline=True) as page:
        visit = Visit(page)
        visit.open(thousand.folder / "report.html")
        yield visit


@pytest.mark.slow
def test_the_report_of_a_thousand_trials_is_one_file_that_asks_for_nothing(thousand: Shell, opened: Visit) -> None:
    visit, file = opened, thousand.folder / "report.html"
    assert visit.requests == [file.as_uri()]
    assert visit.complaints == []
    assert visit.page.evaluate("window.pwned") is None
    assert visit.page.title() == EVIL
    assert visit.page.locator("h1").text_content() == EVIL

    plots = visit.page.locator(".plot")
    assert plots.count() == 7  # history, curves, importances, slices, parallel, contours, workers
    for i in range(7):
        assert plots.nth(i).locator(".main-svg").first.bounding_box()
        assert plots.nth(i).locator(".main-svg path").count() > 10
    assert visit.page.locator(".reason").count() == 0
    assert visit.page.locator("#curves .scatterlayer .trace").count() >= 4 * 3
    assert PASSWORD not in file.read_text()


@pytest.mark.slow
def test_its_table_is_sorted_by_a_click_and_filtered_by_words(opened: Visit) -> None:
    visit = opened
    names = visit.page.locator("#trials thead th").all_text_contents()
    assert names == ["trial", "state", "val_accuracy", *PARAMS, "steps", "duration", "worker", "attempts", "error"]
    assert visit.column(1) == [str(number) for number in range(TRIALS)]

    header = visit.page.locator("#trials thead button")
    header.nth(2).click()
    values = visit.column(3)
    complete = values.index("–")
    assert [float(value) for value in values[:complete]] == sorted(float(value) for value in values[:complete])
    assert set(values[complete:]) == {"–"}
    header.nth(2).click()
    assert visit.column(3) == values[:complete][::-1] + values[complete:]  # what has no value stays at the end

    visit.page.fill("#filter", "PRUNED box1 cuda:0")
    assert set(visit.column(2)) == {"pruned"}
    assert {int(number) % 4 for number in visit.column(1)} == {2}
    assert visit.page.locator("#matching").text_content() == f"{len(visit.column(1))} of 1,000 trials"
    visit.page.fill("#filter", "")
    assert len(visit.column(1)) == TRIALS


@pytest.mark.slow
def test_a_single_plot_is_one_file_too_and_readable_in_the_dark_and_in_print(thousand: Shell, visit: Visit) -> None:
    done = thousand.run("plot", EVIL, "history", "-o", "history.html")
    assert done.returncode == 0, done.stderr
    file, page = thousand.folder / "history.html", visit.page
    page.emulate_media(color_scheme="dark")
    visit.open(file)
    assert visit.requests == [file.as_uri()]
    assert page.locator(".plot .main-svg path").count() > 10

    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('.xtick text').style.fill"
    dark = page.evaluate(paper), page.evaluate(ink)
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"([paper, ink]) => {paper} != paper && {ink} != ink", arg=list(dark))
    assert page.pdf().startswith(b"%PDF")
    assert visit.complaints == []


@pytest.mark.slow
def test_images_are_written_without_a_browser_and_without_a_remark(thousand: Shell) -> None:
    for name, kind, magic in (("a.png", "workers", b"\x89PNG"), ("b.SVG", "history", b"<?xml")):
        done = thousand.run("plot", EVIL, kind, "-o", name, MPLBACKEND="TkAgg")
        assert done.returncode == 0, done.stderr
        assert (thousand.folder / name).read_bytes().startswith(magic)
        assert done.stderr.startswith(f"wrote {name} (")
        assert len(done.stderr.splitlines()) == 1


# A study that begins, and bad input


@pytest.fixture(scope="module")
def begun(separate_server: Server, tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Shell]:
    """A shell with a study of no trial."""
    spec = {"name": "new/one", "objective": {"path": "objectives.mlp:MLP", "args": {"dataset": "digits"}}}
    with separate_server.database() as url:
        with closing(PostgresStorage(url)) as storage:
            storage.create_study(StudySpec.from_dict(spec))
        yield Shell(url, tmp_path_factory.mktemp("begun"), home)


@pytest.mark.slow
def test_a_study_without_a_trial_has_a_report_named_after_it(begun: Shell, visit: Visit) -> None:
    done = begun.run("report", "new/one")
    assert done.returncode == 0, done.stderr
    file = done.stderr.split()[1]
    assert file.startswith("new_one-")  # a study new_one has another
    visit.open(begun.folder / file)
    assert visit.page.locator(".plot").count() == 0
    assert visit.page.locator("#history .reason").text_content() == "No trial is complete yet."
    assert 'dataset = "digits"' in (visit.page.locator("#spec").text_content() or "")
    assert visit.complaints == []


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["plot", "new/one", "history", "-o", "x.png"], 1, "no trial is complete yet; possible: none yet"),
        (["plot", "new/one", "historie", "-o", "x.png"], 2, "is not one of 'history', 'pareto', "),
        (["plot", "new/one", "history", "-o", "x.pdf"], 2, "'x.pdf' must end in .png or .svg or .html"),
        (["plot", "new/one", "history"], 2, "missing option '-o'"),
        (["plot", "new/on", "history", "-o", "x.png"], 1, "did you mean 'new/one'?"),
        (["report", "new/on"], 1, "did you mean 'new/one'?"),
        (["report", "new/one", "-o", "x.pdf"], 2, "'x.pdf' must end in .html"),
        (["report", "new/one", "-o", "no/x.html"], 1, "there is no folder"),
        (["report", "new/one", "-o", "folder.html"], 1, "folder.html is a folder"),
        (["report", "new/one", "-o", "/proc/x.html"], 1, "/proc/x.html can't be written"),
    ],
)
def test_bad_input_is_one_clear_line(begun: Shell, arguments: list[str], status: int, words: str) -> None:
    (begun.folder / "folder.html").mkdir(exist_ok=True)
    done = begun.run(*arguments)
    assert done.returncode == status
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(begun.folder.glob("x.*"))
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    if "historie" in arguments:
        assert all(f"'{kind}'" in " ".join(done.stderr.split()) for kind in PLOTS)


def test_a_path_that_cannot_be_written_is_said_before_the_server_is_asked(tmp_path: Path, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and never answers
        url = StorageURL.parse(f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/none")
        done = Shell(url, tmp_path, home).run("report", "x", "-o", "no/x.html")
    assert done.returncode == 1
    assert "there is no folder" in done.stderr


def test_a_report_that_is_there_is_replaced(begun: Shell) -> None:
    file = begun.folder / "old.html"
    file.write_text("old")
    assert begun.run("report", "new/one", "-o", "old.html").returncode == 0
    assert "new/one" in file.read_text()
    assert [path.name for path in begun.folder.iterdir() if path.name.startswith(".")] == []
