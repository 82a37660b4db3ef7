"""The API's routes one by one, against services that are made up."""

import asyncio
import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.answers import Pace, Refusal, Threads, has_it, takes_gzip
from tinylora_coordinator.dashboard.app import LOOKUPS_PER_MINUTE, create_app
from tinylora_coordinator.dashboard.shell import BODY_BYTES
from tinylora_coordinator.dashboard.snapshots import Rested, Snapshots

from tests.dashboard.asking import Asking
from tests.dashboard.fakes import (
    SHA256,
    WORKER,
    FakeAccess,
    FakeAdmin,
    FakeArtifacts,
    FakeLookUp,
    FakeViews,
    fake_services,
)
from tinylora.errors import StorageError

ADMIN = {"authorization": "Bearer admin"}


def asking(*, is_local: bool = False, **services: Any) -> Asking:
    return Asking(create_app(fake_services(**services)), is_local=is_local)


@cache
def reading(is_local: bool = False) -> Asking:
    """One app for all tests that leave nothing behind."""
    return asking(is_local=is_local)


def failure(response: Any) -> tuple[int, str]:
    """Status and word of a refusal, whose body must be one."""
    return response.status_code, doc.Failure.model_validate_json(response.content).error


# --- the state ----------------------------------------------------------------------------------------------------


def test_the_state_has_all_that_views_tell_without_what_is_at_its_default() -> None:
    views = FakeViews()
    answer = asking(views=views).get("/api/v1/state", accept_encoding="identity")
    assert doc.State.model_validate_json(answer.content) == views.state()
    assert answer.json()["nodes"][-1] == {"path": "11", "kind": "leaf", "state": "working", "holders": [WORKER]}


def test_whoever_has_the_state_is_not_sent_it_again() -> None:
    views = FakeViews()
    ask = asking(views=views)
    tag = ask.get("/api/v1/state").headers["etag"]
    again = ask.get("/api/v1/state", if_none_match=f'"other", {tag}')
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)


def test_the_state_is_compressed_for_those_who_can_read_it() -> None:
    ask = asking()
    plain = ask.get("/api/v1/state", accept_encoding="gzip;q=0")
    zipped = ask.get("/api/v1/state", accept_encoding="br, gzip")
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert zipped.content == plain.content
    assert zipped.headers["etag"] != plain.headers["etag"]
    assert plain.headers["vary"] == zipped.headers["vary"] == "accept-encoding"


class CostlyViews(FakeViews):
    """Each state takes 10 ms of the clock given."""

    def __init__(self, now: list[float]) -> None:
        super().__init__()
        self.now, self.n_states = now, 0

    def state(self) -> doc.State:
        self.now[0] += 0.01
        self.n_states += 1
        return super().state()


def test_making_states_takes_a_tenth_of_a_core_at_most() -> None:
    now = [0.0]
    views = CostlyViews(now)
    snapshots = Snapshots(views, clock=lambda: now[0])
    for _ in range(1000):
        views.grow()
        snapshots.take()
        now[0] += 0.001
    assert views.n_states == pytest.approx(now[0] / 0.1, abs=2)


def test_a_state_is_made_anew_for_its_clock_even_where_nothing_happens() -> None:
    now = [0.0]
    views = CostlyViews(now)
    snapshots = Snapshots(views, clock=lambda: now[0])
    first = snapshots.take()
    now[0] += 4.0
    assert snapshots.take() is first
    views.clock_s = 5.0
    now[0] += 1.0
    assert snapshots.take().tag != first.tag


def test_what_costs_time_is_not_made_anew_at_once() -> None:
    now = [0.0]

    def make(way: str) -> str:
        now[0] += 1.0
        return f"{way} at {now[0]:g}"

    rested = Rested(make, clock=lambda: now[0])
    assert [rested.take("a"), rested.take("b"), rested.take("a")] == ["a at 1", "b at 2", "a at 1"]
    now[0] = 9.9
    assert rested.take("a") == "a at 1"
    now[0] = 10.0
    assert rested.take("a") == "a at 11"
    for number in range(8):
        rested.take(str(number))
    assert rested.take("a") == "a at 20"  # only so many are kept


# --- questions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/api/v1/workers", doc.WorkerList),
        (f"/api/v1/workers/{WORKER}", doc.WorkerDetail),
        ("/api/v1/nodes/root", doc.NodeDetail),
        ("/api/v1/nodes/01", doc.NodeDetail),
        ("/api/v1/series?metric=loss&node=root", doc.Series),
        ("/api/v1/timeline?start_s=3&end_s=2&offset=1&limit=2", doc.Timeline),
        ("/api/v1/routing", doc.Routing),
        ("/api/v1/artifacts", doc.Artifacts),
        ("/api/v1/join", doc.JoinInfo),
        ("/api/v1/session", doc.Session),
    ],
)
def test_whoever_may_look_gets_the_document(path: str, kind: type[Any]) -> None:
    answer = reading().get(path)
    assert answer.status_code == 200, answer.text
    kind.model_validate_json(answer.content)


@pytest.mark.parametrize("path", ["/api/v1/nodes/01", f"/api/v1/workers/{WORKER}", "/api/v1/series?metric=loss"])
def test_an_answer_of_the_present_position_is_not_sent_twice(path: str) -> None:
    views = FakeViews()
    ask = asking(views=views)
    tag = ask.get(path).headers["etag"]
    assert ask.get(path, if_none_match=tag).status_code == 304
    views.grow()
    assert ask.get(path, if_none_match=tag).status_code == 200


class LongViews(FakeViews):
    def series(self, metric: doc.Metric, node: str | None, start_s: float, end_s: float, points: int) -> doc.Series:
        t = tuple(float(number) for number in range(points))
        return doc.Series(metric=metric, node=node, bucket_s=1.0, t=t, mean=t, low=t, high=t)


def test_long_answers_are_compressed_and_have_a_tag_of_their_own() -> None:
    ask, path = asking(views=LongViews()), "/api/v1/series?metric=loss&points=1000"
    plain, zipped = ask.get(path, accept_encoding="identity"), ask.get(path, accept_encoding="gzip")
    assert zipped.headers["content-encoding"] == "gzip"
    assert int(zipped.headers["content-length"]) < int(plain.headers["content-length"]) / 2
    assert zipped.content == plain.content
    tags = {plain.headers["etag"], zipped.headers["etag"]}
    assert len(tags) == 2
    assert {ask.get(path, if_none_match=tag).status_code for tag in tags} == {304}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v1/nodes/0101", (404, "not_found")),
        ("/api/v1/workers/stranger", (404, "not_found")),
        ("/api/v1/nodes/2", (422, "invalid")),
        ("/api/v1/series?metric=wrong", (422, "invalid")),
        ("/api/v1/series?metric=loss&start_s=nan", (422, "invalid")),
        ("/api/v1/timeline?limit=1000", (422, "invalid")),
        (f"/api/v1/bundles/{'0' * 64}", (404, "not_found")),
        ("/api/v1/leaves/10", (404, "not_found")),
        ("/api/v1/nothing", (404, "not_found")),
        ("/api/v1/state/", (404, "not_found")),
        ("/assets/none.js", (404, "not_found")),
    ],
)
def test_every_refusal_is_a_failure_with_a_word(path: str, expected: tuple[int, str]) -> None:
    assert failure(reading().get(path)) == expected


def test_a_wrong_method_is_a_failure_too() -> None:
    assert failure(reading()("PUT", "/api/v1/state")) == (405, "method")


def test_a_refusal_repeats_nothing_of_what_was_sent() -> None:
    answer = reading()("POST", "/api/v1/session", json={"token": "secret", "<script>": 1})
    assert failure(answer) == (422, "invalid")
    assert "secret" not in answer.text


class BrokenViews(FakeViews):
    def node(self, path: str) -> doc.NodeDetail | None:
        raise RuntimeError("a secret of the house")


def test_what_nobody_foresaw_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    answer = asking(views=BrokenViews()).get("/api/v1/nodes/01")
    assert failure(answer) == (500, "unforeseen")
    assert "secret" not in answer.text
    assert "a secret of the house" in caplog.text


class FullViews(FakeViews):
    def node(self, path: str) -> doc.NodeDetail | None:
        raise StorageError("no space is left")


def test_our_own_errors_are_told_with_their_sentence() -> None:
    answer = asking(views=FullViews()).get("/api/v1/nodes/01")
    assert failure(answer) == (503, "storage")
    assert answer.json()["reason"] == "no space is left"


# --- who may ask --------------------------------------------------------------------------------------------------


def test_where_looking_needs_a_token_nobody_looks_without() -> None:
    ask = asking(access=FakeAccess(needs_token=True))
    for path in ("/api/v1/state", "/api/v1/events", "/api/v1/join", "/metrics", "/lite"):
        assert failure(ask.get(path)) == (401, "token")
        assert failure(ask.get(path, authorization="Bearer wrong")) == (401, "token")
    assert ask.get("/api/v1/state", authorization="Bearer viewer").status_code == 200
    assert ask.get("/api/v1/session").json() == {"role": "nobody", "needs_token": True}
    assert ask.get("/").status_code == 200


def test_the_operators_part_is_the_operators() -> None:
    ask = asking()
    for method, path in [("GET", "/api/v1/admin"), ("POST", "/api/v1/admin/orders"), ("POST", "/api/v1/artifacts")]:
        body = {"json": {"kind": "pause"}} if path.endswith("orders") else {}
        assert failure(ask(method, path, **body)) == (403, "role")
        assert ask(method, path, headers=ADMIN, **body).status_code in (200, 202)


def test_a_recorded_run_takes_no_orders() -> None:
    ask = asking(admin=None)
    assert failure(ask("POST", "/api/v1/admin/orders", headers=ADMIN, json={"kind": "pause"})) == (404, "not_found")
    assert failure(ask("POST", "/api/v1/artifacts", headers=ADMIN)) == (404, "not_found")
    assert "can_make" not in ask("GET", "/api/v1/artifacts", headers=ADMIN).json()


def test_whoever_came_by_the_loopback_listener_is_the_operator() -> None:
    assert reading(is_local=True).get("/api/v1/session").json() == {"role": "admin", "is_local": True}


@pytest.mark.parametrize("host", ["evil.example:8444", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::2]"])
def test_the_loopback_listener_is_not_asked_by_another_name(host: str) -> None:
    assert failure(reading(is_local=True).get("/api/v1/admin/tokens", host=host)) == (403, "host")


@pytest.mark.parametrize("host", ["127.0.0.1:8444", "localhost:9000", "LOCALHOST", "[::1]:8444", "[::1]"])
def test_the_loopback_listener_has_these_names(host: str) -> None:
    assert reading(is_local=True).get("/api/v1/admin/tokens", host=host).status_code == 200


FOREIGN = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:8445"},
    {"origin": "http://localhost:8444"},
    {"origin": "file://127.0.0.1:8444"},
    {"origin": "http://[bad"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize(("method", "path"), [("POST", "/api/v1/artifacts"), ("DELETE", "/api/v1/admin/tokens/t1")])
def test_a_foreign_page_changes_nothing(method: str, path: str, headers: dict[str, str]) -> None:
    assert failure(reading(is_local=True)(method, path, headers=headers)) == (403, "origin")
    assert "is_making" not in reading(is_local=True).get("/api/v1/artifacts").json()


def test_our_own_page_and_programs_change_things() -> None:
    admin = FakeAdmin()
    ask = asking(is_local=True, admin=admin)
    ours = {"origin": "http://127.0.0.1:8444", "sec-fetch-site": "same-origin"}
    assert ask("POST", "/api/v1/admin/orders", headers=ours, json={"kind": "pause"}).status_code == 202
    assert ask("POST", "/api/v1/admin/orders", json={"kind": "resume"}).status_code == 202
    assert [order.kind for order in admin.orders] == ["pause", "resume"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_a_form_could_send_is_refused(kind: str) -> None:
    answer = reading(is_local=True)(
        "POST", "/api/v1/admin/orders", content=b'{"kind": "pause"}', headers={"content-type": kind}
    )
    assert failure(answer) == (415, "type")


def test_signing_in_sets_a_cookie_that_only_we_get() -> None:
    ask = asking(access=FakeAccess(needs_token=True))
    answer = ask("POST", "/api/v1/session", json={"token": "viewer"})
    assert answer.json() == {"role": "viewer", "needs_token": True}
    cookie = answer.headers["set-cookie"].lower()
    for part in ("tinylora=viewer", "httponly", "samesite=strict", "secure", "path=/", "max-age=60"):
        assert part in cookie
    assert ask.get("/api/v1/state", cookie="tinylora=viewer").status_code == 200
    gone = ask("DELETE", "/api/v1/session", headers={"cookie": "tinylora=viewer"})
    assert gone.json() == {"role": "nobody", "needs_token": True}
    assert "max-age=0" in gone.headers["set-cookie"].lower()


def test_guessing_tokens_is_slow() -> None:
    ask = asking()
    found = [failure(ask("POST", "/api/v1/session", json={"token": "wrong"}))[0] for _ in range(21)]
    assert found == [401] * 20 + [429]


# --- what is done -------------------------------------------------------------------------------------------------


def test_the_operators_orders_reach_the_desk() -> None:
    admin = FakeAdmin()
    ask = asking(is_local=True, admin=admin)
    given = ask("POST", "/api/v1/admin/orders", json={"kind": "release", "worker": WORKER})
    assert (given.status_code, given.json()["kind"]) == (202, "release")
    assert ask.get("/api/v1/admin").json()["orders"] == [given.json()]
    assert ask("POST", f"/api/v1/admin/workers/{WORKER}/approve").status_code == 200
    assert ask("DELETE", "/api/v1/admin/tokens/t1").status_code == 200
    made = ask("POST", "/api/v1/admin/tokens", json={"uses": 3})
    assert (made.status_code, made.json()["command"]) == (201, "http://127.0.0.1:8444")
    assert (admin.approved, admin.revoked) == ([WORKER], ["t1"])


def test_an_order_that_makes_no_sense_is_refused_with_its_sentence() -> None:
    answer = asking(is_local=True)("POST", "/api/v1/admin/orders", json={"kind": "revoke", "worker": "stranger"})
    assert failure(answer) == (422, "setting")
    assert answer.json()["reason"] == "no worker of this run"


def test_one_bundle_is_made_at_a_time() -> None:
    ask = asking(is_local=True)
    assert ask("POST", "/api/v1/artifacts").json()["is_making"]
    assert failure(ask("POST", "/api/v1/artifacts")) == (409, "refused")


def test_files_come_whole_or_in_ranges_and_once(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(b"hello")
    (tmp_path / "leaf").write_bytes(b"zip")
    ask = asking(artifacts=FakeArtifacts(tmp_path))
    path = f"/api/v1/bundles/{SHA256}"
    assert ask.get(path).content == b"hello"
    part = ask.get(path, range="bytes=1-2")
    assert (part.status_code, part.content) == (206, b"el")
    assert ask.get(path, if_none_match=f'"{SHA256}"').status_code == 304
    assert ask.get("/api/v1/bundle").headers["location"] == path
    leaf = ask.get("/api/v1/leaves/01")
    assert (leaf.content, leaf.headers["content-type"]) == (b"zip", "application/zip")
    assert leaf.headers["content-disposition"] == 'attachment; filename="leaf-01.zip"'


@pytest.mark.parametrize(
    ("range_", "status", "content"),
    [
        ("bytes=0-0", 206, b"h"),
        ("bytes=3-", 206, b"lo"),
        ("bytes=1-99", 206, b"ello"),
        ("bytes=-2", 206, b"lo"),
        ("bytes=-99", 206, b"hello"),
        ("bytes=-0", 200, b"hello"),
        ("bytes=3-1", 200, b"hello"),
        ("bytes=0-0,2-2", 200, b"hello"),
        ("lines=1-2", 200, b"hello"),
        ("bytes=x", 200, b"hello"),
    ],
)
def test_one_range_or_the_whole(tmp_path: Path, range_: str, status: int, content: bytes) -> None:
    (tmp_path / "bundle").write_bytes(b"hello")
    answer = asking(artifacts=FakeArtifacts(tmp_path)).get(f"/api/v1/bundles/{SHA256}", range=range_)
    assert (answer.status_code, answer.content) == (status, content)


def test_a_range_behind_the_end_and_a_file_that_is_gone_are_told(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(b"hello")
    ask = asking(artifacts=FakeArtifacts(tmp_path))
    behind = ask.get(f"/api/v1/bundles/{SHA256}", range="bytes=5-")
    assert (failure(behind), behind.headers["content-range"]) == ((416, "range"), "bytes */5")
    (tmp_path / "bundle").unlink()
    assert failure(ask.get(f"/api/v1/bundles/{SHA256}")) == (404, "not_found")


def test_a_text_is_looked_up_unless_that_cannot_be() -> None:
    look_up = FakeLookUp()
    ask = asking(look_up=look_up)
    assert ask("POST", "/api/v1/routing/lookup", json={"text": "two words"}).json()["n_tokens"] == 2
    assert ask.get("/api/v1/routing").json()["can_look_up"]
    look_up.reason = "nobody has solved the gates yet"
    assert ask.get("/api/v1/routing").json()["why_not"] == look_up.reason
    refused = ask("POST", "/api/v1/routing/lookup", json={"text": "two words"})
    assert (failure(refused), refused.json()["reason"]) == ((409, "no_lookup"), look_up.reason)


def test_lookups_are_few_for_each_place() -> None:
    ask = asking()
    found = [
        ask("POST", "/api/v1/routing/lookup", json={"text": "a"}).status_code for _ in range(LOOKUPS_PER_MINUTE + 1)
    ]
    assert found == [200] * LOOKUPS_PER_MINUTE + [429]


@pytest.mark.parametrize("text", ["\ud800", "", "x" * 20_001])
def test_a_text_that_is_none_is_refused(text: str) -> None:
    body = ('{"text": "' + text.encode("ascii", "backslashreplace").decode() + '"}').encode()
    answer = reading()("POST", "/api/v1/routing/lookup", content=body, headers={"content-type": "application/json"})
    assert failure(answer) == (422, "invalid")


# --- around every answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/api/v1/state", "/api/v1/nothing", "/lite", "/metrics", "/worker/w-1"])
def test_no_answer_goes_without_its_headers(path: str) -> None:
    headers = reading().get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["cache-control"]
    is_page = headers["content-type"].startswith("text/html")
    assert ("script-src 'self'" in headers["content-security-policy"]) == is_page


def test_a_long_body_is_refused_whether_or_not_it_says_so() -> None:
    json = {"content-type": "application/json"}
    ask = asking()
    long = b" " * (BODY_BYTES + 1)
    assert failure(ask("POST", "/api/v1/session", content=long, headers=json)) == (413, "length")

    async def parts():
        for _ in range(5):
            yield b" " * (BODY_BYTES // 4)

    assert failure(ask("POST", "/api/v1/session", content=parts(), headers=json)) == (413, "length")
    assert failure(ask("GET", "/api/v1/state", headers={"content-length": "x"})) == (413, "length")


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("br", False),
        ("", False),
    ],
)
def test_who_takes_gzip(accepted: str, expected: bool) -> None:
    assert takes_gzip({"accept-encoding": accepted}) == expected


def test_who_has_it() -> None:
    assert has_it({"if-none-match": 'W/"a", "b"'}, '"b"')
    assert has_it({"if-none-match": 'W/"a"'}, '"a"')
    assert not has_it({}, '"a"')


def test_of_what_takes_long_few_wait() -> None:
    threads, may_end = Threads(1, "test", most_waiting=1), threading.Event()

    async def scenario() -> None:
        under_way = [asyncio.ensure_future(threads(may_end.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as raised:
            await threads(may_end.wait)
        assert (raised.value.status_code, raised.value.error) == (503, "busy")
        may_end.set()
        await asyncio.gather(*under_way)
        assert await threads(lambda: 7) == 7

    asyncio.run(scenario())
    threads.close()


def test_a_pace_counts_by_place_and_minute() -> None:
    now = [0.0]
    pace = Pace(2, clock=lambda: now[0])
    for place in ("a", "a", "b"):
        pace.take(place)
    with pytest.raises(Refusal) as raised:
        pace.take("a")
    assert raised.value.headers == {"retry-after": "60"}
    now[0] = 60.0
    pace.take("a")


@pytest.mark.parametrize("path", ["/", "/workers", "/node/01"])
def test_a_page_that_the_browser_has_keeps_its_policy(path: str) -> None:
    first = reading().get(path)
    again = reading().get(path, if_none_match=first.headers["etag"])
    assert again.status_code == 304
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
