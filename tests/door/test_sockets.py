"""Which connections are let in, and which are dropped when: by a clock that the test holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylora_coordinator.front_door.limits import Limits
from tinylora_coordinator.front_door.sockets import Connection, Phase, Sockets, is_overdue, place_of
from tinylora_coordinator.front_door.tries import Tries

LIMITS = Limits(
    handshake_s=10, head_s=5, body_grace_s=30, body_bytes_per_s=100, stall_s=60, sockets_per_address=2, sockets=4
)


def connection(phase: Phase, **changes: object) -> Connection:
    made = Connection("p", phase, 0.0)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("made", "last_good_s"),
    [
        (connection(Phase.HANDSHAKE), 10.0),
        (connection(Phase.HEAD), 5.0),
        (connection(Phase.BODY, is_reading=True), 30.0),
        (connection(Phase.BODY, is_reading=True, n_body=1000), 40.0),
        (connection(Phase.BODY, is_reading=True, n_body=6_000_000), 60_030.0),
        (connection(Phase.ANSWER, stalled_s=7.0), 67.0),
        (connection(Phase.IDLE, stalled_s=0.0), 60.0),
    ],
)
def test_each_phase_has_its_time(made: Connection, last_good_s: float) -> None:
    assert not is_overdue(made, last_good_s, LIMITS)
    assert is_overdue(made, last_good_s + 0.1, LIMITS)


@pytest.mark.parametrize("made", [connection(Phase.BODY), connection(Phase.ANSWER), connection(Phase.IDLE)])
def test_nobody_is_late_while_it_is_we_who_wait(made: Connection) -> None:
    assert not is_overdue(made, 1e9, LIMITS)


def test_a_body_has_its_time_from_when_it_is_read() -> None:
    made = connection(Phase.HEAD)
    made.turn(Phase.BODY, 3.0)
    assert not is_overdue(made, 1e6, LIMITS)
    made.read_on(500.0)
    made.read_on(900.0)  # it runs already
    assert not is_overdue(made, 530.0, LIMITS) and is_overdue(made, 531.0, LIMITS)
    made.turn(Phase.ANSWER, 600.0)
    made.turn(Phase.ANSWER, 700.0)
    assert made.since_s == 600.0 and not made.is_reading


def test_a_trickle_never_renews_its_time() -> None:
    made = connection(Phase.HEAD)
    for at_s in range(6):
        made.turn(Phase.HEAD, float(at_s))  # a byte came, and still no end of the headers
    assert is_overdue(made, 5.1, LIMITS)


def test_one_address_has_so_many_and_gets_them_back() -> None:
    sockets = Sockets(LIMITS)
    first = sockets.admit("10.0.0.1", Phase.HEAD, 0.0)
    assert first is not None and sockets.admit("10.0.0.1", Phase.HEAD, 1.0) is not None
    assert sockets.admit("10.0.0.1", Phase.HEAD, 2.0) is None
    assert sockets.admit("10.0.0.2", Phase.HEAD, 2.0) is not None
    sockets.release(first)
    sockets.release(first)
    assert sockets.admit("10.0.0.1", Phase.HEAD, 3.0) is not None and len(sockets) == 3


def full_house() -> tuple[Sockets, list[Connection], list[str]]:
    sockets, dropped = Sockets(LIMITS), list[str]()
    inside = []
    for number in range(4):
        made = sockets.admit(f"10.0.0.{number}", Phase.HEAD, float(number))
        assert made is not None
        made.abort = lambda number=number: dropped.append(str(number))
        inside.append(made)
    return sockets, inside, dropped


def test_in_a_full_house_the_stranger_who_waited_longest_leaves() -> None:
    sockets, inside, dropped = full_house()
    inside[0].is_node = True
    inside[1].turn(Phase.ANSWER, 1.0)
    assert sockets.admit("10.0.0.9", Phase.HEAD, 9.0) is not None
    assert dropped == ["2"] and len(sockets) == 4


def test_in_a_house_full_of_workers_nobody_leaves() -> None:
    sockets, inside, dropped = full_house()
    for made in inside:
        made.is_node = True
    assert sockets.admit("10.0.0.9", Phase.HEAD, 9.0) is None and dropped == []


def test_the_overdue_are_dropped_and_counted_out() -> None:
    sockets, inside, dropped = full_house()
    inside[3].turn(Phase.ANSWER, 3.0)
    assert sockets.drop_overdue(6.5) == 2 and dropped == ["0", "1"] and len(sockets) == 2
    assert sockets.drop_overdue(100.0) == 1 and dropped == ["0", "1", "2"]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60))
def test_the_counts_are_those_of_a_plain_list(steps: list[tuple[int, bool]]) -> None:
    sockets, inside = Sockets(LIMITS), list[Connection]()
    for host, comes in steps:
        if comes:
            made = sockets.admit(f"10.0.0.{host}", Phase.ANSWER, 0.0)
            per_host = sum(c.place == f"10.0.0.{host}" for c in inside)
            assert (made is not None) == (per_host < 2 and len(inside) < 4)
            inside += [] if made is None else [made]
        elif inside:
            sockets.release(inside.pop(host % len(inside)))
        assert len(sockets) == len(inside)


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::7", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("somewhere", "somewhere"),
    ],
)
def test_a_household_is_one_place(host: str, place: str) -> None:
    assert place_of(host) == place


def test_tries_in_vain_are_few_and_those_that_succeed_are_free() -> None:
    at_s = [0.0]
    tries = Tries(2, clock=lambda: at_s[0])
    for _ in range(50):
        begun = tries.begin("a")
        assert begun is not None
        tries.forgive("a", begun)
    assert tries.begin("a") is not None and tries.begin("a") is not None
    assert tries.begin("a") is None and tries.begin("b") is not None
    at_s[0] = 59.9
    assert tries.begin("a") is None
    at_s[0] = 60.0
    assert tries.begin("a") is not None
