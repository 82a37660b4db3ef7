"""The dashboard's projection at full size: what queries, intake and the file cost.

    python -m benchmarks.dashboard_views [--updates 100] [--copies 9] [--leaves 512] [--workers 200]

Synthetic events, without tensors: a tree of 512 leaves (1,023 nodes) and 200 workers. A hundred accepted updates of
each leaf are taken in as events; what they left in the tables is then copied nine times into the time before, so that
a million values of losses lie there. Times are of the process (CPU), so that other work on the machine counts little.
"""

import argparse
import json
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.views import RunViews

from tinylora.config import BaseFacts, ProjectionShape, RunSettings
from tinylora.federation import events as ev
from tinylora.protocol.documents import ProbeResult
from tinylora.protocol.report import WorkerReport
from tinylora.tree import Topology

BATCH = 500
UNIT_EVERY_S = 0.1
"""Between two accepted updates, of whichever leaf."""
ZERO = "0" * 64
Row = tuple[int, float, ev.Event]


def main() -> None:
    """Build, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100, help="accepted train updates per leaf, as events")
    parser.add_argument("--copies", type=int, default=9, help="further ones, copied in the file")
    parser.add_argument("--leaves", type=int, default=512)
    parser.add_argument("--workers", type=int, default=200)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "views.sqlite"
        print(json.dumps(measure(file, asked.leaves, asked.workers, asked.updates, asked.copies), indent=1))


def measure(file: Path, n_leaves: int, n_workers: int, n_updates: int, n_copies: int) -> dict[str, Any]:
    """All numbers: milliseconds of each question (cold, median warm), events per second, bytes."""
    views = RunViews(file, run="big", clock=lambda: 0.0)
    n_events, spent_s, longest_s = 0, 0.0, 0.0
    batch: list[Row] = []
    start_s = n_copies * n_updates * n_leaves * UNIT_EVERY_S
    for row in rows(n_leaves, n_workers, n_updates, start_s):
        batch.append(row)
        if len(batch) == BATCH:
            took_s = _timed(lambda given=tuple(batch): views.take(given))
            n_events, spent_s, longest_s = n_events + len(batch), spent_s + took_s, max(longest_s, took_s)
            batch.clear()
    views.take(batch)
    report = WorkerReport.model_validate({"state": "working", "gpu": "GeForce", "tokens_per_s": 900.0})
    hear_s = min(_timed(lambda at=at: _told(views, report, float(at))) for at in range(20))
    single_s = min(_timed(lambda n=n: _take_one(views, n)) for n in range(20))
    n_units = copy(file, n_copies, n_updates * n_leaves * UNIT_EVERY_S)
    answers = ask(views, n_leaves)
    views.close()
    open_s = _timed(lambda: RunViews(file, run="big", clock=lambda: 0.0).close())
    return {
        "events": n_events,
        "units": n_units,
        "events_per_s": round(n_events / spent_s),
        "batch_ms": {"events": BATCH, "mean": _ms(spent_s / n_events * BATCH), "longest": _ms(longest_s)},
        "one_event_ms": _ms(single_s),
        "one_report_ms": _ms(hear_s),
        "reopen_ms": _ms(open_s),
        "file_mb": round(sum(one.stat().st_size for one in file.parent.iterdir()) / 1e6, 1),
        "misfits": views.n_misfits,
        **answers,
    }


def _take_one(views: RunViews, n: int) -> None:
    at_s = views.clock_s
    views.take([(views.n_events + 1, at_s, ev.WorkerLost(worker=f"w{n}", at_s=at_s))])
    views.state()


def _told(views: RunViews, report: WorkerReport, at_s: float) -> None:
    views.hear("w7", report, at_s)
    views.state()


def copy(file: Path, n_copies: int, length_s: float) -> int:
    """Repeat what the tables hold before its time, so many times; returns the number of units then."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        for number in range(1, n_copies + 1):
            back_s = number * length_s
            database.execute(
                "INSERT INTO unit SELECT -number - ? * 10000000, unit_id || 'c' || ?, worker, node, kind, state, "
                "leased_s - ?, closed_s - ?, reason, n_steps, tokens, seconds, heldout_before, heldout_after, "
                "train_loss, bytes_received FROM unit WHERE number > 0 AND closed_s IS NOT NULL",
                (number, number, back_s, back_s),
            )
            for table in ("of_run", "of_node", "of_mass", "stretch"):
                columns = [str(row[1]) for row in database.execute(f"PRAGMA table_info({table})")]
                moved = {"start": "start - CAST(round(? / width) AS INTEGER)"}
                moved |= {name: f"{name} - ?" for name in ("first_s", "last_s") if name in columns}
                values = ", ".join(moved.get(name) or name for name in columns)
                database.execute(
                    f"INSERT OR IGNORE INTO {table} SELECT {values} FROM {table} WHERE start * width >= ?",
                    (*[back_s] * len([name for name in columns if name in moved]), n_copies * length_s),
                )
        (n,) = database.execute("SELECT count(*) FROM unit").fetchone()
    return n


# --- questions -------------------------------------------------------------------------------------------------------


def ask(views: RunViews, n_leaves: int) -> dict[str, Any]:
    """Milliseconds of every kind of question, the first time and the median of further ones; the slowest of all."""
    now_s, depth = views.clock_s, n_leaves.bit_length() - 1
    nodes = {"leaf": "01" * (depth // 2) + "0" * (depth % 2), "inner": "010", "root": ""}
    ranges = {"all": (0.0, 1e12), "tenth": (now_s * 0.4, now_s * 0.5), "hour": (now_s - 3600.0, now_s)}
    questions: dict[str, Callable[[], object]] = {
        "state": views.state,
        "patch of all": lambda: views.patch(views.position.split("-")[0] + "-0"),
        "patch of the last change": lambda: views.patch(_before(views.position)),
        "routing": views.routing,
        "worker": lambda: views.worker("w7"),
    }
    for name, path in nodes.items():
        questions[f"node {name}"] = lambda path=path: views.node(path)
    for name, (start_s, end_s) in ranges.items():
        for limit in (64, 128):
            questions[f"timeline {limit} {name}"] = lambda a=start_s, b=end_s, n=limit: views.timeline(a, b, 0, n)
        for points in (200, 1000):
            for metric in get_args(doc.Metric):
                if metric != "mass":
                    key = f"series run {metric} {name} {points}"
                    questions[key] = lambda m=metric, a=start_s, b=end_s, n=points: views.series(m, None, a, b, n)
                if metric in ("loss", "train_loss", "tokens_per_s", "mass"):
                    for node, path in nodes.items():
                        key = f"series {node} {metric} {name} {points}"
                        questions[key] = lambda m=metric, p=path, a=start_s, b=end_s, n=points: views.series(
                            m, p, a, b, n
                        )
    timed = {name: _repeated(question) for name, question in questions.items()}
    state = views.state()
    return {
        "slowest": dict(sorted(timed.items(), key=lambda item: -item[1]["warm"])[:12]),
        "over_10_ms": {name: took for name, took in timed.items() if took["warm"] > 10},
        "questions": len(timed),
        "state": timed["state"],
        "patch": timed["patch of the last change"],
        "state_json_ms": _ms(min(_timed(lambda: state.model_dump_json(exclude_defaults=True)) for _ in range(5))),
        "nodes_json_kb": round(
            sum(len(one.model_dump_json(exclude_defaults=True)) + 1 for one in state.nodes) / 1e3, 1
        ),
        "state_json_kb": round(len(state.model_dump_json(exclude_defaults=True)) / 1e3, 1),
    }


def _before(position: str) -> str:
    epoch, _, seq = position.rpartition("-")
    return f"{epoch}-{int(seq) - 1}"


def _repeated(question: Callable[[], object]) -> dict[str, float]:
    took = [_timed(question) for _ in range(7)]
    return {"cold": _ms(took[0]), "warm": _ms(sorted(took[1:])[3])}


def _timed(act: Callable[[], object]) -> float:
    begun_s = time.process_time()
    act()
    return time.process_time() - begun_s


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


# --- events ----------------------------------------------------------------------------------------------------------


def rows(n_leaves: int, n_workers: int, n_updates: int, start_s: float) -> Iterator[Row]:
    """A run in which every holder trains one unit after another, a few are lost, and gates are solved now and then."""
    for number, (at_s, event) in enumerate(_happenings(n_leaves, n_workers, n_updates, start_s), 1):
        yield number, at_s, event


def _happenings(n_leaves: int, n_workers: int, n_updates: int, start_s: float) -> Iterator[tuple[float, ev.Event]]:
    chance, depth = random.Random(1), n_leaves.bit_length() - 1
    names = [f"w{n}" for n in range(n_workers)]
    yield 0.0, ev.RunStarted(run="big", settings=_settings(depth, n_updates), base=_base())
    for name in names:
        yield 0.0, ev.WorkerJoined(worker=name, name=f"quiet-otter-{name}")
    tops = Topology.perfect((n_workers).bit_length() - 1).leaves
    held = {name: tops[place % len(tops)] for place, name in enumerate(names)}
    leaves = Topology.perfect(depth).leaves
    yield 10.0, ev.TopologySet(version=1, leaves=leaves, assignment=held)
    # From here on every leaf has a holder of its own for the time of a unit, so that each has its thousand updates.
    for top in sorted(set(held.values())):
        mine = [leaf for leaf in leaves if leaf.startswith(top)]
        who = [name for name in names if held[name] == top]
        given = {name: mine[place % len(mine)] for place, name in enumerate(who)}
        yield 11.0, ev.SubtreeDivided(node=top, version=2, leaves=leaves, assignment=given)
    yield 12.0, ev.GatesSolved(version=1, contributors=tuple(names), drift=1.0, blob=ZERO, accuracy={})
    now_s, unit, router = max(12.0, start_s), 0, 1
    for turn in range(n_updates):
        for place, leaf in enumerate(leaves):
            now_s, unit = now_s + UNIT_EVERY_S, unit + 1
            name = names[place % n_workers]
            yield now_s, _lease(f"u{unit}", name, leaf, now_s)
            yield now_s, _update(f"u{unit}", name, leaf, turn, now_s, chance)
            yield (
                now_s,
                ev.NodeAveraged(node=leaf, version=turn + 3, contributors=(name,), blob=ZERO, n_steps=50 * turn + 50),
            )
            if unit % 20_000 == 0:
                router += 1
                yield now_s, ev.GatesSolved(version=router, contributors=tuple(names), drift=0.02, blob=ZERO)
            if unit % 5_000 == 0:
                yield from _probe(f"u{unit}p", name, leaves, router, now_s, chance)
                yield now_s, ev.WorkerLost(worker=name, at_s=now_s)
                yield now_s, ev.WorkerReturned(worker=name, at_s=now_s)


def _lease(unit_id: str, worker: str, node: str, now_s: float) -> ev.UnitLeased:
    return ev.UnitLeased(
        unit_id=unit_id, worker=worker, kind="train", node=node, nonce="n", topology_version=2, router_version=1,
        node_version=1, n_steps=50, at_s=now_s - 20.0, deadline_s=now_s + 100.0, bytes_sent=1000,
    )  # fmt: skip


def _update(unit_id: str, worker: str, node: str, turn: int, now_s: float, chance: random.Random) -> ev.UpdateAccepted:
    loss = 2.0 + 1.0 / (1 + turn / 50) + 0.05 * chance.random()
    return ev.UpdateAccepted(
        unit_id=unit_id, worker=worker, kind="train", node=node, node_version=1, router_version=1, shard_version=ZERO,
        shard_tokens=100_000, tokens=20_000, n_steps=50, seconds=19.0, base_loads=1, heldout_nll_before=loss + 0.01,
        heldout_nll_after=loss, losses=(loss + 0.2, loss + 0.1), blob=ZERO, bytes_received=1000, at_s=now_s,
    )  # fmt: skip


def _probe(
    unit_id: str, worker: str, leaves: tuple[str, ...], router: int, now_s: float, chance: random.Random
) -> Iterator[tuple[float, ev.Event]]:
    drawn = [chance.random() ** 4 for _ in leaves]
    total = sum(drawn)
    mass = {leaf: share / total for leaf, share in zip(leaves, drawn, strict=True)}
    lease = _lease(unit_id, worker, leaves[0], now_s)
    yield now_s, lease.model_copy(update={"kind": "probe", "subject": "u1"})
    result = ProbeResult(tokens=100, nll_parent=1.0, nll_current=1.0, nll_candidate=1.0, mass=mass)
    update = _update(unit_id, worker, leaves[0], 1, now_s, chance)
    told = {"kind": "probe", "probe": result, "router_version": router, "losses": (), "heldout_nll_after": None}
    yield now_s, update.model_copy(update=told)


def _settings(depth: int, n_updates: int) -> RunSettings:
    return RunSettings(name="big", depth=depth, leaf_steps=50 * n_updates, unit_steps=50)


def _base() -> BaseFacts:
    shape = ProjectionShape(n_layers=2, in_features=3, out_features=5)
    return BaseFacts(
        base_id="big", fingerprint=ZERO, tokenizer_fingerprint=ZERO, feature_dim=4, feature_hash=ZERO,
        max_window_tokens=64, projections={"proj": shape},
    )  # fmt: skip


if __name__ == "__main__":
    main()
