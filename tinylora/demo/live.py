"""What a person sees while a run goes on: the tree, who trains what, loss, and how long it will take.

`Progress` is a fold of the run's events, like the campaign itself, reduced to what is shown; `render` draws it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from tinylora.federation.events import (
    Event,
    GatesSolved,
    LeafSplit,
    LeaseExpired,
    LeavesMerged,
    NodeAveraged,
    RunFinished,
    RunStarted,
    SplitKept,
    SubtreeDivided,
    TopologySet,
    UnitLeased,
    UpdateAccepted,
    UpdateRejected,
    WorkerAssigned,
    WorkerJoined,
    WorkerLost,
    WorkerReturned,
)
from tinylora.tree import Topology, children, is_under

_SPARKS = "▁▂▃▄▅▆▇█"


@dataclass
class NodeProgress:
    """A leaf or subtree that workers hold."""

    steps: int = 0
    shared_steps: int = 0
    """Of these, those of the nodes above that it shares."""
    losses: list[float] = field(default_factory=list)
    workers: list[str] = field(default_factory=list)


@dataclass
class Progress:
    """What is shown of a run, from its events so far."""

    title: str = ""
    leaf_steps: int = 0
    topology: Topology | None = None
    names: dict[str, str] = field(default_factory=dict)
    doing: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, NodeProgress] = field(default_factory=dict)
    router_version: int = 0
    router_drift: float = 0.0
    n_accepted: int = 0
    n_rejected: int = 0
    n_expired: int = 0
    tokens: int = 0
    is_finished: bool = False
    is_cascade: bool = False
    trunk: dict[str, int] = field(default_factory=dict)
    """Steps of nodes above those that are held."""
    _open: dict[str, str] = field(default_factory=dict)

    def apply(self, events: Iterable[Event]) -> None:
        """Take in further events, in order."""
        for event in events:
            self._apply(event)

    def _apply(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.title, self.leaf_steps = event.settings.name, event.settings.leaf_steps
                self.is_cascade = event.settings.path_training == "cascade"
            case WorkerJoined():
                self.names[event.worker], self.doing[event.worker] = event.name, "waiting"
            case WorkerLost():
                self.doing[event.worker] = "lost"
            case WorkerReturned():
                self.doing[event.worker] = "waiting"
            case TopologySet():
                self.topology = Topology(event.leaves)
                self.nodes = {node: NodeProgress() for node in event.assignment.values()}
                for worker, node in sorted(event.assignment.items()):
                    self.nodes[node].workers.append(worker)
            case WorkerAssigned():
                for node in self.nodes.values():
                    node.workers = [worker for worker in node.workers if worker != event.worker]
                self.nodes.setdefault(event.node, NodeProgress()).workers.append(event.worker)
            case LeafSplit() | LeavesMerged() | SubtreeDivided():
                self._reshape(event)
            case UnitLeased():
                self._open[event.unit_id] = event.worker
                verb = (
                    "adopts"
                    if event.is_adopted
                    else {"train": "trains", "sketch": "sketches"}.get(event.kind, event.kind)
                )
                self.doing[event.worker] = f"{verb} {event.node or 'root'}" if event.kind == "train" else verb
            case LeaseExpired():
                self.n_expired += 1
                self.doing[self._open.pop(event.unit_id, "")] = "silent"
            case UpdateRejected():
                self.n_rejected += 1
                self.doing[event.worker] = f"refused: {event.code}"
            case UpdateAccepted():
                self.n_accepted += 1
                self.tokens += event.tokens
                self.doing[event.worker] = "waiting"
                if event.kind == "train" and not self._held_below(event.node):
                    self.nodes.setdefault(event.node, NodeProgress()).losses.extend(event.losses)
            case NodeAveraged():
                self._averaged(event)
            case GatesSolved():
                self.router_version, self.router_drift = event.version, event.drift
            case RunFinished():
                self.is_finished = True

    def _reshape(self, event: LeafSplit | LeavesMerged | SubtreeDivided) -> None:
        """New parts below a node; they begin with the steps that were done there."""
        self.topology = Topology(event.leaves)
        old = [self.nodes.pop(node) for node in sorted(self.nodes) if is_under(node, event.node)]
        steps = max((node.steps for node in old), default=0)
        for worker, node in sorted(event.assignment.items()):
            self.nodes.setdefault(node, NodeProgress(steps=steps)).workers.append(worker)

    def _averaged(self, event: NodeAveraged) -> None:
        """Steps of a node above others count for all of these in a cascade; jointly trained, they count as theirs."""
        below = self._held_below(event.node)
        if not below:
            state = self.nodes.setdefault(event.node, NodeProgress())
            state.steps = state.shared_steps + event.n_steps
            return
        added = event.n_steps - self.trunk.get(event.node, 0) if self.is_cascade else 0
        for state in below:
            state.steps, state.shared_steps = state.steps + added, state.shared_steps + added
        self.trunk[event.node] = event.n_steps

    def _held_below(self, top: str) -> list[NodeProgress]:
        return [state for node, state in self.nodes.items() if node != top and is_under(node, top)]

    @property
    def share_done(self) -> float:
        """Steps done over steps wanted, 0 to 1."""
        wanted = self.leaf_steps * len(self.nodes)
        return min(1.0, sum(node.steps for node in self.nodes.values()) / wanted) if wanted else 0.0


def render(progress: Progress, *, elapsed_s: float, training_s: float) -> RenderableType:
    """Draw the tree with its workers; `training_s` is the time since the first train unit, for the ETA."""
    done = progress.share_done
    eta = f"ETA {training_s / done * (1 - done):.0f} s" if done > 0 else "ETA -"
    head = Text(f"{progress.title}  ·  {elapsed_s:.0f} s  ·  {eta}  ·  ", style="bold")
    head.append(f"router v{progress.router_version} (moved {progress.router_drift:.1%})  ·  ")
    head.append(f"{progress.tokens:,} tokens  ·  {progress.n_accepted} updates")
    for count, what in ((progress.n_rejected, "refused"), (progress.n_expired, "expired")):
        if count:
            head.append(f", {count} {what}", style="yellow")
    body = _draw_tree(progress) if progress.topology else _draw_workers(progress.names, progress.doing)
    return Group(head, body)


def _draw_workers(names: Mapping[str, str], doing: Mapping[str, str]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for worker, name in sorted(names.items(), key=lambda item: item[1]):
        table.add_row(name, doing.get(worker, ""))
    return table


def _draw_tree(progress: Progress) -> Tree:
    tree = Tree(Text("root", style="cyan"))
    _grow(tree, "", progress)
    return tree


def _grow(branch: Tree, node: str, progress: Progress) -> None:
    if node in progress.nodes:
        branch.add(_draw_node(node, progress))
        return
    if progress.topology is None or node in progress.topology.leaves:
        return
    for child in children(node):
        is_held = child in progress.nodes
        _grow(branch if is_held else branch.add(Text(child, style="cyan")), child, progress)


def _draw_node(node: str, progress: Progress) -> Table:
    state = progress.nodes[node]
    kind = "leaf" if progress.topology and node in progress.topology.leaves else "subtree"
    row = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, progress.leaf_steps), completed=state.steps, width=24)
    steps = f"{state.steps}/{progress.leaf_steps} steps"
    who = ", ".join(f"{progress.names.get(w, w)} ({progress.doing.get(w, '')})" for w in state.workers)
    row.add_row(Text(f"{kind} {node or 'root'}", style="green"), bar, steps, _loss_text(state.losses), Text(who))
    return row


def _loss_text(losses: list[float]) -> Text:
    if not losses:
        return Text("loss -")
    shown = losses[-16:]
    low, high = min(shown), max(shown)
    levels = [int((value - low) / (high - low) * 7) if high > low else 0 for value in shown]
    return Text(f"loss {losses[-1]:.3f} " + "".join(_SPARKS[level] for level in levels))


# --- without a live terminal -----------------------------------------------------------------------------------------


def describe(event: Event, progress: Progress) -> list[str]:
    """One line for an event worth a line, for logs and for terminals that cannot redraw."""
    match event:
        case TopologySet():
            held = (f"{progress.names.get(w, w)} {node or 'root'}" for w, node in sorted(event.assignment.items()))
            return [f"tree: leaves {', '.join(leaf or 'root' for leaf in event.leaves)}; {', '.join(held)}"]
        case LeafSplit():
            return [f"leaf {event.node or 'root'} stopped at {event.heldout_nll:.3f} and splits in two"]
        case SplitKept():
            return [f"the split of {event.node or 'root'} paid and stays"]
        case SubtreeDivided():
            return [f"the leaves below {event.node or 'root'} go to workers of their own"]
        case LeavesMerged():
            return [f"the leaves below {event.node or 'root'} are one again: {event.reason}"]
        case UpdateAccepted() if event.kind == "train":
            node = progress.nodes[event.node] if event.node in progress.nodes else NodeProgress()
            name = progress.names.get(event.worker, event.worker)
            loss = f"loss {event.losses[-1]:.3f}" if event.losses else ""
            return [f"{name} trained {event.node or 'root'}: +{event.n_steps} steps on {node.steps}, {loss}"]
        case GatesSolved():
            who = f"{len(event.contributors)} workers"
            return [f"router v{event.version}: {who}, moved {event.drift:.1%} ({event.reason})"]
        case LeaseExpired():
            return [f"lease {event.unit_id} expired: {event.reason}"]
        case UpdateRejected():
            return [f"update of {progress.names.get(event.worker, event.worker)} refused: {event.reason}"]
        case RunFinished():
            return [f"finished: {event.reason}"]
    return []
