"""Overview and Workers by the keyboard alone: where the focus goes, what it is on, and that it can be seen."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.web.conftest import NewPage
from tests.web.looking import goto
from tests.web.serving import Shown, replaying

pytestmark = pytest.mark.web

_SEEN = """() => new Promise(done => { let nTries = 0; const look = () => requestAnimationFrame(() => {
  const at = document.activeElement;
  const isMarked = part => { const style = getComputedStyle(part), box = part.getBoundingClientRect();
    return style.visibility === 'visible' && style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2
      && box.width > 0 && box.height > 0 && box.bottom > 0 && box.right > 0
      && box.top < innerHeight && box.left < innerWidth; };
  const isSeen = [at, ...at.children].some(isMarked);
  nTries += 1; // what scrolls, or comes by a lazy part, takes some frames
  if (nTries < 2 || (nTries < 30 && (!isSeen || at === document.body))) return look();
  const { top, left, bottom } = at.getBoundingClientRect();
  const name = at.getAttribute('aria-label') ?? at.labels?.[0]?.textContent ?? at.textContent ?? '';
  done({tag: at.tagName, role: at.getAttribute('role') ?? '', path: at.dataset?.path ?? null,
    name: name.replace(/\\s+/g, ' ').trim(),
    pressed: at.getAttribute('aria-pressed'), expanded: at.getAttribute('aria-expanded'),
    href: at.getAttribute('href') ?? '', isSeen, isInDialog: !!at.closest('dialog[open]'), box: [left, top, bottom]});
}); look(); })"""
_STOPS = """() => [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
  .filter(at => at.tabIndex >= 0 && !at.disabled && at.checkVisibility() && at.getClientRects().length)
  .map(at => at.outerHTML.slice(0, 90))"""


class Hands:
    """Somebody at the keyboard, who may never lose sight of where the focus is."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def at(self) -> dict[str, Any]:
        """What has the focus, once everything is drawn."""
        return self.page.evaluate(_SEEN)

    def press(self, *keys: str) -> dict[str, Any]:
        """Press one after the other; the focus must be on something and be seen."""
        at: dict[str, Any] = {}
        for key in keys:
            self.page.keyboard.press(key)
            at = self.at()
            assert at["tag"] not in ("BODY", "HTML"), f"{key} lost the focus"
            assert at["isSeen"], f"after {key} the focus cannot be seen: {at}"
        return at

    def tab_to(self, name: str, *, role: str = "", backwards: bool = False, most: int = 150) -> dict[str, Any]:
        """Go on by Tab to what has this name, or begins with it."""
        met: list[str] = []
        for _ in range(most):
            at = self.press("Shift+Tab" if backwards else "Tab")
            if at["name"].startswith(name) and role in ("", at["role"]):
                return at
            met.append(at["name"][:30])
        raise AssertionError(f"Tab does not come to {name!r}, but to {met}")


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """64 leaves and 40 workers, held still."""
    from tinylora_coordinator.dashboard.recording import write_recording

    from tests.dashboard.synthetic import RUN, Plan, make_run

    file: Path = tmp_path_factory.mktemp("forest") / "events.jsonl.gz"
    write_recording(file, RUN, make_run(Plan(n_leaves=64, n_workers=40, hours=1.0)))
    with replaying(file, "--at", "40m") as shown:
        yield shown


@pytest.fixture(params=["example", "forest"])
def shown(request: pytest.FixtureRequest) -> Shown:
    return request.getfixturevalue(request.param)


@pytest.fixture
def open_at(new_page: NewPage, shown: Shown) -> Callable[[str], Hands]:
    def open_page(path: str, **more: Any) -> Hands:
        page = new_page(**more)
        goto(page, shown.url + path)
        return Hands(page)

    return open_page


def _paths(page: Page) -> list[str]:
    """All nodes, depth first: what a walk down the tree meets, in order."""
    return sorted(page.evaluate("fetch('/api/v1/state').then(r => r.json()).then(s => s.nodes.map(n => n.path))"))


def _to_tree(hands: Hands) -> dict[str, Any]:
    at = hands.at()
    for _ in range(40):
        if at["role"] == "treeitem":
            return at
        at = hands.press("Tab")
    raise AssertionError("Tab does not come to the tree")


# --- every page ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/?view=tree", "/?node=0", "/workers"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tab_comes_to_everything_once_and_is_always_seen(open_at: Callable[..., Hands], path: str, theme: str) -> None:
    hands = open_at(path, theme=theme)
    stops: list[str] = hands.page.evaluate(_STOPS)
    hands.page.evaluate(
        "() => { window.__met = []; document.addEventListener('focusin', e => window.__met.push(e.target)) }"
    )
    items = []
    for _ in stops:
        at = hands.press("Tab")
        items += [at["path"]] if at["role"] == "treeitem" else []
    n_met: int = hands.page.evaluate("new Set(window.__met).size")
    assert n_met == len(stops), f"{n_met} of {len(stops)}: {stops}"
    assert len(items) == (0 if path == "/workers" else 1), "the tree has one tab stop"


def test_the_skip_link_leads_past_the_navigation(open_at: Callable[..., Hands]) -> None:
    for path in ("/", "/workers"):
        hands = open_at(path)
        assert hands.press("Tab")["name"] == "Skip to the content"
        hands.page.keyboard.press("Enter")
        at = hands.at()
        assert at["tag"] == "H1"
        wide = "document.querySelector('main .page').getBoundingClientRect().height"
        height = hands.page.evaluate(wide)
        assert hands.press("Tab")["tag"] != "H1"
        assert abs(hands.page.evaluate(wide) - height) < 2, "the page moves by the focus on its heading"
        assert hands.page.evaluate("!!document.activeElement.closest('main')")


def test_pages_change_by_links_and_the_focus_goes_to_the_heading(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/")
    for name, path in (("Workers", "/workers"), ("Timeline", "/timeline"), ("Overview", "/")):
        hands.page.evaluate("document.activeElement.blur(); document.querySelector('.skip').focus()")
        while not (
            hands.press("Tab")["href"] == path and hands.page.evaluate("!!document.activeElement.closest('nav')")
        ):
            pass
        hands.page.keyboard.press("Enter")
        expect(hands.page.locator("main h1", has_text=name)).to_be_focused()
        assert hands.page.evaluate("location.pathname") == path


def test_help_holds_the_focus_and_gives_it_back(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/")
    _to_tree(hands)
    before = hands.press("ArrowDown", "ArrowDown")
    hands.page.keyboard.press("?")
    dialog = hands.page.get_by_role("dialog", name="Keys and words")
    expect(dialog).to_be_visible()
    for key in ["Tab"] * 4 + ["Shift+Tab"] * 4:
        hands.page.keyboard.press(key)
        assert hands.page.evaluate(
            "!!document.activeElement.closest('dialog') || document.activeElement === document.body"
        )
    hands.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert hands.at()["path"] == before["path"]
    hands.page.keyboard.press("?")
    expect(dialog.get_by_role("button", name="Close")).to_be_focused()
    hands.page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    assert hands.at()["path"] == before["path"]


def test_the_sign_in_gives_the_focus_back(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/")
    hands.tab_to("Sign in")
    hands.page.keyboard.press("Enter")
    dialog = hands.page.get_by_role("dialog", name="Sign in")
    expect(dialog).to_be_visible()
    assert hands.at()["isInDialog"]
    hands.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert hands.at()["name"] == "Sign in"


# --- the tree --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["/", "/?view=tree", "/?width=equal"])
def test_arrows_walk_the_whole_tree(open_at: Callable[..., Hands], view: str) -> None:
    hands = open_at(view)
    paths = _paths(hands.page)
    met = [_to_tree(hands)["path"]]
    for _ in paths[1:]:
        at = hands.press("ArrowDown")
        assert at["role"] == "treeitem"
        met.append(at["path"])
    assert met == paths
    assert hands.press("ArrowDown")["path"] == paths[-1]
    assert hands.press("Home")["path"] == ""
    assert hands.press("End")["path"] == paths[-1]
    assert hands.press("ArrowUp")["path"] == paths[-2]
    stops = (
        "[...document.querySelectorAll('[role=treeitem][tabindex=\"0\"]')].filter(at => at.checkVisibility()).length"
    )
    assert hands.page.evaluate(stops) == 1


@pytest.mark.parametrize("view", ["/", "/?view=tree"])
def test_right_opens_and_left_closes_and_goes_to_the_parent(open_at: Callable[..., Hands], view: str) -> None:
    hands = open_at(view)
    _to_tree(hands)
    assert hands.press("ArrowRight")["path"] == "0"
    assert (at := hands.press("ArrowLeft"))["path"] == "0" and at["expanded"] == "false"
    assert hands.press("ArrowDown")["path"] == "1"
    assert hands.press("ArrowUp")["path"] == "0"
    assert (at := hands.press("ArrowRight"))["path"] == "0" and at["expanded"] == "true"
    assert hands.press("ArrowRight")["path"] == "00"
    leaf = max((path for path in _paths(hands.page) if set(path) <= {"0"}), key=len)
    while (at := hands.press("ArrowRight"))["path"] != leaf:
        pass
    assert at["expanded"] is None and hands.press("ArrowRight")["path"] == leaf
    assert hands.press("ArrowLeft")["path"] == leaf[:-1]


def test_typed_bits_search_and_escape(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/")
    page = hands.page
    leaf = _paths(page)[-1]
    _to_tree(hands)
    for bit in leaf:
        page.keyboard.press(bit)
    expect(page.locator(f"#t-{leaf}")).to_be_focused()
    assert hands.at()["isSeen"]
    page.wait_for_timeout(900)  # what is typed later is another path
    assert hands.press("0")["path"] == "0"
    assert (at := hands.press("/"))["role"] == "combobox"
    page.keyboard.type(leaf[:2])
    assert hands.page.get_by_role("listbox", name="Nodes").get_by_role("option").count() > 1
    hands.press("ArrowDown", "ArrowDown")
    marked = page.evaluate(
        "document.getElementById(document.activeElement.getAttribute('aria-activedescendant')).textContent"
    )
    at = hands.press("Enter")
    assert at["role"] == "treeitem" and at["path"] in marked
    hands.press("/")
    page.keyboard.type("0")
    assert hands.press("Escape")["role"] == "combobox"
    expect(page.get_by_role("listbox", name="Nodes")).to_be_hidden()
    holder = page.evaluate("""fetch('/api/v1/state').then(r => r.json()).then(s => {
        const [held] = s.nodes.find(n => n.holders?.length).holders;
        return s.workers.find(w => w.worker === held).name || held; })""")
    page.keyboard.type(holder)
    assert hands.press("Enter")["role"] == "treeitem"


def test_space_zooms_and_escape_zooms_out(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/")
    _to_tree(hands)
    hands.press("ArrowRight", "ArrowRight", "Space")
    assert "zoom=00" in hands.page.url
    assert hands.at()["path"] == "00"
    hands.press("ArrowDown", "Escape")
    assert "zoom=0" in hands.page.url and "zoom=00" not in hands.page.url
    hands.press("Escape")
    assert "zoom" not in hands.page.url
    leaf = _paths(hands.page)[-1]
    hands.press("End", "ArrowLeft", "Space")
    assert f"zoom={leaf[:-1]}" in hands.page.url
    for _ in leaf[:-1]:
        assert hands.press("Escape")["role"] == "treeitem"


def test_zooming_out_by_the_way_keeps_the_focus(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/?zoom=00")
    hands.tab_to("root")
    assert hands.press("Enter")["role"] == "treeitem"
    assert "zoom" not in hands.page.url


def test_enter_opens_the_nodes_page(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/")
    _to_tree(hands)
    hands.press("ArrowRight")
    hands.page.keyboard.press("Enter")
    expect(hands.page.locator("main h1")).to_be_focused()
    assert hands.page.url.endswith("/node/0")
    hands.page.locator("main a[href^='/node/']").first.focus()
    hands.page.keyboard.press("Enter")
    expect(hands.page.locator("main h1")).to_be_focused()
    hands.page.go_back()
    hands.page.go_back()
    expect(hands.page.get_by_role("tree")).to_be_visible()
    assert hands.at()["tag"] != "BODY"


def test_on_a_narrow_screen_the_tree_is_a_list(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/", width=390, height=800)
    _to_tree(hands)
    assert hands.press("ArrowRight")["path"] == "0"
    at = hands.press("End")
    assert at["role"] == "treeitem" and at["path"]
    assert hands.press("Home")["path"] == ""


def test_in_a_low_window_the_focus_stays_in_sight(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/", height=420)
    _to_tree(hands)
    hands.press("End", "Home", "ArrowRight", "ArrowRight", "ArrowRight")


# --- the rest of Overview --------------------------------------------------------------------------------------------


def test_views_and_colours_are_chosen(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/")
    hands.tab_to("Tree")
    assert hands.press("Enter")["pressed"] == "true" and "view=tree" in hands.page.url
    assert hands.press("Shift+Tab", "Space")["pressed"] == "true" and "view" not in hands.page.url
    assert hands.tab_to("Colour")["tag"] == "SELECT"
    hands.press("ArrowDown")
    assert "colour=loss" in hands.page.url
    hands.tab_to("Width")
    hands.press("ArrowDown")
    assert "width=equal" in hands.page.url


def test_the_selection_is_used_and_closed(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/")
    _to_tree(hands)
    hands.press("End")
    panel = hands.page.get_by_role("region", name="Selection")
    expect(panel.get_by_role("link", name="Open")).to_be_visible()
    hands.tab_to("Close the selection")
    at = hands.press("Enter")
    assert "node=" not in hands.page.url, "the selection is closed"
    assert at["role"] == "treeitem" or hands.page.evaluate("!!document.activeElement.closest('section.selection')")


def test_the_way_in_the_selection_leads_up(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/?node=00")
    section = "!!document.activeElement.closest('section.selection')"
    hands.page.get_by_role("region", name="Selection").get_by_role("button", name="0", exact=True).focus()
    hands.press("Enter")
    assert "node=0" in hands.page.url and "node=00" not in hands.page.url
    assert hands.page.evaluate(section)


def test_leaves_that_want_attention_are_opened(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/")
    found = hands.page.get_by_role("region", name="Selection").get_by_role("listitem").get_by_role("button")
    if not found.count():
        pytest.skip("all is well")
    found.first.focus()
    at = hands.press("Enter")
    assert "node=" in hands.page.url
    assert at["role"] == "treeitem" or hands.page.evaluate("!!document.activeElement.closest('section.selection')")


def test_events_are_chosen_and_read(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/?node=0")
    hands.tab_to("Trouble")
    assert hands.press("Enter")["pressed"] == "true"
    assert hands.press("Tab", "Enter")["name"] == "Here" and "feed=node" in hands.page.url
    assert hands.press("Tab")["role"] == "log"
    if hands.page.locator(".feed a").count():
        assert "/node/" in hands.press("Tab")["href"]


def test_charts_are_read_as_tables(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/")
    for title in ("Loss", "Tokens/s", "Workers", "Traffic"):
        hands.tab_to(f"{title} as a table")
        assert hands.press("Enter")["expanded"] == "true"
        table = hands.page.get_by_role("table", name=title)
        expect(table.get_by_role("columnheader").first).to_be_visible()
        assert table.get_by_role("row").count() > 2
        assert hands.press("Tab")["name"] == f"{title}, numbers"
        assert hands.press("Shift+Tab", "Enter")["expanded"] == "false"
    hands.tab_to("15m", backwards=True)
    assert hands.press("Enter")["pressed"] == "true"


def test_an_own_range_is_taken_back(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/")
    box = hands.page.locator(".plot .u-over").first.bounding_box()
    assert box
    hands.page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 20)
    hands.page.mouse.down()
    hands.page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 20, steps=4)
    hands.page.mouse.up()
    own = hands.page.get_by_role("button", name="Own range; take it back")
    own.focus()
    hands.press("Enter")
    expect(own).to_have_count(0)
    assert hands.page.evaluate("!!document.activeElement.closest('section')")


# --- Workers ---------------------------------------------------------------------------------------------------------


def _first_worker(hands: Hands) -> dict[str, Any]:
    at = hands.at()
    for _ in range(60):
        if at["href"].startswith("/worker/"):
            return at
        at = hands.press("Tab")
    raise AssertionError("Tab does not come to a worker")


def _order(page: Page) -> list[str]:
    return page.eval_on_selector_all("tbody a[href^='/worker/']", "all => all.map(at => at.getAttribute('href'))")


def test_rows_are_walked_and_opened(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/workers")
    first = _first_worker(hands)
    names = [first["name"]]
    n_workers: int = hands.page.evaluate("fetch('/api/v1/state').then(r => r.json()).then(s => s.workers.length)")
    for _ in range(n_workers - 1):
        names.append(hands.press("ArrowDown")["name"])
    assert len(set(names)) == n_workers
    assert hands.press("ArrowDown")["name"] == names[-1]
    assert hands.press("Home")["name"] == names[0]
    assert hands.press("End")["name"] == names[-1]
    hands.press("PageUp", "PageUp", "PageDown")
    at = hands.press("Home")
    hands.page.keyboard.press("Enter")
    expect(hands.page.locator("main h1")).to_be_focused()
    assert hands.page.url.endswith(at["href"])


def test_a_scrolled_table_still_has_its_tab_stop(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/workers", height=600)
    hands.page.locator("main .scroll").evaluate("at => { at.scrollTop = at.scrollHeight }")
    hands.page.wait_for_timeout(200)
    hands.tab_to("Columns")
    assert _first_worker(hands)["href"]


def test_heads_sort(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/workers")
    hands.tab_to("Download CSV")
    head = hands.press("Tab")
    while not head["name"].startswith("Speed"):
        head = hands.press("Tab")
    th = hands.page.locator("th", has=hands.page.get_by_role("button", name="Speed"))
    orders = []
    for _ in range(2):
        assert hands.press("Enter")["name"].startswith("Speed")
        orders.append((th.get_attribute("aria-sort"), _order(hands.page)))
    assert {said for said, _ in orders} == {"ascending", "descending"}
    assert orders[0][1] != orders[1][1]


def test_filter_and_chips(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/workers")
    n_all = len(_order(hands.page))
    hands.tab_to("Filter by name")
    hands.page.keyboard.type("nobody is called so")
    expect(hands.page.get_by_text("No worker matches")).to_be_visible()
    hands.tab_to("Show all")
    at = hands.press("Enter")
    assert at["tag"] in ("INPUT", "H1", "A"), at
    expect(hands.page.locator("tbody a[href^='/worker/']")).to_have_count(n_all)
    chips = hands.page.get_by_role("group", name="Show these states").get_by_role("button")
    chips.last.focus()
    assert hands.press("Space")["pressed"] == "true"
    assert "state" in hands.page.url and len(_order(hands.page)) < n_all
    assert hands.press("Space")["pressed"] == "false"


def test_columns_are_chosen_and_the_list_closes(open_at: Callable[..., Hands]) -> None:
    hands = open_at("/workers")
    hands.tab_to("Columns")
    hands.press("Enter")
    at = hands.tab_to("Memory")
    n_before = hands.page.get_by_role("columnheader").count()
    hands.press("Space")
    expect(hands.page.get_by_role("columnheader")).not_to_have_count(n_before)
    assert at["tag"] == "INPUT"
    assert hands.press("Escape")["tag"] == "SUMMARY"
    expect(hands.page.get_by_role("checkbox").first).to_be_hidden()


def test_the_table_is_downloaded(open_at: Callable[..., Hands], tmp_path: Path) -> None:
    hands = open_at("/workers")
    n_workers: int = hands.page.evaluate("fetch('/api/v1/state').then(r => r.json()).then(s => s.workers.length)")
    hands.tab_to("Download CSV")
    with hands.page.expect_download() as downloading:
        hands.press("Enter")
    downloading.value.save_as(tmp_path / "workers.csv")
    lines = (tmp_path / "workers.csv").read_text("utf-8-sig").strip().splitlines()
    assert len(lines) == n_workers + 1
