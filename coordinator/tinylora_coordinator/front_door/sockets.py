"""How many connections there are, what each is doing, and which took too long. Pure: the clock is an argument."""

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from tinylora_coordinator.front_door.limits import Limits


class Phase(Enum):
    """What we wait for on a connection."""

    HANDSHAKE = "the TLS handshake"
    HEAD = "a request's headers"
    BODY = "a request's body"
    ANSWER = "our own answer"
    IDLE = "the next request"


@dataclass(eq=False)
class Connection:
    """One accepted socket.

    Attributes:
        place: Whom it counts for, see `place_of`.
        phase: What we wait for.
        since_s: Since when; while the phase is BODY, since we began to read.
        abort: Drops it without a word.
        n_body: Bytes of the body so far.
        is_reading: Whether the body is being read; until then it is we who let the client wait.
        is_node: Whether it has shown a worker's signature.
        stalled_s: Since when the client leaves our answer unread.
        host: Where it comes from: the client's own address where a proxy told it before the first byte.
    """

    place: str
    phase: Phase
    since_s: float
    abort: Callable[[], object] = field(default=lambda: None, repr=False)
    n_body: int = 0
    is_reading: bool = False
    is_node: bool = False
    stalled_s: float | None = None
    host: str = ""

    def turn(self, phase: Phase, at_s: float) -> None:
        """Begin a phase, unless it is this one already."""
        if phase is not self.phase:
            self.phase, self.since_s, self.n_body, self.is_reading = phase, at_s, 0, False

    def read_on(self, at_s: float) -> None:
        """The body's clock runs from now on, if it does not run."""
        if self.phase is Phase.BODY and not self.is_reading:
            self.since_s, self.is_reading = at_s, True


def is_overdue(connection: Connection, at_s: float, limits: Limits) -> bool:
    """Whether its client has had its time. An idle connection is the HTTP protocol's to close."""
    if connection.stalled_s is not None and at_s - connection.stalled_s > limits.stall_s:
        return True
    waited_s = at_s - connection.since_s
    match connection.phase:
        case Phase.HANDSHAKE:
            return waited_s > limits.handshake_s
        case Phase.HEAD:
            return waited_s > limits.head_s
        case Phase.BODY:
            wanted = (waited_s - limits.body_grace_s) * limits.body_bytes_per_s
            return connection.is_reading and connection.n_body < wanted
        case _:
            return False


class Sockets:
    """The connections there are.

    Args:
        limits: How many, and for how long.
        is_proxy: Whether this host brings many people.
    """

    def __init__(self, limits: Limits, is_proxy: Callable[[str], bool] = lambda host: False) -> None:
        self._limits, self._is_proxy = limits, is_proxy
        self._all: dict[Connection, None] = {}
        self._per_place: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._all)

    def __iter__(self) -> Iterator[Connection]:
        """The oldest first."""
        return iter(list(self._all))

    def admit(self, host: str, phase: Phase, at_s: float) -> Connection | None:
        """A place for a newcomer, or None. Where the house is full, the stranger who has waited longest must leave."""
        place, limits = place_of(host), self._limits
        most = limits.sockets_per_proxy if self._is_proxy(host) else limits.sockets_per_address
        if self._per_place[place] >= most:
            return None
        if len(self._all) >= limits.sockets and not self._make_room():
            return None
        connection = Connection(place, phase, at_s, host=host)
        self._all[connection] = None
        self._per_place[place] += 1
        return connection

    def came_from(self, connection: Connection, host: str) -> bool:
        """A proxy said whose connection it is; returns whether he may have one more. If not, release it."""
        place = place_of(host)
        if connection not in self._all or self._per_place[place] >= self._limits.sockets_per_address:
            return False
        self._leave(connection.place)
        connection.host, connection.place = host, place
        self._per_place[place] += 1
        return True

    def _leave(self, place: str) -> None:
        self._per_place[place] -= 1
        if not self._per_place[place]:
            del self._per_place[place]

    def release(self, connection: Connection) -> None:
        """It is closed; again is harmless."""
        if connection not in self._all:
            return
        del self._all[connection]
        self._leave(connection.place)

    def drop_overdue(self, at_s: float) -> int:
        """Abort those whose time is up; returns how many."""
        late = [connection for connection in self if is_overdue(connection, at_s, self._limits)]
        for connection in late:
            self._drop(connection)
        return len(late)

    def _make_room(self) -> bool:
        strangers = (c for c in self._all if not c.is_node and c.phase is not Phase.ANSWER)
        eldest = min(strangers, key=lambda c: c.since_s, default=None)
        if eldest is not None:
            self._drop(eldest)
        return eldest is not None

    def _drop(self, connection: Connection) -> None:
        self.release(connection)
        connection.abort()


def place_of(host: str) -> str:
    """What one household may be taken for: an IPv4 address, or an IPv6 /64."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
