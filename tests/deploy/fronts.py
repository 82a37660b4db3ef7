"""The files of `deploy/proxy/` at work: the real nginx or Caddy in front of a coordinator that is really served.

Only names, ports and the paths of certificates and logs are substituted, and each must be there to be.
"""

import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tinylora_coordinator.folder import RunFolder
from tinylora_coordinator.keys import KeyFolder, make_keys

from tests.coordinator.running import Coordinator, free_port
from tests.deploy.allow_list import PROXY
from tests.flower.helpers import until
from tinylora.flower.enrolment import ask_state
from tinylora.flower.reach import Address, Trust

Way = Literal["nginx", "nginx to TLS", "nginx-stream", "caddy"]
NAME = "localhost"
"""In place of run.example.org: the one name that leads here without a resolver."""


def substituted(text: str, changes: dict[str, str]) -> str:
    """The text with each of these replaced."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in the file"
        text = text.replace(old, new)
    return text


@dataclass
class Front:
    """A proxy, and the coordinator behind it."""

    way: Way
    folder: Path
    coordinator: "Behind"
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        """The certificate that the proxy shows, and who vouches for it: as good as any public one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.public = KeyFolder(self.folder / "public")
        make_keys(self.public, run="a public CA", hosts=[NAME], now=datetime.now(UTC))
        self.plain_port = free_port()

    @property
    def url(self) -> str:
        """Where the run is reached."""
        return f"https://{NAME}:{self.port}"

    @property
    def address(self) -> Address:
        """The same, for workers."""
        return Address.parse(self.url)

    @property
    def ca(self) -> Path:
        """Who vouches for what is shown there."""
        return RunFolder(self.coordinator.root).keys.ca if self.way == "nginx-stream" else self.public.ca

    @property
    def trust(self) -> Trust:
        """For workers that joined."""
        from tinylora_coordinator.keys import pin_of

        return Trust(pin_of(RunFolder(self.coordinator.root).keys), self.ca.read_bytes())

    def tls(self) -> ssl.SSLContext:
        """For everybody else."""
        return ssl.create_default_context(cafile=self.ca)

    @property
    def log(self) -> Path:
        """Its access log."""
        return self.folder / "tinylora.log"

    def options(self) -> tuple[str, ...]:
        """What `serve` is told of it."""
        asked = ("--proxy", "127.0.0.1", "--public-url", self.url)
        return (
            asked
            + {
                "nginx": ("--insecure",),
                "caddy": ("--insecure",),
                "nginx to TLS": ("--public-ca", str(self.public.ca)),
                "nginx-stream": ("--proxy-protocol",),
            }[self.way]
        )

    def text(self) -> str:
        """The shipped file, for this machine."""
        ours, upstream = self.public, f"127.0.0.1:{self.coordinator.port}"
        if self.way == "caddy":
            site = f"{NAME}:{self.port} {{\n\tbind 127.0.0.1\n\ttls {ours.server} {ours.server_key}\n"
            text = substituted(
                (PROXY / "Caddyfile").read_text(), {"run.example.org {\n": site, "127.0.0.1:8443": upstream}
            )
            ports = (
                f"{{\n\tadmin off\n\thttp_port {self.plain_port}\n\tstorage file_system {self.folder}\n\tservers {{\n"
            )
            return substituted(text, {"{\n\tservers {\n": ports, "/var/log/caddy/tinylora.log": str(self.log)})
        changes = {
            "127.0.0.1:8443": upstream,
            "listen 443": f"listen 127.0.0.1:{self.port}",
            "listen [::]:443": f"listen 127.0.0.2:{self.port}",
            "/var/log/nginx/tinylora.log": str(self.log),
        }
        if self.way == "nginx-stream":
            return substituted((PROXY / "nginx-stream.conf").read_text(), changes)
        changes |= {
            "listen 80": f"listen 127.0.0.1:{self.plain_port}",
            "listen [::]:80": f"listen 127.0.0.2:{self.plain_port}",
            "https://run.example.org$": f"{self.url}$",
            "run.example.org;": f"{NAME};",
            "/etc/letsencrypt/live/run.example.org/fullchain.pem": str(ours.server),
            "/etc/letsencrypt/live/run.example.org/privkey.pem": str(ours.server_key),
        }
        if self.way == "nginx to TLS":
            ca = RunFolder(self.coordinator.root).keys.ca
            tls = {
                "        #tls# ": "        ",
                "http://tinylora": "https://tinylora",
                "/etc/nginx/tinylora-ca.pem": str(ca),
            }
            changes |= tls
        return substituted((PROXY / "nginx.conf").read_text(), changes)

    @property
    def file(self) -> Path:
        """What the program reads."""
        return self.folder / ("Caddyfile" if self.way == "caddy" else "nginx.conf")

    def command(self, *options: str) -> list[str]:
        """The program's."""
        if self.way == "caddy":
            return ["caddy", *(options or ("run",)), "--config", str(self.file), "--adapter", "caddyfile"]
        own = f"pid {self.folder}/nginx.pid; error_log {self.folder}/error.log warn;"
        return ["nginx", "-e", f"{self.folder}/error.log", "-c", str(self.file), "-g", own, *options]

    def start(self) -> None:
        """Begin to listen."""
        self.file.write_text(self.text())
        options = () if self.way == "caddy" else ("-g", "daemon off;")
        command = self.command()
        if options:
            command[-1] += " daemon off;"
        with open(self.folder / "said", "ab") as said:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**os.environ, "HOME": str(self.folder)},
            )
        until(self._listens, what="the proxy's port")

    def _listens(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.said
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return False

    def reload(self) -> None:
        """Read the file anew, as after each new certificate."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP if self.way != "caddy" else signal.SIGUSR1)

    def stop(self) -> None:
        """At once, with all connections."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20.0)
            self.process = None

    @property
    def said(self) -> str:
        """What it complained of."""
        files = (self.folder / "said", self.folder / "error.log")
        return "".join(file.read_text() for file in files if file.exists())


@dataclass
class Behind(Coordinator):
    """A coordinator that a proxy stands in front of."""

    def start(self) -> None:
        """Begin to serve."""
        command = [sys.executable, "-m", "tinylora_coordinator", "serve", str(self.root)]
        command += ["--port", str(self.port), "--dashboard-port", "0", *self.options]
        with open(self.root / "said", "ab") as said:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said)

    def wait_until_up(self) -> None:
        """It has said so."""
        until(self._is_up, timeout_s=120.0, what=f"the coordinator's greeting; {self.said}")

    def _is_up(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.said
        return "lets a worker in" in self.said


@contextmanager
def front(way: Way, folder: Path, root: Path) -> Iterator[Front]:
    """A coordinator that serves `root` behind a proxy; nobody is left behind."""
    coordinator = Behind(root)
    made = Front(way, folder, coordinator)
    coordinator.options = made.options()
    coordinator.start()
    try:
        made.start()
        coordinator.wait_until_up()
        until(lambda: ask_state(made.address, trust=made.trust, timeout_s=5.0).run != "", what="an answer by the proxy")
        yield made
    finally:
        for volunteer in coordinator.volunteers:
            volunteer.stop.set()
        made.stop()
        coordinator.kill("supervisor")
        for volunteer in coordinator.volunteers:
            volunteer.thread.join(10.0)
