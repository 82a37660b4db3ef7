"""Reverse proxies: who is believed, in what, and that nobody gains anything by claiming to be somebody else."""

import asyncio
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Receive, Scope, Send
from tinylora_coordinator.front_door import Dashboard, Limits
from tinylora_coordinator.front_door.crowd import Crowd
from tinylora_coordinator.front_door.proxy_line import parse_proxy_line
from tinylora_coordinator.front_door.sockets import Phase, Sockets
from tinylora_coordinator.proxies import Proxies, check_plain, check_way, is_private, read_networks
from tinylora_coordinator.public_address import PublicAddress

from tests.door.helpers import HOST, PATIENCE_S, Answer, Door, head, open_door, read_answer
from tinylora.errors import SettingError
from tinylora.flower.enrolment import JOIN_PATH
from tinylora.flower.link import PublicRoutes

PROXY, STRANGER = "127.0.0.1", "127.0.0.2"
"""On Linux all of 127.0.0.0/8 is this machine: two hosts without a network."""
KNOWN = Proxies(read_networks([PROXY, "10.1.0.0/16", "fd00::/64"]), end_tls=True)
PASSING = Proxies(read_networks([PROXY]), speak_first=True)
ADA, BOB = "203.0.113.7", "2001:db8::5"


# --- who is believed --------------------------------------------------------------------------------------------------


def told(*headers: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-forwarded-for", header.encode("latin-1")) for header in headers]


@pytest.mark.parametrize(
    "host", ["198.51.100.1", "10.2.0.1", "fd00:0:0:1::1", "::ffff:198.51.100.1", "", "unix:", "localhost"]
)
@pytest.mark.parametrize("header", [ADA, "127.0.0.1", "::1", f"{ADA}, 10.1.0.1"])
def test_a_stranger_is_who_he_is_whatever_he_says(host: str, header: str) -> None:
    assert KNOWN.client_of(host, told(header)) == host
    assert not KNOWN.is_https(host)


@pytest.mark.parametrize("host", [PROXY, "10.1.255.3", "fd00::9", "::ffff:10.1.0.2", "::ffff:127.0.0.1"])
def test_a_proxy_is_believed_in_the_address_that_it_saw(host: str) -> None:
    assert KNOWN.client_of(host, told(ADA)) == ADA and KNOWN.is_https(host)
    assert KNOWN.client_of(host, told(BOB)) == BOB
    assert KNOWN.client_of(host, told("2001:DB8:0::0005")) == BOB  # one spelling for each address
    assert KNOWN.client_of(host, told(f"::ffff:{ADA}")) == ADA


@pytest.mark.parametrize(
    "headers",
    [
        [f"1.2.3.4, {ADA}"],
        [f"127.0.0.1,::1,garbage,{ADA}"],
        ["1.2.3.4", ADA],  # a proxy that adds a header of its own does so at the end
        [f"{BOB}, 10.1.0.1", f"  {ADA}  "],
        [f"{'1.2.3.4, ' * 500}{ADA}"],
    ],
)
def test_of_several_hops_the_last_counts_which_the_proxy_wrote(headers: list[str]) -> None:
    assert KNOWN.client_of(PROXY, told(*headers)) == ADA


@pytest.mark.parametrize(
    "headers",
    [
        [], [""], [","], [f"{ADA},"], ["unknown"], ["_hidden"], [f"{ADA}:4711"], [f"[{BOB}]"], [f"[{BOB}]:80"],
        ["1.2.3"], ["1.2.3.4.5"], ["0x7f000001"], ["2130706433"], ["01.2.3.4"], ["fe80::1%eth0"], ["\x00"],
        ["1.2.3.4\xff"], [f"{ADA}, spoofed"], [ADA, "nonsense"], ["9" * 5000], ["127.0.0.1/8"], ["localhost"],
    ],
)  # fmt: skip
def test_what_is_no_address_leaves_it_with_the_proxys_own(headers: list[str]) -> None:
    assert KNOWN.client_of(PROXY, told(*headers)) == PROXY


def test_where_bytes_are_passed_through_headers_are_the_clients_own() -> None:
    assert PASSING.client_of(PROXY, told(ADA)) == PROXY and not PASSING.is_https(PROXY)
    assert Proxies().client_of(PROXY, told(ADA)) == PROXY  # no proxy was named


def test_in_clear_only_proxies_and_this_machine_are_heard() -> None:
    plain = Proxies(read_networks(["10.1.0.2", "fd00::2"]), only=True)
    for host, own in (("10.1.0.2", "10.1.0.1"), ("::ffff:10.1.0.2", "::"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1"),
                      ("10.1.0.1", "10.1.0.1"), ("fd00::2", "fd00::1"),
                      ("::ffff:127.0.0.1", "::ffff:127.0.0.1")):  # fmt: skip
        assert plain.hears(host, own), host
    for host, own in (
        ("10.1.0.3", "10.1.0.1"),
        ("198.51.100.1", "10.1.0.1"),
        ("fd00::3", "fd00::1"),
        ("", ""),
        ("x", "x"),
    ):
        assert not plain.hears(host, own), host
    assert KNOWN.hears("198.51.100.1", "10.1.0.1")  # in TLS, anybody


@pytest.mark.parametrize("text", ["0.0.0.0/0", "::/0", "0.0.0.0/1", "2000::/3"])
def test_nobodys_network_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="may say who he is"):
        read_networks([text])


@pytest.mark.parametrize("text", ["", "nginx", "10.0.0.1/33", "10.0.0.1/8", "10.0.0.1:80", "https://10.0.0.1"])
def test_a_proxy_is_an_address_or_a_network(text: str) -> None:
    with pytest.raises(SettingError, match="--proxy"):
        read_networks([text])


def test_plain_http_is_for_this_machine_and_for_proxies_on_private_lines() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "[::1]"):
        check_plain(host, [])
    for host in ("0.0.0.0", "::", "10.0.0.1", "192.168.1.9", "example.org"):
        with pytest.raises(SettingError, match="only this machine"):
            check_plain(host, [])
        check_plain(host, read_networks(["172.18.0.0/16", "fd00::/64", "127.0.0.1"]))
        with pytest.raises(SettingError, match="not a private network"):
            check_plain(host, read_networks(["10.0.0.1", "203.0.113.0/24"]))
    assert not is_private(read_networks(["100.64.0.0/10"])[0])


def test_a_way_that_a_client_could_abuse_is_refused() -> None:
    networks, reached = read_networks(["10.0.0.2"]), PublicAddress("https://run.example.org")
    ended = PublicAddress("https://run.example.org", by_proxy=True)
    check_way([], speak_first=False, public=None, is_plain=True)
    check_way(networks, speak_first=False, public=ended, is_plain=True)
    check_way(networks, speak_first=False, public=ended, is_plain=False)
    check_way(networks, speak_first=True, public=reached, is_plain=False)
    for speak_first, public, is_plain, words in (
        (False, reached, False, "say to be anybody"),
        (False, None, False, "say to be anybody"),
        (False, None, True, "--public-url"),
        (True, reached, True, "--public-url"),
    ):
        with pytest.raises(SettingError, match=words):
            check_way(networks, speak_first=speak_first, public=public, is_plain=is_plain)
    with pytest.raises(SettingError, match="name the proxy"):
        check_way([], speak_first=True, public=None, is_plain=False)


# --- the line of the PROXY protocol -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "client"),
    [
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 51234 443\r\n", ADA),
        (b"PROXY TCP6 2001:db8::5 ::1 51234 443\r\n", BOB),
        (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 1 2\r\n", ADA),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
    ],
)
def test_a_proxys_line_is_read(line: bytes, client: str | None) -> None:
    assert parse_proxy_line(line) == client


@pytest.mark.parametrize(
    "line",
    [
        b"\r\n", b"PROXY\r\n", b"PROXY TCP4\r\n", b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", b"PROXY TCP4 x y 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n", b"proxy tcp4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\r\n",
        b"PROXY TCP4 1.2.3.4\xff 5.6.7.8 1 2\r\n",
        b"PROXY UNKNOWN\nPROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    ],
)  # fmt: skip
def test_what_is_no_such_line_ends_the_connection(line: bytes) -> None:
    with pytest.raises(ConnectionError):
        parse_proxy_line(line)


# --- what is counted, without sockets ---------------------------------------------------------------------------------


def test_a_proxy_may_have_more_connections_and_its_clients_no_more_than_others() -> None:
    limits = Limits(sockets_per_address=2, sockets_per_proxy=4)
    sockets = Sockets(limits, PASSING.knows)
    ours = [sockets.admit(PROXY, Phase.HANDSHAKE, 0.0) for _ in range(5)]
    assert [one is not None for one in ours] == [True] * 4 + [False]
    assert [sockets.admit(STRANGER, Phase.HANDSHAKE, 0.0) is not None for _ in range(3)] == [True, True, False]
    first, second, third, fourth = (one for one in ours if one is not None)
    assert sockets.came_from(first, ADA) and sockets.came_from(second, ADA) and not sockets.came_from(third, ADA)
    assert sockets.came_from(third, BOB) and (third.host, third.place) == (BOB, "2001:db8::/64")
    assert sockets.admit(PROXY, Phase.HANDSHAKE, 0.0) is not None  # three of the proxy's four are others' now
    sockets.release(first)
    assert sockets.came_from(fourth, ADA) and not sockets.came_from(first, BOB)
    for connection in list(sockets):
        sockets.release(connection)
    assert len(sockets) == 0 and not sockets._per_place


def test_requests_under_way_are_forgotten_when_they_end() -> None:
    crowd = Crowd(1)
    with pytest.raises(ZeroDivisionError), crowd.one(ADA):
        assert not crowd.has_room(ADA) and crowd.has_room(BOB)
        raise ZeroDivisionError
    assert crowd.has_room(ADA) and not crowd._under_way


# --- a door that is served --------------------------------------------------------------------------------------------


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """A join in vain."""
    await JSONResponse({"error": "token"}, 403)(scope, receive, send)


async def tell(scope: Scope, receive: Receive, send: Send) -> None:
    """What the dashboard is told of the asker."""
    seen = {"client": scope["client"][0], "scheme": scope["scheme"], "is_local": scope["state"]["is_local"]}
    seen["headers"] = sorted(key.decode() for key, _ in scope["headers"])
    await JSONResponse(seen)(scope, receive, send)


class Held:
    """A route that answers when it is told to."""

    def __init__(self) -> None:
        self.is_over, self.n = False, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.n += 1
        while not self.is_over:
            await asyncio.sleep(0.01)
        await PlainTextResponse("at last")(scope, receive, send)


@contextmanager
def door_behind(
    folder: Path, proxies: Proxies, *, is_tls: bool = False, limits: Limits | None = None
) -> Iterator[Door]:
    routes: PublicRoutes = {("POST", JOIN_PATH): refuse}
    shown = Dashboard(tell, lambda method, path: path == b"/who")
    limits = limits or Limits(tries_per_minute=2)
    with open_door(folder, routes=routes, dashboard=shown, proxies=proxies, is_tls=is_tls, limits=limits) as door:
        yield door


def ask_from(door: Door, source: str, raw: bytes, *, first: bytes = b"") -> Answer:
    """One question from this address of ours; status 0 where it was hung up."""
    connection = socket.create_connection((HOST, door.port), PATIENCE_S, source_address=(source, 0))
    with ExitStack() as held:
        held.enter_context(connection)
        try:
            connection.sendall(first)
            if door.is_tls:
                tls = door.trust()
                connection = tls.wrap_socket(connection, server_hostname=HOST, do_handshake_on_connect=False)
                held.enter_context(connection)
                connection.do_handshake()
            connection.sendall(raw)
            return read_answer(connection)
        except (ConnectionError, ssl.SSLError):
            return Answer(0, {}, b"")


def json_of(answer: Answer) -> Any:
    return json.loads(answer.body)


def join(door: Door, source: str, **headers: str) -> int:
    return ask_from(door, source, head("POST", JOIN_PATH, 2, **headers) + b"{}").status


def test_one_guest_who_guesses_is_limited_alone(tmp_path: Path) -> None:
    with door_behind(tmp_path, KNOWN) as door:
        assert [join(door, PROXY, x_forwarded_for=ADA) for _ in range(4)] == [403, 403, 429, 429]
        assert [join(door, PROXY, x_forwarded_for=f"{ADA}, {BOB}") for _ in range(3)] == [403, 403, 429]
        assert join(door, PROXY, x_forwarded_for="2001:db8::77") == 429  # one /64 is one guest
        assert join(door, PROXY, x_forwarded_for="2001:db8:0:1::77") == 403


def test_a_stranger_cannot_shed_his_limit_nor_fill_anothers(tmp_path: Path) -> None:
    with door_behind(tmp_path, KNOWN) as door:
        statuses = [join(door, STRANGER, x_forwarded_for=f"203.0.113.{number}") for number in range(4)]
        assert statuses == [403, 403, 429, 429]
        assert join(door, PROXY, x_forwarded_for="203.0.113.0") == 403
    with door_behind(tmp_path / "again", Proxies()) as door:  # nobody was named
        assert [join(door, PROXY, x_forwarded_for=f"203.0.113.{number}") for number in range(3)] == [403, 403, 429]


def test_the_dashboard_hears_who_asks_and_never_that_it_is_the_operator(tmp_path: Path) -> None:
    with door_behind(tmp_path, KNOWN) as door:
        for claimed in (PROXY, "::1", ADA):
            answer = ask_from(
                door, PROXY, head("GET", "/who", x_forwarded_for=claimed, x_forwarded_proto="http", x_real_ip=BOB)
            )
            seen = {"client": claimed, "scheme": "https", "is_local": False, "headers": ["host"]}
            assert json_of(answer) == seen and "strict-transport-security" in answer.headers
        answer = ask_from(door, STRANGER, head("GET", "/who", x_forwarded_for=PROXY, x_forwarded_proto="https"))
        assert json_of(answer) == {"client": STRANGER, "scheme": "http", "is_local": False, "headers": ["host"]}
        assert "strict-transport-security" not in answer.headers


def test_the_operators_own_listener_takes_nothing_from_a_proxy(tmp_path: Path) -> None:
    shown = Dashboard(tell, lambda method, path: path == b"/who")
    with open_door(tmp_path, dashboard=shown, is_local=True) as door:
        for name in ("x-forwarded-for", "x-real-ip", "forwarded", "via"):
            raw = f"GET /who HTTP/1.1\r\nhost: 127.0.0.1:{door.port}\r\n{name}: 127.0.0.1\r\n\r\n"
            assert door.ask(raw.encode()).status == 421


def test_requests_of_one_guest_are_bounded_where_the_proxy_holds_his_connections(tmp_path: Path) -> None:
    held = Held()
    limits = Limits(sockets_per_address=2, sockets_per_proxy=20)
    routes: PublicRoutes = {("GET", "/held"): held}
    with (
        open_door(tmp_path, routes=routes, proxies=KNOWN, is_tls=False, limits=limits) as door,
        door.connected(5) as five,
    ):
        for number, connection in enumerate(five):
            connection.sendall(head("GET", "/held", x_forwarded_for=ADA if number < 3 else BOB))
        assert read_answer(five[2]).status == 429 or held.n <= 4
        assert door.ask(head("GET", "/health", x_forwarded_for=ADA)).status == 429
        assert door.ask(head("GET", "/health", x_forwarded_for="203.0.113.8")).status == 200
        held.is_over = True
        statuses = sorted(read_answer(connection).status for connection in (five[0], five[1], five[3], five[4]))
        assert statuses == [200] * 4
        assert door.ask(head("GET", "/health", x_forwarded_for=ADA)).status == 200


LINE = "PROXY TCP4 {} 127.0.0.1 51234 443\r\n"


def test_a_line_before_tls_says_whose_connection_it_is(tmp_path: Path) -> None:
    with door_behind(tmp_path, PASSING, is_tls=True) as door:
        raw = head("GET", "/who", x_forwarded_for="127.0.0.1")
        answer = ask_from(door, PROXY, raw, first=LINE.format(ADA).encode())
        assert json_of(answer) == {"client": ADA, "scheme": "https", "is_local": False, "headers": ["host"]}
        assert json_of(ask_from(door, STRANGER, raw)) == {
            "client": STRANGER, "scheme": "https", "is_local": False, "headers": ["host"],
        }  # fmt: skip
        assert json_of(ask_from(door, PROXY, raw, first=b"PROXY UNKNOWN\r\n"))["client"] == PROXY
        guesses = [head("POST", JOIN_PATH, 2) + b"{}"] * 3
        assert [ask_from(door, PROXY, one, first=LINE.format(ADA).encode()).status for one in guesses] == [
            403,
            403,
            429,
        ]
        assert ask_from(door, PROXY, guesses[0], first=LINE.format("203.0.113.8").encode()).status == 403


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `ssl` leaves a socket that was reset
def test_a_line_that_is_none_or_a_strangers_ends_the_connection(tmp_path: Path) -> None:
    limits = Limits(sockets_per_address=2, sockets_per_proxy=8, handshake_s=0.3, tick_s=0.05)
    with door_behind(tmp_path, PASSING, is_tls=True, limits=limits) as door:
        raw = head("GET", "/health")
        for first in (b"PROXY TCP4 x y 1 2\r\n", b"PROXY " + b"x" * 200, b"PROXY\r\n", b"\r\n"):
            assert ask_from(door, PROXY, raw, first=first).status == 0, first
        assert ask_from(door, STRANGER, raw, first=LINE.format(ADA).encode()).status == 0
        with socket.create_connection((HOST, door.port), PATIENCE_S) as silent:
            silent.sendall(b"PROXY TCP4")  # and no more
            assert is_dropped(silent)
        assert ask_from(door, PROXY, raw, first=LINE.format(ADA).encode()).status == 200


def test_a_proxys_own_machine_may_ask_without_a_line(tmp_path: Path) -> None:
    """As `serve` does before it serves, and whoever looks after its health."""
    with door_behind(tmp_path, PASSING, is_tls=True) as door:
        assert json_of(ask_from(door, PROXY, head("GET", "/who")))["client"] == PROXY
    with door_behind(tmp_path / "plain", PASSING) as door:
        assert join(door, PROXY) == 403  # POST begins with a P, too


def test_connections_are_counted_for_whom_the_line_names(tmp_path: Path) -> None:
    limits = Limits(sockets_per_address=2, sockets_per_proxy=8)
    with door_behind(tmp_path, PASSING, limits=limits) as door, door.connected(3) as three:
        for connection in three:
            connection.sendall(LINE.format(ADA).encode() + head("GET", "/health"))
        assert sorted(read_answer(connection).status for connection in three) == [0, 200, 200]
        assert ask_from(door, PROXY, head("GET", "/health"), first=b"PROXY TCP6 2001:db8::5 ::1 1 2\r\n").status == 200


def is_dropped(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
