"""The dashboard of a coordinator that is really served: its own listener, its restarts, its end, and its failures."""

import re
import signal
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tinylora_coordinator.dashboard import opening
from tinylora_coordinator.dashboard.opening import Reach, opened, reach_of
from tinylora_coordinator.folder import RunFolder, read_run
from tinylora_coordinator.front_door import own_hosts
from tinylora_coordinator.keys import KeyFolder
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.supervisor import DASHBOARD_PORT

from tests.coordinator.running import Coordinator, make_run, serving
from tests.flower.helpers import until
from tinylora.protocol.report import WorkerReport
from tinylora.protocol.standstill import WorkerState

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic, about flwr's use


def own_url(coordinator: Coordinator) -> str:
    """Where it says that its operator finds the dashboard."""
    until(lambda: "lets a worker in" in coordinator.said, what="the last line of its greeting")
    found = re.findall(r"^dashboard: (http://127\.0\.0\.1:\d+)/$", coordinator.said, re.MULTILINE)
    return found[-1] if found else ""


def session(url: str) -> Any:
    """Whom the server takes us for; nothing while it does not answer."""
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/api/v1/session", timeout=2.0).json()


def first_event(url: str, since: str) -> str:
    """The kind of the first event that is one, from a position on."""
    with httpx.stream("GET", f"{url}/api/v1/events", headers={"last-event-id": since}, timeout=20.0) as stream:
        return next(line for line in stream.iter_lines() if line in ("event: patch", "event: reset"))


def test_the_own_listener_survives_the_link_and_ends_with_the_run(tmp_path: Path) -> None:
    with ExitStack() as held:
        with suppress(OSError):  # somebody else has it: all the better
            held.enter_context(socket.create_server(("127.0.0.1", DASHBOARD_PORT)))
        coordinator = held.enter_context(serving(make_run(tmp_path / "run", leaf_steps=10_000)))
        url = own_url(coordinator)
        assert f"127.0.0.1:{DASHBOARD_PORT} is in use" in coordinator.said and not url.endswith(f":{DASHBOARD_PORT}")
        public = f"http://127.0.0.1:{coordinator.port}"
        assert session(url) == {"role": "admin", "is_local": True} and session(public) == {"role": "viewer"}
        joined = httpx.get(f"{url}/api/v1/join").json()
        assert joined["address"] == public and joined["command"].startswith(f"tinylora-worker join {public} ")

        coordinator.volunteer()
        until(lambda: httpx.get(f"{url}/api/v1/state").json()["workers"], what="the worker on the page")
        before = httpx.get(f"{url}/api/v1/state").json()["position"]
        coordinator.kill("link")
        until(lambda: session(url) == {"role": "admin", "is_local": True}, what="the same port again")
        assert first_event(url, before) == "event: patch"  # nothing was forgotten

        with httpx.stream("GET", f"{url}/api/v1/events"), httpx.stream("GET", f"{public}/api/v1/events"):
            assert coordinator.process is not None
            begun = time.monotonic()
            coordinator.process.send_signal(signal.SIGTERM)
            assert coordinator.process.wait(20) == 0 and time.monotonic() - begun < 10.0
        assert "killed" not in coordinator.said and "Traceback" not in coordinator.said


def test_a_run_goes_on_where_the_views_cannot_be_kept_and_nobody_sits_here(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run", leaf_steps=10_000)
    (root / "views.sqlite").mkdir()
    with serving(root, "--no-dashboard", "--viewers", "token") as coordinator:
        public = f"http://127.0.0.1:{coordinator.port}"
        assert own_url(coordinator) == "" and session(public) == {"role": "nobody", "needs_token": True}
        with OperatorStore(root) as store:
            mark = opening.mark_of(opening.run_public(RunFolder(root).keys))
            token = store.create_access("viewer", mark, now_s=time.time()).text
        coordinator.volunteer()
        bearer = {"authorization": f"Bearer {token}"}
        until(lambda: httpx.get(f"{public}/api/v1/state", headers=bearer).json()["workers"], what="the worker")
        assert httpx.get(f"{public}/api/v1/state").status_code == 401
        assert httpx.get(f"{public}/api/v1/status").status_code == 200


# --- in this process --------------------------------------------------------------------------------------------------


def test_a_dashboard_that_cannot_be_made_is_one_sentence_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = RunFolder(make_run(tmp_path / "run")), list[str]()

    def broken(services: object) -> Any:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(opening, "create_app", broken)
    reach = Reach("https://run.example.org:8443")
    with (
        OperatorStore(folder.root) as store,
        opened(
            folder, read_run(folder), store, phase=lambda: "running", reach=reach, viewers="anybody", log=said.append
        ) as found,
    ):
        assert found.dashboard is None
        found.reports.take("w-1", WorkerReport(state=WorkerState.WORKING).to_json().encode())
    assert said == ["the dashboard cannot be shown (RuntimeError: no such thing); the run goes on without it"]


@pytest.mark.parametrize(
    ("came_by", "told"),
    [
        ("https://tree.example.org", "https://tree.example.org"),
        ("https://192.0.2.7:8443", "https://192.0.2.7:8443"),
        ("http://127.0.0.1:8444", "https://run.example.org:8443"),
        ("http://LOCALHOST:8444", "https://run.example.org:8443"),
        ("http://[::1]:8444", "https://run.example.org:8443"),
        ("", "https://run.example.org:8443"),
    ],
)
def test_workers_are_told_where_they_reach_the_run(came_by: str, told: str) -> None:
    assert Reach("https://run.example.org:8443", own_hosts(8444)).as_workers_do(came_by) == told


def test_where_nobody_says_it_the_certificate_does(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run")
    keys: KeyFolder = RunFolder(root).keys
    tls = reach_of(keys, "0.0.0.0", 8443, is_tls=True, local=frozenset())
    assert (
        tls.for_workers.startswith("https://")
        and tls.for_workers.endswith(":8443")
        and "0.0.0.0" not in tls.for_workers
    )
    plain = reach_of(keys, "::1", 8443, is_tls=False, local=frozenset())
    assert plain.for_workers == "http://[::1]:8443"
