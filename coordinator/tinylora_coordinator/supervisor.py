"""`serve`: two child processes, link and rounds, each started again alone when it dies.

The supervisor holds the folder's lock and all listening sockets, so that a child that is started again finds the same
ports, and whoever connects in between waits instead of being refused. Beside each child stands a spare, which has
loaded all that takes seconds and waits for its first line. The supervisor knows nothing of Flower and nothing of the
run; what it knows it can lose. Its own death ends all of them (`lifeline`).
"""

import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from socket import socket
from typing import Any, Literal, TypeAlias

from tinylora.errors import NetworkError, SettingError, StorageError, TinyLoraError
from tinylora.ledger.lock import FolderLock
from tinylora_coordinator.backup.note import heed_note
from tinylora_coordinator.dashboard.access import Viewers
from tinylora_coordinator.folder import RunFolder, read_run
from tinylora_coordinator.keys import ServerIdentity, read_public, server_identity
from tinylora_coordinator.lifeline import PROGRESS, UP
from tinylora_coordinator.listening import listen
from tinylora_coordinator.public_address import PublicAddress
from tinylora_coordinator.restarts import MAX_DEATHS, WITHIN_S, Restarts
from tinylora_coordinator.served import forget_served, note_served

LINGER_S = 30.0
"""How long a finished run waits for its workers to notice."""
DASHBOARD_PORT = 8444
"""Of the operator's own listener; where another run has it, a free one is taken."""
ROUNDS_STOP_S, LINK_STOP_S = 5.0, 4.0
"""How long a child may take to stop before it is killed; both together are below ten seconds."""
_LOCK_PATIENCE_S, _ORPHANS_PATIENCE_S = 3.0, 30.0
"""How long a taken lock is waited for: a living supervisor's, and a dead one's, whose children may still load."""
_FINAL = (SettingError.exit_code, StorageError.exit_code)
"""Exit codes that another start would only repeat."""

Role: TypeAlias = Literal["link", "rounds"]


def say(line: str) -> None:
    """One line for the operator; stdout is kept for data."""
    print(line, file=sys.stderr, flush=True)


def serve(
    root: Path,
    *,
    host: str,
    port: int,
    insecure: bool = False,
    dashboard_port: int | None = DASHBOARD_PORT,
    viewers: Viewers = "anybody",
    bundle_every: int = 0,
    proxies: Sequence[str] = (),
    proxy_protocol: bool = False,
    linger_s: float = LINGER_S,
    log: Callable[[str], None] = say,
) -> None:
    """Serve the run in `root` until it is finished or SIGTERM or SIGINT comes; a second one ends it at once.

    Args:
        root: The run's folder.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        insecure: Plain HTTP instead of TLS.
        dashboard_port: Port of the operator's dashboard on 127.0.0.1; 0 takes a free one, None opens none.
        viewers: Who may look at the dashboard at the public address.
        bundle_every: Write a bundle after so many versions of the routers; 0: only when asked to.
        proxies: Addresses and networks of reverse proxies, who may say for whom they ask.
        proxy_protocol: They say it in a line of the PROXY protocol, not in a header.
        linger_s: How long a finished run waits for its workers to notice.
        log: Takes one line for people.

    Raises:
        SettingError: There is no run in `root`, or its settings are not those that it was begun with; or this is
            Windows, where sockets cannot be handed on as they are here.
        NetworkError: The address cannot be opened.
        StorageError: The folder cannot be written, or another coordinator serves it.
        TinyLoraError: A child died again and again; its last words stand before.
    """
    if os.name != "posix":
        raise SettingError("serve: the coordinator runs on Linux and macOS; on Windows use WSL. Workers run anywhere")
    folder = RunFolder(root)
    name = read_run(folder).settings.name
    with ExitStack() as held:
        lock = held.enter_context(_lock(root))
        heed_note(root, log)
        reached = read_public(folder.keys)
        hosts = [host] if reached is None or reached.by_proxy else [host, reached.host]
        identity = None if insecure else server_identity(folder.keys, hosts=hosts, now=datetime.now(UTC), say=log)
        front = Front(tuple(proxies), proxy_protocol, reached)
        public = held.enter_context(listen(host, port))
        inner = held.enter_context(listen("127.0.0.1", 0))
        local = None if dashboard_port is None else held.enter_context(_listen_locally(dashboard_port, log))
        place = Place(root, name, public, inner, local, lock.fileno(), identity, viewers, bundle_every, front)
        supervisor = Supervisor(place, held.enter_context(_signals()), linger_s=linger_s, log=log)
        held.callback(supervisor.kill)
        held.callback(forget_served, root)
        supervisor.run()


def _listen_locally(port: int, log: Callable[[str], None]) -> socket:
    """The operator's own listener. The usual port may be another run's, which is no reason not to serve this one."""
    try:
        return listen("127.0.0.1", port)
    except NetworkError:
        if port != DASHBOARD_PORT:
            raise
    log(f"127.0.0.1:{port} is in use, by another run's dashboard perhaps; this one takes a free port")
    return listen("127.0.0.1", 0)


def _lock(root: Path) -> FolderLock:
    """The folder's lock. An earlier supervisor that was killed leaves children, who hold it for a moment longer."""
    begun = time.monotonic()
    while True:
        try:
            return FolderLock(root / "lock", holder="coordinator")
        except StorageError:
            from tinylora_coordinator.desk import is_served  # it loads SQLAlchemy, which a start has no time for

            patience_s = _LOCK_PATIENCE_S if is_served(root) else _ORPHANS_PATIENCE_S
            if time.monotonic() - begun >= patience_s:
                raise
        time.sleep(0.1)


@dataclass(frozen=True)
class _Line:
    """A child said something, or died: then `word` is empty."""

    child: "Child"
    process: subprocess.Popen[str]
    word: str


@dataclass(frozen=True)
class _Signal:
    """Somebody wants us to stop."""


_News: TypeAlias = "queue.SimpleQueue[_Line | _Signal]"


@contextmanager
def _signals() -> Iterator[_News]:
    """What happens, with SIGTERM and Ctrl-C among it; a second of them interrupts at once."""
    news: _News = queue.SimpleQueue()

    def heard(number: int, _frame: object) -> None:
        news.put(_Signal())
        signal.signal(number, signal.default_int_handler)

    is_main = threading.current_thread() is threading.main_thread()
    old = {number: signal.signal(number, heard) for number in ((signal.SIGTERM, signal.SIGINT) if is_main else ())}
    try:
        yield news
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@dataclass(eq=False)
class Child:
    """One of the two processes, in its present or its next life."""

    role: Role
    root: Path
    fds: tuple[int, ...]
    restarts: Restarts = field(default_factory=Restarts)
    process: subprocess.Popen[str] | None = None
    started_at: float = 0.0
    start_at: float | None = 0.0
    """When it is to be started; None while it lives, and when it shall not live again."""
    is_up: bool = False
    spare: subprocess.Popen[str] | None = None

    def start(self, first: dict[str, Any], news: _News) -> None:
        """Begin a life, with the spare if there is one."""
        spare, self.spare = self.spare, None
        self.process = spare if spare is not None and spare.poll() is None else self._load()
        self.started_at, self.start_at, self.is_up = time.monotonic(), None, False
        threading.Thread(target=self._listen, args=(self.process, news), name=self.role, daemon=True).start()
        self.tell(**first)

    def prepare(self) -> None:
        """Have a spare for the next life."""
        if self.spare is None or self.spare.poll() is not None:
            self.spare = self._load()

    def _load(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", f"tinylora_coordinator.{self.role}_process", str(self.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=self.fds,
            process_group=0,  # Ctrl-C in a terminal is for the supervisor
        )

    def _listen(self, process: subprocess.Popen[str], news: _News) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                news.put(_Line(self, process, json.loads(line)["word"]))
        process.wait()
        _close_pipes(process)
        news.put(_Line(self, process, ""))

    def tell(self, **words: Any) -> None:
        """Say something to it, if it lives."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self.process.stdin.write(json.dumps(words) + "\n")
                self.process.stdin.flush()

    def stop(self, patience_s: float) -> None:
        """End its life, gently first."""
        self.start_at = None
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
        self.kill()

    def kill(self) -> None:
        """End its life, and the spare's."""
        for process in (self.process, self.spare):
            if process is not None:
                process.kill()
                process.wait()
                _close_pipes(process)


def _close_pipes(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was never written, to somebody who is dead
                pipe.close()


@dataclass(frozen=True)
class Front:
    """What stands between the public socket and the world."""

    proxies: tuple[str, ...] = ()
    """Addresses and networks of reverse proxies."""
    proxy_protocol: bool = False
    """They say in a line of the PROXY protocol for whom they ask, not in a header."""
    reached: PublicAddress | None = None
    """Where the run is reached, if that was said."""

    def for_link(self) -> dict[str, Any]:
        """What the link needs of it."""
        by_proxy = self.reached is not None and self.reached.by_proxy
        return {"proxies": list(self.proxies), "proxy_protocol": self.proxy_protocol, "by_proxy": by_proxy}


@dataclass(frozen=True)
class Place:
    """What the supervisor holds for its children."""

    root: Path
    name: str
    """The run's."""
    public: socket
    """Where everybody is heard."""
    inner: socket
    """Where the rounds reach the link."""
    local: socket | None
    """Where the operator's browser finds the dashboard, on this machine alone."""
    lock: int
    """Descriptor of the folder's lock; the children hold it too."""
    identity: ServerIdentity | None
    """The certificate; None in plain HTTP."""
    viewers: Viewers
    """Who may look at the public address."""
    bundle_every: int
    """A bundle is written after so many versions of the routers; 0: only when asked to."""
    front: Front
    """Who stands in front."""

    @property
    def sockets(self) -> tuple[socket, ...]:
        """All that the link serves."""
        return (self.public, self.inner) if self.local is None else (self.public, self.inner, self.local)

    @property
    def url(self) -> str:
        """Where this machine reaches it."""
        host, port = self.public.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, str(host))
        return f"{'https' if self.identity else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    def for_link(self) -> dict[str, Any]:
        """What the link needs of it."""
        known = self.identity
        return {
            "public_fd": self.public.fileno(),
            "inner_fd": self.inner.fileno(),
            "local_fd": None if self.local is None else self.local.fileno(),
            "viewers": self.viewers,
            "bundle_every": self.bundle_every,
            "certificate": None if known is None else str(known.certificate),
            "private_key": None if known is None else str(known.private_key),
            **self.front.for_link(),
        }

    def for_rounds(self) -> dict[str, Any]:
        """What the rounds need of it."""
        return {"link": "{}:{}".format(*self.inner.getsockname())}


class Supervisor:
    """Starts both children and waits for what happens to them.

    Args:
        place: The folder, the sockets.
        news: What happens.
        linger_s: How long a finished run waits for its workers to notice.
        log: Takes one line for people.
    """

    def __init__(self, place: Place, news: _News, *, linger_s: float, log: Callable[[str], None]) -> None:
        self._place, self._news, self._linger_s, self._log = place, news, linger_s, log
        self._secrets = {"admin": secrets.token_hex(32), "superexec_secret": secrets.token_hex(32)}
        self._phase = "running"
        self._link = Child("link", place.root, (*(each.fileno() for each in place.sockets), place.lock))
        self._rounds = Child("rounds", place.root, (place.lock,))
        self._n_links = 0

    @property
    def _children(self) -> tuple[Child, Child]:
        return self._link, self._rounds

    def run(self) -> None:
        """Until the run is finished, a signal comes, or a child cannot be helped.

        Raises:
            TinyLoraError: Of the class that the child's exit code names.
        """
        while True:
            self._start_due()
            happened = self._wait()
            if isinstance(happened, _Signal):
                self._stop()
                return
            if happened is not None and self._take(happened):
                return

    def _start_due(self) -> None:
        for child in self._children:
            if child.start_at is not None and child.start_at <= time.monotonic():
                child.start(self._first(child.role), self._news)

    def _first(self, role: Role) -> dict[str, Any]:
        if role == "rounds":
            return {**self._secrets, **self._place.for_rounds()}
        url = "" if self._n_links else self._place.url  # once it was seen that nothing else answers, it is known
        told = {"phase": self._phase, "linger_s": self._linger_s, "url": url}
        return {**self._secrets, **self._place.for_link(), **told}

    def _wait(self) -> "_Line | _Signal | None":
        due = [child.start_at for child in self._children if child.start_at is not None]
        wait_s = max(0.0, min(due) - time.monotonic()) if due else None
        try:
            return self._news.get(timeout=wait_s)
        except queue.Empty:
            return None

    def _take(self, line: _Line) -> bool:
        """React to a child; returns whether that was the end."""
        child = line.child
        if line.process is not child.process:
            return False
        if line.word == UP:
            self._is_up(child)
        elif line.word == PROGRESS:
            child.restarts.progress()
        elif not line.word:
            return self._died(child, line.process.returncode)
        return False

    def _is_up(self, child: Child) -> None:
        child.is_up = True
        if all(other.is_up for other in self._children):  # a spare that loads must not delay who is waited for
            self._link.prepare()
            self._rounds.prepare()
        if child is not self._link:
            return
        self._n_links += 1
        if self._n_links == 1:
            self._greet()
        else:
            self._rounds.tell(link=UP)

    def _greet(self) -> None:
        note_served(self._place.root, self._place.url)
        self._log(f"run {self._place.name}: serving {self._place.root} at {self._place.url}")
        if self._place.front.reached is not None:
            self._log(f"reached at {self._place.front.reached.url}")
        if self._place.local is not None:
            self._log(f"dashboard: http://127.0.0.1:{self._place.local.getsockname()[1]}/")
        self._log(f"`tinylora-coordinator token create {self._place.root}` lets a worker in")

    def _died(self, child: Child, code: int) -> bool:
        child.process = None
        if child is self._rounds and code == 0:
            self._phase = "finished"
            self._link.tell(phase="finished", linger_s=self._linger_s)
            return False
        if child is self._link and code == 0 and self._phase == "finished":
            return True
        if code in _FINAL:
            self._stop()
            raise _error(code, f"serve: the {child.role} process cannot go on; its reason stands above")
        wait_s = child.restarts.died(time.monotonic(), lived_s=time.monotonic() - child.started_at)
        if wait_s is None:
            self._stop()
            how = f"the {child.role} process died {MAX_DEATHS} times within {WITHIN_S:.0f} s ({_how(code)})"
            raise _error(code, f"serve: {how}; what it said stands above")
        self._log(f"the {child.role} process died ({_how(code)}); starting it again")
        child.start_at = time.monotonic() + wait_s
        return False

    def _stop(self) -> None:
        """The rounds first, then the link."""
        self._phase = "stopping" if self._phase == "running" else self._phase
        self._link.tell(phase=self._phase, linger_s=0.0)
        self._rounds.stop(ROUNDS_STOP_S)
        self._link.stop(LINK_STOP_S)
        if self._phase == "stopping":
            self._log(f"stopped; `tinylora-coordinator serve {self._place.root}` takes the run up again")

    def kill(self) -> None:
        """Leave nobody behind."""
        for child in self._children:
            child.kill()


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _error(code: int, sentence: str) -> TinyLoraError:
    kinds = [TinyLoraError, *TinyLoraError.__subclasses__()]
    return next((kind for kind in kinds if kind.exit_code == code), TinyLoraError)(sentence)
