"""The run's numbers for Prometheus, collected anew from a state each time somebody scrapes.

Labels are ids of nodes and workers, states, and what the operator wrote into `run.toml`; never a name or a text of a
worker's. A registry of our own, so that nothing of the process gets in.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from tinylora_coordinator.dashboard import documents as doc

MOST_NODES = 4096
MOST_WORKERS = 2048
"""Beyond these the first by id are told one by one, and the counts by state are of all."""


def expose(state: doc.State, n_readers: int, accept: str) -> tuple[bytes, str]:
    """The metrics of a state as text, and the text's media type.

    Args:
        state: Of the run.
        n_readers: Open streams of events.
        accept: The scraper's Accept header.
    """
    registry = CollectorRegistry(auto_describe=False)
    # The registry asks for `collect` alone, its type for a subclass.
    registry.register(_Collector(state, n_readers))  # pyright: ignore[reportArgumentType]
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class _Collector:
    def __init__(self, state: doc.State, n_readers: int) -> None:
        self._state, self._n_readers = state, n_readers

    def collect(self) -> Iterator[Metric]:
        yield from _of_run(self._state.run)
        yield from _of_nodes(self._state.nodes)
        yield from _of_workers(self._state.workers)
        yield _gauge("dashboard_readers", "Open streams of events.", self._n_readers)


def _of_run(run: doc.Run) -> Iterator[Metric]:
    about = InfoMetricFamily("tinylora_run", "What is trained.")
    about.add_metric([], {"run": run.run, "base": run.base_id, "adapter": run.adapter, "rank": str(run.rank)})
    yield about
    yield _by_label("run_phase", "1 for the phase the run is in.", "phase",
                    ((phase, float(phase == run.phase)) for phase in get_args(doc.Phase)))  # fmt: skip
    yield _gauge("run_clock_seconds", "The run's clock, which stands still while it is not served.", run.clock_s)
    yield _gauge("run_progress_ratio", "Steps done over steps wanted, over all leaves.", run.progress)
    yield _gauge("run_remaining_seconds", "To the end, at the pace of late.", run.eta_s)
    yield _gauge("run_loss_nats", "Held-out loss per token, the mean over leaves by mass.", run.loss)
    yield _gauge("run_tokens_per_second", "Trained by all workers together, lately.", run.tokens_per_s)
    yield _gauge("run_leaves", "Leaves of the tree.", run.n_leaves)
    yield _gauge("run_router_version", "Rounds of the routers so far.", run.router_version)
    yield _gauge("workers_online", "Workers that are online.", run.n_online)
    yield _count("events", "Events in the log.", run.n_events)
    yield _count("tokens", "Tokens of all accepted updates.", run.tokens)
    yield _count("bytes_sent", "Payloads sent to workers.", run.bytes_sent)
    yield _count("bytes_received", "Payloads received from workers.", run.bytes_received)
    units = CounterMetricFamily("tinylora_units", "Units that came to an end, by how.", labels=["outcome"])
    for outcome, n in (("accepted", run.n_accepted), ("rejected", run.n_rejected), ("expired", run.n_expired)):
        units.add_metric([outcome], n)
    yield units


def _of_nodes(nodes: tuple[doc.Node, ...]) -> Iterator[Metric]:
    n_by_state = Counter(node.state for node in nodes)
    yield _by_label("nodes", "Nodes of the tree, by state.", "state",
                    ((state, n_by_state[state]) for state in get_args(doc.NodeState)))  # fmt: skip
    told = [(node.path or "root", node) for node in nodes[:MOST_NODES]]
    yield _by_label("node_mass_ratio", "Share of all text that is routed to a node.", "node",
                    ((name, node.mass) for name, node in told))  # fmt: skip
    yield _by_label("node_loss_nats", "Held-out loss per token of a node.", "node",
                    ((name, node.loss) for name, node in told))  # fmt: skip
    yield _by_label("node_version", "Version of a node's adapter.", "node",
                    ((name, node.version) for name, node in told if node.version))  # fmt: skip
    yield _by_label("node_steps", "Steps that a node's adapter has been trained.", "node",
                    ((name, node.n_steps) for name, node in told if node.kind == "leaf"))  # fmt: skip


def _of_workers(workers: tuple[doc.Worker, ...]) -> Iterator[Metric]:
    n_by_state = Counter(worker.state for worker in workers)
    yield _by_label("workers", "Workers that joined, by state.", "state",
                    ((state, n_by_state[state]) for state in get_args(doc.WorkerStateName)))  # fmt: skip
    told = sorted(workers, key=lambda worker: worker.worker)[:MOST_WORKERS]
    yield _by_label("worker_tokens_per_second", "Speed of a worker.", "worker",
                    ((worker.worker, worker.tokens_per_s) for worker in told))  # fmt: skip
    tokens = CounterMetricFamily("tinylora_worker_tokens", "Tokens of a worker's accepted updates.", labels=["worker"])
    units = CounterMetricFamily(
        "tinylora_worker_units", "Units of a worker that came to an end, by how.", labels=["worker", "outcome"]
    )
    for worker in told:
        tokens.add_metric([worker.worker], worker.tokens)
        for outcome in ("accepted", "rejected", "expired"):
            units.add_metric([worker.worker, outcome], getattr(worker, f"n_{outcome}"))
    yield tokens
    yield units


def _gauge(name: str, meaning: str, value: float | None) -> Metric:
    """One number; without a sample where nobody knows it."""
    gauge = GaugeMetricFamily(f"tinylora_{name}", meaning)
    if value is not None:
        gauge.add_metric([], value)
    return gauge


def _count(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"tinylora_{name}", meaning, value=value)


def _by_label(name: str, meaning: str, label: str, values: Iterable[tuple[str, float | None]]) -> Metric:
    gauge = GaugeMetricFamily(f"tinylora_{name}", meaning, labels=[label])
    for of, value in values:
        if value is not None:
            gauge.add_metric([of], value)
    return gauge
