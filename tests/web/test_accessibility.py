"""axe-core on every page in both themes, and what somebody without a mouse can do."""

import pytest

from tests.web.axe import violations
from tests.web.conftest import NewPage
from tests.web.looking import PAGES, goto
from tests.web.serving import Shown

pytestmark = pytest.mark.web


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_axe_finds_nothing_serious(new_page: NewPage, example: Shown, theme: str, width: int) -> None:
    page = new_page(width=width, theme=theme)
    goto(page, example.url + "/workers")
    worker = page.locator("a[href^='/worker/']").first.get_attribute("href") or ""
    found = {}
    for path in (*PAGES, worker):
        goto(page, example.url + path)
        if wrong := violations(page):
            found[path] = wrong
    assert not found, found
