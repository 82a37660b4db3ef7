"""Whose page makes a browser ask: by the headers that browsers send, pairs of what is asked and who answers."""

import pytest
from tinylora_coordinator.sites import judge_host, judge_site, own_hosts

HOST = "run.example.org:8443"
OURS = {"origin": f"https://{HOST}", "sec-fetch-site": "same-origin"}
JSON = {"content-type": "application/json", "content-length": "2"}


def headers(**changes: str) -> list[tuple[bytes, bytes]]:
    named = {"host": HOST} | {name.replace("_", "-"): value for name, value in changes.items()}
    return [(name.encode(), value.encode("latin-1")) for name, value in named.items() if value]


def status_of(method: str, **changes: str) -> int:
    refusal = judge_site(method, headers(**changes))
    return 0 if refusal is None else refusal.status


# --- the loopback listener's names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:8444", "localhost:8444", "[::1]:8444", "LocalHost:8444"])
def test_this_machines_names_are_answered(host: str) -> None:
    assert judge_host([(b"host", host.encode())], own_hosts(8444)) is None


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.example", "evil.example:8444", "127.0.0.1", "127.0.0.1:8443", "127.0.0.1:8444.evil.example",
        "127.0.0.1:8444@evil", "localhost.:8444", "0.0.0.0:8444", "2130706433:8444", "[::ffff:127.0.0.1]:8444",
    ],
)  # fmt: skip
def test_another_name_that_leads_here_is_not(host: str) -> None:
    refusal = judge_host([(b"host", host.encode())], own_hosts(8444))
    assert refusal is not None and refusal.status == 421


@pytest.mark.parametrize("name", [b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip"])
def test_a_proxy_is_not_this_machine(name: bytes) -> None:
    refusal = judge_host([(b"host", b"127.0.0.1:8444"), (name, b"192.0.2.1")], own_hosts(8444))
    assert refusal is not None and refusal.status == 421


def test_two_hosts_are_none() -> None:
    twice = [(b"host", b"127.0.0.1:8444")] * 2
    assert judge_host(twice, own_hosts(8444)) is not None and judge_host([], own_hosts(8444)) is not None


# --- what changes something -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    "shown",
    [
        {},
        {"origin": f"https://{HOST}"},
        {"origin": f"http://{HOST}"},  # a proxy in front speaks TLS for us
        {"origin": f"https://{HOST.upper()}", "sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
    ],
)
def test_our_own_page_and_programs_change_things(method: str, shown: dict[str, str]) -> None:
    assert status_of(method, **shown) == 0


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    "shown",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "file://"},
        {"origin": "https://run.example.org"},  # another port of this host
        {"origin": f"https://{HOST}.evil.example"},
        {"origin": f"https://{HOST}@evil.example"},
        {"origin": f"https://user@{HOST}"},
        {"origin": "https://[::1"},
        {"origin": "\xe9"},
        {"origin": f"https://{HOST}", "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "nonsense"},
        {"origin": f"https://{HOST}", "host": ""},
    ],
)
def test_another_page_changes_nothing(method: str, shown: dict[str, str]) -> None:
    assert status_of(method, **shown) == 403


def test_two_origins_are_none() -> None:
    twice = [*headers(), *[(b"origin", f"https://{HOST}".encode())] * 2]
    assert judge_site("POST", twice) is not None


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 0),
        ("Application/JSON; charset=utf-8", 0),
        ("", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=application/json", 415),
        ("application/jsonp", 415),
    ],
)
def test_a_body_is_what_no_form_can_send(kind: str, status: int) -> None:
    assert status_of("POST", content_length="2", content_type=kind) == status


def test_no_body_needs_no_type() -> None:
    assert status_of("POST", content_length="0") == status_of("POST") == status_of("DELETE", content_length="0") == 0


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        ({}, 0),
        ({"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors"}, 0),
        ({"sec_fetch_site": "none", "sec_fetch_mode": "navigate"}, 0),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}, 0),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}, 0),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "cors"}, 403),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_link_may_lead_here_but_no_page_takes_from_us(method: str, shown: dict[str, str], status: int) -> None:
    assert status_of(method, **shown) == status


def test_an_origin_that_is_nobodys_is_not_that_of_a_request_without_a_host() -> None:
    refusal = judge_site("POST", [(b"origin", b"null")])
    assert refusal is not None and refusal.error == "origin"


def test_a_body_whose_length_is_not_told_is_json_too() -> None:
    head = [(b"host", b"a"), (b"transfer-encoding", b"chunked")]
    refusal = judge_site("POST", head)
    assert refusal is not None and refusal.status == 415
    assert judge_site("POST", [*head, (b"content-type", b"application/json")]) is None
