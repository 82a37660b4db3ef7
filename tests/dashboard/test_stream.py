"""The stream of events: nothing is lost, nothing told twice, readers share the work, nobody waits for them at the end.

Most of it runs against the generators themselves; what a network does to them is tried over real sockets.
"""

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx
import pytest
import uvicorn
from starlette.types import Message
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard import stream
from tinylora_coordinator.dashboard.answers import Refusal, Threads
from tinylora_coordinator.dashboard.app import close_streams, create_app
from tinylora_coordinator.dashboard.source import Views
from tinylora_coordinator.dashboard.stream import Streams
from tinylora_coordinator.dashboard.views import RunViews

from tests.dashboard.fakes import FakeAccess, FakeViews, fake_services
from tests.dashboard.synthetic import Plan, make_events

T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """One event as a browser reads it."""

    name: str
    id: str
    data: str


def read(block: bytes) -> Event:
    fields = dict(line.split(": ", 1) for line in block.decode().strip("\n").split("\n"))
    return Event(fields.get("event", "message"), fields.get("id", ""), fields.get("data", ""))


async def yes() -> bool:
    return True


def streams(views: FakeViews, **more: float) -> Streams:
    return Streams(views, Threads(1, "test"), **({"pace_s": 0.001, "alive_s": 0.01} | more))  # pyright: ignore[reportArgumentType]


async def events(opened: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    async for block in opened:
        assert block.endswith(b"\n\n") and block.count(b"\n\n") == 1
        yield read(block)


async def first(opened: AsyncIterator[bytes], name: str) -> Event:
    async for event in events(opened):
        if event.name == name:
            return event
    raise AssertionError(f"the stream ended without {name}")


def test_a_reader_gets_all_since_his_position_as_one_patch() -> None:
    views = FakeViews()
    views.grow(5)

    async def scenario() -> doc.Patch:
        async with aclosing(streams(views).open("e-2", yes)) as opened:
            event = await first(opened, "patch")
            assert event.id == "e-5"
            return doc.Patch.model_validate_json(event.data)

    patch = asyncio.run(scenario())
    assert (patch.before, patch.position) == ("e-2", "e-5")
    assert [item.number for item in patch.feed] == [3, 4, 5]
    assert patch == views.patch("e-2")  # also the line separator in its texts, which ends no line of the stream


def test_a_reader_without_a_position_begins_now() -> None:
    views = FakeViews()
    views.grow(5)

    async def scenario() -> Event:
        async with aclosing(streams(views).open("", yes)) as opened:
            assert (await anext(events(opened))).name == "alive"
            views.grow()
            return await first(opened, "patch")

    assert asyncio.run(scenario()).id == "e-6"


@pytest.mark.parametrize("since", ["e-1", "other-5", "e-99", "nonsense", "x" * 200, "e-5\n"])
def test_an_unknown_position_is_told_and_ends_the_stream(since: str) -> None:
    views = FakeViews()
    views.grow(5)
    views.forgotten_before = 3

    async def scenario() -> list[Event]:
        return [event async for event in events(streams(views).open(since, yes))]

    assert asyncio.run(scenario()) == [Event("reset", "e-5", "{}")]


def test_readers_in_step_share_the_work() -> None:
    views = FakeViews()

    async def scenario() -> None:
        opened = [streams_.open("e-0", yes) for _ in range(10)]
        begun = [asyncio.ensure_future(first(each, "patch")) for each in opened]
        while streams_.n_readers < 10:
            await asyncio.sleep(0)
        views.grow()
        found = await asyncio.gather(*begun)
        assert {event.id for event in found} == {"e-1"}
        for each in opened:
            await each.aclose()

    streams_ = streams(views)
    asyncio.run(scenario())
    assert views.n_patches == 1
    assert (streams_.n_readers, views.n_wakes) == (0, 0)


def test_a_reader_is_told_no_more_often_than_the_pace() -> None:
    views = FakeViews()

    async def scenario() -> float:
        loop, n_patches = asyncio.get_running_loop(), 0
        begun_s = loop.time()
        async with aclosing(streams(views, pace_s=0.05).open("e-0", yes)) as opened:
            views.grow()
            async for event in events(opened):
                if event.name == "patch":
                    n_patches += 1
                    views.grow()
                if n_patches == 5:
                    return loop.time() - begun_s
        raise AssertionError

    assert asyncio.run(scenario()) >= 4 * 0.05


def test_many_growths_wake_the_loop_once() -> None:
    views = FakeViews()

    async def scenario() -> int:
        async with aclosing(streams(views, pace_s=0.05, alive_s=10).open("e-0", yes)) as opened:
            views.grow()
            await first(opened, "patch")
            calls, loop = [], asyncio.get_running_loop()
            original = loop.call_soon_threadsafe

            def counted(callback, *args, **more):
                calls.append(callback)
                return original(callback, *args, **more)

            loop.call_soon_threadsafe = counted  # pyright: ignore[reportAttributeAccessIssue]
            for _ in range(1000):
                views.grow()
            return len(calls)

    assert asyncio.run(scenario()) <= 1


def test_a_quiet_stream_says_that_it_lives_without_moving_anybody() -> None:
    async def scenario() -> list[Event]:
        async with aclosing(streams(FakeViews()).open("e-0", yes)) as opened:
            told = events(opened)
            return [await anext(told) for _ in range(3)]

    assert asyncio.run(scenario()) == [Event("alive", "", "{}")] * 3


def test_who_may_look_no_more_is_sent_away() -> None:
    answers = [True, False]

    async def still_may() -> bool:
        return answers.pop(0)

    async def scenario() -> int:
        opened = streams(FakeViews(), look_s=0.0).open("e-0", still_may)
        return len([event async for event in events(opened)])

    assert asyncio.run(scenario()) == 1


def test_there_are_only_so_many_readers() -> None:
    async def scenario() -> None:
        few = streams(FakeViews(), most_readers=1)
        opened = few.open("", yes)
        await anext(opened)
        with pytest.raises(Refusal) as raised:
            few.open("", yes)
        assert (raised.value.status_code, raised.value.headers) == (503, {"retry-after": "10"})
        await opened.aclose()
        again = few.open("", yes)
        await anext(again)
        await again.aclose()

    asyncio.run(scenario())


def test_a_reader_who_takes_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SLOW_S", 0.05)
    readers = streams(FakeViews())

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # a full pipe

    async def receive() -> Message:
        return await asyncio.Event().wait()  # pyright: ignore[reportReturnType]  (never)

    async def scenario() -> None:
        await asyncio.wait_for(stream.EventsResponse(readers.open("", yes))({"type": "http"}, receive, send), 5)

    asyncio.run(scenario())
    assert readers.n_readers == 0


def test_closing_from_another_thread_ends_all_streams() -> None:
    views = FakeViews()

    async def scenario() -> None:
        all_of_them = streams(views, alive_s=60)
        begun = [asyncio.ensure_future(_drain(all_of_them.open("e-0", yes))) for _ in range(3)]
        while all_of_them.n_readers < 3:
            await asyncio.sleep(0)
        closing = threading.Thread(target=all_of_them.close)
        closing.start()
        await asyncio.wait_for(asyncio.gather(*begun), 5)
        closing.join()
        with pytest.raises(Refusal):
            all_of_them.open("", yes)

    asyncio.run(scenario())
    assert views.n_wakes == 0


def test_readers_of_two_listeners_are_told_alike() -> None:
    views = FakeViews()
    both, found = streams(views), []

    async def scenario() -> None:
        async with aclosing(both.open("e-0", yes)) as opened:
            found.append(await first(opened, "patch"))

    listeners = [threading.Thread(target=asyncio.run, args=(scenario(),)) for _ in range(2)]
    for listener in listeners:
        listener.start()
    while both.n_readers < 2:
        assert all(listener.is_alive() for listener in listeners)
    views.grow()
    for listener in listeners:
        listener.join(10)
    assert [event.id for event in found] == ["e-1", "e-1"]
    assert (both.n_readers, views.n_wakes) == (0, 0)


async def _drain(opened: AsyncIterator[bytes]) -> None:
    async for _ in opened:
        pass


# --- over real sockets --------------------------------------------------------------------------------------------


@contextmanager
def served(views: Views, access: FakeAccess | None = None) -> Iterator[tuple[str, uvicorn.Server]]:
    """The app on a port of its own."""
    app = create_app(fake_services(views=views, access=access or FakeAccess()), pace_s=0.01)
    config = uvicorn.Config(app, port=0, log_level="error", ws="none", lifespan="off", timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        close_streams(app)
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def blocks(answer: httpx.Response) -> Iterator[Event]:
    """Not by `iter_lines`, which takes other characters too for a line's end."""
    rest = b""
    for part in answer.iter_raw():
        *whole, rest = (rest + part).split(b"\n\n")
        yield from map(read, whole)


class Reader:
    """Follows a run as the page does, over connections that break.

    Args:
        url: Of the server.
        is_end: Whether a position is the last there will be.
    """

    def __init__(self, url: str, is_end: Callable[[str], bool]) -> None:
        self._url, self._is_end = url, is_end
        state = doc.State.model_validate_json(httpx.get(f"{url}/api/v1/state").content)
        self.position, self._begun_at = state.position, state.position
        self.numbers = [item.number for item in state.feed]
        self.nodes = {node.path: node for node in state.nodes}

    def follow(self, cut_after: list[int]) -> None:
        """Read until the end, leaving the connection after so many patches each time."""
        while not self._is_end(self.position):
            self._read_some(cut_after.pop() if cut_after else 10**9)

    def _read_some(self, most: int) -> None:
        url, headers = f"{self._url}/api/v1/events?since={self._begun_at}", {"last-event-id": self.position}
        with httpx.stream("GET", url, headers=headers, timeout=10) as answer:
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            for event in blocks(answer):
                assert event.name in ("patch", "alive")
                if event.name == "patch":
                    self._take(doc.Patch.model_validate_json(event.data), event.id)
                    most -= 1
                if most <= 0 or self._is_end(self.position):
                    return

    def _take(self, patch: doc.Patch, position: str) -> None:
        assert patch.before == self.position
        assert patch.position == position
        self.position = position
        self.numbers += [item.number for item in patch.feed]
        self.nodes |= {node.path: node for node in patch.nodes}
        self.nodes = {path: node for path, node in self.nodes.items() if path not in patch.gone}


def follow_with_breaks(views: Views, feed: Iterable[Callable[[], object]], end: Callable[[], object]) -> list[Reader]:
    """Three readers of views that are fed meanwhile, each leaving now and then."""
    dice, is_fed, rest = random.Random(7), threading.Event(), threading.Event()

    def feed_all() -> None:
        for step in feed:
            step()
            rest.wait(0.002)  # a log that grows while readers come and go
        is_fed.set()
        end()

    with served(views) as (url, _):
        readers = [Reader(url, lambda at: is_fed.is_set() and at == views.position) for _ in range(3)]
        cuts = [[dice.randrange(1, 4) for _ in range(12)] for _ in readers]
        threads = [
            threading.Thread(target=reader.follow, args=(cut,)) for reader, cut in zip(readers, cuts, strict=True)
        ]
        threads.append(threading.Thread(target=feed_all))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    return readers


def test_breaks_lose_and_double_nothing() -> None:
    views = FakeViews()
    readers = follow_with_breaks(views, [lambda: views.grow(3)] * 200, views.grow)
    state = views.state()
    for reader in readers:
        assert reader.numbers == list(range(1, 602))
        assert reader.nodes == {node.path: node for node in state.nodes}


def test_breaks_lose_and_double_nothing_of_a_real_runs_events() -> None:
    views = RunViews(None, run="artificial")
    happened = make_events(Plan(n_leaves=8, n_workers=6, hours=0.2, events_per_s=1.0))
    rows = [(row.number, row.at_s, row.event) for row in happened]
    steps = [lambda part=part: views.take(part) for part in batched(rows, 8)]
    readers = follow_with_breaks(views, steps, lambda: views.set_phase("finished"))
    state = views.state()
    views.close()
    assert len(state.nodes) == 15
    for reader in readers:
        assert reader.numbers == sorted(set(reader.numbers))
        assert reader.numbers[-len(state.feed) :] == [item.number for item in state.feed]
        assert reader.numbers == readers[0].numbers
        assert reader.nodes == {node.path: node for node in state.nodes}


def batched(rows: Sequence[T], n: int) -> Iterator[Sequence[T]]:
    """Not `itertools.batched`, which Python 3.11 lacks."""
    return (rows[start : start + n] for start in range(0, len(rows), n))


def test_the_server_stops_at_once_with_readers_on_the_line() -> None:
    views = FakeViews()
    ended: list[bool] = []

    def read_on(url: str, begun: threading.Event) -> None:
        with httpx.stream("GET", f"{url}/api/v1/events", timeout=10) as answer:
            for _ in answer.iter_lines():
                begun.set()
        ended.append(True)

    with served(views) as (url, _):
        begun = threading.Event()
        reader = threading.Thread(target=read_on, args=(url, begun))
        reader.start()
        assert begun.wait(10)
    reader.join(10)
    assert ended == [True]  # as a stream ends, not as a connection breaks


def test_a_reader_whose_token_is_revoked_is_refused() -> None:
    access = FakeAccess(needs_token=True)
    with served(FakeViews(), access) as (url, _):
        headers = {"authorization": "Bearer viewer"}
        with httpx.stream("GET", f"{url}/api/v1/events", headers=headers) as answer:
            assert answer.status_code == 200
            assert next(answer.iter_lines()).startswith("event: ")
        access.revoked.add("viewer")
        refused = httpx.get(f"{url}/api/v1/events", headers=headers)
        assert (refused.status_code, json.loads(refused.content)["error"]) == (401, "token")
