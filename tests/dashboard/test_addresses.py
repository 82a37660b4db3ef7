"""What the public front door may hand to the dashboard: all that the app answers, nothing that only looks like it."""

import re

import pytest
from starlette.routing import Route
from tinylora_coordinator.dashboard.addresses import is_ours
from tinylora_coordinator.dashboard.app import create_app

from tests.dashboard.fakes import SHA256, fake_services

EXAMPLES = {"path": "0110", "worker": "w-0123456789abcdef", "sha256": SHA256, "token_id": "k3x9"}
ELSEWHERE = {("GET", "/api/v1/bundle")}
"""The front door has a page of its own for it."""


def test_every_route_of_the_app_may_pass() -> None:
    routes = [route for route in create_app(fake_services()).routes if isinstance(route, Route)]
    asked = {
        (method, re.sub(r"\{(\w+)\}", lambda match: EXAMPLES[match[1]], route.path))
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert len(asked) > 30
    assert {(method, path) for method, path in asked if not is_ours(method, path.encode())} == ELSEWHERE


@pytest.mark.parametrize(
    "path",
    [
        "",
        "//",
        "/api/v1/state/",
        "/api/v1/state\n",
        "/api/v1/state?x",
        "/api//v1/state",
        "/API/v1/state",
        "/api/v1/stat%65",
        "/api/v1/nodes/",
        "/api/v1/nodes/2",
        "/api/v1/nodes/" + "0" * 33,
        "/api/v1/nodes/../state",
        "/api/v1/workers/a b",
        "/api/v1/workers/" + "a" * 65,
        "/api/v1/bundles/" + "AB" * 32,
        "/assets/",
        "/assets/..",
        "/assets/.hidden",
        "/assets/a/b.js",
        "/assets/%2e%2e/x",
        "/node/root/",
        "/v1/fleet/pull-messages",
        "/tinylora/join",
        "/docs",
        "/openapi.json",
        "/index.html",
    ],
)
def test_nothing_else_may_pass(path: str) -> None:
    assert not [method for method in ("GET", "POST", "DELETE") if is_ours(method, path.encode())]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/state"),
        ("HEAD", "/"),
        ("OPTIONS", "/api/v1/session"),
        ("DELETE", "/api/v1/admin"),
        ("get", "/"),
    ],
)
def test_each_address_has_its_methods(method: str, path: str) -> None:
    assert not is_ours(method, path.encode())
