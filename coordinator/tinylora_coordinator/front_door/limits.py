"""What a stranger may cost us."""

from dataclasses import dataclass

KIB = 2**10
MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Caps and deadlines of the public listener; times in seconds.

    Attributes:
        fleet_body_bytes: Largest body on the fleet's paths; Flower cuts payloads in parts of 5 MiB.
        small_body_bytes: Largest body elsewhere.
        head_bytes: Largest request line and headers together.
        handshake_s: From the connection to the end of the TLS handshake.
        head_s: From the connection, or a later request's first byte, to the end of its headers.
        body_grace_s: A body may be as slow as it likes so long.
        body_bytes_per_s: After that it must have come at this rate on average, not counting the time we did not read.
        idle_s: How long a connection is kept without a request.
        stall_s: How long a client may leave an answer unread.
        tick_s: How often deadlines are looked at.
        sockets_per_address: Connections from one address; in IPv6 from one /64. Behind a proxy: requests under way.
        sockets_per_proxy: Connections from the address of a known proxy, who brings many people.
        sockets: Connections in all. A newcomer takes the place of the stranger who has waited longest.
        large_body_bytes: A body above goes through a file.
        large_bodies: How many of them are in memory at once.
        large_bodies_per_node: How many of them one worker may send at once.
        tries_per_minute: Joins, and sign-ins to the dashboard, from one address that did not succeed.
        streams_per_address: Streams of the dashboard to one address; fewer than its connections, so that workers
            behind it stay welcome.
        streams: Streams of the dashboard in all; a fraction of all connections.
    """

    fleet_body_bytes: int = 6 * MIB
    small_body_bytes: int = 64 * KIB
    head_bytes: int = 8 * KIB
    handshake_s: float = 10.0
    head_s: float = 10.0
    body_grace_s: float = 30.0
    body_bytes_per_s: float = 8.0 * KIB
    idle_s: float = 20.0
    stall_s: float = 60.0
    tick_s: float = 0.5
    sockets_per_address: int = 64
    sockets_per_proxy: int = 960
    sockets: int = 1024
    large_body_bytes: int = 64 * KIB
    large_bodies: int = 4
    large_bodies_per_node: int = 8
    tries_per_minute: int = 5
    streams_per_address: int = 24
    streams: int = 192
