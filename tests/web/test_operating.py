"""A real run steered from the page: each click is found in the ledger, and its outcome on the page without a reload."""

import re
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect
from tinylora_coordinator import desk
from tinylora_coordinator.folder import RunFolder
from tinylora_coordinator.keys import pin_of, run_public
from tinylora_coordinator.operator_store import OperatorStore

from tests.chaos.worker_kills import STEP_S, Volunteer
from tests.coordinator.running import BASE
from tests.federation.facts import SETTINGS
from tests.flower.helpers import until
from tests.web.conftest import NewPage
from tests.web.looking import goto
from tests.web.real_run import RealRun, real_run
from tests.worker.agents import behave, options
from tinylora.export import Places
from tinylora.federation.events import (
    Event,
    LeaseExpired,
    RunPaused,
    RunResumed,
    UnitLeased,
    UpdateAccepted,
    WorkerAssigned,
    WorkerJoined,
    WorkerRevoked,
)
from tinylora.flower.enrolment import NotYetApproved, join
from tinylora.flower.identity import load_or_create
from tinylora.flower.membership import Membership, save_membership
from tinylora.flower.reach import Trust

pytestmark = [pytest.mark.web, pytest.mark.timeout(400)]
SOON_MS = 20_000
"""For what takes seconds on a machine that does nothing else."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRun]:
    with real_run(tmp_path_factory.mktemp("operated"), 3) as found:
        modules = {
            name: tuple(f"layers.{i}.{name}" for i in range(at.n_layers)) for name, at in BASE.projections.items()
        }
        RunFolder(found.coordinator.root).places_file.write_text(Places(modules=modules).to_json())
        yield found


@pytest.fixture
def desk_page(run: RealRun, new_page: NewPage) -> Callable[[str], Page]:
    """Opens a page of the operator's own address; whether it was loaded anew is found out at the end."""

    def open_page(path: str) -> Page:
        page = new_page()
        goto(page, run.url + path)
        page.evaluate("window.__same = true")
        return page

    return open_page


def _is_same(page: Page) -> bool:
    return page.evaluate("window.__same === true")


def _events(run: RealRun, kind: type[Event]) -> list[Any]:
    return run.events(kind)


def _in_ledger(run: RealRun, kind: type[Event], is_wanted: Callable[[Any], bool], what: str) -> Any:
    found: list[Any] = []

    def is_there() -> bool:
        found[:] = [event for event in _events(run, kind) if is_wanted(event)]
        return bool(found)

    until(is_there, timeout_s=40.0, what=what)
    return found[-1]


def _confirm(page: Page, button: str) -> None:
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=button).click()
    expect(dialog).to_be_hidden()


def _join_by(run: RealRun, token: str) -> Volunteer:
    """A home that joins with a token that the page showed."""
    home, keys = run.homes / f"home {len(run.volunteers)}", RunFolder(run.coordinator.root).keys
    behave(home, step_s=STEP_S, work="tests.worker.counted")
    identity = load_or_create(home)
    with pytest.raises(NotYetApproved):
        join(run.coordinator.address, token, identity, trust=Trust(pin_of(keys)), name="newcomer")
    url = run.coordinator.address.url()
    save_membership(home, Membership(url=url, run=SETTINGS.name, pin=pin_of(keys), run_key=run_public(keys)))
    options("", "", home, facts=BASE)
    made = Volunteer(home, identity.worker)
    run.volunteers.append(made)
    made.start()
    return made


def _make_token(page: Page, *, approval: bool) -> str:
    if approval:
        page.get_by_label("Ask me before each worker begins").check()
    page.get_by_role("button", name="Make a token").click()
    shown = page.get_by_text("Shown this once.")
    expect(shown).to_be_visible()
    said = page.locator("pre code", has_text="TINYLORA_TOKEN=").inner_text()
    found = re.search(r"TINYLORA_TOKEN=(\S+)", said)
    assert found
    return found[1]


def _outcome(page: Page, kind: str) -> Locator:
    """What came of the latest order of a kind, as the page tells it."""
    return page.locator("tr", has=page.get_by_role("rowheader", name=kind)).first.locator("td").last


def test_who_comes_by_a_token_with_approval_waits_until_it_is_given(run: RealRun, desk_page: Any) -> None:
    admin, workers = desk_page("/admin"), desk_page("/workers")
    text = _make_token(admin, approval=True)
    newcomer = _join_by(run, text)
    waiting = workers.get_by_role("region", name="waiting for your approval")
    expect(waiting.get_by_role("link", name="newcomer")).to_be_visible(timeout=SOON_MS)
    assert newcomer.worker not in {event.worker for event in _events(run, WorkerJoined)}
    waiting.get_by_role("button", name="Approve newcomer").click()
    row = workers.locator(f"tr:has(a[href='/worker/{newcomer.worker}'])")
    _in_ledger(run, WorkerJoined, lambda event: event.worker == newcomer.worker, "the newcomer in the ledger")
    expect(row.locator("[data-state=working]")).to_be_visible(timeout=60_000)
    expect(workers.get_by_text("waiting for your approval")).to_have_count(0)
    _in_ledger(run, UpdateAccepted, lambda event: event.worker == newcomer.worker, "an update of the newcomer")
    expect(admin.get_by_text("used up, with approval")).to_be_visible(timeout=SOON_MS)
    assert _is_same(admin) and _is_same(workers)


def test_a_lease_is_released(run: RealRun, desk_page: Any) -> None:
    worker = run.volunteers[0].worker
    page = desk_page(f"/worker/{worker}")
    release = page.get_by_role("button", name="Release lease")
    expect(release).to_be_enabled(timeout=SOON_MS)
    release.click()
    page.get_by_label("Why").fill("to see it")
    _confirm(page, "Release its lease")
    expect(_outcome(page, "release")).to_contain_text(f"of worker {worker} is free for others", timeout=SOON_MS)
    units = {event.unit_id for event in _events(run, UnitLeased) if event.worker == worker}
    event = _in_ledger(
        run, LeaseExpired, lambda event: event.is_returned and "to see it" in event.reason, "the release"
    )
    assert event.unit_id in units and event.unit_id in _outcome(page, "release").inner_text()
    expect(page.locator("tr", has=page.locator("[data-state=expired], [data-state=dropped]")).first).to_be_visible()
    assert _is_same(page)


def test_a_worker_is_given_another_leaf(run: RealRun, desk_page: Any) -> None:
    worker = run.volunteers[1].worker
    workers, page = desk_page("/workers"), desk_page(f"/worker/{worker}")
    cell = workers.locator(f"tr:has(a[href='/worker/{worker}']) a[href^='/node/']")
    expect(cell).to_be_visible(timeout=SOON_MS)
    other = "1" if cell.inner_text() == "0" else "0"
    page.get_by_role("button", name="Reassign").click()
    page.get_by_label("Leaf that it shall train").fill("0110")
    go = page.get_by_role("dialog").get_by_role("button", name="Reassign")
    expect(go).to_be_disabled()
    page.get_by_label("Leaf that it shall train").fill(other)
    _confirm(page, "Reassign")
    expect(_outcome(page, "reassign")).to_contain_text(f"holds leaf {other}", timeout=SOON_MS)
    _in_ledger(run, WorkerAssigned, lambda e: (e.worker, e.node) == (worker, other), "the worker's new leaf")
    expect(cell).to_have_text(other, timeout=SOON_MS)
    _in_ledger(run, UnitLeased, lambda e: (e.worker, e.node) == (worker, other), "a unit of its new leaf")
    assert _is_same(workers) and _is_same(page)


def test_a_worker_is_revoked(run: RealRun, desk_page: Any) -> None:
    worker = run.volunteers[2].worker
    workers, page = desk_page("/workers"), desk_page(f"/worker/{worker}")
    page.get_by_role("button", name="Revoke").click()
    go = page.get_by_role("dialog").get_by_role("button", name="Revoke")
    expect(go).to_be_disabled()  # it is final: one has to say so
    page.get_by_label("I know that this cannot be undone").check()
    _confirm(page, "Revoke")
    _in_ledger(run, WorkerRevoked, lambda event: event.worker == worker, "the revocation")
    expect(workers.locator(f"tr:has(a[href='/worker/{worker}']) [data-state=out]")).to_be_visible(timeout=SOON_MS)
    expect(page.get_by_role("button", name="Revoke")).to_be_disabled(timeout=SOON_MS)
    assert page.evaluate("document.activeElement !== document.body"), "the focus is lost with its button"
    n_before = sum(event.worker == worker for event in _events(run, UnitLeased))
    _in_ledger(run, UpdateAccepted, lambda event: event.worker == run.volunteers[0].worker, "somebody else's update")
    assert sum(event.worker == worker for event in _events(run, UnitLeased)) == n_before
    assert _is_same(workers) and _is_same(page)


def test_a_token_is_revoked(run: RealRun, desk_page: Any) -> None:
    page = desk_page("/admin")
    text = _make_token(page, approval=False)
    row = page.locator("tr", has=page.get_by_role("button", name="Revoke"))
    name = row.first.get_by_role("rowheader").inner_text()
    row.first.get_by_role("button").click()
    _confirm(page, "Revoke the token")
    expect(page.locator("tr", has=page.get_by_role("rowheader", name=name)).get_by_text("revoked")).to_be_visible()
    with OperatorStore(run.coordinator.root) as store:
        assert {token.token_id: token.state for token in store.tokens(time.time())}[name] == "revoked"
    with pytest.raises(Exception, match="revoked"):
        join(run.coordinator.address, text, load_or_create(run.homes / "stranger"),
             trust=Trust(pin_of(RunFolder(run.coordinator.root).keys)))  # fmt: skip
    assert _is_same(page)


def test_a_leaf_is_taken_away_as_an_adapter_of_peft(run: RealRun, desk_page: Any, tmp_path: Path) -> None:
    page = desk_page("/artifacts")
    link = page.get_by_role("link", name=re.compile("^Download leaf")).first
    expect(link).to_be_visible(timeout=SOON_MS)
    with page.expect_download(timeout=60_000) as downloading:
        link.click()
    downloading.value.save_as(tmp_path / "leaf.zip")
    with zipfile.ZipFile(tmp_path / "leaf.zip") as archive:
        assert archive.testzip() is None
        names = {Path(name).name for name in archive.namelist()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert _is_same(page)


# --- by the public address -------------------------------------------------------------------------------------------


def _token_of(run: RealRun, role: Any) -> str:
    return desk.create_access(run.coordinator.root, role, now_s=time.time(), expires="1h", note="")["token"]


def _sign_in(page: Page, token: str) -> None:
    page.get_by_role("navigation", name="Pages").get_by_role("button", name="Sign in").click()
    dialog = page.get_by_role("dialog", name="Sign in")
    dialog.get_by_label("Token").fill(token)
    dialog.get_by_role("button", name="Sign in").click()


def test_an_admin_signs_in_at_the_public_address_and_pauses(run: RealRun, new_page: NewPage) -> None:
    page = new_page()
    public = run.coordinator.address.url()
    goto(page, public + "/")
    page.evaluate("window.__same = true")
    expect(page.get_by_role("link", name="Admin")).to_have_count(0)
    _sign_in(page, _token_of(run, "admin"))
    page.get_by_role("link", name="Admin").click()
    page.get_by_role("button", name="Pause").click()
    _confirm(page, "Pause")
    expect(page.locator("header [data-state=paused]")).to_be_visible(timeout=SOON_MS)
    n_resumed = len(_events(run, RunResumed))
    assert _events(run, RunPaused)
    page.get_by_role("button", name="Resume").click()
    _confirm(page, "Resume")
    expect(page.locator("header [data-state=running]")).to_be_visible(timeout=SOON_MS)
    assert len(_events(run, RunResumed)) == n_resumed + 1
    assert "token" not in page.url and page.evaluate("document.cookie") == "", "scripts see no cookie"
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("link", name="Admin")).to_have_count(0)
    assert _is_same(page)


@pytest.mark.parametrize("role", ["viewer", "nobody"])
def test_others_cannot_steer(run: RealRun, new_page: NewPage, role: str) -> None:
    page = new_page(may_complain=True)  # refusals are told in the console
    goto(page, run.coordinator.address.url() + "/admin")
    if role == "viewer":
        _sign_in(page, _token_of(run, "viewer"))
        expect(page.get_by_text("You are a viewer")).to_be_visible()
    else:
        _sign_in(page, "tl-nonsense")
        expect(page.get_by_role("dialog").get_by_role("alert")).not_to_be_empty()
        page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Pause")).to_have_count(0)
    worker = run.volunteers[0].worker
    n_before = len(_events(run, RunPaused))
    for path, body in (
        ("admin/orders", {"kind": "pause"}),
        ("admin/orders", {"kind": "revoke", "worker": worker}),
        ("admin/tokens", {"uses": 1, "expires": "1h"}),
        (f"admin/workers/{worker}/approve", {}),
    ):
        assert _post(page, path, body) in (401, 403), path
    assert page.evaluate("fetch('/api/v1/admin').then(r => r.status)") in (401, 403)
    goto(page, run.coordinator.address.url() + f"/worker/{worker}")
    expect(page.get_by_role("button", name="Revoke")).to_have_count(0)
    assert len(_events(run, RunPaused)) == n_before


def _post(page: Page, path: str, body: dict[str, Any]) -> int:
    return page.evaluate(
        """([path, body]) => fetch('/api/v1/' + path, {method: 'POST', headers: {'content-type': 'application/json'},
            body: JSON.stringify(body)}).then(answer => answer.status)""",
        [path, body],
    )


# --- what is named in the log and gone -------------------------------------------------------------------------------


def test_a_bundle_that_is_gone_has_no_link(desk_page: Any) -> None:
    page = desk_page("/artifacts")
    gone = {
        "sha256": "ab" * 32, "bytes": 4096, "n_events": 12, "log_sha256": "cd" * 32, "router_version": 1, "at_s": 1.0,
        "is_published": False, "is_recorded": True, "url": "",
    }  # fmt: skip

    def answer(route: Any) -> None:
        told = route.fetch().json()
        route.fulfill(json=told | {"bundles": [*told.get("bundles", []), gone]})

    page.route("**/api/v1/artifacts", answer)
    page.reload()
    row = page.locator("tr", has=page.get_by_text("abab"))
    expect(row).to_contain_text("not kept")
    expect(row.get_by_role("link")).to_have_count(0)
