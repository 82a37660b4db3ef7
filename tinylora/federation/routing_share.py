"""Whether one worker's leaf draws the text of everybody: routing capture, from what probes tell. Pure."""

import statistics
from collections.abc import Iterator

from tinylora.federation.standing import voice
from tinylora.federation.state import Campaign, Worker
from tinylora.tree import NodePath, are_in_line, is_under, parent

MIN_VOICES = 3
"""Workers of other leaves that must have been heard."""


def captured(state: Campaign) -> list[tuple[str, str]]:
    """Holders of leaves to which the present gates send too much of other workers' text, with the reason."""
    found: dict[str, str] = {}
    for leaf in state.leaves:
        shares = _shares(state, leaf)
        if len(shares) < MIN_VOICES or not _is_alternative(state, leaf):
            continue
        share = statistics.median(shares)
        if share > state.settings.max_leaf_share:
            reason = (
                f"the gates send {share:.0%} of the text of {len(shares)} other workers to its leaf {leaf or 'root'}"
            )
            found |= {name: reason for name in _holders(state, leaf)}
    return sorted(found.items())


def _holders(state: Campaign, leaf: NodePath) -> list[str]:
    return [name for name, worker in sorted(state.workers.items()) if _holds(worker, leaf)]


def _holds(worker: Worker, leaf: NodePath) -> bool:
    return worker.node is not None and are_in_line(worker.node, leaf)


def _shares(state: Campaign, leaf: NodePath) -> list[float]:
    """What the present gates make of the text of those who do not hold the leaf; one number for each voice."""
    now = (state.topology_version, state.router.version)
    by_voice: dict[str, float] = {}
    holders = {voice(state.workers[name]) for name in _holders(state, leaf)}
    for _, worker in sorted(state.workers.items()):
        is_heard = worker.standing == "good" and worker.mass_versions == now and worker.node is not None
        if is_heard and voice(worker) not in holders:
            by_voice.setdefault(voice(worker), worker.mass.get(leaf, 0.0))
    return list(by_voice.values())


def _is_alternative(state: Campaign, leaf: NodePath) -> bool:
    """Whether the gates on the way know text on both sides: where they know one, all goes there, and rightly."""
    return all(any(_speaks(worker, sibling) for worker in state.workers.values()) for sibling in _siblings(leaf))


def _siblings(leaf: NodePath) -> Iterator[NodePath]:
    while leaf:
        yield parent(leaf) + ("1" if leaf.endswith("0") else "0")
        leaf = parent(leaf)


def _speaks(worker: Worker, top: NodePath) -> bool:
    """Whether its text is known to lie below this node."""
    if not worker.sketch or worker.node is None:
        return False
    return is_under(worker.node, top) or (is_under(top, worker.node) and bool(worker.leaf_statistics))
