"""A run as people see it: a projection of its ledger, of workers' reports and of the operator's roster.

    fold.py        what each event changes of what is shown; pure
    shown.py       from the fold's records to the API's documents; pure
    views_file.py  where both lie between two starts, `views.sqlite`
    follower.py    feeds it from the ledger of a run that is being served

One thread feeds, any number ask. What is asked most, the snapshot and its changes, is answered from memory under a lock
that is held for microseconds; details are read from the file, which readers and the feeder use side by side.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from tinylora.federation.events import Event
from tinylora.protocol.report import WorkerReport
from tinylora.tree import are_in_line
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.details import Details, Question
from tinylora_coordinator.dashboard.fold import RunFold
from tinylora_coordinator.dashboard.records import Unit
from tinylora_coordinator.dashboard.shown import (
    Moving,
    moving,
    node_document,
    routing_document,
    run_document,
    run_now,
    worker_document,
    worker_now,
)
from tinylora_coordinator.dashboard.views_file import FEED_KEPT, Misfit, ViewsFile
from tinylora_coordinator.operator_store import Worker as Enrolled

FEED_SHOWN = 50
"""Items of the feed in a snapshot."""
PUBLISH_S, MOST_NEWS = 20.0, 500
"""What came in is written down after so long, or so much, also where nobody looks; more would make a reader wait."""
PATIENCE_S = 0.05
"""So long a reader waits for the feeder."""
AnyAnswer = TypeVar("AnyAnswer")
_NONE: frozenset[str] = frozenset()
_log = logging.getLogger(__name__)


class _Shown(NamedTuple):
    """What readers see; replaced as a whole, never changed."""

    seq: int
    run: doc.Run
    moves: Moving
    is_paused: bool
    open_units: tuple[Unit, ...]
    """Train units under way."""
    lanes: tuple[str, ...]
    longest_s: float
    mass_source: doc.MassSource
    nodes: dict[str, doc.Node]
    workers: dict[str, doc.Worker]
    node_seqs: dict[str, int]
    worker_seqs: dict[str, int]
    gone: frozenset[str]
    feed: tuple[tuple[int, doc.FeedItem], ...]


class RunViews:
    """The projection of one run. Implements `source.Views`.

    Feeders call `take`, `hear`, `enrolled`, `set_phase` and `set_clock`, and may come from any thread, one at a time.

    Args:
        file: Where it lies between two starts; made if it is not there, made anew if it is of another format, of
            another run, or damaged. None: nowhere.
        run: Name of the run.
        clock: Seconds; between two events it tells how far the run's own clock has gone on.
    """

    def __init__(self, file: Path | None, *, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._clock, self._path = run, clock, file
        self._feeding = threading.RLock()
        self._lock = threading.Lock()
        self._wakes: dict[object, Callable[[], None]] = {}
        self._phase: doc.Phase | None = None
        self._taus: dict[str, float] = {}
        self._told_clock_s: float | None = None
        self._replay_speed: float | None = None
        self._cache: dict[int, doc.Patch] = {}
        self.n_misfits = 0
        """Events that the fold could not take in."""
        self._open()

    # --- life --------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Go on with the file that is there, or with a new one."""
        try:
            self._file = ViewsFile(self._path)
            kept = self._file.read()
            if kept.fold.head.run not in ("", self._run):
                raise Misfit(f"of run {kept.fold.head.run}")
        except Misfit as misfit:
            _log.warning("%s is made anew: %s", self._path, misfit)
            self._remove()
            self._file = _made(self._path)
            kept = self._file.read()
        except OSError:
            self._file = ViewsFile(None)
            kept = self._file.read()
        self._details = Details(raw_from_s=kept.raw_from_s)
        self._is_damaged = False
        self._epoch, self._chain, self._fold = kept.epoch, kept.chain, kept.fold
        self._anchor = (self._clock(), kept.fold.head.latest_s)
        self._seq, self._is_behind, self._n_news, self._published_at = kept.seq, False, 0, self._clock()
        paths = [path for path in kept.nodes if path not in kept.gone]
        shown = [worker for name in sorted(kept.workers) if (worker := kept.fold.workers[name]).is_listed]
        self._shown = _Shown(
            kept.seq,
            run_document(kept.fold),
            moving(kept.fold),
            kept.fold.head.is_paused,
            _open_units(kept.fold),
            kept.fold.head.lanes,
            kept.fold.head.longest_s,
            kept.fold.head.mass_source,
            {path: node_document(kept.fold, path) for path in sorted(paths)},
            {worker.worker: worker_document(kept.fold, worker) for worker in shown},
            kept.nodes,
            kept.workers,
            frozenset(kept.gone),
            tuple(kept.feed),
        )

    def _remove(self) -> None:
        if self._path is None:
            return
        for ending in ("", "-wal", "-shm"):
            with suppress(OSError):
                self._path.with_name(self._path.name + ending).unlink(missing_ok=True)

    def reset(self) -> None:
        """Forget everything, because the ledger is another one than this was made of."""
        with self._feeding:
            with suppress(sqlite3.Error):
                self._file.close()
            self._remove()
            self._open()
            self._cache.clear()
            self._taus = {}
        self._wake()

    def close(self) -> None:
        """Let go of the file."""
        with self._feeding:
            if self._is_behind:
                self._publish()
            self._file.close()

    # --- feeding -----------------------------------------------------------------------------------------------------

    @property
    def n_events(self) -> int:
        """How many events of the ledger were taken in."""
        return self._fold.head.n_events

    @property
    def router_version(self) -> int:
        """Of the latest gates that were taken in; 0: there are none."""
        return self._fold.head.router_version

    @property
    def chain(self) -> str:
        """Hash of the ledger up to there, as it was told."""
        return self._chain

    def take(self, rows: Sequence[tuple[int, float, Event]], chain: str = "") -> None:
        """Take in further events.

        Args:
            rows: Number in the ledger, time of the row on the run's clock, event; numbers follow on.
            chain: Hash of the ledger up to the last of them.

        Raises:
            ValueError: A number does not follow on.
        """
        with self._feeding:
            for number, at_s, event in rows:
                if number != self.n_events + 1:
                    raise ValueError(f"event {number}: expected event {self.n_events + 1}")
                self._apply(number, at_s, event)
            if rows:
                self._chain = chain
                self._anchor = (self._clock(), self._fold.head.latest_s)
                self._note(len(rows))

    def _apply(self, number: int, at_s: float, event: Event) -> None:
        try:
            self._fold.apply(number, at_s, event)
        except Exception:  # what is shown may be wrong in a detail from here on; no page at all would be worse
            self.n_misfits += 1
            self._fold.head.n_events = number
            _log.exception("event %d (%s) was not understood", number, event.type)

    def hear(self, worker: str, report: WorkerReport, at_s: float | None = None) -> None:
        """Take in what a worker says of itself.

        Args:
            worker: Its id; whoever took the report in has checked that it came from it.
            report: What it said.
            at_s: When, on the run's clock; None: now.
        """
        with self._feeding:
            self._fold.hear(worker, report, self.clock_s if at_s is None else at_s)
            self._note()

    def enrolled(self, workers: Sequence[Enrolled]) -> None:
        """Take in whom the operator let in, who waits for that, and who was shut out."""
        with self._feeding:
            for worker in workers:
                self._fold.enrol(worker.worker, worker.name, worker.state, worker.tags, self.clock_s)
            if self._fold.changes.workers:
                self._note()

    def set_taus(self, taus: Mapping[str, float]) -> None:
        """Tell how sharp the gates of now are, by their nodes; where nobody tells that, it is not shown."""
        with self._feeding:
            if taus != self._taus:
                self._taus = {path: round(tau, 6) for path, tau in taus.items()}
                self._note()

    def set_phase(self, phase: doc.Phase) -> None:
        """Tell what the run is doing."""
        with self._feeding:
            if phase != self._phase:
                self._phase = phase
                self._note()

    def set_clock(self, clock_s: float, speed: float | None = None) -> None:
        """Set the run's clock, which then stands until it is set again: of a run that is played again.

        Args:
            clock_s: Seconds.
            speed: How fast it is played; 0: it stands.
        """
        with self._lock:
            self._told_clock_s = clock_s
            self._replay_speed = self._replay_speed or 0.0 if speed is None else speed

    @property
    def clock_s(self) -> float:
        """The run's clock now."""
        if self._told_clock_s is not None:
            return self._told_clock_s
        told_at, clock_s = self._anchor
        if self._phase in ("finished", "stopping") or self._fold.head.finished or not self.n_events:
            return clock_s
        return clock_s + max(0.0, self._clock() - told_at)

    def _note(self, n_news: int = 1) -> None:
        """Something is to be shown: made ready when somebody looks, or when much has come together.

        Two hundred workers say more in a second than anybody reads.
        """
        self._n_news += n_news
        with self._lock:
            self._seq, self._is_behind = self._seq + 1, True
        if self._n_news >= MOST_NEWS or abs(self._clock() - self._published_at) >= PUBLISH_S:
            self._publish()
        self._wake()

    def _now(self) -> _Shown:
        """What is shown, brought up to date; what it was, while a long batch is being taken in."""
        if self._is_behind and self._feeding.acquire(timeout=PATIENCE_S):
            try:
                if self._is_behind:
                    self._publish()
            finally:
                self._feeding.release()
        with self._lock:
            return self._shown

    def _publish(self) -> None:
        """Write down what was changed, then show it."""
        self._n_news, self._published_at = 0, self._clock()
        changes, before = self._fold.take_changes(), self._shown
        fold, seq = self._fold, self._seq
        nodes, gone = self._new_nodes(changes.nodes, changes.is_tree_new)
        workers = {
            name: worker_document(fold, fold.workers[name])
            for name in changes.workers
            if name in fold.workers and fold.workers[name].is_listed
        }
        workers = {name: one for name, one in workers.items() if before.workers.get(name) != one}
        try:
            if self._is_damaged:
                raise sqlite3.DatabaseError("it was found damaged")
            self._file.write(
                fold,
                changes,
                seq=seq,
                chain=self._chain,
                nodes=list(nodes),
                gone=list(gone),
                more=lambda database: self._details.write(database, changes, fold.head.latest_s, tuple(before.nodes)),
            )
        except sqlite3.Error as error:
            _log.warning("%s cannot be written (%s); it is made anew", self._file.file, error)
            self.reset()
            return
        feed = (*before.feed, *((seq, item) for item in changes.feed))[-FEED_KEPT:]
        after = _Shown(
            seq,
            run_document(fold),
            moving(fold),
            fold.head.is_paused,
            _open_units(fold),
            fold.head.lanes,
            fold.head.longest_s,
            fold.head.mass_source,
            _with(before.nodes, nodes, gone),
            _with(before.workers, workers),
            _with(before.node_seqs, dict.fromkeys((*nodes, *gone), seq)),
            _with(before.worker_seqs, dict.fromkeys(workers, seq)),
            (before.gone | gone) - nodes.keys(),
            feed,
        )
        with self._lock:
            self._shown, self._is_behind = after, False
            self._cache = {}

    def _new_nodes(self, touched: set[str], is_tree_new: bool) -> tuple[dict[str, doc.Node], frozenset[str]]:
        """Nodes of which something else is shown than before, and those that are no more."""
        fold, before = self._fold, self._shown
        tree = {*fold.leaves, *fold.inner} if is_tree_new else None
        gone = frozenset(before.nodes.keys() - tree) if tree is not None else frozenset()
        present = touched & tree if tree is not None else {path for path in touched if path in before.nodes}
        made = {path: node_document(fold, path) for path in present}
        return {path: node for path, node in made.items() if before.nodes.get(path) != node}, gone

    def _wake(self) -> None:
        with self._lock:
            wakes = list(self._wakes.values())
        for wake in wakes:
            wake()

    # --- the snapshot and its changes --------------------------------------------------------------------------------

    @property
    def position(self) -> str:
        """`<epoch>-<sequence>`."""
        with self._lock:
            return self._position(self._seq)

    def _position(self, seq: int) -> str:
        return f"{self._epoch}-{seq}"

    def state(self) -> doc.State:
        """Everything that the overview shows."""
        shown = self._now()
        now_s = self.clock_s
        return doc.State.model_construct(
            position=self._position(shown.seq),
            run=self._head(shown),
            nodes=tuple(shown.nodes.values()),
            workers=tuple(worker_now(worker, now_s) for worker in shown.workers.values()),
            feed=tuple(item for _, item in shown.feed[-FEED_SHOWN:]),
        )

    def patch(self, since: str) -> doc.Patch | None:
        """All that changed since a position; None where that is not known any more, or was of another epoch."""
        epoch, _, number = since.rpartition("-")
        if epoch != self._epoch or not number.isascii() or not number.isdecimal() or len(number) > 18:
            return None
        shown = self._now()
        with self._lock:
            cached = self._cache.get(int(number)) if shown is self._shown else None
        if cached is None:
            cached = self._changed(shown, int(number))
            if cached is None:
                return None
            with self._lock:
                if shown is self._shown and len(self._cache) < 64:
                    self._cache[int(number)] = cached
        workers = tuple(worker_now(worker, self.clock_s) for worker in cached.workers)
        return cached.model_copy(update={"run": self._head(shown), "workers": workers})

    def _changed(self, shown: _Shown, since: int) -> doc.Patch | None:
        feed = tuple(item for seq, item in shown.feed if seq > since)
        if since > self._seq or (len(feed) == len(shown.feed) >= FEED_KEPT):
            return None
        changed = [path for path, seq in shown.node_seqs.items() if seq > since]
        return doc.Patch.model_construct(
            before=self._position(since),
            position=self._position(max(shown.seq, since)),
            nodes=tuple(shown.nodes[path] for path in sorted(changed) if path in shown.nodes),
            gone=tuple(path for path in sorted(changed) if path in shown.gone),
            workers=tuple(shown.workers[name] for name, seq in shown.worker_seqs.items() if seq > since),
            feed=feed,
        )

    def _head(self, shown: _Shown) -> doc.Run:
        """The head of every page, now."""
        return run_now(
            shown.run,
            shown.moves,
            self.clock_s,
            run=self._run,
            phase=self._phase_now(shown),
            is_replay=self._told_clock_s is not None,
            replay_speed=self._replay_speed or 0.0,
        )

    def _phase_now(self, shown: _Shown) -> doc.Phase:
        """The ledger's word on a pause and on the end, because it is heard first; else what was told."""
        if shown.run.finished or self._phase == "finished":
            return "finished"
        if self._phase == "stopping":
            return "stopping"
        if shown.is_paused:
            return "paused"
        return "running" if shown.run.n_leaves else "waiting"

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake`, from any thread, whenever the position has grown; what is returned ends that."""
        key = object()
        with self._lock:
            self._wakes[key] = wake

        def end() -> None:
            with self._lock:
                self._wakes.pop(key, None)

        return end

    # --- details -----------------------------------------------------------------------------------------------------

    def node(self, path: str) -> doc.NodeDetail | None:
        """One node; None where the tree has none of that path."""
        shown = self._now()
        if path not in shown.nodes:
            return None
        node, now_s, taus = shown.nodes[path], self.clock_s, self._taus
        way = [shown.nodes[path[:level]] for level in range(len(path) + 1)]
        names, top = _concerned(shown, path), self._fold.top_of(path)
        updates, versions = self._ask(
            lambda database: (
                self._details.updates_at(database, names),
                self._details.versions(database, path if top is None else top),
            ),
            ((), ()),
        )
        holders = [worker_now(shown.workers[name], now_s) for name in node.holders if name in shown.workers]
        return doc.NodeDetail(
            node=node,
            way=tuple(_step(one, taus) for one in way),
            holders=tuple(holders),
            updates=updates,
            versions=versions,
        )

    def worker(self, worker: str) -> doc.WorkerDetail | None:
        """One worker; None where nobody knows it."""
        known = self._now().workers.get(worker)
        record = self._fold.workers.get(worker)
        if known is None or record is None:
            return None
        states, updates, lines = self._ask(
            lambda database: (
                self._details.states(database, worker),
                self._details.updates_of_worker(database, worker),
                self._details.lines(database, worker),
            ),
            ((), (), ()),
        )
        return doc.WorkerDetail(
            worker=worker_now(known, self.clock_s),
            states=states,
            updates=updates,
            limits=dict(record.report.limits) if record.report else {},
            log=lines,
        )

    def series(self, metric: doc.Metric, node: str | None, start_s: float, end_s: float, points: int) -> doc.Series:
        """One number over time, in at most so many buckets; the first and the last may stick out of the time."""
        shown = self._now()
        now_s = self.clock_s
        names = () if node is None else _concerned(shown, node)
        end_s = max(start_s, min(end_s, now_s))
        paces = _under_way(shown, names, node is None)
        asked = Question(metric, node, names, start_s, end_s, points, now_s, shown.longest_s, paces)
        nothing = doc.Series(metric=metric, node=node, bucket_s=1.0, t=(), mean=(), low=(), high=())
        return self._ask(lambda database: self._details.series(database, asked), nothing)

    def timeline(self, start_s: float, end_s: float, offset: int, limit: int) -> doc.Timeline:
        """Who was at which node when: a lane for each node that anybody ever held."""
        shown = self._now()
        end_s = max(start_s, min(end_s, self.clock_s))
        nodes = shown.lanes[offset : offset + limit]
        lanes, marks = self._ask(
            lambda database: (
                self._details.lanes(
                    database, nodes, start_s, end_s, shown.longest_s, shown.open_units, len(shown.lanes)
                ),
                self._details.marks(database, start_s, end_s),
            ),
            ((), ()),
        )
        return doc.Timeline.model_construct(
            start_s=start_s, end_s=end_s, lanes=lanes, n_lanes=len(shown.lanes), offset=offset, marks=marks
        )

    def routing(self) -> doc.Routing:
        """Where the text goes."""
        shown = self._now()
        versions = self._ask(self._details.routers, ())
        return routing_document(shown.nodes, shown.workers, shown.mass_source, versions, self._taus)

    def _ask(self, question: Callable[[sqlite3.Connection], AnyAnswer], nothing: AnyAnswer) -> AnyAnswer:
        """Read from the file; a damaged one says nothing, and is made anew with the next event."""
        try:
            with self._file.reading() as database:
                return question(database)
        except sqlite3.Error as error:
            _log.warning("%s: %s", self._file.file, error)
            self._is_damaged = True
            return nothing


def _step(node: doc.Node, taus: Mapping[str, float]) -> doc.Step:
    tau = taus.get(node.path) if node.kind == "inner" else None
    return doc.Step(path=node.path, mass=node.mass, accuracy=node.accuracy, tau=tau)


def _concerned(shown: _Shown, path: str) -> tuple[str, ...]:
    """Nodes that somebody held at any time and whose units concern this one."""
    return tuple(lane for lane in shown.lanes if are_in_line(lane, path))


def _with(
    before: dict[str, AnyAnswer], new: dict[str, AnyAnswer], gone: frozenset[str] = _NONE
) -> dict[str, AnyAnswer]:
    """The same with other entries, sorted; what readers hold is never changed."""
    if not new and not gone:
        return before
    if gone or not new.keys() <= before.keys():
        return dict(sorted((name, item) for name, item in {**before, **new}.items() if name not in gone))
    return {**before, **new}


def _under_way(shown: _Shown, names: tuple[str, ...], is_run: bool) -> tuple[tuple[float, float], ...]:
    """Since when units are under way, and at which pace."""
    paces = []
    for unit in shown.open_units:
        worker = shown.workers.get(unit.worker)
        is_at_work = worker is not None and worker.state == "working" and worker.tokens_per_s
        if worker is not None and is_at_work and (is_run or unit.node in names):
            paces.append((unit.leased_s, worker.tokens_per_s or 0.0))
    return tuple(paces)


def _open_units(fold: RunFold) -> tuple[Unit, ...]:
    return tuple(unit for unit in fold.units.values() if unit.kind == "train" and not unit.is_pending)


def _made(path: Path | None) -> ViewsFile:
    """A new file there, or if that cannot be, elsewhere."""
    try:
        return ViewsFile(path)
    except (Misfit, OSError):
        return ViewsFile(None)
