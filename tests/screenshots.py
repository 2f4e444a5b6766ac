"""The pictures of docs/ that a browser takes: terminals, both sites and the report. Run it with: make screenshots

They show the preset ``digits``, from a home of its own that is gone afterwards. Needs Chromium.
"""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.console import Console

from studies import open_storage
from studies.cli.watch import OverviewReader
from studies.cli.watch_picture import picture
from studies.progress import Progress
from studies.session import Seen
from tests.conftest import ROOT
from tests.support.browser import open_chromium
from tests.support.sites import COMMAND, surroundings
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

STUDY = "digits"
#: Bytes, so that the repository stays small.
LARGEST = 200_000


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="studyhall-screenshots-", dir="/tmp") as name, open_chromium() as browser:
        folder = Path(name)
        folder.chmod(0o755)  # as root the database's own account has to reach it
        environment = surroundings(STUDYHALL_HOME=str(folder / "home"))
        try:
            _terminals(browser, folder, environment)
            for command in (["mirror", STUDY, "--once"], ["report", STUDY, "-o", "report.html"]):
                subprocess.run([COMMAND, *command], cwd=folder, env=environment, check=True)
            with _serving("dashboard", folder, environment) as address:
                page = _open(browser, address)
                page.wait_for_function("document.querySelectorAll('.js-plotly-plot .points path').length > 20")
                _keep(page, "dashboard.png")
            with _serving("mlflow", folder, environment) as address:
                page = _open(browser, address)
                page.get_by_text("train_loss", exact=True).first.wait_for()
                page.wait_for_function("document.querySelectorAll('.js-plotly-plot path.js-line').length > 20")
                _keep(page, "mlflow.png")
            page = _open(browser, (folder / "report.html").as_uri())
            page.locator(".js-plotly-plot").nth(1).wait_for()
            _keep(page, "report.png")
        finally:
            subprocess.run([COMMAND, "db", "stop", "--force"], cwd=folder, env=environment, check=True)


def _terminals(browser: Browser, folder: Path, environment: dict[str, str]) -> None:
    """What `run` and, beside it, `watch` show of the study, drawn by rich."""
    run, watch = (Console(record=True, force_terminal=True, file=io.StringIO(), width=80, height=50) for _ in range(2))
    os.environ["STUDYHALL_HOME"] = str(folder / "home")
    with subprocess.Popen(
        [COMMAND, "run", STUDY],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        assert running.stdout
        run.print(f"$ studyhall run {STUDY}\n{running.stdout.readline()}", end="", highlight=False)
        with closing(open_storage()) as storage:
            record = storage.find_study(STUDY)
            reader = OverviewReader(storage, record)
            reader.read()  # the pace of epochs is measured from here
            eventually(lambda: storage.status(record).finished > 5, "trials")
            seen = reader.read()
            watch.print(picture(seen, storage.objective_names(record)[0], watch, trouble=None, height=50))
            run.print(Progress()._picture(Seen(seen.status, record, seen.seconds_left)))
        lines = running.stdout.read().splitlines(keepends=True)
    assert running.returncode == 0
    last = next(i for i, line in enumerate(lines) if " done (" in line)
    run.print(f"  ⋮\n{''.join(lines[last:])}", end="", highlight=False)
    best = [COMMAND, "best", STUDY, "--format", "args"]
    said = subprocess.run(best, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout
    # With an empty line at the end: the picture cuts off the underscores of its last one.
    run.print(f"$ studyhall {' '.join(best[1:])}\n{said}", highlight=False)
    for name, console in (("run", run), ("watch", watch)):
        drawn = folder / f"{name}.svg"
        console.save_svg(str(drawn), title=f"studyhall {name} {STUDY}")
        page = _open(browser, drawn.as_uri())
        _, _, width, height = map(float, page.evaluate("document.documentElement.getAttribute('viewBox')").split())
        page.set_viewport_size({"width": int(width), "height": int(height)})
        _keep(page, f"{name}.png")


@contextmanager
def _serving(site: str, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Serve one site. Gives the address of the study's page, as it is printed."""
    with subprocess.Popen(
        [COMMAND, "serve", STUDY, "--only", site], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        address = next(line.split()[-1] for line in process.stdout if "http://" in line)
        yield address
        process.terminate()


def _open(browser: Browser, address: str) -> Page:
    page = browser.new_page(viewport={"width": 1150, "height": 960})
    page.set_default_timeout(120_000)
    page.goto(address)
    return page


def _keep(page: Page, name: str) -> None:
    page.wait_for_timeout(2_000)  # until what moves has come to rest
    file = ROOT / "docs" / name
    page.screenshot(path=file)
    size = file.stat().st_size
    assert size < LARGEST, f"{file} has {size} bytes"
    print(f"{file}: {size / 1e3:.0f} kB, of {urlsplit(page.url).path}")
    page.close()


if __name__ == "__main__":
    main()
