"""Reverse proxies in front of the door: whom they may speak for, and how. Pure.

Behind a proxy everybody has the proxy's address. Who came to it, it may say in one of two ways, and is believed in the
one that the operator chose, if it is one that he named:

`X-Forwarded-For`   where the proxy ends TLS: its last entry is the address that the proxy itself saw. What stands
                    before it came from outside, and so did the whole header where no proxy sent it: both are ignored
PROXY protocol 1    where bytes are passed through: one line before the first byte of TLS. Headers are the client's own
                    then, and are ignored

Neither makes anybody the operator: he is whoever came by the listener of this machine, which knows no proxy.
"""

import ipaddress
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from tinylora.errors import SettingError
from tinylora_coordinator.heads import Headers, values
from tinylora_coordinator.public_address import PublicAddress

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_WIDEST = {4: 8, 6: 16}
"""Nobody's proxies fill more than that, and whoever writes 0.0.0.0/0 would believe everybody."""
_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16",
                 "::1/128", "fc00::/7", "fe80::/10")
)  # fmt: skip


@dataclass(frozen=True)
class Proxies:
    """The proxies that a listener knows.

    Attributes:
        networks: Where they are.
        speak_first: They begin each connection with a line of the PROXY protocol.
        end_tls: They end TLS, so that what came through one came by https.
        only: Nobody else is heard, but this machine: what is heard is in clear.
    """

    networks: tuple[Network, ...] = ()
    speak_first: bool = False
    end_tls: bool = False
    only: bool = False

    def knows(self, host: str) -> bool:
        """Whether this is the address of one."""
        address = read_address(host)
        return address is not None and any(address in network for network in self.networks)

    def hears(self, host: str, own_host: str) -> bool:
        """Whether a connection is taken at all.

        Args:
            host: Where it comes from.
            own_host: The address of ours that it came to.
        """
        return not self.only or self.knows(host) or is_here(host, own_host)

    def client_of(self, host: str, headers: Headers) -> str:
        """Who sent a request that came on a connection from `host`; `host` itself where nobody who may says another."""
        if self.speak_first or not self.knows(host):
            return host
        last = values(headers, b"x-forwarded-for")[-1:]
        told = read_address(last[0].rpartition(b",")[2].strip().decode("latin-1")) if last else None
        return host if told is None else str(told)

    def is_https(self, host: str) -> bool:
        """Whether a plain request on a connection from `host` was https when it began."""
        return self.end_tls and self.knows(host)


NO_PROXIES = Proxies()


def read_address(text: str) -> IpAddress | None:
    """An address in its plain form; None for anything else, an address with a port or a zone included."""
    with suppress(ValueError):
        address = ipaddress.ip_address(text)
        if isinstance(address, ipaddress.IPv6Address):
            return None if address.scope_id else address.ipv4_mapped or address
        return address
    return None


def is_here(host: str, own_host: str) -> bool:
    """Whether a connection from `host` to our address `own_host` comes from this machine."""
    address = read_address(host)
    return address is not None and (address.is_loopback or address == read_address(own_host))


def read_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """What `--proxy` was given.

    Raises:
        SettingError: One is no address and no network, or so wide that it is nobody's.
    """
    return tuple(map(_read_network, texts))


def _read_network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text.strip())
    except ValueError as error:
        raise SettingError(f"--proxy {text}: {error}; give an address or a network, such as 10.0.0.2") from None
    if network.prefixlen < _WIDEST[network.version]:
        raise SettingError(
            f"--proxy {text}: whoever is in it may say who he is; expected a /{_WIDEST[network.version]} at most: "
            "name the proxy's own address"
        )
    return network


def check_plain(host: str, networks: Iterable[Network]) -> None:
    """Refuse to serve without TLS where more than this machine and proxies on private lines would be heard.

    Raises:
        SettingError: It would be.
    """
    address = read_address(host.strip("[]"))
    if host == "localhost" or (address is not None and address.is_loopback):
        return
    known = tuple(networks)
    if not known:
        raise SettingError(
            f"--insecure --host {host}: without TLS only this machine may be served; use 127.0.0.1, or name the "
            "reverse proxy that ends TLS in front with --proxy"
        )
    odd = next((network for network in known if not is_private(network)), None)
    if odd is not None:
        raise SettingError(
            f"--insecure --proxy {odd}: not a private network, and tokens would cross it in clear; let the proxy speak "
            "TLS to the coordinator, and serve without --insecure"
        )


def is_private(network: Network) -> bool:
    """Whether a network is none of the internet's."""
    # Of one version where subnet_of is asked, which the type checker cannot see.
    return any(network.version == other.version and network.subnet_of(other) for other in _PRIVATE)  # pyright: ignore[reportArgumentType]


def check_way(networks: Iterable[Network], *, speak_first: bool, public: PublicAddress | None, is_plain: bool) -> None:
    """Refuse proxies that could not say whom they speak for, or whose clients could say it in their place.

    Args:
        networks: Where they are.
        speak_first: See `Proxies`.
        public: Where the run is reached, if that was said.
        is_plain: Whether the run is served without TLS.

    Raises:
        SettingError: As it says.
    """
    known, by_proxy = tuple(networks), public is not None and public.by_proxy
    if not known:
        if speak_first:
            raise SettingError("--proxy-protocol: name the proxy that speaks it with --proxy")
    elif is_plain and not by_proxy:
        raise SettingError("--insecure --proxy: say with --public-url at which https address the proxy is reached")
    elif not by_proxy and not speak_first:
        raise SettingError(
            "--proxy: a proxy that passes TLS through can write no header, so whoever comes by it could say to be "
            "anybody; expected --proxy-protocol, or, where it ends TLS, --public-url with --public-ca"
        )
