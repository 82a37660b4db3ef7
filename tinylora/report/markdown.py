"""The report as a page for people: what was compared, how large the doubt is, what was promised and not kept."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_ROUNDS = 40
"""Rounds shown in the page; `report.json` has them all."""


def to_markdown(report: Mapping[str, Any]) -> str:
    """Render a report dictionary (see `build_report`) as Markdown."""
    parts = [
        "# Report",
        _opening(report),
        _goals(report["goals"]),
        "## Systems",
        _systems_table(report),
        "nll is in nats per token, the mean over domains; ± is one standard error over documents. The active rank is "
        "the rank of the adapters that touch one token: a row's cost. Regret: (routed - oracle) / (base - oracle).",
        "## Domains",
        _domains_table(report["systems"]),
        *_comparisons(report["comparisons"]),
        *_routing(report["routing"]),
        *_rounds(report["rounds"], {entry.get("worker"): entry.get("name") for entry in report["workers"]}),
        *_workers(report["workers"]),
        "## How",
        _how(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, all others are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: Any, digits: int = 4) -> str:
    """A number for a table cell; a dash where there is none."""
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _opening(report: Mapping[str, Any]) -> str:
    first = next(iter(report["systems"].values()), None)
    scored = f" Scored on {first['n_documents']} held-out documents, {first['n_tokens']:,} tokens." if first else ""
    trained = sum(unit.get("tokens") or 0 for unit in report["units"])
    run = f"{len(report['workers'])} workers, {len(report['units'])} units, {trained:,} tokens trained on"
    return f"{run}, in {report['seconds']:.0f} s and {report['peak_memory_mb']:,.0f} MiB.{scored}"


def _goals(goals: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for goal in goals:
        sentence = goal["statement"] if goal["is_met"] else f"**Missed:** the goal was that {goal['statement']}"
        lines.append(f"- {sentence} ({goal['measured']}).")
    return "\n".join(lines)


def _systems_table(report: Mapping[str, Any]) -> str:
    header = ("system", "active rank", "nll", "±", "perplexity", "nll after 32", "bits/byte", "regret", "worst domain")
    return table(header, (_system_line(name, row, report["regret"]) for name, row in report["systems"].items()))


def _system_line(name: str, row: Mapping[str, Any], regret: Mapping[str, float | None]) -> list[str]:
    return [
        name,
        str(row["active_rank"]),
        number(row["nll_mean"]),
        number(row["stderr"]),
        number(row["ppl_mean"], 3),
        number(row["nll_after_32"]),
        number(row["bits_per_byte"]),
        number(regret.get(name.removeprefix("routed:")), 3) if name.startswith("routed:") else "",
        row["worst_domain"],
    ]


def _domains_table(systems: Mapping[str, Mapping[str, Any]]) -> str:
    domains = sorted({domain for row in systems.values() for domain in row["nll"]})
    rows = ([domain, *(number(row["nll"].get(domain), 3) for row in systems.values())] for domain in domains)
    return table(["domain", *systems], rows)


def _comparisons(comparisons: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not comparisons:
        return []
    header = ("pair", "difference, nats", "±", "difference / ±", "perplexity ratio")
    digits = {"diff": 4, "stderr": 4, "ratio": 1, "ppl_ratio": 4}
    rows = (
        [name.replace("_", " "), *(number(pair[field], digits[field]) for field in digits)]
        for name, pair in comparisons.items()
    )
    return ["## Pairs, on the same documents", table(header, rows), "Negative: the first of the pair is better."]


def _routing(routing: Mapping[str, Any] | None) -> list[str]:
    if not routing:
        return []
    leaf_of, accuracy = routing["leaf_of"], routing["accuracy"]
    header = ("domain", "its leaf", "accuracy", *(leaf or "root" for leaf in routing["leaves"]))
    rows = (
        [domain, leaf_of[domain] or "root", number(accuracy[domain], 3), *(number(share, 3) for share in row)]
        for domain, row in routing["posterior"].items()
    )
    return ["## Where tokens go", table(header, rows), "Mean posterior of each leaf over the domain's held-out tokens."]


def _rounds(rounds: Sequence[Mapping[str, Any]], names: Mapping[Any, Any]) -> list[str]:
    if not rounds:
        return []
    header = ("router", "contributors", "drift", "why", "workers reached")
    rows = (
        [
            f"version {entry['version']}",
            ", ".join(str(names.get(worker) or worker) for worker in entry["contributors"]) or "-",
            number(entry["drift"]),
            entry.get("reason") or "-",
            number(entry.get("n_workers")),
        ]
        for entry in rounds[:MAX_ROUNDS]
    )
    left_out = f"{len(rounds) - MAX_ROUNDS} later ones are in report.json." if len(rounds) > MAX_ROUNDS else ""
    return ["## Router versions", table(header, rows), left_out]


def _workers(workers: Sequence[Mapping[str, Any]]) -> list[str]:
    if not workers:
        return []
    fields = ("tokens", "seconds", "bytes_sent", "bytes_received", "base_loads")
    rows = (
        [str(entry.get("name") or entry.get("worker", "?")), *(number(entry.get(field), 1) for field in fields)]
        for entry in workers
    )
    return ["## Workers", table(("worker", *(field.replace("_", " ") for field in fields)), rows)]


def _how(report: Mapping[str, Any]) -> str:
    known = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    lines = [f"    {report['how']}", "", f"Seed {report['seed']}; {known}.", *(f"\n{note}" for note in report["notes"])]
    return "\n".join(lines)
