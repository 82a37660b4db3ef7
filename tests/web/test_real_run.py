"""A real run in the browser: what happens is seen within a second, and what is clicked happens."""

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.flower.helpers import until
from tests.web.conftest import NewPage
from tests.web.looking import goto
from tests.web.real_run import RealRun, kill, now_s, real_run
from tinylora.federation.events import BundlePublished, RunPaused, RunResumed, UnitLeased

pytestmark = [pytest.mark.web, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRun]:
    with real_run(tmp_path_factory.mktemp("real"), 2) as found:
        yield found


class Watch:
    """When each event of the ledger could be read by another process, on the wall clock."""

    def __init__(self, run: RealRun) -> None:
        self._file, self._stop = run.coordinator.root / "ledger.sqlite", threading.Event()
        self.seen: dict[int, tuple[float, str]] = {}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True)) as database:
            (last,) = database.execute("SELECT coalesce(max(number), 0) FROM event").fetchone()
            while not self._stop.wait(0.01):
                for number, kind in database.execute("SELECT number, type FROM event WHERE number > ?", (last,)):
                    self.seen[number], last = (now_s(), kind), number

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


_SEE_FEED = """() => {
  window.__seen = {};
  const note = () => { for (const at of document.querySelectorAll('[data-event]'))
    window.__seen[at.dataset.event] ??= Date.now() / 1000; };
  note();
  new MutationObserver(() => requestAnimationFrame(() => requestAnimationFrame(note)))
    .observe(document.body, {subtree: true, childList: true});
}"""


def test_from_an_accepted_update_to_the_pixel_within_a_second(run: RealRun, new_page: NewPage) -> None:
    page = new_page()
    goto(page, run.url + "/")
    page.evaluate(_SEE_FEED)
    watch = Watch(run)

    def pairs() -> list[float]:
        shown: dict[str, float] = page.evaluate("window.__seen")
        accepted = {number: at for number, (at, kind) in dict(watch.seen).items() if kind == "update_accepted"}
        return [shown[str(number)] - at for number, at in accepted.items() if str(number) in shown]

    until(lambda: len(pairs()) >= 30, timeout_s=90.0, what="thirty accepted updates on the page")
    watch.end()
    took = sorted(pairs())
    middle, longest = took[len(took) // 2], took[-1]
    print(f"accepted update to pixel, {len(took)} updates: median {middle:.2f} s, longest {longest:.2f} s")
    assert longest <= 1.0


def test_pause_and_resume_from_the_page(run: RealRun, new_page: NewPage) -> None:
    page = new_page()
    goto(page, run.url + "/admin")
    page.get_by_role("button", name="Pause").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    expect(page.locator("header [data-state=paused]")).to_be_visible(timeout=10_000)
    assert run.events(RunPaused)
    page.get_by_role("button", name="Resume").first.click()
    dialog = page.get_by_role("dialog")
    if dialog.count():
        dialog.get_by_role("button", name="Resume").click()
    expect(page.locator("header [data-state=running]")).to_be_visible(timeout=10_000)
    assert run.events(RunResumed)


def test_a_bundle_made_on_the_page_is_that_of_the_ledger(run: RealRun, new_page: NewPage, tmp_path: Path) -> None:
    page = new_page()
    goto(page, run.url + "/artifacts")
    page.get_by_role("button", name="Make").first.click()
    link = page.locator("a[href^='/api/v1/bundles/']").first
    expect(link).to_be_visible(timeout=60_000)
    with page.expect_download() as downloading:
        link.click()
    file = tmp_path / "bundle.safetensors"
    downloading.value.save_as(file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    row = page.evaluate("fetch('/api/v1/artifacts').then(r => r.json()).then(a => a.bundles[0])")
    assert row["sha256"] == sha256
    until(
        lambda: any(isinstance(e, BundlePublished) and e.sha256 == sha256 for e in run.coordinator.events()),
        timeout_s=20.0,
        what="the bundle's hash in the ledger",
    )


def test_the_page_recovers_from_restarts_of_the_coordinator(run: RealRun, new_page: NewPage) -> None:
    page = new_page(may_complain=True)
    goto(page, run.url + "/")
    page.evaluate("window.__same = true")
    for role in ("link", "rounds", "supervisor"):
        before = _position(page)
        run.coordinator.kill(role)  # pyright: ignore[reportArgumentType]
        if role == "supervisor":
            run.coordinator.start()
        until(lambda before=before: _position(page) > before, timeout_s=60.0, what=f"news after the {role} was killed")
    assert page.evaluate("window.__same"), "the page was loaded anew"


def _position(page: Page) -> int:
    """Sequence of the newest event that the page shows."""
    return max(page.eval_on_selector_all("[data-event]", "all => all.map(at => +at.dataset.event)"), default=0)


def test_a_worker_that_is_killed_is_lost_and_its_leaf_leased_again(run: RealRun, new_page: NewPage) -> None:
    page = new_page()
    goto(page, run.url + "/workers")
    victim = run.volunteers[0]
    node = [e for e in run.events(UnitLeased) if isinstance(e, UnitLeased) and e.worker == victim.worker][-1].node
    kill(victim)
    row = page.locator(f"tr:has(a[href='/worker/{victim.worker}'])")
    expect(row.locator("[data-state=lost]")).to_be_visible(timeout=150_000)
    run.add()
    _wait_for_lease(run, node, victim.worker)
    goto(page, run.url + f"/node/{node or 'root'}")
    expect(page.locator("main [data-state=working]").first).to_be_visible(timeout=30_000)


def _wait_for_lease(run: RealRun, node: str, worker: str) -> None:
    n_before = len(run.coordinator.events())

    def is_leased() -> bool:
        later: list[Any] = run.coordinator.events()[n_before:]
        return any(isinstance(e, UnitLeased) and e.node == node and e.worker != worker for e in later)

    until(is_leased, timeout_s=120.0, what=f"another lease of {node}")
