"""Every number of /metrics, found in what a run exposes."""

from prometheus_client.core import Metric
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard import metrics as exposition
from tinylora_coordinator.dashboard.machine import Machine

from tests.dashboard.fakes import FakeViews
from tests.docs.reference.markdown import code, page, prose, table

_UNITS = {
    "timestamp_seconds": "seconds since 1970",
    "seconds": "seconds",
    "bytes": "bytes",
    "bytes_sent": "bytes",
    "bytes_received": "bytes",
    "bits": "bits",
    "readable": "0 or 1",
    "ratio": "share, 0 to 1",
    "nats": "nats per token",
    "tokens_per_second": "tokens per second",
    "tokens": "tokens",
    "steps": "optimiser steps",
    "info": "",
    "phase": "0 or 1",
}


def metrics_page() -> str:
    """The page of all of them."""
    return page(
        "Metrics",
        "`GET /metrics` of the public port, or of the operator's own listener, answers in Prometheus' text format or "
        "as OpenMetrics, as the scraper asks. Whoever may look at the pages may read it; with `--viewers token` it "
        "takes `Authorization: Bearer TOKEN` of a viewer. A number that nobody knows (yet) has no sample. Labels are "
        "ids of nodes and workers, states, and what the operator wrote into `run.toml`: never a name or a text of a "
        "worker's.",
        f"Of nodes at most {exposition.MOST_NODES} are told one by one, of workers {exposition.MOST_WORKERS}; the "
        "counts by state are of all. `deploy/prometheus/` in the repository has rules for alerts on these.",
        table(("metric", "type", "labels", "unit", "meaning"), map(_row, families())),
    )


def families() -> list[Metric]:
    """What a run exposes, in order."""
    routing = doc.Routing(source="tokens", leaves=(), gates=(), versions=())
    return list(exposition._Collector(FakeViews().state(), 0, routing, Machine()).collect())


def _row(family: Metric) -> tuple[str, str, str, str, str]:
    labels = dict.fromkeys(getattr(family, "_labelnames", ()))
    labels |= dict.fromkeys(label for sample in family.samples for label in sample.labels)
    name = exposed_name(family)
    return code(name), family.type, ", ".join(map(code, labels)), _unit(family), prose(family.documentation)


def exposed_name(family: Metric) -> str:
    """As it stands in the text that is scraped."""
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


def _unit(family: Metric) -> str:
    name = "info" if family.type == "info" else family.name
    return next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "count")
