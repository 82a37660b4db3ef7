"""Numbers over time in buckets of several widths, so that a question over any time reads a few thousand rows.

Each bucket holds how many values fell into it, their sum, the lowest and the highest; of amounts, such as tokens, the
sum alone means something. A coarser width is made of the finer one when a batch is written. Where a width has a bound,
older buckets of it are dropped, and the next coarser one answers.
"""

import math
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Cell = list[float]
"""Of each metric in turn: number, sum, lowest, highest."""
BELOW = "*"
MOST_PIECES = 128
"""Into which an amount is cut at most, when it is spread over the time in which it was made."""


class Width(NamedTuple):
    """One width of buckets."""

    seconds: int
    n_kept: int | None = None
    """Buckets that are kept, back from now; None: all."""


class Bucket(NamedTuple):
    """What is known of one stretch of time."""

    place: int
    """The stretch begins at `place` times its length."""
    n: int
    total: float
    low: float
    high: float


class Grid(NamedTuple):
    """Stretches of time of equal length."""

    seconds: float
    first: int
    last: int
    """Number of the last one, which is one of them."""


def grid(start_s: float, end_s: float, points: int, step_s: float = 1.0) -> Grid:
    """The shortest stretches, a multiple of `step_s`, of which at most `points` cover the time."""
    n_steps = max(1, math.ceil((end_s - start_s) / points / step_s))
    while math.floor(end_s / (n_steps * step_s)) - math.floor(start_s / (n_steps * step_s)) >= points:
        n_steps += 1
    length_s = n_steps * step_s
    return Grid(length_s, math.floor(start_s / length_s), math.floor(end_s / length_s))


@dataclass
class Rollup:
    """A table of buckets: of each node (or of the run, whose name is empty), all metrics side by side.

    Args:
        table: Its name in the file.
        metrics: What is counted.
        widths: The finest first, each a multiple of the one before.
        has_sums: Whether there are sums over all that is below a node, too, under the node's name with `BELOW`.
    """

    table: str
    metrics: tuple[str, ...]
    widths: tuple[Width, ...]
    has_sums: bool = False
    _cells: dict[tuple[str, int], Cell] = field(default_factory=dict)

    @property
    def schema(self) -> str:
        """The statement that makes the table."""
        columns = ", ".join(f"{metric}_{part} REAL" for metric in self.metrics for part in _PARTS)
        return (
            f"CREATE TABLE {self.table} (node TEXT, width INTEGER, start INTEGER, {columns}, "
            "PRIMARY KEY (node, width, start)) WITHOUT ROWID"
        )

    # --- taking in ---------------------------------------------------------------------------------------------------

    def add(self, metric: str, node: str, at_s: float, value: float) -> None:
        """Count one value."""
        key = node, int(at_s // self.widths[0].seconds)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = [0.0, 0.0, math.inf, -math.inf] * len(self.metrics)
        place = 4 * self.metrics.index(metric)
        cell[place] += 1
        cell[place + 1] += value
        cell[place + 2] = min(cell[place + 2], value)
        cell[place + 3] = max(cell[place + 3], value)

    def spread(self, metric: str, node: str, start_s: float, end_s: float, amount: float) -> None:
        """Count an amount in equal pieces over the time in which it was made."""
        for at_s, piece in pieces(start_s, end_s, amount, self.widths[0].seconds):
            self.add(metric, node, at_s, piece)

    def write(self, database: sqlite3.Connection) -> None:
        """Write what was counted since, at all widths."""
        cells, self._cells = self._cells, {}
        if not cells:
            return
        if self.has_sums:
            cells |= _merged(
                (node[:level] + BELOW, start, cell)
                for (node, start), cell in cells.items()
                for level in range(len(node))
            )
        finer_s = self.widths[0].seconds
        for width in self.widths:
            ratio = width.seconds // finer_s
            if ratio > 1:
                cells = _merged((node, start // ratio, cell) for (node, start), cell in cells.items())
            finer_s = width.seconds
            rows = [(node, width.seconds, start, *map(_finite, cell)) for (node, start), cell in cells.items()]
            database.executemany(self._upsert, rows)

    def prune(self, database: sqlite3.Connection, now_s: float, nodes: Iterable[str]) -> None:
        """Drop the buckets of these nodes that are older than their width is kept."""
        for width in self.widths:
            if width.n_kept is not None and (before := self._first_kept(width, now_s)) > 0:
                database.executemany(
                    f"DELETE FROM {self.table} WHERE node = ? AND width = ? AND start < ?",
                    [(node, width.seconds, before) for node in nodes],
                )

    # --- asking ------------------------------------------------------------------------------------------------------

    def read(
        self,
        database: sqlite3.Connection,
        metric: str,
        names: Sequence[str],
        start_s: float,
        end_s: float,
        points: int,
        now_s: float,
    ) -> tuple[Grid, list[Bucket]]:
        """Buckets of one metric that have something, at most `points`, of which the first and the last may stick out.

        Args:
            database: To read from.
            metric: Which.
            names: Of which rows, taken together; an empty name is the run's.
            start_s: Of the stretch of time that is asked for.
            end_s: Its end.
            points: At most so many.
            now_s: The run's clock: what is older than a width is kept is read from a coarser one.
        """
        width = self._choose(start_s, end_s, points, now_s)
        asked = grid(start_s, end_s, points, width.seconds)
        ratio = round(asked.seconds / width.seconds)
        found = database.execute(
            f"SELECT start / ?, sum({metric}_n), sum({metric}_total), min({metric}_low), max({metric}_high) "
            f"FROM {self.table} WHERE node IN ({', '.join('?' * len(names))}) AND width = ? "
            f"AND start >= ? AND start < ? AND {metric}_n > 0 GROUP BY 1 ORDER BY 1",
            (ratio, *names, width.seconds, asked.first * ratio, (asked.last + 1) * ratio),
        )
        return asked, [Bucket(int(index), int(n), total, low, high) for index, n, total, low, high in found]

    def _choose(self, start_s: float, end_s: float, points: int, now_s: float) -> Width:
        """The coarsest width that is fine enough, or a coarser one where that one does not reach back so far."""
        wanted_s = (end_s - start_s) / points
        fine = [width for width in self.widths if width.seconds <= wanted_s] or [self.widths[0]]
        for width in self.widths[self.widths.index(fine[-1]) :]:
            if width.n_kept is None or start_s >= self._first_kept(width, now_s) * width.seconds:
                return width
        return self.widths[-1]

    @staticmethod
    def _first_kept(width: Width, now_s: float) -> int:
        return int(now_s // width.seconds) - (width.n_kept or 0) + 1

    @property
    def _upsert(self) -> str:
        columns = [f"{metric}_{part}" for metric in self.metrics for part in _PARTS]
        return (
            f"INSERT INTO {self.table} VALUES (?, ?, ?, {', '.join('?' * len(columns))}) "
            f"ON CONFLICT (node, width, start) DO UPDATE SET {', '.join(map(_merge_column, columns))}"
        )


_PARTS = ("n", "total", "low", "high")


def pieces(start_s: float, end_s: float, amount: float, step_s: float) -> list[tuple[float, float]]:
    """An amount in equal pieces, each at the middle of its part of the time; pieces of about `step_s`."""
    n = min(MOST_PIECES, max(1, math.ceil((end_s - start_s) / step_s)))
    length_s = (end_s - start_s) / n
    return [(start_s + (piece + 0.5) * length_s, amount / n) for piece in range(n)]


def _merge_column(column: str) -> str:
    if column.endswith(("_n", "_total")):
        return f"{column} = {column} + excluded.{column}"
    function = "min" if column.endswith("_low") else "max"
    return f"{column} = coalesce({function}({column}, excluded.{column}), {column}, excluded.{column})"


def _merged(items: Iterable[tuple[str, int, Cell]]) -> dict[tuple[str, int], Cell]:
    merged: dict[tuple[str, int], Cell] = {}
    for node, start, cell in items:
        known = merged.get((node, start))
        if known is None:
            merged[node, start] = list(cell)
            continue
        for place in range(0, len(cell), 4):
            known[place] += cell[place]
            known[place + 1] += cell[place + 1]
            known[place + 2] = min(known[place + 2], cell[place + 2])
            known[place + 3] = max(known[place + 3], cell[place + 3])
    return merged


def _finite(number: float) -> float | None:
    """Nothing in place of the lowest of nothing."""
    return number if math.isfinite(number) else None


def bucketed(values: Sequence[tuple[float, float]], over: Grid) -> list[Bucket]:
    """The same from the values themselves, (time, value)."""
    found: dict[int, list[float]] = {}
    for at_s, value in values:
        found.setdefault(math.floor(at_s / over.seconds), []).append(value)
    return [
        Bucket(index, len(here), math.fsum(here), min(here), max(here))
        for index, here in sorted(found.items())
        if over.first <= index <= over.last
    ]
