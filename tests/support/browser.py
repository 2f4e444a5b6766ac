"""A real Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import GUARD

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: What is an error in a console and none in a site. MLflow asks whether it has users, and takes a 404 for no, and
#: whether it has an assistant, which a viewer is refused. A browser tells so that a layout took two frames.
HARMLESS = ("/mlflow/users/current", "/mlflow/assistant/", "ResizeObserver loop")


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """The system's Chromium; where it or Playwright is missing, the test is skipped."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        pytest.skip("no playwright: pip install playwright")
    if program is None:
        pytest.skip("no chromium: apt-get install chromium")
    arguments = ["--disable-gpu", "--disable-background-networking"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # its sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments, timeout=GUARD * 1000)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page of its own, with the options of a browser's context; what it waits for only guards against hanging."""
    context = browser.new_context(**options)
    context.set_default_timeout(GUARD * 1000)
    try:
        yield context.new_page()
    finally:
        context.close()


def troubles(page: Page) -> list[str]:
    """What goes wrong in a page from now on: errors in its console, refused requests, requests to elsewhere."""
    found: list[str] = []

    def note(text: str) -> None:
        if not any(harmless in text for harmless in HARMLESS):
            found.append(text)

    page.on("pageerror", lambda error: note(f"exception: {error}"))
    page.on("console", lambda m: note(f"console: {m.text} ({m.location['url']})") if m.type == "error" else None)
    page.on("response", lambda r: note(f"{r.status}: {r.request.method} {r.url}") if r.status >= 400 else None)
    page.on(
        "request",
        lambda r: None if r.url.startswith(("http://127.0.0.1:", "data:", "blob:")) else note(f"elsewhere: {r.url}"),
    )
    return found
