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

from tinylora.federation.standing import CLASS_OF
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.machine import Machine, class_of

MOST_NODES = 4096
MOST_WORKERS = 2048
"""Beyond these the first by id are told one by one, and the counts by state are of all."""


def expose(
    state: doc.State,
    n_readers: int,
    accept: str,
    *,
    routing: doc.Routing | None = None,
    machine: Machine | None = None,
) -> tuple[bytes, str]:
    """The metrics of a state as text, and the text's media type.

    Args:
        state: Of the run.
        n_readers: Open streams of events.
        accept: The scraper's Accept header.
        routing: Of the run, where it is known.
        machine: What else the operator may be alarmed of; a replay has none.
    """
    registry = CollectorRegistry(auto_describe=False)
    # The registry asks for `collect` alone, its type for a subclass.
    # A collector needs no base class, only collect().
    registry.register(_Collector(state, n_readers, routing, machine))  # pyright: ignore[reportArgumentType]
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class _Collector:
    def __init__(self, state: doc.State, n_readers: int, routing: doc.Routing | None, machine: Machine | None) -> None:
        self._state, self._n_readers, self._routing, self._machine = state, n_readers, routing, machine

    def collect(self) -> Iterator[Metric]:
        yield from _of_run(self._state.run)
        yield from _of_nodes(self._state.nodes)
        yield from _of_workers(self._state.workers)
        yield from _of_units(self._state)
        if self._routing is not None:
            yield from _of_routing(self._routing)
        if self._machine is not None:
            yield from _of_machine(self._machine)
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


def _of_units(state: doc.State) -> Iterator[Metric]:
    units = [worker.unit for worker in state.workers if worker.unit is not None]
    n_late = sum(unit.deadline_s < state.run.clock_s for unit in units)
    yield _gauge("units_leased", "Units that workers are at.", len(units))
    yield _gauge("units_overdue", "Units beyond their deadline that nobody has answered.", n_late)


def _of_routing(routing: doc.Routing) -> Iterator[Metric]:
    latest = routing.versions[-1] if routing.versions else None
    yield _gauge("router_drift_ratio", "How far the latest round moved the gates.", latest.drift if latest else None)
    yield _gauge("routing_entropy_bits", "Of the shares of text that the leaves get.", routing.entropy_bits)
    yield _gauge("routing_entropy_max_bits", "The same, were all shares equal.", routing.max_entropy_bits)
    yield _gauge("leaves_dead", "Leaves with less than a tenth of an equal share of the text.", routing.n_dead)


def _of_machine(machine: Machine) -> Iterator[Metric]:
    rejections = CounterMetricFamily(
        "tinylora_rejections", "Updates that were refused, by code and its class.", labels=["code", "class"]
    )
    # Those that never happened, too: the first of them is a rise, which a series that begins with it would not show.
    for code in sorted({*CLASS_OF, *machine.rejections}):
        rejections.add_metric([code, class_of(code)], machine.rejections.get(code, 0))
    yield rejections
    yield _count("quarantines", "How often a worker was put into quarantine.", machine.n_quarantined)
    yield _gauge("orders_waiting", "Orders of the operator that are not carried out yet.", machine.n_orders)
    yield _gauge("log_readable", "1 while the run's log can be read.", float(machine.is_log_readable))
    yield _gauge("disk_free_bytes", "Free space where the run's folder lies.", machine.disk_free_bytes)
    yield _gauge("disk_size_bytes", "All space where the run's folder lies.", machine.disk_bytes)
    yield _gauge("certificate_expiry_timestamp_seconds", "End of the certificate that is shown.",
                 machine.certificate_ends_s)  # fmt: skip


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
