"""The state of everything as one `Status` message. Pure: all that it says is given."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from tinylora import __version__
from tinylora_worker.agent.bench import UnderWay
from tinylora_worker.agent.desk import Orders
from tinylora_worker.agent.keeper import Prepared
from tinylora_worker.agent.totals import Totals
from tinylora_worker.wire.worker_pb2 import Status


@dataclass(frozen=True)
class Traffic:
    """Bytes, both ends counted."""

    sent: int = 0
    """Since the start of the agent."""
    received: int = 0
    month: int = 0
    """Both ways, this calendar month."""
    month_cap: int = 0
    """0: none."""


@dataclass(frozen=True)
class Who:
    """What does not change while an agent lives."""

    home: str
    run: str = ""
    coordinator: str = ""
    worker: str = ""
    name: str = ""
    started_s: float = 0.0


def make_status(
    who: Who,
    orders: Orders,
    *,
    work: UnderWay | None,
    prepared: Prepared | None,
    is_finishing: bool,
    temperature_c: float,
    memory_bytes: int,
    traffic: Traffic,
    n_outbox: int,
    totals: Totals,
    log: Sequence[str],
    now_s: float,
) -> Status:
    """Everything at this moment; what is not known stays empty, or 0."""
    status = Status(
        version=__version__,
        pid=os.getpid(),
        home=who.home,
        run=who.run,
        coordinator=who.coordinator,
        worker=who.worker,
        name=who.name,
        state=orders.state,
        reason=orders.reason or "",
        detail=orders.detail,
        until_s=orders.until_s,
        is_finishing=is_finishing,
        temperature_c=temperature_c,
        memory_bytes=memory_bytes,
        sent_bytes=traffic.sent,
        received_bytes=traffic.received,
        month_bytes=traffic.month,
        month_cap_bytes=traffic.month_cap,
        n_outbox=n_outbox,
        n_receipts=totals.n_updates,
        accepted_tokens=totals.tokens,
        started_s=who.started_s,
        log=log,
    )
    if prepared is not None:
        status.device, status.dtype = prepared.loaded.device, prepared.loaded.dtype
        status.fit.CopyFrom(prepared.fit)
    if work is not None:
        _add_work(status, work, now_s)
    return status


def _add_work(status: Status, work: UnderWay, now_s: float) -> None:
    unit, progress = work.unit, work.progress
    status.unit_id, status.kind, status.node, status.round = unit.unit_id, unit.kind, unit.node, unit.node_version + 1
    status.step, status.n_steps = progress.step, progress.n_steps or unit.n_steps
    status.loss, status.tokens_per_s, status.unit_eta_s = progress.loss, progress.tokens_per_s, progress.left_s
    status.losses.extend(progress.losses)
    if progress.checkpoint_at_s:
        status.checkpoint_age_s = max(now_s - progress.checkpoint_at_s, 0.0)
