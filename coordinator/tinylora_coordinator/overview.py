"""How far a run is, told from its folder alone; it may be being served meanwhile. No torch, no Flower."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinylora.federation.events import Event, RunPaused, RunResumed
from tinylora.federation.summary import summarise
from tinylora.ledger.sqlite import FILE, SqliteLedger
from tinylora_coordinator.folder import RunFolder, read_run, run_id
from tinylora_coordinator.operator_store import FILE as OPERATOR_FILE
from tinylora_coordinator.operator_store import OperatorStore


def overview(root: Path) -> dict[str, Any]:
    """The tables of `federation.summary`, with the run's name, its phase and the steps of each node on top.

    Raises:
        SettingError: There is no run in `root`.
        StorageError: Its ledger cannot be read.
    """
    settings = read_run(RunFolder(root)).settings
    events = past_events(root)
    tables = summarise(events)
    return {
        "run": run_id(settings),
        "phase": _phase(events, tables),
        "leaf_steps": settings.leaf_steps,
        "steps": {node: row["n_steps"] for node, row in tables["topology"]["nodes"].items()},
        "orders": _orders(root),
        **tables,
    }


def _orders(root: Path) -> list[dict[str, str]]:
    """What the operator wants and the rounds have not done yet."""
    if not (root / OPERATOR_FILE).exists():
        return []
    with OperatorStore(root) as store:
        return [asdict(order) for order in store.orders()]


def past_events(root: Path) -> Sequence[Event]:
    """Events of the run in `root`; none before it was first served."""
    if not (root / FILE).exists():
        return ()
    with SqliteLedger.open_readonly(root) as ledger:
        return ledger.events()


def _phase(events: Sequence[Event], tables: dict[str, Any]) -> str:
    if not events:
        return "not begun"
    if tables["finished"]:
        return f"finished ({tables['finished']})"
    turns = [event for event in events if isinstance(event, RunPaused | RunResumed)]
    if turns and isinstance(turns[-1], RunPaused):
        return "paused"
    return "training" if tables["topology"]["version"] else "waiting for sketches"
