"""A stream that breaks again and again: the page misses nothing and takes nothing twice."""

import random
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.flower.helpers import until
from tests.web.conftest import NewPage
from tests.web.looking import goto
from tests.web.serving import replaying

pytestmark = pytest.mark.web

_LOG = """() => { const Real = window.EventSource; window.__patches = [];
  window.EventSource = class extends Real { constructor(...words) { super(...words);
    this.addEventListener('patch', e => { const p = JSON.parse(e.data);
      window.__patches.push([p.before, p.position, (p.feed ?? []).map(item => item.number)]); }); } }; }"""


def test_nothing_is_lost_or_doubled(new_page: NewPage, big_file: Path) -> None:
    rng = random.Random(5)
    with replaying(big_file, "--speed", "20", "--from", "20m") as shown:
        page = new_page(may_complain=True)
        page.add_init_script(f"({_LOG})()")
        goto(page, shown.url + "/")
        devtools = page.context.new_cdp_session(page)
        devtools.send("Network.enable")
        for _ in range(8):
            page.wait_for_timeout(rng.uniform(300, 1800))
            page.context.set_offline(True)  # for new connections; the open stream goes with the next line
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            page.wait_for_timeout(rng.uniform(100, 1500))
            page.context.set_offline(False)
            n_patches = len(_patches(page))
            until(lambda n=n_patches: len(_patches(page)) > n, timeout_s=30.0, what="the stream after a break")
        patches = _patches(page)
    numbers = [number for _, _, feed in patches for number in feed]
    assert len(patches) > 20 and numbers
    assert numbers == sorted(set(numbers)), "an item of the feed came twice, or out of order"
    broken = [(one, two) for one, two in zip(patches, patches[1:], strict=False) if two[0] != one[1]]
    assert not broken, broken[:3]


def _patches(page: Page) -> list[list[Any]]:
    return page.evaluate("window.__patches")
