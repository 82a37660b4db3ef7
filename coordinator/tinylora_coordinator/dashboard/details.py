"""What the pages of single nodes and workers, the timeline and the charts ask for, in the projection's file.

unit          every unit from its lease to its end; the raw points of the series of nodes
stretch       who was at a node, by buckets of time: the timeline where it is too wide for single units
version, router, mark, state, line    as their names say
of_run, of_node, of_mass              rollups
"""

import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tinylora.tree import NodePath, is_under
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.fold import Changes
from tinylora_coordinator.dashboard.records import Unit, UnitChange
from tinylora_coordinator.dashboard.rollups import BELOW, Bucket, Grid, Rollup, Width, bucketed, grid, pieces

UNITS_KEPT = {"train": 500_000, "probe": 100_000, "sketch": 20_000}
VERSIONS_KEPT = 64
"""Of each node."""
ROUTERS_KEPT = 1_000
STATES_KEPT = 200_000
MARKS_KEPT = 100_000
LINES_KEPT = 200
"""Of each worker's log."""
SHOWN = 50
"""Rows of a list on a page."""
ROUTERS_SHOWN = 200
MOST_RAW = 4_000
"""Units that a question reads at most before it turns to a rollup."""
MOST_SPANS = 1_500
FEW_NAMES = 24
"""So many nodes are looked up one by one."""
MARK_BUCKETS = 100
PRUNE_EVERY = 8_192
"""Events."""
_STRETCHES = (256, 2_048, 16_384, 131_072)
_MARK_WIDTHS = (64, 512, 4_096, 32_768, 262_144)

_TABLES = """
CREATE TABLE unit (
    number INTEGER PRIMARY KEY, unit_id TEXT NOT NULL UNIQUE, worker TEXT NOT NULL, node TEXT NOT NULL,
    kind TEXT NOT NULL, state TEXT NOT NULL, leased_s REAL NOT NULL, closed_s REAL, reason TEXT NOT NULL,
    n_steps INTEGER NOT NULL, tokens INTEGER NOT NULL, seconds REAL NOT NULL, heldout_before REAL, heldout_after REAL,
    train_loss REAL, bytes_received INTEGER NOT NULL
);
CREATE INDEX unit_by_worker ON unit (worker, number);
CREATE INDEX unit_by_node ON unit (node, closed_s) WHERE kind = 'train';
CREATE INDEX unit_by_time ON unit (closed_s) WHERE kind = 'train';
CREATE TABLE stretch (
    node TEXT, width INTEGER, start INTEGER, worker TEXT NOT NULL, first_s REAL NOT NULL, last_s REAL NOT NULL,
    n_units INTEGER NOT NULL, outcome TEXT NOT NULL, PRIMARY KEY (node, width, start)
) WITHOUT ROWID;
CREATE TABLE version (
    node TEXT, slot INTEGER, version INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (node, slot)
) WITHOUT ROWID;
CREATE TABLE router (version INTEGER PRIMARY KEY, body TEXT NOT NULL, entropy_bits REAL);
CREATE TABLE mark (number INTEGER, part INTEGER, at_s REAL, kind TEXT, text TEXT, PRIMARY KEY (number, part));
CREATE INDEX mark_by_time ON mark (at_s);
CREATE TABLE marks (
    width INTEGER, start INTEGER, kind TEXT, at_s REAL, text TEXT, n INTEGER, PRIMARY KEY (width, start, kind)
) WITHOUT ROWID;
CREATE TABLE state (id INTEGER PRIMARY KEY, worker TEXT, state TEXT, reason TEXT, start_s REAL, end_s REAL);
CREATE INDEX state_by_worker ON state (worker, id);
CREATE TABLE line (id INTEGER PRIMARY KEY, worker TEXT, at_s REAL, text TEXT);
CREATE INDEX line_by_worker ON line (worker, id)
"""

_OUTCOMES: Mapping[str, Any] = {
    "leased": "working",
    "expired": "expired",
    "pending": "accepted",
    "accepted": "accepted",
    "dropped": "rejected",
    "rejected": "rejected",
}
_UNIT_COLUMNS = (
    "unit_id, worker, node, kind, state, leased_s, closed_s, reason, n_steps, tokens, seconds, heldout_before, "
    "heldout_after, bytes_received"
)
_RATES = ("tokens_per_s", "bytes_per_s")
_OF_RUN = ("loss", "train_loss", "tokens_per_s", "workers", "bytes_per_s", "progress", "entropy", "drift")
_OF_NODE = ("loss", "train_loss", "tokens_per_s")


def _of_run() -> Rollup:
    widths = Width(1, 7_200), Width(8, 7_200), Width(64, 7_200), Width(512), Width(4_096), Width(32_768)
    return Rollup("of_run", _OF_RUN, widths)


def _of_node() -> Rollup:
    widths = Width(256, 2_048), Width(2_048, 4_096), Width(16_384), Width(131_072)
    return Rollup("of_node", _OF_NODE, widths, has_sums=True)


def _of_mass() -> Rollup:
    widths = Width(2, 256), Width(32, 512), Width(256, 2_048), Width(2_048, 4_096), Width(16_384), Width(131_072)
    return Rollup("of_mass", ("mass",), widths)


def statements() -> list[str]:
    """What makes the tables."""
    return [*_TABLES.strip().split(";\n"), *(rollup().schema for rollup in (_of_run, _of_node, _of_mass))]


@dataclass
class Details:
    """Writes them in the transaction of a batch, and asks them."""

    of_run: Rollup = field(default_factory=_of_run)
    of_node: Rollup = field(default_factory=_of_node)
    of_mass: Rollup = field(default_factory=_of_mass)
    raw_from_s: float = 0.0
    """Units that were closed before this are not all there any more."""
    _n_since: int = PRUNE_EVERY

    # --- writing -----------------------------------------------------------------------------------------------------

    def write(self, database: sqlite3.Connection, changes: Changes, now_s: float, nodes: Sequence[NodePath]) -> None:
        """Write what a batch changed.

        Args:
            database: In whose transaction.
            changes: Of the batch.
            now_s: Time of its last event.
            nodes: Of the tree.
        """
        database.executemany(_INSERT_UNIT, [_unit_row(number, unit) for number, unit in changes.leased])
        for change in changes.closed:
            _close_unit(database, change)
        database.executemany(_UPSERT_STRETCH, list(_stretches(changes.ended)))
        _write_lists(database, changes)
        self._count(changes)
        for rollup in (self.of_run, self.of_node, self.of_mass):
            rollup.write(database)
        self._n_since += 1 + len(changes.leased)
        if self._n_since >= PRUNE_EVERY:
            self._n_since = 0
            self._prune(database, now_s, nodes)

    def _count(self, changes: Changes) -> None:
        for point in changes.points:
            if point.metric == "mass":
                self.of_mass.add("mass", point.node or "", point.at_s, point.value)
            elif point.node is None:
                self.of_run.add(point.metric, "", point.at_s, point.value)
            else:
                self.of_node.add(point.metric, point.node, point.at_s, point.value)
                if point.metric == "train_loss":
                    self.of_run.add("train_loss", "", point.at_s, point.value)
        for amount in changes.amounts:
            if amount.node is not None:
                self.of_node.spread(amount.metric, amount.node, amount.start_s, amount.end_s, amount.amount)
            self.of_run.spread(amount.metric, "", amount.start_s, amount.end_s, amount.amount)

    def _prune(self, database: sqlite3.Connection, now_s: float, nodes: Sequence[NodePath]) -> None:
        for rollup, names in ((self.of_run, ("",)), (self.of_node, nodes), (self.of_mass, nodes)):
            rollup.prune(database, now_s, names)
        for kind, n_kept in UNITS_KEPT.items():
            self._prune_units(database, kind, n_kept)
        for table, column, n_kept in (("state", "id", STATES_KEPT), ("mark", "number", MARKS_KEPT)):
            database.execute(
                f"DELETE FROM {table} WHERE {column} <= (SELECT {column} FROM {table} ORDER BY {column} DESC LIMIT 1 "
                "OFFSET ?)",
                (n_kept,),
            )

    def _prune_units(self, database: sqlite3.Connection, kind: str, n_kept: int) -> None:
        (n,) = database.execute("SELECT count(*) FROM unit WHERE kind = ?", (kind,)).fetchone()
        if n <= n_kept:
            return
        oldest = "SELECT number FROM unit WHERE kind = ? ORDER BY number LIMIT ?"
        if kind == "train":
            (latest_s,) = database.execute(
                f"SELECT max(closed_s) FROM unit WHERE number IN ({oldest})", (kind, n - n_kept)
            ).fetchone()
            self.raw_from_s = max(self.raw_from_s, latest_s or 0.0)
            database.execute("INSERT OR REPLACE INTO meta VALUES ('raw_from_s', ?)", (self.raw_from_s,))
        database.execute(f"DELETE FROM unit WHERE number IN ({oldest})", (kind, n - n_kept))

    # --- lists -------------------------------------------------------------------------------------------------------

    @staticmethod
    def updates_of_worker(database: sqlite3.Connection, worker: str) -> tuple[doc.UpdateRow, ...]:
        """The latest units of a worker, the newest first."""
        found = database.execute(
            f"SELECT {_UNIT_COLUMNS} FROM unit WHERE worker = ? ORDER BY number DESC LIMIT ?", (worker, SHOWN)
        )
        return tuple(map(_update_row, found))

    @staticmethod
    def updates_at(database: sqlite3.Connection, names: Sequence[NodePath]) -> tuple[doc.UpdateRow, ...]:
        """The latest train units on these nodes, the newest first.

        Where they are many nodes, as far as these units are among the latest of all.
        """
        found: dict[str, doc.UpdateRow] = {}
        for node in names if len(names) <= FEW_NAMES else ():
            for ending in ("closed_s IS NULL", "closed_s IS NOT NULL"):
                rows = database.execute(
                    f"SELECT {_UNIT_COLUMNS} FROM unit INDEXED BY unit_by_node WHERE kind = 'train' AND node = ? AND "
                    f"{ending} ORDER BY closed_s DESC LIMIT ?",
                    (node, SHOWN),
                )
                found |= {row.unit_id: row for row in map(_update_row, rows)}
        if len(names) > FEW_NAMES:
            rows = database.execute(
                f"SELECT {_UNIT_COLUMNS} FROM unit WHERE kind = 'train' ORDER BY number DESC LIMIT ?", (MOST_RAW // 4,)
            )
            wanted = set(names)
            mine = (row for row in rows if row[2] in wanted)
            found |= {row.unit_id: row for row in map(_update_row, itertools.islice(mine, SHOWN))}
        latest = sorted(
            found.values(), key=lambda row: (row.closed_s is None, row.closed_s or row.leased_s), reverse=True
        )
        return tuple(latest[:SHOWN])

    @staticmethod
    def versions(database: sqlite3.Connection, node: NodePath) -> tuple[doc.VersionRow, ...]:
        """The latest versions of a node, the newest first."""
        found = database.execute("SELECT body FROM version WHERE node = ? ORDER BY version DESC", (node,))
        return tuple(doc.VersionRow.model_validate_json(body) for (body,) in found)[:SHOWN]

    @staticmethod
    def routers(database: sqlite3.Connection) -> tuple[doc.RouterRow, ...]:
        """The latest versions of the routers, the newest last."""
        found = database.execute(
            "SELECT body, entropy_bits FROM router ORDER BY version DESC LIMIT ?", (ROUTERS_SHOWN,)
        ).fetchall()
        rows = [
            doc.RouterRow.model_validate_json(body).model_copy(update={"entropy_bits": bits}) for body, bits in found
        ]
        return tuple(reversed(rows))

    @staticmethod
    def states(database: sqlite3.Connection, worker: str) -> tuple[doc.StateSpan, ...]:
        """The latest states of a worker, the oldest first."""
        found = database.execute(
            "SELECT state, reason, start_s, end_s FROM state WHERE worker = ? ORDER BY id DESC LIMIT ?",
            (worker, 2 * SHOWN),
        ).fetchall()
        spans = [
            doc.StateSpan(state=state, reason=reason, start_s=start_s, end_s=end_s)
            for state, reason, start_s, end_s in found
        ]
        return tuple(reversed(spans))

    @staticmethod
    def lines(database: sqlite3.Connection, worker: str) -> tuple[doc.LogLine, ...]:
        """The latest lines of a worker's log, the oldest first."""
        found = database.execute(
            "SELECT at_s, text FROM line WHERE worker = ? ORDER BY id DESC LIMIT ?", (worker, LINES_KEPT)
        ).fetchall()
        return tuple(doc.LogLine(at_s=at_s, text=text) for at_s, text in reversed(found))

    # --- series ------------------------------------------------------------------------------------------------------

    def series(self, database: sqlite3.Connection, asked: "Question") -> doc.Series:
        """One number over time; of a metric that is none of a node's, or none of the run's, nothing is known."""
        over, found = grid(asked.start_s, asked.end_s, asked.points), list[Bucket]()
        if asked.node is None and asked.metric in _OF_RUN:
            over, found = _read(database, self.of_run, asked, ("",))
        elif asked.node is not None and asked.metric == "mass":
            over, found = _read(database, self.of_mass, asked, (asked.node,))
        elif asked.node is not None and asked.metric in _OF_NODE:
            raw = None if over.first * over.seconds < self.raw_from_s else _raw(database, asked, over)
            if raw is not None:
                found = bucketed(raw, over)
            else:
                own = [name for name in asked.names if is_under(asked.node, name)]
                over, found = _read(database, self.of_node, asked, (*own, asked.node + BELOW))
        if asked.metric in _RATES:
            found = _rates([*found, *_expected(asked, over)], over, asked.now_s)
        return doc.Series(
            metric=asked.metric,
            node=asked.node,
            bucket_s=over.seconds,
            t=tuple((bucket.place + 0.5) * over.seconds for bucket in found),
            mean=tuple(bucket.total / bucket.n for bucket in found),
            low=tuple(bucket.low for bucket in found),
            high=tuple(bucket.high for bucket in found),
        )

    # --- the timeline ------------------------------------------------------------------------------------------------

    def lanes(
        self,
        database: sqlite3.Connection,
        nodes: Sequence[NodePath],
        start_s: float,
        end_s: float,
        longest_s: float,
        open_units: Iterable[Unit],
        n_lanes: int,
    ) -> tuple[doc.Lane, ...]:
        """Who was at these nodes.

        Args:
            database: To read from.
            nodes: Of each a lane.
            start_s: Beginning.
            end_s: End.
            longest_s: No unit took longer.
            open_units: Leases that are open now.
            n_lanes: In all.
        """
        spans = self._single_spans(database, nodes, start_s, end_s, longest_s, n_lanes)
        if spans is None:
            width = next((w for w in _STRETCHES if len(nodes) * (end_s - start_s) / w <= MOST_SPANS), _STRETCHES[-1])
            spans = _read_stretches(database, nodes, width, start_s, end_s)
        for unit in open_units:
            if unit.node in spans and unit.leased_s <= end_s:
                spans[unit.node].append(doc.Span(worker=unit.worker, start_s=unit.leased_s))
        return tuple(doc.Lane.model_construct(path=node, spans=tuple(spans[node])) for node in nodes)

    def _single_spans(
        self,
        database: sqlite3.Connection,
        nodes: Sequence[NodePath],
        start_s: float,
        end_s: float,
        longest_s: float,
        n_lanes: int,
    ) -> dict[NodePath, list[doc.Span]] | None:
        """Each unit a span; None where they are too many, or not all there any more."""
        if start_s < self.raw_from_s or not nodes:
            return None
        likely = MOST_SPANS * n_lanes // len(nodes)  # of all lanes, if each had as many
        if _count_until(database, start_s, end_s, likely) > likely:
            return None
        found = database.execute(
            "SELECT node, worker, leased_s, closed_s, state FROM unit INDEXED BY unit_by_node WHERE kind = 'train' "
            f"AND {_names_in(nodes)} AND closed_s >= ? AND closed_s <= ? AND leased_s <= ? LIMIT ?",
            (*nodes, start_s, end_s + longest_s, end_s, MOST_SPANS + 1),
        ).fetchall()
        if len(found) > MOST_SPANS:
            return None
        spans: dict[NodePath, list[doc.Span]] = {node: [] for node in nodes}
        for node, worker, leased_s, closed_s, state in found:
            spans[node].append(_span(worker, leased_s, closed_s, _OUTCOMES[state]))
        return spans

    @staticmethod
    def marks(database: sqlite3.Connection, start_s: float, end_s: float) -> tuple[doc.Mark, ...]:
        """What concerned the whole run, in order; together where it would be too much."""
        found = database.execute(
            "SELECT at_s, kind, text, 1 FROM mark WHERE at_s >= ? AND at_s <= ? ORDER BY at_s LIMIT ?",
            (start_s, end_s, 2 * MARK_BUCKETS + 1),
        ).fetchall()
        if len(found) > 2 * MARK_BUCKETS:
            width = next((w for w in _MARK_WIDTHS if (end_s - start_s) / w <= MARK_BUCKETS), _MARK_WIDTHS[-1])
            found = database.execute(
                "SELECT at_s, kind, text, n FROM marks WHERE width = ? AND start >= ? AND start <= ? ORDER BY at_s",
                (width, start_s // width, end_s // width),
            ).fetchall()
        return tuple(
            doc.Mark.model_construct(at_s=at_s, kind=kind, text=text, count=n) for at_s, kind, text, n in found
        )


class Question(NamedTuple):
    """One number over time is asked for."""

    metric: doc.Metric
    node: NodePath | None
    """None: of the run."""
    names: tuple[NodePath, ...]
    """Nodes that units were ever given out on and whose units concern this one: itself, above it, below it."""
    start_s: float
    end_s: float
    points: int
    """Buckets, at most."""
    now_s: float
    """The run's clock."""
    longest_s: float = 0.0
    """No unit took longer."""
    under_way: tuple[tuple[float, float], ...] = ()
    """Of units that are not back yet: since when, and tokens per second by what their workers say."""


def _read(
    database: sqlite3.Connection, rollup: Rollup, asked: Question, names: Sequence[str]
) -> tuple[Grid, list[Bucket]]:
    return rollup.read(database, asked.metric, names, asked.start_s, asked.end_s, asked.points, asked.now_s)


def _raw(database: sqlite3.Connection, asked: Question, over: Grid) -> list[tuple[float, float]] | None:
    """Times and values from the units themselves; None where these are too many."""
    start_s, end_s = over.first * over.seconds, (over.last + 1) * over.seconds
    end_s += asked.longest_s if asked.metric == "tokens_per_s" else 0.0  # what was made within, and sent later
    are_few = len(asked.names) <= FEW_NAMES
    if not are_few and _count_until(database, start_s, end_s, MOST_RAW) > MOST_RAW:
        return None
    found = database.execute(
        "SELECT closed_s, heldout_after, train_loss, tokens, seconds, leased_s, node FROM unit "
        f"INDEXED BY {'unit_by_node' if are_few else 'unit_by_time'} WHERE kind = 'train' "
        f"AND {_names_in(asked.names) if are_few else '1'} AND closed_s >= ? AND closed_s < ? AND tokens > 0 LIMIT ?",
        (*(asked.names if are_few else ()), start_s, end_s, MOST_RAW + 1),
    ).fetchall()
    if len(found) > MOST_RAW:
        return None
    wanted = set(asked.names)
    found = [row for row in found if row[-1] in wanted]
    if asked.metric == "tokens_per_s":
        return [
            piece
            for closed_s, _, _, tokens, seconds, leased_s, _ in found
            for piece in pieces(max(leased_s, closed_s - seconds), closed_s, tokens, over.seconds)
        ]
    place = 1 if asked.metric == "loss" else 2
    return [(row[0], row[place]) for row in found if row[place] is not None]


def _names_in(names: Sequence[str]) -> str:
    return f"node IN ({', '.join('?' * len(names))})"


# --- rows ------------------------------------------------------------------------------------------------------------

_INSERT_UNIT = "INSERT OR REPLACE INTO unit VALUES (?, ?, ?, ?, ?, 'leased', ?, NULL, '', ?, 0, 0, NULL, NULL, NULL, 0)"
_UPSERT_STRETCH = """
INSERT INTO stretch VALUES (?, ?, ?, ?, ?, ?, 1, ?) ON CONFLICT (node, width, start) DO UPDATE SET
    outcome = CASE WHEN outcome = excluded.outcome AND worker = excluded.worker THEN outcome ELSE 'mixed' END,
    worker = excluded.worker, first_s = min(first_s, excluded.first_s), last_s = max(last_s, excluded.last_s),
    n_units = n_units + 1
"""
_COLUMNS = ("closed_s", "reason", "n_steps", "tokens", "seconds", "heldout_before", "heldout_after", "train_loss")


def _unit_row(number: int, unit: Unit) -> tuple[Any, ...]:
    return number, unit.unit_id, unit.worker, unit.node, unit.kind, unit.leased_s, unit.n_steps


def _close_unit(database: sqlite3.Connection, change: UnitChange) -> None:
    told = {name: value for name in (*_COLUMNS, "bytes_received") if (value := getattr(change, name)) is not None}
    columns = ", ".join(f"{name} = ?" for name in ("state", *told))
    states = ", ".join("?" * len(change.only_from))
    whose, worker = ("AND worker = ?", (change.worker,)) if change.worker is not None else ("", ())
    database.execute(
        f"UPDATE unit SET {columns} WHERE unit_id = ? AND state IN ({states}) {whose}",
        (change.state, *told.values(), change.unit_id, *change.only_from, *worker),
    )


def _stretches(ended: Iterable[tuple[Unit, float, str]]) -> Iterator[tuple[Any, ...]]:
    for unit, at_s, outcome in ended:
        for width in _STRETCHES:
            yield unit.node, width, int(at_s // width), unit.worker, unit.leased_s, at_s, outcome


def _write_lists(database: sqlite3.Connection, changes: Changes) -> None:
    database.executemany(
        "INSERT OR REPLACE INTO version VALUES (?, ?, ?, ?)",
        [(node, row.version % VERSIONS_KEPT, row.version, row.model_dump_json()) for _, node, row in changes.versions],
    )
    for row in changes.routers:
        database.execute("INSERT OR REPLACE INTO router VALUES (?, ?, NULL)", (row.version, row.model_dump_json()))
        database.execute("DELETE FROM router WHERE version < ?", (row.version - ROUTERS_KEPT,))
    for version, bits in changes.entropies:
        database.execute("UPDATE router SET entropy_bits = ? WHERE version = ?", (bits, version))
    for number, mark in changes.marks:
        database.execute(
            "INSERT OR REPLACE INTO mark VALUES (?, 0, ?, ?, ?)", (number, mark.at_s, mark.kind, mark.text)
        )
        database.executemany(
            "INSERT INTO marks VALUES (?, ?, ?, ?, ?, 1) ON CONFLICT (width, start, kind) DO UPDATE SET "
            "n = n + 1, text = excluded.text",
            [(width, int(mark.at_s // width), mark.kind, mark.at_s, mark.text) for width in _MARK_WIDTHS],
        )
    for worker, span in changes.states:
        database.execute(
            "UPDATE state SET end_s = ? WHERE id = (SELECT max(id) FROM state WHERE worker = ?)", (span.start_s, worker)
        )
        database.execute(
            "INSERT INTO state (worker, state, reason, start_s) VALUES (?, ?, ?, ?)",
            (worker, span.state, span.reason, span.start_s),
        )
    for worker, line in changes.lines:
        database.execute("INSERT INTO line (worker, at_s, text) VALUES (?, ?, ?)", (worker, line.at_s, line.text))
    for worker in {worker for worker, _ in changes.lines}:
        database.execute(
            "DELETE FROM line WHERE worker = ? AND id <= "
            "(SELECT id FROM line WHERE worker = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (worker, worker, LINES_KEPT),
        )


def _update_row(row: Sequence[Any]) -> doc.UpdateRow:
    names = [name.strip() for name in _UNIT_COLUMNS.split(",")]
    return doc.UpdateRow(**dict(zip(names, row, strict=True)))


def _read_stretches(
    database: sqlite3.Connection, nodes: Sequence[NodePath], width: int, start_s: float, end_s: float
) -> dict[NodePath, list[doc.Span]]:
    """Who was at these nodes, by stretches; those of one worker that follow on are one span."""
    found = database.execute(
        f"SELECT node, worker, first_s, last_s, outcome, n_units FROM stretch WHERE {_names_in(nodes)} AND width = ? "
        "AND start >= ? AND start <= ? AND first_s <= ? ORDER BY node, start",
        (*nodes, width, int(start_s // width), int(end_s // width) + 1, end_s),
    )
    rows: dict[NodePath, list[list[Any]]] = {node: [] for node in nodes}
    for node, worker, first_s, last_s, outcome, n_units in found:
        last = rows[node][-1] if rows[node] else None
        if last is not None and (last[0], last[3]) == (worker, outcome) and first_s - last[2] < width / 8:
            last[2], last[4] = last_s, last[4] + n_units
        else:
            rows[node].append([worker, first_s, last_s, outcome, n_units])
    return {node: [_span(*row) for row in mine] for node, mine in rows.items()}


def _span(worker: str, start_s: float, end_s: float, outcome: Any, n_units: int = 1) -> doc.Span:
    return doc.Span.model_construct(worker=worker, start_s=start_s, end_s=end_s, outcome=outcome, n_units=n_units)


def _count_until(database: sqlite3.Connection, start_s: float, end_s: float, most: int) -> int:
    """How many train units were closed in this time, or more than `most`."""
    (n,) = database.execute(
        "SELECT count(*) FROM (SELECT 1 FROM unit INDEXED BY unit_by_time WHERE kind = 'train' AND closed_s >= ? AND "
        "closed_s < ? LIMIT ?)",
        (start_s, end_s, most + 1),
    ).fetchone()
    return n


def _expected(asked: Question, over: Grid) -> list[Bucket]:
    """Tokens of units that are not back yet: without them, every curve would end in a fall."""
    if asked.metric != "tokens_per_s":
        return []
    found = [
        piece
        for start_s, tokens_per_s in asked.under_way
        for piece in pieces(start_s, asked.now_s, tokens_per_s * (asked.now_s - start_s), over.seconds)
        if start_s < asked.now_s
    ]
    return bucketed(found, over)


def _rates(found: Sequence[Bucket], asked: Grid, now_s: float) -> list[Bucket]:
    """Amounts over the time in which they were made; where nothing was made, nothing is the truth."""
    sums: dict[int, float] = {}
    for bucket in found:
        sums[bucket.place] = sums.get(bucket.place, 0.0) + bucket.total
    rates = []
    for index in range(min(sums, default=0), min(asked.last, int(now_s // asked.seconds)) + 1 if sums else 0):
        covered_s = max(1.0, min(asked.seconds, now_s - index * asked.seconds))
        rate = sums.get(index, 0.0) / covered_s
        rates.append(Bucket(index, 1, rate, rate, rate))
    return rates
