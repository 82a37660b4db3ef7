"""A browser, pages that may not complain, and servers to look at."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.web.chromium import QUIET, find
from tests.web.serving import Shown, replaying

NewPage = Callable[..., Page]
HALF_WAY = "200s"
"""Into the recorded run: everybody is at work, and not all is well."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    program = find()
    assert program, "no Chromium here; `make web-test` tells how to get one"
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield found
        found.close()


@pytest.fixture
def new_page(browser: Browser) -> Iterator[NewPage]:
    """Makes pages, each of a visitor of its own; whatever one complains of in its console fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def make(
        *, width: int = 1440, height: int = 900, theme: str = "light", may_complain: bool = False, **more: Any
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            reduced_motion="reduce",
            ignore_https_errors=True,
            **more,
        )
        contexts.append(context)
        page = context.new_page()
        if not may_complain:
            page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints, complaints


@pytest.fixture(scope="session")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of 1,023 nodes and 200 workers."""
    from tinylora_coordinator.dashboard.recording import write_recording

    from tests.dashboard.synthetic import RUN, Plan, make_run

    file = tmp_path_factory.mktemp("big") / "events.jsonl.gz"
    write_recording(file, RUN, make_run(Plan(n_leaves=512, n_workers=200, hours=3.0, events_per_s=5.0)))
    return file


@pytest.fixture(scope="session")
def example() -> Iterator[Shown]:
    """The recorded run that visitors see, held still at its half."""
    with replaying("--example", "--at", HALF_WAY) as shown:
        yield shown
