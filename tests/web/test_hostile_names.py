"""What strangers say of themselves is text on every page: nothing of it runs, loads, or becomes markup."""

from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.web.conftest import NewPage
from tests.web.looking import PAGES, goto
from tests.web.serving import replaying

pytestmark = pytest.mark.web
_TRAP = """window.__ran = [];
  for (const name of ['alert', 'confirm', 'prompt', 'print']) window[name] = () => window.__ran.push(name);"""


def test_names_notes_and_log_lines_stay_text(new_page: NewPage, tmp_path: Path) -> None:
    from tests.web.hostile_run import write_hostile

    file, n_workers = write_hostile(tmp_path / "hostile.jsonl")
    with replaying(file, "--at", "end") as shown:
        page = new_page()
        page.add_init_script(_TRAP)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: asked.append(f"dialog {dialog.message}"))
        goto(page, shown.url + "/")
        state = page.evaluate("fetch('/api/v1/state').then(r => r.json())")
        assert len(state["workers"]) == n_workers >= 30
        paths = [*PAGES, *(f"/worker/{worker['worker']}" for worker in state["workers"]), "/node/0", "/node/1"]
        for path in paths:
            goto(page, shown.url + path)
            _see_nothing_of_theirs(page)
        page.close()
        strange = [url for url in asked if not url.startswith(shown.url + "/")]
        assert not strange, strange[:5]


def _see_nothing_of_theirs(page: Page) -> None:
    found = page.evaluate(
        """() => ({ran: window.__ran, hacked: window.tinyloraPwned ?? null, title: document.title.includes('\\u202e'),
        markup: [...document.querySelectorAll('main img, main iframe, main object, main embed,'
          + 'main marquee, main form[action], script:not([src]), main style, main a[href^="javascript:" i],'
          + 'main a[href^="data:" i]')]
          .map(at => at.outerHTML.slice(0, 100)),
        handlers: [...document.querySelectorAll('*')].filter(at => [...at.attributes].some(a => /^on/i.test(a.name)))
          .map(at => at.outerHTML.slice(0, 100))})"""
    )
    assert found == {"ran": [], "hacked": None, "title": False, "markup": [], "handlers": []}, (page.url, found)
