"""The plain page: the same state as HTML, for those without JavaScript, for `curl`, and for whoever likes it plain.

Jinja escapes whatever it puts in; nothing here is marked as safe.
"""

from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from tinylora_coordinator.dashboard import documents as doc

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_TOLD = 50
"""Items of the feed."""


def write_page(state: doc.State, artifacts: doc.Artifacts, join: doc.JoinInfo) -> bytes:
    """The plain page of a state."""
    workers = sorted(state.workers, key=lambda worker: (worker.name.casefold(), worker.worker))
    page = _template().render(
        run=state.run,
        nodes=state.nodes,
        workers=workers,
        names={worker.worker: worker.name for worker in workers},
        feed=tuple(reversed(state.feed[-_TOLD:])),
        artifacts=artifacts,
        join=join,
    )
    return page.encode()


@cache
def style() -> bytes:
    """The page's style sheet."""
    return (_TEMPLATES / "lite.css").read_bytes()


_TEMPLATES = files("tinylora_coordinator.dashboard") / "templates"


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, lstrip_blocks=True)
    environment.filters |= {
        "bytes": tell_bytes,
        "change": tell_change,
        "duration": tell_duration,
        "loss": tell_loss,
        "number": tell_number,
        "share": tell_share,
    }
    return environment.from_string((_TEMPLATES / "lite.html").read_text(encoding="utf-8"))


def tell_duration(seconds: float) -> str:
    """Its two largest units: `3 h 25 min`."""
    rest = max(0, round(seconds))
    parts: list[str] = []
    for size, unit in _UNITS:
        n, rest = divmod(rest, size)
        if n or parts:
            parts.append(f"{n} {unit}")
    return " ".join(parts[:2]) or "0 s"


def tell_bytes(n: int) -> str:
    """`1.5 MiB`."""
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def tell_number(number: float | None) -> str:
    """With commas, and a decimal where it is small; nothing for None."""
    if number is None:
        return ""
    return f"{number:,.1f}" if isinstance(number, float) and abs(number) < 100 else f"{number:,.0f}"


def tell_share(share: float | None) -> str:
    """In per cent."""
    return "" if share is None else f"{100 * share:.1f} %"


def tell_loss(loss: float | None) -> str:
    """Three decimals; nats per token is said beside it."""
    return "" if loss is None else f"{loss:.3f}"


def tell_change(change: float | None) -> str:
    """With its sign."""
    return "" if change is None else f"{change:+.3f}".replace("-", "−")
