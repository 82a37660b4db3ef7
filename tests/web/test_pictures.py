"""Every page of a recorded run, in both themes, wide and on a phone: nothing cut, nothing on top of each other.

The pictures stay in web-shots/, for eyes.
"""

from pathlib import Path

import pytest

from tests.web.conftest import NewPage
from tests.web.looking import PAGES, faults, goto
from tests.web.serving import Shown

pytestmark = pytest.mark.web
SHOTS = Path(__file__).parents[2] / "web-shots"
_FIRST_LEAF = """fetch('/api/v1/state').then(r => r.json())
  .then(state => state.nodes.find(node => node.kind === 'leaf').path)"""


def _name(path: str) -> str:
    return path.strip("/").replace("/", "-").replace("?", "").replace("=", "-") or "overview"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_is_cut_or_overlaps(new_page: NewPage, example: Shown, theme: str, width: int) -> None:
    SHOTS.mkdir(exist_ok=True)
    page = new_page(width=width, height=900 if width > 500 else 844, theme=theme)
    goto(page, example.url + "/workers")
    first = page.locator("a[href^='/worker/']").first.get_attribute("href")
    goto(page, example.url + "/")
    leaf = page.evaluate(_FIRST_LEAF)
    found = {}
    for path in (*PAGES, first or "", f"/node/{leaf}"):
        goto(page, example.url + path)
        name = {first: "worker", f"/node/{leaf}": "node-leaf"}.get(path, _name(path))
        page.screenshot(path=SHOTS / f"{name}-{width}-{theme}.png", full_page=True)
        if wrong := faults(page):
            found[path] = wrong
    assert not found, found
