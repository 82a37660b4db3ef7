"""The report of a run as one dictionary, and the four files it becomes.

Numbers that do not exist are None, never NaN, because JSON has none: a standard error where a domain has a single
document, a regret where the oracle does not beat the base.
"""

import json
import os
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tinylora.errors import StorageError
from tinylora.report import systems
from tinylora.report.markdown import to_markdown
from tinylora.report.plots import can_draw, plot_loss, plot_routing
from tinylora.report.systems import DocumentScore

FORMAT = 1
PACKAGES = ("tinylora", "torch", "transformers", "flwr", "safetensors", "numpy")
COMPARISONS = {
    "soft_vs_fedavg": ("routed:soft", "fedavg_lora"),
    "fedavg_vs_base": ("fedavg_lora", "base"),
    "soft_vs_base": ("routed:soft", "base"),
    "oracle_vs_fedavg": ("oracle", "fedavg_lora"),
    "soft_vs_soft_weights": ("routed:soft", "routed:soft:weights"),
}
"""Name in the report to (ours, theirs); written where both systems were scored."""
MAX_REGRET = 0.20
"""The goal for the soft policy over whole documents."""


def build_report(
    scores: Mapping[str, Sequence[DocumentScore]],
    *,
    rank: int,
    n_leaves: int,
    how: str,
    seed: int,
    seconds: float,
    settings: Mapping[str, Any] | None = None,
    active_ranks: Mapping[str, int] | None = None,
    routing: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    peak_memory: float | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything a reader needs to judge a run, ready for JSON.

    Args:
        scores: System name (`base`, `fedavg_lora`, `oracle`, `routed:soft`, ...) to its scored documents.
        rank: Rank of one leaf.
        n_leaves: Leaves that the soft policy mixes.
        how: The exact command that made the run.
        seed: Of the run.
        seconds: Wall time of the whole command.
        settings: The run's settings.
        active_ranks: For systems whose active rank does not follow from their name.
        routing: `evaluation.RoutingTable.to_dict()`, for the table and the picture.
        run: `workers`, `units`, `rounds` and whatever else the run's own summary knows.
        peak_memory: MiB of all processes together; by default this process and its largest child.
        notes: Sentences for the reader, such as what differs from the defaults.

    Raises:
        DataError: A system has a domain without a scored token.
    """
    ranks = {name: systems.active_rank(name, rank=rank, n_leaves=n_leaves) for name in scores}
    ranks.update(active_ranks or {})
    rows = {name: systems.system_row(members, active_rank=ranks[name]) for name, members in scores.items()}
    comparisons = {
        name: systems.comparison(scores[ours], scores[theirs])
        for name, (ours, theirs) in COMPARISONS.items()
        if ours in scores and theirs in scores
    }
    regret = systems.regrets(rows)
    return {
        "workers": [],
        "units": [],
        "rounds": [],
        **(run or {}),
        "format": FORMAT,
        "how": how,
        "seed": seed,
        "seconds": round(seconds, 3),
        "peak_memory_mb": round(peak_memory_mb() if peak_memory is None else peak_memory, 1),
        "versions": versions(),
        "settings": dict(settings or {}),
        "systems": rows,
        "regret": regret,
        "comparisons": comparisons,
        "goals": _goals(comparisons, regret),
        "routing": None if routing is None else dict(routing),
        "notes": list(notes),
    }


def write_report(report: Mapping[str, Any], directory: Path) -> dict[str, Path]:
    """Write `report.json`, `report.md` and, where there is something to draw, `loss.png` and `routing.png`.

    Without matplotlib there are no pictures.

    Returns:
        What was written, by kind: json, md, loss, routing.

    Raises:
        StorageError: The directory is not writable or the disk is full.
    """
    files = {kind: directory / name for kind, name in (("json", "report.json"), ("md", "report.md"))}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if can_draw() and any(unit.get("losses") for unit in report["units"]):
            files["loss"] = plot_loss(report["units"], directory / "loss.png")
        if can_draw() and report["routing"]:
            files["routing"] = plot_routing(report["routing"], directory / "routing.png")
        _replace(files["json"], json.dumps(report, indent=1, allow_nan=False) + "\n")
        _replace(files["md"], to_markdown(report))
    except OSError as error:
        raise StorageError(f"{error.filename or directory}: cannot write the report: {error.strerror}") from None
    return files


def versions() -> dict[str, str | None]:
    """Python and the packages that decide numbers; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def peak_memory_mb() -> float:
    """MiB at the worst moment so far: this process plus its largest finished child."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(each).ru_maxrss for each in who) * unit / 2**20


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _goals(comparisons: Mapping[str, Mapping[str, Any]], regret: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """What the project promises of a run, each with its number and whether it was kept."""
    goals = [
        _goal(statement, comparisons[name]["is_lower"], f"{comparisons[name]['diff']:+.4f} nats")
        for name, statement in (
            ("soft_vs_fedavg", "soft routing is better than one federated LoRA by more than two standard errors"),
            ("fedavg_vs_base", "one federated LoRA is better than the base by more than two standard errors"),
        )
        if name in comparisons
    ]
    if "soft" in regret:
        value = regret["soft"]
        shown = "the oracle does not beat the base" if value is None else f"{value:.3f}"
        is_met = value is not None and value <= MAX_REGRET
        goals.append(_goal(f"regret of soft routing is at most {MAX_REGRET}", is_met, shown))
    return goals


def _goal(statement: str, is_met: bool, measured: str) -> dict[str, Any]:
    return {"statement": statement, "is_met": is_met, "measured": measured}


def _replace(file: Path, text: str) -> None:
    """Write beside and rename: a reader sees the old file or the new one, never half of it."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)
