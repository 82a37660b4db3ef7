"""The reverse proxies' files in `deploy/proxy/` know exactly what the door answers, and say the same in all else."""

import re

import pytest
from tinylora_coordinator.dashboard import addresses
from tinylora_coordinator.front_door import Limits

from tests.deploy.allow_list import FILES, PROXY, door_routes, public, with_list

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic, about flwr's use


@pytest.fixture(scope="module")
def routes() -> list[tuple[str, str]]:
    return door_routes()


@pytest.mark.parametrize("name", FILES)
def test_the_files_carry_the_doors_own_list(name: str, routes: list[tuple[str, str]]) -> None:
    text = (PROXY / name).read_text()
    expected = with_list(text, FILES[name](public(routes, addresses.PATHS)))
    assert text == expected, "run `python -m tests.deploy.allow_list`, and look at what became public"


@pytest.mark.parametrize("name", FILES)
def test_one_route_more_or_less_on_either_side_is_seen(name: str, routes: list[tuple[str, str]]) -> None:
    text = (PROXY / name).read_text()
    for other, pages in (
        ([*routes, ("POST", "/tinylora/new")], addresses.PATHS),
        (routes[1:], addresses.PATHS),
        (routes, {**addresses.PATHS, "GET": (*addresses.PATHS["GET"], "/api/v1/new")}),
        (routes, {**addresses.PATHS, "DELETE": ()}),
    ):
        assert with_list(text, FILES[name](public(other, pages))) != text


def test_nginx_lets_through_what_the_door_does_and_nothing_besides(routes: list[tuple[str, str]]) -> None:
    lines = re.findall(r'"~(\^.+\$)" 1;', (PROXY / "nginx.conf").read_text())
    passes = re.compile("|".join(lines))
    asked = [f"{method} {path}" for method, path in routes]
    asked += ["GET /", "HEAD /", "GET /node/root?x=1", "GET /api/v1/events?since=1", "DELETE /api/v1/session"]
    assert all(passes.search(one) for one in asked)
    for odd in (
        "POST /v1/control/start-run", "POST /v1/runtime/acquire-task", "POST /v1/fleet/register-node", "GET /docs",
        "POST /v1/fleet/get-fab",
        "POST /v1/fleet/pull-messages?x", "POST //v1/fleet/pull-messages", "PUT /", "POST /health",
        "GET /v1/fleet/pull-messages", "POST /", "get /",
        "POST /v1/fleet/pull-messages/", "POST /v1/fleet/../control/list-runs", "HEAD /health", "GET /health/",
        "GET /%68ealth", "GET /node/2",
        "HEAD /api/v1/events", "GET /assets/../x", "GET /x/", "GET http://run.example.org/health", "CONNECT /",
        "TRACE /", "OPTIONS /",
        "GET /node/" + "0" * 33,
    ):  # fmt: skip
        assert not passes.search(odd), odd


def test_bodies_are_as_long_as_the_door_takes_them() -> None:
    limits, nginx, caddy = Limits(), (PROXY / "nginx.conf").read_text(), (PROXY / "Caddyfile").read_text()
    sizes = re.findall(r"client_max_body_size (\d+)([km]);", nginx)
    assert [int(n) * {"k": 2**10, "m": 2**20}[unit] for n, unit in sizes] == [
        limits.small_body_bytes,
        limits.fleet_body_bytes,
    ]
    assert f"max_size {limits.fleet_body_bytes // 2**20}MiB" in caddy
    idle = re.findall(r"keepalive(?:_timeout)? (\d+)s", nginx + caddy)
    assert len(idle) == 2 and all(int(seconds) < limits.idle_s for seconds in idle)
    for name in ("nginx.conf", "nginx-stream.conf"):
        assert f"limit_conn tinylora_guests {limits.sockets_per_address};" in (PROXY / name).read_text()
