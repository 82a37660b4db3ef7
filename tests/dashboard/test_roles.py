"""Every address of the dashboard, asked by everybody, on both listeners, over real sockets.

The table below says whom each address is for. The addresses are the app's own: one that is new and has no row fails the
test. What an allowed request gets is told too, so that nothing is closed to all without anybody noticing.
"""

import json
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from starlette.routing import Route
from tinylora_coordinator.access_tokens import AccessToken, TokenRole, mark_of
from tinylora_coordinator.dashboard.access import Viewers
from tinylora_coordinator.dashboard.addresses import is_ours
from tinylora_coordinator.dashboard.app import create_app
from tinylora_coordinator.dashboard.run_access import RunAccess
from tinylora_coordinator.front_door import (
    Dashboard,
    FrontDoor,
    Limits,
    NodeAuth,
    listen,
    own_hosts,
    public_pages,
    serve_public,
    server_tls,
)
from tinylora_coordinator.keys import KeyFolder, make_keys, pin_of
from tinylora_coordinator.operator_store import OperatorStore

from tests.dashboard.fakes import SHA256, WORKER, FakeArtifacts, FakeViews, fake_services

For = Literal["anybody", "viewer", "admin"]
HOST = "127.0.0.1"
DAY_S = 86_400.0
MARK, OTHER = mark_of("ab" * 32), mark_of("cd" * 32)

TABLE: dict[tuple[str, str], tuple[For, int]] = {
    ("GET", "/"): ("anybody", 200),
    ("GET", "/node/{path}"): ("anybody", 200),
    ("GET", "/workers"): ("anybody", 200),
    ("GET", "/worker/{worker}"): ("anybody", 200),
    ("GET", "/timeline"): ("anybody", 200),
    ("GET", "/routing"): ("anybody", 200),
    ("GET", "/artifacts"): ("anybody", 200),
    ("GET", "/join"): ("anybody", 200),
    ("GET", "/admin"): ("anybody", 200),
    ("GET", "/lite.css"): ("anybody", 200),
    ("GET", "/lite"): ("viewer", 200),
    ("GET", "/metrics"): ("viewer", 200),
    ("GET", "/api/v1/openapi.json"): ("anybody", 200),
    ("GET", "/api/v1/state"): ("viewer", 200),
    ("GET", "/api/v1/events"): ("viewer", 200),
    ("GET", "/api/v1/nodes/{path}"): ("viewer", 200),
    ("GET", "/api/v1/workers"): ("viewer", 200),
    ("GET", "/api/v1/workers/{worker}"): ("viewer", 200),
    ("GET", "/api/v1/series"): ("viewer", 200),
    ("GET", "/api/v1/timeline"): ("viewer", 200),
    ("GET", "/api/v1/routing"): ("viewer", 200),
    ("POST", "/api/v1/routing/lookup"): ("viewer", 200),
    ("GET", "/api/v1/artifacts"): ("viewer", 200),
    ("POST", "/api/v1/artifacts"): ("admin", 202),
    ("GET", "/api/v1/bundles/{sha256}"): ("viewer", 200),
    ("GET", "/api/v1/leaves/{path}"): ("viewer", 200),
    ("GET", "/api/v1/join"): ("viewer", 200),
    ("GET", "/api/v1/session"): ("anybody", 200),
    ("POST", "/api/v1/session"): ("anybody", 200),
    ("DELETE", "/api/v1/session"): ("anybody", 200),
    ("GET", "/api/v1/admin"): ("admin", 200),
    ("POST", "/api/v1/admin/orders"): ("admin", 202),
    ("POST", "/api/v1/admin/workers/{worker}/approve"): ("admin", 200),
    ("GET", "/api/v1/admin/tokens"): ("admin", 200),
    ("POST", "/api/v1/admin/tokens"): ("admin", 201),
    ("DELETE", "/api/v1/admin/tokens/{token_id}"): ("admin", 200),
}
FILES = re.compile(r"/(assets/[^/]+|favicon\.\w+|robots\.txt|manifest\.webmanifest)")
"""What the page loads: built, and for anybody."""
OF_THE_DOOR = {("GET", "/api/v1/bundle")}
QUERIES = {"/api/v1/series": "?metric=loss", "/api/v1/events": "?since=e-0"}
FILLED = {"path": "01", "worker": WORKER, "sha256": SHA256, "token_id": "k3x9"}
BODIES: dict[str, Any] = {
    "/api/v1/routing/lookup": {"text": "a text"},
    "/api/v1/admin/orders": {"kind": "pause"},
    "/api/v1/admin/tokens": {},
}


@dataclass
class Run:
    """Both listeners of a run, and what everybody would show there."""

    public: str
    local: str
    ca: Path
    store: OperatorStore
    artifacts: FakeArtifacts
    views: FakeViews
    shown: dict[str, str]
    """Token by who shows it; `nobody` shows none."""
    now: list[float]


@contextmanager
def served(folder: Path, viewers: Viewers) -> Iterator[Run]:
    """A made-up run behind its real doors, with tokens of all kinds."""
    now, keys = [time.time()], KeyFolder(folder / "keys")
    make_keys(keys, run="fake", hosts=[HOST], now=datetime.now(UTC))
    for name in ("bundle", "leaf"):
        (folder / name).write_bytes(b"bytes")
    with OperatorStore(folder) as store:
        artifacts, views = FakeArtifacts(folder), FakeViews()
        access = RunAccess(store, mark=MARK, key=b"key", viewers=viewers, now=lambda: now[0])
        app = create_app(fake_services(access=access, artifacts=artifacts, views=views))
        dashboard = Dashboard(app, is_ours)
        pages = public_pages(ca_file=keys.ca, bundle_file=folder / "bundle", status=lambda: {})
        nodes, limits = NodeAuth(lambda public_pem: False), Limits(tries_per_minute=1000)
        listeners = listen(HOST, 0), listen(HOST, 0)
        port, own_port = (listener.getsockname()[1] for listener in listeners)
        door = FrontDoor(pages, app, nodes, limits=limits, spool=folder, dashboard=dashboard)
        own = FrontDoor(pages, limits=limits, spool=folder, dashboard=dashboard, own_hosts=own_hosts(own_port))
        tls = server_tls(keys.server, keys.server_key)
        with serve_public(door, listeners[0], tls=tls), serve_public(own, listeners[1], tls=None):
            shown = tokens(store, pin_of(keys), now[0])
            yield Run(
                f"https://{HOST}:{port}", f"http://{HOST}:{own_port}", keys.ca, store, artifacts, views, shown, now
            )


def tokens(store: OperatorStore, pin: str, now_s: float) -> dict[str, str]:
    """One of each kind."""

    def made(role: TokenRole, age_s: float = 0.0) -> str:
        return store.create_access(role, MARK, now_s=now_s - age_s, expires_in_s=DAY_S).text

    revoked = store.create_access("admin", MARK, now_s=now_s)
    store.revoke_token(revoked.token_id, now_s)
    return {
        "nobody": "",
        "worker": store.create_token(pin, now_s=now_s).text,
        "viewer": made("viewer"),
        "admin": made("admin"),
        "expired": made("admin", 2 * DAY_S),
        "revoked": revoked.text,
        "other run": AccessToken("admin", OTHER, "abcd1234", "s" * 32).text,
        "forged": AccessToken("admin", MARK, "abcd1234", "s" * 32).text,
    }


WHO = ("nobody", "worker", "viewer", "admin", "expired", "revoked", "other run", "forged")


@pytest.fixture(scope="module", params=["anybody", "token"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with served(tmp_path_factory.mktemp(request.param), request.param) as found:
        yield found


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with served(tmp_path_factory.mktemp("closed"), "token") as found:
        yield found


def addresses() -> set[tuple[str, str]]:
    """All that the app answers."""
    routes = [route for route in create_app(fake_services()).routes if isinstance(route, Route)]
    return {(verb, route.path) for route in routes for verb in (route.methods or set()) - {"HEAD"}}


def expected(level: For, status: int, who: str, needs_token: bool) -> int:
    """What somebody gets at the public address: his own row of the table."""
    role = who if who in ("viewer", "admin") else "nobody" if needs_token else "viewer"
    if level == "anybody" or role == "admin" or role == level:
        return status
    return 401 if role == "nobody" else 403


def ask(client: httpx.Client, run: Run, verb: str, address: str) -> int:
    """The status of one request, such as the page would send it."""
    path = re.sub(r"\{(\w+)\}", lambda match: FILLED[match[1]], address)
    body = {"token": run.shown["viewer"]} if address == "/api/v1/session" else BODIES.get(address)
    more: dict[str, Any] = {} if verb != "POST" or body is None else {"json": body}
    run.artifacts.is_making = False
    with client.stream(verb, path + QUERIES.get(address, ""), **more) as answer:
        client.cookies.clear()
        return answer.status_code


def opened(run: Run, who: str, *, base: str = "") -> httpx.Client:
    """A program that shows what it has as a bearer."""
    headers = {"authorization": f"Bearer {run.shown[who]}"} if run.shown[who] else {}
    verify = ssl.create_default_context(cafile=run.ca)
    return httpx.Client(base_url=base or run.public, headers=headers, verify=verify, timeout=20.0)


def test_every_address_has_a_row_and_every_row_an_address() -> None:
    found = {(verb, path) for verb, path in addresses() if not FILES.fullmatch(path)}
    assert found - OF_THE_DOOR == set(TABLE)
    in_openapi = {(verb.upper(), path) for path, verbs in create_app(fake_services()).openapi()["paths"].items()
                  for verb in verbs}  # fmt: skip
    assert in_openapi <= set(TABLE)


@pytest.mark.parametrize("who", WHO)
def test_the_public_address_gives_everybody_what_the_table_says(run: Run, who: str) -> None:
    with opened(run, "nobody") as client:
        needs_token = client.get("/api/v1/session").json().get("needs_token", False)
    with opened(run, who) as client:
        found = {row: ask(client, run, *row) for row in TABLE}
    assert found == {row: expected(*needed, who, needs_token) for row, needed in TABLE.items()}


@pytest.mark.parametrize("who", ["nobody", "worker", "viewer", "expired", "other run"])
def test_the_own_listener_gives_all_to_whoever_sits_there(closed: Run, who: str) -> None:
    with opened(closed, who, base=closed.local) as client:
        assert {row: ask(client, closed, *row) for row in TABLE} == {row: needed[1] for row, needed in TABLE.items()}
        assert client.get("/api/v1/session").json() == {"role": "admin", "is_local": True, "needs_token": True}


def test_what_the_page_loads_is_for_anybody(closed: Run) -> None:
    files = [path for verb, path in addresses() if FILES.fullmatch(path)]
    with opened(closed, "nobody") as client:
        assert {client.get(path).status_code for path in files} <= {200}


def test_what_every_run_tells_stays_as_it_was_on_both_listeners(closed: Run) -> None:
    for base in (closed.public, closed.local):
        with opened(closed, "nobody", base=base) as client:
            found = [
                client.get(path).status_code for path in ("/health", "/ca.pem", "/api/v1/status", "/api/v1/bundle")
            ]
            assert found == [200] * 4


# --- signing in -------------------------------------------------------------------------------------------------------


def sign_in(client: httpx.Client, token: str) -> httpx.Response:
    return client.post("/api/v1/session", json={"token": token})


@pytest.mark.parametrize(
    ("who", "sentence"),
    [
        ("worker", "lets a worker join"),
        ("other run", "of another run"),
        ("forged", "unknown or its secret is wrong"),
        ("expired", "has expired"),
        ("revoked", "was revoked"),
    ],
)
def test_a_token_that_is_good_for_nothing_says_why_and_sets_no_cookie(closed: Run, who: str, sentence: str) -> None:
    with opened(closed, "nobody") as client:
        answer = sign_in(client, closed.shown[who])
        assert answer.status_code == 401 and sentence in answer.json()["reason"] and "set-cookie" not in answer.headers
        assert closed.shown[who].rpartition(".")[2] not in answer.text


@pytest.mark.parametrize("who", ["viewer", "admin"])
def test_a_cookie_is_the_runs_alone_and_no_script_and_no_other_site_gets_it(run: Run, who: str) -> None:
    for base, is_secure in ((run.public, True), (run.local, False)):
        with opened(run, "nobody", base=base) as client:
            answer = sign_in(client, run.shown[who])
            name, *parts = [part.strip().lower() for part in answer.headers["set-cookie"].split(";")]
            assert name.startswith(f"tinylora-{MARK}=") and run.shown[who].rpartition(".")[2] not in name
            lasts = next(part for part in parts if part.startswith("max-age="))
            assert 0 < int(lasts.partition("=")[2]) <= DAY_S
            secure = {"secure"} if is_secure else set()
            assert set(parts) - {lasts} == {"httponly", "path=/", "samesite=strict", *secure}


@pytest.mark.parametrize("who", ["viewer", "admin"])
def test_a_cookie_gives_what_its_token_gives(closed: Run, who: str) -> None:
    with opened(closed, "nobody") as client:
        value = sign_in(client, closed.shown[who]).cookies[f"tinylora-{MARK}"]
        for row, needed in TABLE.items():
            client.cookies.set(f"tinylora-{MARK}", value)
            assert ask(client, closed, *row) == expected(*needed, who, True), row


def test_signing_out_ends_it(closed: Run) -> None:
    with opened(closed, "nobody") as client:
        sign_in(client, closed.shown["viewer"])
        assert client.get("/api/v1/state").status_code == 200
        assert client.delete("/api/v1/session").json() == {"role": "nobody", "needs_token": True}
        assert client.get("/api/v1/state").status_code == 401 and not client.cookies


def test_another_runs_cookie_is_none(closed: Run, tmp_path: Path) -> None:
    with served(tmp_path, "token") as other, opened(other, "nobody") as client:
        value = sign_in(client, other.shown["admin"]).cookies[f"tinylora-{MARK}"]
    with opened(closed, "nobody") as client:
        client.cookies.set(f"tinylora-{MARK}", value)
        assert client.get("/api/v1/state").status_code == 401


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    """Whether it becomes so in time."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("how", ["bearer", "cookie"])
def test_who_is_revoked_is_out_within_two_seconds_with_his_stream(closed: Run, how: str) -> None:
    token = closed.store.create_access("viewer", MARK, now_s=closed.now[0])
    closed.shown["leaving"] = token.text
    with opened(closed, "leaving" if how == "bearer" else "nobody") as client:
        if how == "cookie":
            sign_in(client, token.text)
        since = closed.views.position
        closed.views.grow()
        with client.stream("GET", f"/api/v1/events?since={since}") as stream:
            lines = stream.iter_lines()
            assert "event: patch" in lines
            assert client.get("/api/v1/state").status_code == 200
            closed.store.revoke_token(token.token_id, closed.now[0])
            begun = time.monotonic()
            assert within(2.0, lambda: client.get("/api/v1/state").status_code == 401)
            closed.views.grow()
            while "event: patch" in lines:  # until it ends
                assert time.monotonic() < begun + 3.0
                closed.views.grow()


def test_a_token_that_ends_lets_nobody_in_from_then_on(closed: Run) -> None:
    token = closed.store.create_access("admin", MARK, now_s=closed.now[0], expires_in_s=60.0)
    closed.shown["ending"] = token.text
    with opened(closed, "ending") as bearer, opened(closed, "nobody") as browser:
        sign_in(browser, token.text)
        assert bearer.get("/api/v1/admin").status_code == browser.get("/api/v1/admin").status_code == 200
        closed.now[0] += 61.0
        try:
            assert bearer.get("/api/v1/admin").status_code == browser.get("/api/v1/admin").status_code == 401
        finally:
            closed.now[0] -= 61.0


# --- what other pages may make a browser do ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"sec-fetch-site": "same-origin"}, 202),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_no_other_page_pauses_the_run(closed: Run, headers: dict[str, str], status: int) -> None:
    body = json.dumps({"kind": "pause"}).encode()
    for base, who in ((closed.public, "admin"), (closed.local, "nobody")):
        with opened(closed, who, base=base) as client:
            shown = {"content-type": "application/json", **headers}
            assert client.post("/api/v1/admin/orders", content=body, headers=shown).status_code == status
            own = {"content-type": "application/json", "origin": base}
            assert client.post("/api/v1/admin/orders", content=body, headers=own).status_code == 202


def test_a_name_that_leads_to_this_machine_is_not_the_operator(closed: Run) -> None:
    port = closed.local.rpartition(":")[2]
    with opened(closed, "admin", base=closed.local) as client:
        for host in ("evil.example", f"evil.example:{port}", f"{HOST}:1"):
            for path in ("/", "/api/v1/state", "/api/v1/admin", "/api/v1/session"):
                assert client.get(path, headers={"host": host}).status_code == 421
        for host in (f"localhost:{port}", f"[::1]:{port}", f"{HOST}:{port}"):
            assert client.get("/api/v1/admin", headers={"host": host}).status_code == 200
