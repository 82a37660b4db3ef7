"""Hosts of their own on one machine: network name spaces, a little internet between them, and routers that hide homes.

    net (a bridge; 203.0.113.1, 198.51.100.1)
     ├── a host with a public address
     └── a router with a public address ── its home, 192.168.7.0/24: hosts that nobody outside can call

Nothing of it is seen outside the name spaces, and all of it goes when the `with` ends. Root on Linux.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

GATEWAYS = ("203.0.113.1", "198.51.100.1")
"""Documentation networks (RFC 5737): they belong to nobody."""
HOME, INSIDE = "192.168.7", "home0"
STRANGE = "strange"
"""Comment of the rules that count what nobody should have sent."""


def tell(*words: str) -> str:
    """Run a command of the system's; returns what it prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"
    return done.stdout


@dataclass
class Host:
    """One name space: an own loopback, own addresses, own ports, own rules."""

    space: str
    address: str = ""

    def __post_init__(self) -> None:
        tell("ip", "netns", "add", self.space)
        self.ip("link", "set", "lo", "up")

    def ip(self, *words: str) -> str:
        """`ip` for this host."""
        return tell("ip", "-n", self.space, *words)

    def inside(self, *words: str | Path) -> list[str]:
        """The command that runs a command on this host."""
        return ["ip", "netns", "exec", self.space, *map(str, words)]

    def iptables(self, *words: str) -> str:
        """`iptables` of this host."""
        return tell(*self.inside("iptables", "-w", *words))

    def start(self, log: Path, *words: str | Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Start a process here, with all that it says in `log`; it is the process itself, with no shell before it."""
        with log.open("ab") as said:
            return subprocess.Popen(
                self.inside(*words), stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=environment
            )

    def counted(self, chain: str, comment: str) -> int:
        """Packets that met the rules of `chain` with this comment."""
        lines = self.iptables("-nvxL", chain).splitlines()
        return sum(int(line.split()[0]) for line in lines if f"/* {comment} */" in line)

    def can_call(self, address: str, port: int) -> bool:
        """Whether a connection from here to there comes about within a second."""
        probe = f"import socket; socket.create_connection(({address!r}, {port}), timeout=1.0).close()"
        return subprocess.run(self.inside("python3", "-c", probe), capture_output=True, check=False).returncode == 0

    def wire(self, device: str, address: str, gateway: str) -> None:
        """Give a device its address, and a way to everybody else."""
        self.ip("addr", "add", f"{address}/24", "dev", device)
        self.ip("link", "set", device, "up")
        self.ip("route", "add", "default", "via", gateway)
        self.address = address

    def remove(self) -> None:
        """End what still runs here, and take the name space away; its devices go with it."""
        for pid in tell("ip", "netns", "pids", self.space).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        tell("ip", "netns", "del", self.space)


@dataclass
class Router(Host):
    """A home's box: one public address for all behind it, and no way in from outside."""

    n_hosts: int = 0

    def forward_only(self, server: str, port: int) -> None:
        """Let the home reach this server's port and nothing else; count what tries."""
        self.iptables("-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE")
        self.iptables("-P", "FORWARD", "DROP")
        for rule in (
            ("-i", "eth0", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"),
            ("-i", INSIDE, "-p", "tcp", "-d", server, "--dport", str(port), "-j", "ACCEPT"),
            ("-i", INSIDE, "-m", "comment", "--comment", STRANGE, "-j", "DROP"),
        ):
            self.iptables("-A", "FORWARD", *rule)

    def lose(self, share: float) -> None:
        """Lose this share of all packets, both ways."""
        self.iptables("-I", "FORWARD", "-m", "statistic", "--mode", "random", "--probability", str(share), "-j", "DROP")

    def swallow(self) -> None:
        """Forward nothing any more, and tell nobody: whoever sends waits for an answer."""
        self.iptables("-I", "FORWARD", "-m", "comment", "--comment", "swallowed", "-j", "DROP")

    def forward_again(self) -> None:
        """After `swallow`."""
        self.iptables("-D", "FORWARD", "-m", "comment", "--comment", "swallowed", "-j", "DROP")

    def unplug(self) -> None:
        """Take the line away: whoever sends hears at once that there is no way."""
        self.ip("link", "set", "eth0", "down")

    def plug(self, address: str = "") -> None:
        """Bring it back, with another public address where one is given."""
        if address:
            self.ip("addr", "flush", "dev", "eth0")
            self.wire("eth0", address, _gateway(address))
            return
        self.ip("link", "set", "eth0", "up")
        self.ip("route", "add", "default", "via", _gateway(self.address))


AnyHost = TypeVar("AnyHost", bound=Host)


@dataclass
class Internet:
    """All hosts of a test; names carry the process, so that two tests do not meet."""

    prefix: str = field(default_factory=lambda: f"tl{os.getpid()}")
    hosts: list[Host] = field(default_factory=list)
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def __enter__(self) -> Self:
        """Make the middle of it."""
        self._middle = self._keep(Host(f"{self.prefix}-net"))
        self._middle.ip("link", "add", "br0", "type", "bridge")
        self._middle.ip("link", "set", "br0", "up")
        for gateway in GATEWAYS:
            self._middle.ip("addr", "add", f"{gateway}/24", "dev", "br0")
        _forwards(self._middle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes, gently first, and take everything away, whatever happened."""
        for process in self.processes:
            process.terminate()
        end = time.monotonic() + 10.0
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
        for host in reversed(self.hosts):
            with suppress(AssertionError):
                host.remove()
        for process in self.processes:
            process.wait()

    def host(self, name: str, address: str) -> Host:
        """A machine with an address of its own."""
        host = self._keep(Host(f"{self.prefix}-{name}"))
        self._plug_in(host, name, address)
        return host

    def router(self, name: str, address: str) -> Router:
        """A router with an address of its own, and an empty home behind it."""
        router = self._keep(Router(f"{self.prefix}-{name}"))
        self._plug_in(router, name, address)
        router.ip("link", "add", INSIDE, "type", "bridge")
        router.ip("addr", "add", f"{HOME}.1/24", "dev", INSIDE)
        router.ip("link", "set", INSIDE, "up")
        _forwards(router)
        return router

    def at_home(self, name: str, router: Router) -> Host:
        """A machine behind a router; homes have the same private addresses, as everywhere."""
        host = self._keep(Host(f"{self.prefix}-{name}"))
        _join(host, router, name, INSIDE)
        router.n_hosts += 1
        host.wire("eth0", f"{HOME}.{1 + router.n_hosts}", f"{HOME}.1")
        return host

    def start(
        self, host: Host, log: Path, words: Sequence[str | Path], environment: Mapping[str, str]
    ) -> "subprocess.Popen[bytes]":
        """Start a process on a host; it is ended with all else."""
        self.processes.append(host.start(log, *words, environment=environment))
        return self.processes[-1]

    def _plug_in(self, host: Host, name: str, address: str) -> None:
        _join(host, self._middle, name, "br0")
        host.wire("eth0", address, _gateway(address))

    def _keep(self, host: AnyHost) -> AnyHost:
        self.hosts.append(host)
        return host


def _join(host: Host, other: Host, name: str, bridge: str) -> None:
    """A cable from the host's `eth0` to a bridge."""
    tell("ip", "link", "add", "eth0", "netns", host.space, "type", "veth", "peer", "name", name, "netns", other.space)
    other.ip("link", "set", "dev", name, "master", bridge)
    other.ip("link", "set", "dev", name, "up")


def _forwards(host: Host) -> None:
    """Pass on what is for others; and never say that they could be reached directly, as on one wire they could."""
    quiet = "for file in /proc/sys/net/ipv4/conf/*/send_redirects; do echo 0 > $file; done"
    tell(*host.inside("sh", "-c", f"echo 1 > /proc/sys/net/ipv4/ip_forward; {quiet}"))


def _gateway(address: str) -> str:
    return re.sub(r"\d+$", "1", address)
