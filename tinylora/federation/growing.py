"""How the tree of a run that grows changes its shape next, from the run's state. Pure; the thresholds are in `growth`.

A part is split, judged or merged only while it rests: no lease on it is open, and no update of its round waits.
Children that had their rounds before their sibling, and siblings that are about to become one, get no work until the
other rests.
"""

from dataclasses import dataclass
from typing import TypeAlias

from tinylora.federation.growth import MERGE_ACCURACY, PLATEAU_ROUNDS, TRIAL_ROUNDS, has_stopped, is_worth_it
from tinylora.federation.state import Campaign
from tinylora.tree import NodePath, ancestors, children


@dataclass(frozen=True)
class Split:
    """Make two leaves of one."""

    leaf: NodePath


@dataclass(frozen=True)
class Keep:
    """A split paid: end its trial."""

    node: NodePath
    heldout_nll: float | None


@dataclass(frozen=True)
class FoldBack:
    """A split did not pay: the leaf comes back as it was."""

    node: NodePath
    reason: str


@dataclass(frozen=True)
class Merge:
    """Make one leaf of the two below a node."""

    node: NodePath
    reason: str


@dataclass(frozen=True)
class Divide:
    """Let a subtree that was held as one fall apart into its leaves."""

    node: NodePath


Growth: TypeAlias = Split | Keep | FoldBack | Merge | Divide


def growing(state: Campaign) -> list[Growth]:
    """The next change of the tree, if one is due."""
    if not state.settings.grow or state.topology is None:
        return []
    return (_verdicts(state) or _divisions(state) or _merges(state) or _splits(state))[:1]


def is_held_back(state: Campaign, top: NodePath) -> bool:
    """Whether a part waits for its sibling, to be judged or merged with it."""
    if not state.settings.grow:
        return False
    above = (*ancestors(top), top)
    return any(node in state.trials and _had_its_trial(state, node, top) for node in above) or any(
        _is_alike(state, node) for node in above[-2:-1]
    )


# --- splits under trial ----------------------------------------------------------------------------------------------


def _verdicts(state: Campaign) -> list[Growth]:
    found: list[Growth] = []
    for node, trial in sorted(state.trials.items()):
        parts = state.parts_below(node)
        if not all(_had_its_trial(state, node, top) and state.is_resting(top) for top in parts):
            continue
        now = _loss_below(state, node)
        if now is None or is_worth_it(trial.heldout_nll, now):
            found.append(Keep(node, now))
        else:
            found.append(FoldBack(node, f"held-out loss went from {trial.heldout_nll:.4f} to {now:.4f}"))
    return found


def _had_its_trial(state: Campaign, node: NodePath, top: NodePath) -> bool:
    rounds = state.nodes[top].version - state.trials[node].since
    return rounds >= TRIAL_ROUNDS or state.is_done(top)


def _loss_below(state: Campaign, node: NodePath) -> float | None:
    """Latest held-out loss below a node, every worker counting once."""
    known = [
        (state.nodes[top].history[-1], max(1, len(state.holders(top))))
        for top in state.parts_below(node)
        if state.nodes[top].history
    ]
    n_workers = sum(n for _, n in known)
    return sum(loss * n for loss, n in known) / n_workers if known else None


# --- subtrees that are no longer one worker's ------------------------------------------------------------------------


def _divisions(state: Campaign) -> list[Growth]:
    """A subtree that one worker held is divided when others came to hold some of its leaves."""
    return [
        Divide(top)
        for top in sorted(state.nodes)
        if top not in state.leaves and top not in state.trials and state.is_resting(top) and _is_shared(state, top)
    ]


def _is_shared(state: Campaign, top: NodePath) -> bool:
    return any(worker.node in state.leaves_below(top) for worker in state.workers.values())


# --- siblings that do not differ -------------------------------------------------------------------------------------


def _merges(state: Campaign) -> list[Growth]:
    return [
        Merge(node, f"the gate is right on {state.router.accuracy[node]:.0%} of held-out text, a coin on 50%")
        for node in sorted(state.topology.inner if state.topology else ())
        if _is_alike(state, node) and all(state.is_resting(child) for child in children(node))
    ]


def _is_alike(state: Campaign, node: NodePath) -> bool:
    """Whether both children are leaves held apart, have had some rounds, and cannot be told apart."""
    accuracy = state.router.accuracy.get(node)
    if accuracy is None or accuracy >= MERGE_ACCURACY or node in state.trials:
        return False
    return all(
        child in state.leaves and child in state.nodes and len(state.nodes[child].history) >= PLATEAU_ROUNDS
        for child in children(node)
    )


# --- leaves that stopped improving -----------------------------------------------------------------------------------


def _splits(state: Campaign) -> list[Growth]:
    if len(state.leaves) >= 2**state.settings.depth:
        return []
    return [Split(leaf) for leaf in state.leaves if _is_ripe(state, leaf)]


def _is_ripe(state: Campaign, leaf: NodePath) -> bool:
    """Whether a leaf stopped improving, rests, has text enough for two, and may be split at all."""
    if leaf not in state.nodes or leaf in state.barren or any(node in state.trials for node in ancestors(leaf)):
        return False
    if state.is_done(leaf) or not state.is_resting(leaf) or not has_stopped(state.nodes[leaf].history):
        return False
    settings, holders = state.settings, [state.workers[name] for name in state.holders(leaf)]
    enough = 2 * settings.min_sequences * settings.window_tokens
    if len(holders) == 1 and holders[0].is_mixed:
        return False  # it trains a leaf of other text than its own, which says nothing of how to split
    if len(holders) == 1 and holders[0].max_leaves == 1:
        return False  # it would hold both children
    return bool(holders) and all(h.sketch for h in holders) and sum(h.shard_tokens for h in holders) >= enough
