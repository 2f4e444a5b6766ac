"""Both sites in a real Chromium, on a study that is running: by the address that was printed, and as a viewer."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from studies import PostgresStorage
from studies.storage.url import StorageURL
from tests.conftest import Server
from tests.support.browser import open_chromium, open_page, troubles
from tests.support.sites import COMMAND, Hall, ask, serving, surroundings
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCRIPT = """
import time


def objective(trial):
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    width = trial.suggest_int("width", 16, 256)
    # The first one runs for as long as anybody looks: it stays at the top of the dashboard's list.
    for epoch in range(1, 7 if trial.number else 10_000):
        time.sleep(0.25 if trial.number < 9 else 2)  # enough to see: from then on the pages have the machine
        loss = 1 / epoch + rate
        trial.report(1 - loss / 2, epoch, train_loss=loss, val_loss=1.1 * loss, train_accuracy=1 - loss / 3, lr=rate)
    return 1 - rate - width / 1000
"""
NAME = "landscape"
RUN = ("run", "script.py:objective", "--name", NAME, "--trials", "1000", "--workers", "2")
CURVES = ("train_loss", "val_loss", "train_accuracy", "lr")
PASSWORD = "look, and do not touch"


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Somebody's browser before a running study."""

    hall: Hall
    page: Page
    troubles: list[str]
    login: str | None


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with open_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def running(
    separate_server: Server, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[StorageURL, Path, dict[str, str]]]:
    """A study that runs, in an external database."""
    folder = tmp_path_factory.mktemp("running")
    (folder / "script.py").write_text(SCRIPT)
    with separate_server.database() as url:
        environment = surroundings(STUDYHALL_STORAGE=url.sqlalchemy, STUDYHALL_HOME=str(home))
        with (folder / "run.err").open("wb") as err:
            run = subprocess.Popen(
                [COMMAND, *RUN, "--set", "direction=maximize", "--set", "pruner.name=none"],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
        try:
            yield url, folder, environment
            assert run.poll() is None, (folder / "run.err").read_text()
        finally:
            run.terminate()
            run.wait(timeout=300)


@pytest.fixture(scope="module", params=["token", "viewer"])
def hall(
    request: pytest.FixtureRequest, running: tuple[StorageURL, Path, dict[str, str]]
) -> Iterator[tuple[Hall, str]]:
    """The sites, and by whom they are visited."""
    url, folder, environment = running
    file = folder / "password"
    file.touch(0o600)
    file.write_text(PASSWORD)
    options = ("--host", "0.0.0.0", "--password-file", file) if request.param == "viewer" else ()
    with serving(folder, environment, *options) as hall, closing(PostgresStorage(url)) as storage:
        # Then plots have something to show.
        eventually(lambda: storage.status(storage.find_study(NAME)).finished >= 4)
        yield hall, request.param


@pytest.fixture
def visit(chromium: Browser, hall: tuple[Hall, str]) -> Iterator[Visit]:
    login = {"username": "viewer", "password": PASSWORD} if hall[1] == "viewer" else None
    with open_page(chromium, viewport={"width": 1200, "height": 720}, http_credentials=login) as page:
        yield Visit(hall=hall[0], page=page, troubles=troubles(page), login=f"viewer:{PASSWORD}" if login else None)


def test_the_dashboard_lists_a_running_study_with_its_trials_and_draws_its_plots(visit: Visit) -> None:
    page = visit.page
    page.goto(visit.hall.dashboard)
    assert "token" not in page.url  # a cookie has taken its place
    page.get_by_role("link", name=NAME).click()
    page.wait_for_url(re.compile(r"/dashboard/studies/\d+$"))
    for plot in ("History", "Hyperparameter Importance", "Timeline", "Intermediate values"):
        page.get_by_role("heading", name=plot).wait_for()
    # Points and bars of the trials, and the parameters by their importance.
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .scatterlayer .points path').length >= 4")
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .barlayer .point path').length >= 4")
    for parameter in ("rate", "width"):
        page.locator(".js-plotly-plot .ytick", has_text=parameter).first.wait_for()
    page.goto(f"{page.url}/trials")
    for text in ("Trial 0", "Complete", "Running", "Intermediate Values", "rate"):
        page.get_by_text(text).first.wait_for()
    assert visit.troubles == []


def mirrored(visit: Visit) -> int:
    """How many runs MLflow has of the study."""
    api = "/api/2.0/mlflow"
    found = ask(visit.hall.mlflow, "GET", f"{api}/experiments/get-by-name?experiment_name={NAME}", login=visit.login)
    if found.status != 200:
        return 0
    body = json.dumps({"experiment_ids": [json.loads(found.body)["experiment"]["experiment_id"]]}).encode()
    runs = json.loads(ask(visit.hall.mlflow, "POST", f"{api}/runs/search", login=visit.login, body=body).body)
    return len(runs.get("runs", []))  # MLflow leaves the key out of an empty answer


def history(visit: Visit, run: str, metric: str) -> list[Any]:
    """The steps that MLflow has of a run's metric."""
    query = f"/api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key={metric}"
    found: list[Any] = json.loads(ask(visit.hall.mlflow, "GET", query, login=visit.login).body).get("metrics", [])
    return found


def test_a_studys_address_leads_to_its_trials_and_their_curves(visit: Visit) -> None:
    page = visit.page
    page.goto(visit.hall.of_study(visit.hall.dashboard, NAME))
    page.wait_for_url(re.compile(r"/dashboard/studies/\d+$"))
    page.get_by_role("heading", name="History").wait_for()
    # MLflow as it opens: model training, no assistant.
    page.goto(visit.hall.mlflow)
    page.get_by_role("link", name="Model registry").wait_for()
    assert page.get_by_text("Welcome to MLflow Assistant").count() == 0
    eventually(lambda: mirrored(visit) > 4)
    page.goto(visit.hall.of_study(visit.hall.mlflow, NAME))
    page.wait_for_url(re.compile(r"#/experiments/\d+/runs\?workflowType=machine_learning&compareRunsMode=CHART"))
    page.get_by_role("link", name=re.compile(r"^trial \d+$")).nth(3).wait_for()
    folded = page.get_by_role("gridcell").filter(has=page.get_by_role("link", name=NAME, exact=True))
    assert folded.count() == 0
    for curve in ("train_loss", "final_value"):
        page.get_by_text(curve, exact=True).first.wait_for()
    assert visit.troubles == []
    answer = ask(visit.hall.mlflow, "GET", "/study/nobody", login=visit.login)
    assert (answer.status, answer.body) == (
        404,
        "no study 'nobody' in MLflow, or not yet: the mirror is seconds behind\n",
    )


@pytest.mark.parametrize("hall", ["viewer"], indirect=True)
def test_mlflow_shows_the_run_of_a_study_with_its_trials_beneath_and_their_curves(visit: Visit) -> None:
    page = visit.page
    page.goto(f"{visit.hall.mlflow}#/experiments")
    page.get_by_role("link", name=NAME).click()
    page.wait_for_url(re.compile(r"/experiments/\d+/"))
    number = re.search(r"/experiments/(\d+)/", page.url)
    assert number
    page.goto(f"{visit.hall.mlflow}#/experiments/{number[1]}/runs")
    parent = page.get_by_role("gridcell").filter(has=page.get_by_role("link", name=NAME, exact=True))
    parent.get_by_role("button").click()
    trials = page.get_by_role("gridcell").get_by_role("link", name=re.compile(r"^trial \d+$"))
    trials.nth(3).wait_for()
    trials.nth(2).click()
    page.get_by_role("heading", name=re.compile(r"^trial \d+$")).wait_for()

    run = re.search(r"/runs/([0-9a-f]+)", page.url)
    assert run
    # The page shows what the mirror had written when it was loaded: the trial may have been at its first step.
    eventually(lambda: all(len(history(visit, run[1], curve)) >= 6 for curve in CURVES), "the trial's steps in MLflow")
    page.goto(f"{visit.hall.mlflow}#/experiments/{number[1]}/runs/{run[1]}/model-metrics")
    page.reload()
    for curve in CURVES:
        page.get_by_text(curve, exact=True).first.wait_for()
    # A curve has a point for each step: its line goes through five more.
    page.wait_for_function(
        "count => [...document.querySelectorAll('.js-plotly-plot path.js-line')]"
        ".filter(line => (line.getAttribute('d') || '').split(/[LC]/).length >= 6).length >= count",
        arg=len(CURVES),
    )
    assert visit.troubles == []
