"""What a bundle says of itself, for people: facts, then the tree with a line for each node. From the header alone."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinylora import tensors
from tinylora.bundle import inspect
from tinylora.tree import NodePath, Topology

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_MAX_NOTES = 3


def describe_file(file: Path) -> dict[str, Any]:
    """What `inspect` tells, with the bytes of every node's adapter; no number of a tensor is read.

    Raises:
        BundleError: Missing, truncated, no bundle, or its header was altered.
    """
    facts, sizes = inspect(file), Counter[str]()
    for name, entry in tensors.read_file_header(file).entries.items():
        kind, _, rest = name.partition(".")
        if kind == "node":
            sizes[rest.partition(".")[0]] += entry.end - entry.start
    return facts | {"node_bytes": dict(sorted(sizes.items()))}


def in_words(facts: Mapping[str, Any]) -> list[str]:
    """Lines for people."""
    base, leaves = facts["base"], facts["leaves"]
    signed = f"by key {facts['signed_by']}" if facts["signed_by"] else "by nobody"
    lines = [
        f"run           {facts['run']}",
        f"base          {base['base_id']}, fingerprint {base['fingerprint'][:12]}",
        f"adapters      {facts['kind']}, rank {facts['rank']}{_ranks(facts)}, scale {facts['scale']:g}, "
        f"{facts['dtype']}",
        f"policy        {facts['policy']}",
        f"size          {_size(facts['n_bytes'])}, {facts['n_tensors']} tensors, format {facts['format']}",
        f"signed        {signed}",
        f"statistics    {_statistics(facts)}",
    ]
    for key, title in (("contributors", "contributors"), ("licences", "licences"), ("derived_from", "made of")):
        if facts[key]:
            lines.append(f"{title:<14}{_listed(facts[key])}")
    if facts["report"]:
        lines.append(f"{'report':<14}{', '.join(sorted(facts['report']))}")
    return [*lines, "", f"{len(leaves)} leaves, {len(facts['nodes'])} adapters", *_tree(facts)]


def _ranks(facts: Mapping[str, Any]) -> str:
    others = [f"{name} {rank}" for name, rank in sorted(facts["ranks"].items())]
    return f" ({', '.join(others)})" if others else ""


def _statistics(facts: Mapping[str, Any]) -> str:
    n_told = f"{len(facts['sketched'])} of {len(facts['leaves'])} leaves"
    return {"leaf": f"of {n_told}, each with its covariance", "pooled": f"of {n_told}, one covariance for all"}.get(
        facts["statistics"], "none: it can neither be merged nor a leaf dropped with new gates"
    )


def _listed(values: list[str]) -> str:
    short = [value[:16] if len(value) == 64 else value for value in values]
    return ", ".join(short[:12]) + (f" and {len(short) - 12} more" if len(short) > 12 else "")


# --- the tree --------------------------------------------------------------------------------------------------------


def _tree(facts: Mapping[str, Any]) -> Iterator[str]:
    """A line for each node, root first, children below their parent."""
    topology = Topology(tuple(facts["leaves"]))
    yield f"root{_facts_of(facts, '', '' in topology.leaves)}"
    if "" in topology.leaves:
        yield from _notes(facts, "", "")
        return
    yield from _below(facts, topology, "", "")


def _below(facts: Mapping[str, Any], topology: Topology, node: NodePath, margin: str) -> Iterator[str]:
    for child, branch, deeper in ((node + "0", "├─ ", "│  "), (node + "1", "└─ ", "   ")):
        is_leaf = child in topology.leaves
        yield f"{margin}{branch}{child}{_facts_of(facts, child, is_leaf)}"
        if is_leaf:
            yield from _notes(facts, child, margin + deeper)
        else:
            yield from _below(facts, topology, child, margin + deeper)


def _facts_of(facts: Mapping[str, Any], node: NodePath, is_leaf: bool) -> str:
    told = []
    if node in facts["node_bytes"]:
        told.append(_size(facts["node_bytes"][node]))
        version = facts["versions"].get(f"node.{node}")
        told += [f"version {version}"] if version is not None else []
    elif is_leaf:
        told.append("no adapter of its own")
    if is_leaf and node not in facts["sketched"]:
        told.append("no statistics")
    kind = "  leaf" if is_leaf else ""
    return f"{kind}  {', '.join(told)}" if told else kind


def _notes(facts: Mapping[str, Any], leaf: NodePath, margin: str) -> Iterator[str]:
    notes = facts["data_notes"].get(leaf, [])
    for note in notes[:_MAX_NOTES]:
        yield f'{margin}  "{note}"'
    if len(notes) > _MAX_NOTES:
        yield f"{margin}  and {len(notes) - _MAX_NOTES} more"


def _size(n_bytes: int) -> str:
    power = min(max(n_bytes.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{n_bytes / 1024**power:.1f} {_UNITS[power]}" if power else f"{n_bytes} bytes"
