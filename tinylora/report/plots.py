"""Two pictures of a run. matplotlib is imported inside, because most commands never draw."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylora.errors import SettingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any

WIDTH_PX = 1200
DPI = 120
MAX_LEGEND = 20
SMOOTHED = 7
_DASHES = ("-", "--", ":", "-.")
_NO_TIME = {"Software": None}  # matplotlib's own version in the file would make equal pictures differ


NO_PICTURES = "pictures are drawn by matplotlib, which is not installed: pip install 'tinylora[pictures]'"


def can_draw() -> bool:
    """Whether matplotlib is installed; it is not imported."""
    return importlib.util.find_spec("matplotlib") is not None


@dataclass
class Curve:
    """Training loss of one worker on one node, over the tokens it has trained there."""

    node: str
    worker: str
    is_subtree: bool
    tokens: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    heldout_tokens: list[float] = field(default_factory=list)
    heldout: list[float] = field(default_factory=list)
    n_tokens: int = 0

    @property
    def label(self) -> str:
        """What the legend says."""
        return f"{'subtree' if self.is_subtree else 'leaf'} {self.node or 'root'} · {self.worker}"

    def add(self, unit: Mapping[str, Any]) -> None:
        """Append one train unit; its losses stand at the middle of equal slices of its tokens."""
        tokens, losses = int(unit.get("tokens") or 0), unit["losses"]
        for index, loss in enumerate(losses):
            self.tokens.append(self.n_tokens + tokens * (index + 0.5) / len(losses))
            self.losses.append(loss)
        self.n_tokens += tokens
        if unit.get("heldout_nll_after") is not None:
            self.heldout_tokens.append(self.n_tokens)
            self.heldout.append(unit["heldout_nll_after"])


def loss_curves(units: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Accepted train units by node and worker, in the order in which they stand.

    A unit is a mapping with `kind`, `node`, `worker` (or `name`), `tokens`, `losses` and, where known,
    `heldout_nll_after` and `leaves`.
    """
    curves: dict[tuple[str, str], Curve] = {}
    nodes = {unit["node"] for unit in units if unit.get("kind") == "train"}
    for unit in units:
        if unit.get("kind") == "train" and unit.get("losses"):
            node, worker = unit["node"], str(unit.get("name") or unit["worker"])
            is_subtree = len(unit.get("leaves") or ()) > 1 or any(other.startswith(node) for other in nodes - {node})
            curves.setdefault((node, worker), Curve(node, worker, is_subtree)).add(unit)
    return [curves[key] for key in sorted(curves)]


def smooth(values: Sequence[float]) -> list[float]:
    """Mean of each value and its neighbours, up to `SMOOTHED` in all; fewer at the ends, the same on both sides."""
    reach = [min(SMOOTHED // 2, index, len(values) - 1 - index) for index in range(len(values))]
    return [sum(values[i - r : i + r + 1]) / (2 * r + 1) for i, r in enumerate(reach)]


def plot_loss(units: Sequence[Mapping[str, Any]], file: Path) -> Path:
    """Draw the training loss of every leaf and subtree over tokens; dots are held-out losses at the end of units."""
    figure, axes = new_figure(height_px=720)
    curves = loss_curves(units)
    nodes = sorted({curve.node for curve in curves})
    for curve in curves:
        style = _DASHES[[c.worker for c in curves if c.node == curve.node].index(curve.worker) % len(_DASHES)]
        color = _color(nodes.index(curve.node), len(nodes))
        axes.plot(curve.tokens, curve.losses, style, color=color, linewidth=0.8, alpha=0.35)
        axes.plot(curve.tokens, smooth(curve.losses), style, color=color, linewidth=1.8, label=curve.label)
        axes.plot(curve.heldout_tokens, curve.heldout, "o", color=color, markersize=4)
    axes.set_title("Training loss by leaf and worker, smoothed (dots: held-out loss at the end of a unit)")
    axes.set_xlabel("tokens trained by the worker on this node")
    axes.set_ylabel("loss [nats per token]")
    axes.xaxis.set_major_formatter(thousands)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if 0 < len(curves) <= MAX_LEGEND:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    return save(figure, file)


def plot_routing(routing: Mapping[str, Any], file: Path) -> Path:
    """Draw domains against leaves, shaded by mean posterior; a frame marks each domain's own leaf."""
    domains, leaves = list(routing["posterior"]), list(routing["leaves"])
    figure, axes = new_figure(height_px=max(420, 190 + 58 * len(domains)))
    values = [routing["posterior"][domain] for domain in domains]
    image = axes.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for row, domain in enumerate(domains):
        for column, value in enumerate(values[row]):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.55 else "black")
        if routing["leaf_of"].get(domain) in leaves:
            _frame(axes, leaves.index(routing["leaf_of"][domain]), row)
    axes.set_xticks(range(len(leaves)), [leaf or "root" for leaf in leaves])
    axes.set_yticks(range(len(domains)), [f"{domain}  ({routing['accuracy'][domain]:.0%})" for domain in domains])
    axes.set_xlabel("leaf (path from the root: 0 left, 1 right; framed: where the domain was trained)")
    axes.set_ylabel("held-out domain (accuracy)")
    accuracy = sum(routing["accuracy"].values()) / max(1, len(domains))
    axes.set_title(f"Where held-out tokens go: mean posterior by domain (hard accuracy {accuracy:.1%})")
    figure.colorbar(image, ax=axes, label="mean posterior probability")
    return save(figure, file)


def _frame(axes: Axes, column: int, row: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="tab:orange", linewidth=2.5))


def new_figure(*, height_px: int) -> tuple[Figure, Axes]:
    """An empty picture of `WIDTH_PX`.

    Raises:
        SettingError: There is nothing to draw with.
    """
    if not can_draw():
        raise SettingError(NO_PICTURES)
    from matplotlib import figure as mpl  # no pyplot: it keeps every figure alive and looks for a window system

    figure = mpl.Figure(figsize=(WIDTH_PX / DPI, height_px / DPI), dpi=DPI, layout="constrained")
    return figure, figure.add_subplot()


def _color(index: int, n_colors: int) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    return colormaps["tab10"](index) if n_colors <= 10 else colormaps["turbo"](index / (n_colors - 1))


def thousands(value: float, _position: object) -> str:
    """The label of an axis' tick."""
    return f"{value / 1000:,.0f}k" if value >= 1000 else f"{value:.0f}"


def save(figure: Figure, file: Path) -> Path:
    """Write a picture whole or not at all; equal pictures are equal bytes."""
    draft = file.with_name(f".{file.name}.draft")
    figure.savefig(draft, format="png", metadata=_NO_TIME)
    return draft.replace(file)
