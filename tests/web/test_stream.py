"""A stream that breaks again and again: the page misses nothing and takes nothing twice."""

import http.client
import itertools
import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from playwright.sync_api import Page
from tinylora_coordinator.dashboard.recording import open_recording, write_recording

from tests.dashboard.synthetic import RUN, Plan, make_run
from tests.flower.helpers import until
from tests.web.breaking import BreakingLine, breaking
from tests.web.conftest import NewPage
from tests.web.looking import goto
from tests.web.serving import replaying

pytestmark = pytest.mark.web
N_BREAKS = 16
SHOWN = 80
"""Events that the overview shows at most."""

_LOG = """() => { const Real = window.EventSource; window.__told = []; window.__n_broken = 0;
  window.EventSource = class extends Real { constructor(...words) { super(...words);
    this.addEventListener('error', () => { window.__n_broken += 1; });
    this.addEventListener('patch', e => { const p = JSON.parse(e.data);
      window.__told.push([p.before, p.position, (p.feed ?? []).map(item => item.number)]); }); } };
  const ask = window.fetch; window.fetch = async (...words) => { const answer = await ask(...words);
    if (String(words[0]?.url ?? words[0]).includes('/api/v1/state')) { const copy = answer.clone();
      copy.json().then(s => window.__told.push(['', s.position, (s.feed ?? []).map(item => item.number)]), () => {}); }
    return answer; }; }"""


@pytest.fixture(scope="module")
def short_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten minutes of 127 nodes and 40 workers, in which much happens."""
    file = tmp_path_factory.mktemp("short") / "events.jsonl.gz"
    write_recording(file, RUN, make_run(Plan(n_leaves=64, n_workers=40, hours=1 / 6, events_per_s=5.0)))
    return file


def test_nothing_is_lost_or_doubled(new_page: NewPage, short_file: Path) -> None:
    rng = random.Random(5)
    with (
        replaying(short_file, "--speed", "8") as shown,
        breaking(shown.url) as line,
        _undisturbed(shown.url) as truth,
    ):
        page = new_page(may_complain=True)
        page.add_init_script(f"({_LOG})()")
        goto(page, line.url + "/")
        for _ in range(N_BREAKS):
            _break(page, line, rng)
        end_s = open_recording(short_file).end_s
        until(lambda: _state(shown.url)["run"]["clock_s"] >= end_s, timeout_s=180.0, what="the end of the recording")
        last = _state(shown.url)["position"]
        until(lambda: page.evaluate("window.__told.at(-1)[1]") == last, timeout_s=30.0, what="the last patch")
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        told, seen = page.evaluate("window.__told"), _seen(page)
        assert page.evaluate("window.__n_broken") >= N_BREAKS, "the open stream was not cut each time"
        assert _feed(page) == truth[: -SHOWN - 1 : -1], "the page's events are not the last ones of the run"
        assert seen == _seen_anew(new_page, shown.url), "the page shows something else than one that is loaded now"
    _check_order(told)
    _check_feed(told, truth)
    loads = sum(not before for before, _, _ in told)
    print(f"{line.n_broken} connections cut; {len(told) - loads} patches followed on, {loads} times everything anew")


def _break(page: Page, line: BreakingLine, rng: random.Random) -> None:
    """Cut the line at some moment, half of the times in the midst of an answer, and mend it after a while."""
    n_broken = page.evaluate("window.__n_broken")
    page.wait_for_timeout(rng.uniform(50, 1500))
    if rng.random() < 0.5:
        line.cut_within(rng.randrange(3000))
        until(lambda: line.is_down, timeout_s=30.0, what="a break within an answer")
    else:
        line.cut()
    until(lambda: page.evaluate("window.__n_broken") > n_broken, timeout_s=30.0, what="the page's seeing the break")
    page.wait_for_timeout(rng.uniform(0, 1500))
    n_told = page.evaluate("window.__told.length")
    line.mend()
    until(lambda: page.evaluate("window.__told.length") > n_told, timeout_s=30.0, what="the stream after a break")


def _check_order(told: list[list[Any]]) -> None:
    """Each patch follows on from what was known before."""
    broken = [(one, two) for one, two in itertools.pairwise(told) if two[0] and two[0] != one[1]]
    assert len(told) > N_BREAKS and not broken, broken[:3]


def _check_feed(told: list[list[Any]], truth: list[int]) -> None:
    """Each event of the run came, once: a state repeats some of them, a patch none."""
    known = list[int]()
    for before, _, numbers in told:
        assert numbers == sorted(set(numbers))
        new = [number for number in numbers if not known or number > known[-1]]
        assert not before or new == numbers, "a patch told of an event once more"
        known += new
    assert known == truth[truth.index(known[0]) :], "an event is missing, or was never there"


# --- the truth ------------------------------------------------------------------------------------------------------


@contextmanager
def _undisturbed(url: str) -> Iterator[list[int]]:
    """Numbers of the run's events, as one hears them whose line does not break."""
    place, state = urlsplit(url), _state(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    numbers = [item["number"] for item in state.get("feed", ())]
    connection.request("GET", f"/api/v1/events?since={state['position']}")
    answer = connection.getresponse()

    def listen() -> None:
        with suppress(OSError, ValueError, AttributeError):
            for text in answer:
                if text.startswith(b"data: ") and (patch := json.loads(text[6:])):
                    numbers.extend(item["number"] for item in patch.get("feed", ()))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield numbers
    finally:
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)
        thread.join(10.0)
        answer.close()
        connection.close()


def _state(url: str) -> dict[str, Any]:
    with urlopen(url + "/api/v1/state") as answer:
        return json.load(answer)


def _feed(page: Page) -> list[int]:
    """Events that are shown, the newest first."""
    return page.evaluate("[...document.querySelectorAll('[data-event]')].map(item => +item.dataset.event)")


def _seen(page: Page) -> list[str]:
    """What the tree says of its nodes."""
    return page.evaluate("[...document.querySelectorAll('[role=treeitem]')].map(item => item.ariaLabel)")


def _seen_anew(new_page: NewPage, url: str) -> list[str]:
    page = new_page(may_complain=True)
    goto(page, url + "/")
    return _seen(page)
