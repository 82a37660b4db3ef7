"""What `selfcheck` sees of a run that is served well, and of each thing that may be wrong with one."""

import fcntl
import shutil
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from tinylora_coordinator.folder import RunFolder, read_run, write_run
from tinylora_coordinator.front_door import listen, serve_internal, serve_public, server_tls
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.public_door import make_door
from tinylora_coordinator.selfcheck import ALWAYS_TRIED, Check, check_surface, installed_routes, may_serve, selfcheck

from tests.door.helpers import Door, open_door
from tests.flower.helpers import FACTS
from tinylora.config import RunSettings
from tinylora.errors import SettingError
from tinylora.flower.enrolment import STATE_PATH
from tinylora.flower.link import FLEET_PATHS, PublicRoutes, create_link

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic, about flwr's use

ROUTES = [("POST", "/v1/control/stop-run"), ("POST", "/v1/fleet/pull-object"), ("GET", "/health")]
NAMES = ["surface", "answers", "dashboard", "certificate", "ca", "clock", "permissions", "disk", "lock"]


async def tell_state(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("{}")(scope, receive, send)


PAGES: PublicRoutes = {("GET", STATE_PATH): tell_state}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    root = tmp_path_factory.mktemp("run")
    root.chmod(0o700)
    with open_door(root, routes=PAGES) as served, locked(root):
        yield served


@contextmanager
def locked(root: Path) -> Iterator[None]:
    with open(RunFolder(root).lock_file, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def checked(door: Door, **changes: object) -> dict[str, Check]:
    checks = selfcheck(door.folder, door.url, routes=ROUTES, **changes)  # pyright: ignore[reportArgumentType]
    assert [check.name for check in checks] == NAMES
    return {check.name: check for check in checks}


def codes(checks: dict[str, Check]) -> set[str]:
    """Of what is not well."""
    return {check.code for check in checks.values() if check.status != "ok"}


def test_a_run_that_is_served_well_passes(door: Door) -> None:
    checks = checked(door)
    assert codes(checks) <= {"disk-little"} and may_serve(checks.values())
    assert f"{len({*ALWAYS_TRIED, *ROUTES}) - 2} routes" in checks["surface"].found  # less the fleet's and health


def test_a_run_as_init_makes_it_passes_behind_its_whole_door(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    write_run(folder, RunSettings(window_tokens=FACTS.max_window_tokens), FACTS, None)
    link = create_link(folder.link_database)
    tls = server_tls(folder.keys.server, folder.keys.server_key)
    with OperatorStore(folder.root) as store, locked(folder.root):
        door = make_door(link, folder, read_run(folder), store)
        with serve_public(door, listen("127.0.0.1", 0), tls=tls) as served:
            checks = selfcheck(folder.root, f"https://127.0.0.1:{served.port}", routes=link.routes())
    assert codes({check.name: check for check in checks}) <= {"disk-little"}


def test_the_installed_flower_tells_its_routes() -> None:
    routes = installed_routes()
    assert len(routes) > 70 and {("POST", path) for path in FLEET_PATHS} < set(routes)


def answering(status: int, path: str) -> ASGIApp:
    """A server that keeps everything closed but this."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await PlainTextResponse("", status if scope["path"] == path else 404)(scope, receive, send)
        else:
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})

    return answer


@pytest.mark.parametrize("status", [200, 204, 301, 400, 401, 415, 422, 500])
@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/runtime/acquire-task", "/openapi.json"])
def test_one_open_route_is_one_too_many(status: int, path: str) -> None:
    with serve_internal(answering(status, path), listen("127.0.0.1", 0)) as served:
        check = check_surface(f"http://{served.host_port}", ROUTES, tls=None)
    assert (check.status, check.code) == ("fail", "surface-open")
    assert f"{path}: {status}" in check.found and not may_serve([check])


def test_a_proxy_that_tidies_paths_is_noticed() -> None:
    with serve_internal(answering(200, "//v1/control/list-runs"), listen("127.0.0.1", 0)) as served:
        assert check_surface(f"http://{served.host_port}", [], tls=None).code == "surface-open"


def test_nobody_there_is_a_failure_of_all_that_asks(tmp_path: Path) -> None:
    with open_door(tmp_path, routes=PAGES) as door:
        pass
    found = codes(checked(door))
    assert {"surface-unreachable", "answers-unreachable", "certificate-bad", "ca-unreachable", "clock-unknown"} < found


def test_another_runs_certificate_is_not_believed(door: Door, tmp_path: Path) -> None:
    with open_door(tmp_path, routes=PAGES) as other:
        stranger = Door(other.port, door.folder, door.keys, True, door.worker)
        found = codes(checked(stranger))
    assert "certificate-bad" in found and "surface-unreachable" in found


@pytest.mark.parametrize(
    ("days", "code", "status"), [(-30, "certificate-old", "fail"), (10, "certificate-old", "warn")]
)
def test_a_certificate_ends(door: Door, days: int, code: str, status: str) -> None:
    good = checked(door)["certificate"].found
    ends = datetime.strptime(good.split()[-1], "%Y-%m-%d").replace(tzinfo=UTC)
    check = checked(door, now=lambda: ends - timedelta(days=days))["certificate"]
    assert (check.code, check.status) == (code, status)


@pytest.mark.parametrize(("off_s", "status"), [(0, "ok"), (60, "warn"), (-3600, "fail"), (3600, "fail")])
def test_a_wrong_clock_is_told(door: Door, off_s: int, status: str) -> None:
    check = checked(door, now=lambda: datetime.now(UTC) + timedelta(seconds=off_s))["clock"]
    assert check.status == status


@pytest.mark.parametrize("name", ["", "keys", "keys/server.key", "keys/ca.key", "keys/run.key", "keys/admin"])
def test_what_others_may_read_is_told(door: Door, name: str) -> None:
    path = door.folder / name
    mode = path.stat().st_mode
    path.chmod(mode | 0o004)
    check = checked(door)["permissions"]
    path.chmod(mode)
    assert (check.code, check.status) == ("permissions-loose", "fail") and str(path) in check.found


def test_a_full_disk_is_told(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    for free, status in ((2**20, "fail"), (2**30, "warn"), (2**33, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(2**40, 2**40 - free, free))
        assert checked(door)["disk"].status == status


def test_a_folder_that_nobody_serves_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with open_door(tmp_path, routes=PAGES) as door:
        assert checked(door)["lock"].code == "lock-free"
        with locked(tmp_path):
            assert checked(door)["lock"].status == "ok"


def test_plain_http_is_for_this_machine_alone(tmp_path: Path) -> None:
    with open_door(tmp_path, routes=PAGES, is_tls=False) as door:
        checks = checked(door)
    assert (checks["certificate"].status, checks["certificate"].code) == ("warn", "certificate-none")
    assert checks["surface"].status == checks["answers"].status == "ok"


@pytest.mark.parametrize(
    ("role", "status", "sentence"),
    [
        ("nobody", "ok", "only who has a token"),
        ("viewer", "ok", "anybody may look"),
        ("admin", "fail", "taken for admin"),
        ("king", "fail", "taken for king"),
    ],
)
def test_a_proxy_to_the_operators_own_port_is_noticed(tmp_path: Path, role: str, status: str, sentence: str) -> None:
    async def session(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({"role": role})(scope, receive, send)

    with open_door(tmp_path, routes={**PAGES, ("GET", "/api/v1/session"): session}) as door:
        check = checked(door)["dashboard"]
    assert (check.status, check.code) == (status, "dashboard-open" if status == "fail" else "dashboard")
    assert sentence in check.found


def test_a_run_without_a_dashboard_is_well(door: Door) -> None:
    check = checked(door)["dashboard"]
    assert check.status == "ok" and "HTTP 404" in check.found


@pytest.mark.parametrize("url", ["", "example.org", "ftp://example.org", "https://", "https://x:0", "https://x/path"])
def test_what_is_no_address_is_a_setting_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingError, match="expected the run's public address"):
        selfcheck(tmp_path, url, routes=[])
