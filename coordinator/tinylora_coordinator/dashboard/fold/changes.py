"""What the fold notes of its own changes: what is to be written down, and to be shown anew."""

from dataclasses import dataclass, field

from tinylora.tree import NodePath
from tinylora_coordinator.dashboard.documents import FeedItem, LogLine, Mark, RouterRow, StateSpan, VersionRow
from tinylora_coordinator.dashboard.records import Amount, Point, Unit, UnitChange


@dataclass
class Changes:
    """What has changed since it was last taken."""

    workers: set[str] = field(default_factory=set)
    parts: set[NodePath] = field(default_factory=set)
    units: set[str] = field(default_factory=set)
    """Open ones: given out, changed or closed."""
    nodes: set[NodePath] = field(default_factory=set)
    """Of which what is shown may be other."""
    measured: set[str] = field(default_factory=set)
    is_mass_new: bool = False
    is_tree_new: bool = False
    are_trials_new: bool = False
    leased: list[tuple[int, Unit]] = field(default_factory=list)
    """New units, by the number of their event."""
    closed: list[UnitChange] = field(default_factory=list)
    versions: list[tuple[int, NodePath, VersionRow]] = field(default_factory=list)
    routers: list[RouterRow] = field(default_factory=list)
    entropies: list[tuple[int, float]] = field(default_factory=list)
    """By version of the routers."""
    lines: list[tuple[str, LogLine]] = field(default_factory=list)
    """Of workers' logs."""
    marks: list[tuple[int, Mark]] = field(default_factory=list)
    states: list[tuple[str, StateSpan]] = field(default_factory=list)
    """States that workers went over to, in order."""
    feed: list[FeedItem] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    amounts: list[Amount] = field(default_factory=list)
    ended: list[tuple[Unit, float, str]] = field(default_factory=list)
    """Train units that are no longer under way: when, and accepted, expired or rejected."""
