"""A run's public door over TLS with no rounds behind it, and somebody who answers in its place and writes all down."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tinylora_coordinator.folder import RunFolder, read_run, write_run
from tinylora_coordinator.front_door import Limits, listen, serve_public, server_tls
from tinylora_coordinator.keys import pin_of, served_ca
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.public_door import make_door

from tests.federation.facts import FACTS, SETTINGS
from tinylora.flower.link import Link, create_link


@dataclass
class Served:
    """The door; whoever asks is told that the run is over."""

    root: Path
    link: Link
    store: OperatorStore
    port: int

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def token(self, *, needs_approval: bool = False, made_s_ago: float = 0.0) -> str:
        """A token for one worker, good for an hour."""
        pin, now_s = pin_of(RunFolder(self.root).keys), time.time() - made_s_ago
        made = self.store.create_token(pin, now_s=now_s, expires_in_s=3600.0, needs_approval=needs_approval)
        return made.text


@contextmanager
def served(root: Path) -> Iterator[Served]:
    """Serve a run, which is made if there is none."""
    folder = RunFolder(root)
    if not folder.settings_file.exists():
        write_run(folder, SETTINGS, FACTS, None)
    link = create_link(folder.link_database)
    link.phase = "finished"
    tls = server_tls(folder.keys.server, folder.keys.server_key)
    with OperatorStore(root) as store:
        door = make_door(link, folder, read_run(folder), store, limits=Limits(tries_per_minute=1000))
        with serve_public(door, listen("127.0.0.1", 0), tls=tls) as running:
            yield Served(root, link, store, running.port)


@dataclass
class Impostor:
    """Answers every request with one file; what reached it lies in `heard`, decrypted."""

    port: int
    heard: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


@contextmanager
def impostor(root: Path, page: bytes) -> Iterator[Impostor]:
    """Somebody with the certificate of the run in `root`, who answers with `page` whatever is asked."""
    keys = RunFolder(root).keys
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(keys.server, keys.server_key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = Impostor(server.getsockname()[1])

        def answer() -> None:
            while True:
                try:
                    raw, _ = server.accept()
                except OSError:
                    return
                with suppress(OSError), closing(tls.wrap_socket(raw, server_side=True)) as line:
                    made.heard.append(line.recv(65_536))
                    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(page)
                    line.sendall(head + page)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10.0)


def ca_of(root: Path) -> bytes:
    """The CA that a run shows to everybody."""
    file = served_ca(RunFolder(root).keys)
    assert file is not None
    return file.read_bytes()
