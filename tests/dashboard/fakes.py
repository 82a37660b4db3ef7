"""Services that are made up: a run of four leaves that grows when told to, and an operator who remembers his orders."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.services import Services, Who

from tinylora.errors import RefusedError, SettingError

LEAVES = ("00", "01", "10", "11")
WORKER = "w-0123456789abcdef"
SHA256 = "ab" * 32


class FakeViews:
    """A log of numbers: each grows one leaf by a step and tells of it in the feed."""

    def __init__(self, leaves: tuple[str, ...] = LEAVES) -> None:
        inner = sorted({leaf[:end] for leaf in leaves for end in range(len(leaf))})
        self._lock = threading.Lock()
        self._wakes: list[Callable[[], None]] = []
        self._sequence = 0
        self._changed = dict.fromkeys(leaves, 0)
        self._nodes = {path: doc.Node(path=path, kind="inner", state="router") for path in inner}
        self._nodes |= {path: doc.Node(path=path, kind="leaf", state="working", holders=(WORKER,)) for path in leaves}
        self._worker = doc.Worker(worker=WORKER, name="quiet-otter", state="working", node=leaves[0])
        self._feed: list[doc.FeedItem] = []
        self.forgotten_before = 0
        self.n_patches = 0
        self.clock_s = 0.0

    @property
    def position(self) -> str:
        return f"e-{self._sequence}"

    @property
    def n_wakes(self) -> int:
        return len(self._wakes)

    def grow(self, n: int = 1) -> None:
        """That many things happen."""
        for _ in range(n):
            with self._lock:
                self._sequence += 1
                leaf = list(self._changed)[self._sequence % len(self._changed)]
                self._changed[leaf] = self._sequence
                node = self._nodes[leaf]
                self._nodes[leaf] = node.model_copy(update={"n_steps": node.n_steps + 1})
                self._feed.append(
                    doc.FeedItem(number=self._sequence, at_s=self._sequence, kind="update_accepted", text="\u2028 line")
                )
        for wake in list(self._wakes):
            wake()

    def _run(self) -> doc.Run:
        return doc.Run(run="fake", phase="running", n_events=self._sequence, clock_s=self.clock_s, n_leaves=4)

    def state(self) -> doc.State:
        with self._lock:
            nodes = tuple(self._nodes[path] for path in sorted(self._nodes))
            return doc.State(position=self.position, run=self._run(), nodes=nodes, workers=(self._worker,),
                             feed=tuple(self._feed[-20:]))  # fmt: skip

    def patch(self, since: str) -> doc.Patch | None:
        with self._lock:
            self.n_patches += 1
            epoch, _, number = since.partition("-")
            if epoch != "e" or not number.isdecimal() or not self.forgotten_before <= int(number) <= self._sequence:
                return None
            nodes = tuple(self._nodes[leaf] for leaf, at in self._changed.items() if at > int(number))
            feed = tuple(item for item in self._feed if item.number > int(number))
            return doc.Patch(before=since, position=self.position, run=self._run(), nodes=nodes, feed=feed)

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        self._wakes.append(wake)
        return lambda: self._wakes.remove(wake)

    def node(self, path: str) -> doc.NodeDetail | None:
        if path not in self._nodes:
            return None
        way = tuple(doc.Step(path=path[:end]) for end in range(len(path) + 1))
        return doc.NodeDetail(node=self._nodes[path], way=way, holders=(), updates=(), versions=())

    def worker(self, worker: str) -> doc.WorkerDetail | None:
        return doc.WorkerDetail(worker=self._worker, states=(), updates=()) if worker == WORKER else None

    def series(self, metric: doc.Metric, node: str | None, start_s: float, end_s: float, points: int) -> doc.Series:
        return doc.Series(metric=metric, node=node, bucket_s=1.0, t=(), mean=(), low=(), high=())

    def timeline(self, start_s: float, end_s: float, offset: int, limit: int) -> doc.Timeline:
        return doc.Timeline(start_s=start_s, end_s=end_s, lanes=(), n_lanes=0, offset=offset, marks=())

    def routing(self) -> doc.Routing:
        leaves = tuple(doc.LeafShare(path=leaf, mass=0.25) for leaf in LEAVES)
        return doc.Routing(source="tokens", leaves=leaves, gates=(), versions=())


class FakeLookUp:
    def __init__(self) -> None:
        self.reason = ""

    def why_not(self) -> str:
        return self.reason

    def __call__(self, text: str) -> doc.Lookup:
        return doc.Lookup(path="01", n_tokens=len(text.split()), gates=(), leaves=(), router_version=1)


class FakeArtifacts:
    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self.is_making = False

    def list(self, can_make: bool) -> doc.Artifacts:
        row = doc.BundleRow(sha256=SHA256, bytes=5, n_events=1, log_sha256="cd" * 32, router_version=1, at_s=1.0,
                            is_published=True, url=f"/api/v1/bundles/{SHA256}")  # fmt: skip
        leaf = doc.LeafFile(path="01", version=1, n_steps=1, url="/api/v1/leaves/01")
        return doc.Artifacts(bundles=(row,), leaves=(leaf,), is_making=self.is_making, can_make=can_make)

    def make(self) -> None:
        if self.is_making:
            raise RefusedError("a bundle is being written already")
        self.is_making = True

    def bundle(self, sha256: str) -> Path | None:
        return self._folder / "bundle" if self._folder and sha256 == SHA256 else None

    def leaf(self, path: str) -> Path | None:
        return self._folder / "leaf" if self._folder and path == "01" else None


class FakeAdmin:
    def __init__(self) -> None:
        self.orders: list[doc.OrderRow] = []
        self.approved: list[str] = []
        self.revoked: list[str] = []

    def state(self) -> doc.AdminState:
        return doc.AdminState(pending=(), orders=tuple(reversed(self.orders)))

    def order(self, request: doc.OrderRequest) -> doc.OrderRow:
        if request.kind in ("revoke", "release", "reassign") and request.worker != WORKER:
            raise SettingError("no worker of this run")
        self.orders.append(
            doc.OrderRow(order_id=str(len(self.orders)), kind=request.kind, worker=request.worker, given_unix_s=0)
        )
        return self.orders[-1]

    def approve(self, worker: str) -> None:
        if worker != WORKER:
            raise SettingError("nobody of this name waits")
        self.approved.append(worker)

    def tokens(self) -> doc.TokenList:
        return doc.TokenList(tokens=())

    def make_token(self, request: doc.TokenRequest, address: str) -> doc.NewToken:
        return doc.NewToken(token="secret", token_id="t1", expires_unix_s=1, max_workers=request.uses, command=address)

    def revoke_token(self, token_id: str) -> None:
        self.revoked.append(token_id)


class FakeAccess:
    """`Bearer viewer` and `Bearer admin` are what they say; who comes by the loopback listener is the operator."""

    cookie_name = "tinylora"

    def __init__(self, needs_token: bool = False) -> None:
        self.needs_token = needs_token
        self.revoked: set[str] = set()

    def who(self, headers: Mapping[str, str], is_local: bool) -> Who:
        if is_local:
            return Who("admin", is_local=True)
        word = headers.get("authorization", "").removeprefix("Bearer ")
        word = word or headers.get("cookie", "").removeprefix("tinylora=")
        if word in self.revoked:
            return Who("nobody")
        roles: dict[str, doc.Role] = {"viewer": "viewer", "admin": "admin"}
        return Who(roles.get(word, "nobody" if self.needs_token else "viewer"))

    def sign_in(self, token: str) -> tuple[str, str, int, Who] | None:
        roles: dict[str, doc.Role] = {"viewer": "viewer", "admin": "admin"}
        return (self.cookie_name, token, 60, Who(roles[token])) if token in roles else None


def join(address: str) -> doc.JoinInfo:
    return doc.JoinInfo(run="fake", address=address, command=f"tinylora-worker join {address}", base_id="base",
                        min_sequences=1, sent=("a",), never_sent=("b",), code="this package")  # fmt: skip


def fake_services(**changes: Any) -> Services:
    """All of the above, but for what is given."""
    made: dict[str, Any] = {"views": FakeViews(), "look_up": FakeLookUp(), "artifacts": FakeArtifacts(),
                            "admin": FakeAdmin(), "join": join, "access": FakeAccess()}  # fmt: skip
    return Services(**(made | changes))
