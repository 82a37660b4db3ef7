"""The plain page: all that the state has, well-formed, inert, and told in words."""

from html.parser import HTMLParser

import pytest
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.app import create_app
from tinylora_coordinator.dashboard.lite import tell_bytes, tell_change, tell_duration, tell_number, write_page

from tests.dashboard.asking import Asking
from tests.dashboard.fakes import WORKER, FakeArtifacts, FakeViews, fake_services, join

HOSTILE = "<script>alert(1)</script>\"'&lt;<img src=x onerror=alert(1)>{{ 7 * 7 }}"
VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """What a page is made of; complains where an element is closed that is not the one open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(state: doc.State) -> Page:
    return Page(write_page(state, FakeArtifacts().list(False), join("https://run.example.org")).decode())


def test_the_page_tells_every_node_and_worker() -> None:
    views = FakeViews()
    views.grow(3)
    page = page_of(views.state())
    links = {attributes.get("href") for tag, attributes in page.elements if tag == "a"}
    assert {f"/api/v1/nodes/{node.path or 'root'}" for node in views.state().nodes} <= links
    assert f"/api/v1/workers/{WORKER}" in links
    assert "quiet-otter" in "".join(page.text)


def test_a_page_of_nothing_says_what_will_come() -> None:
    run = doc.Run(run="new", phase="waiting")
    page = page_of(doc.State(position="e-0", run=run, nodes=(), workers=(), feed=()))
    assert "There is no tree yet" in "".join(page.text)
    assert "Nobody has joined yet" in "".join(page.text)


def test_what_a_worker_calls_itself_stays_text() -> None:
    state = FakeViews().state()
    worker = state.workers[0].model_copy(update={"name": HOSTILE, "gpu": HOSTILE, "reason": HOSTILE})
    item = doc.FeedItem(number=1, at_s=0, kind="joined", text=HOSTILE)
    page = page_of(state.model_copy(update={"workers": (worker,), "feed": (item,)}))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "style", "iframe", "object"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith(("on", "style"))]
    assert "".join(page.text).count(HOSTILE) == 8  # its name at itself and at its four leaves


def test_every_table_has_a_caption_and_scopes() -> None:
    page = page_of(FakeViews().state())
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") == 3
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")


def test_it_is_served_with_its_style_and_needs_no_script() -> None:
    ask = Asking(create_app(fake_services()))
    page = ask.get("/lite")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "https://run.example.org:8443" in page.text
    assert ask.get("/lite.css").headers["content-type"].startswith("text/css")
    assert "prefers-color-scheme" in ask.get("/lite.css").text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (-3, "0 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (90000, "1 d 1 h"), (42, "42 s")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert tell_duration(seconds) == expected


def test_numbers() -> None:
    assert [tell_bytes(n) for n in (0, 1023, 1536, 2**30, 2**50)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "1.0 GiB",
        "1024.0 TiB",
    ]
    assert [tell_number(n) for n in (None, 3, 3.14, 1234.5)] == ["", "3", "3.1", "1,234"]
    assert [tell_change(n) for n in (None, -0.1, 0.1)] == ["", "−0.100", "+0.100"]
