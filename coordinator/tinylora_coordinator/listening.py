"""Opening a port. Apart from all that is served there: the supervisor opens ports and serves nothing."""

import socket

from tinylora.errors import NetworkError

_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        NetworkError: The address cannot be opened.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise NetworkError(
            f"{host}:{port}: {error.strerror or error}; choose another --host or --port, or stop what listens there"
        ) from None
