"""What a volunteer sees while his worker works: one screen, or plain lines, or JSON lines. Drawn from `Status` alone.

    Picture      a terminal: rich's live display, with the keys p, f and q
    Lines        no terminal: a line for each change, at most one in some seconds
    JsonLines    for scripts: a status per line

`draw` and `line_of` are pure: a status, a width and the time in, text out.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, tzinfo
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from tinylora.errors import TinyLoraError
from tinylora.protocol.standstill import Reason, WorkerState
from tinylora_worker.keys import Keys
from tinylora_worker.preflight.amounts import amount, span
from tinylora_worker.wire.worker_pb2 import Status

REASONS: dict[str, str] = {
    Reason.USER_PAUSED: "paused by you",
    Reason.SCHEDULE: "outside of its hours",
    Reason.BATTERY: "on battery",
    Reason.GPU_BUSY: "the GPU is in use by others",
    Reason.EXCLUSIVE_APP: "a program that wants the machine to itself runs",
    Reason.TOO_HOT: "too hot",
    Reason.VRAM: "the GPU's memory is taken",
    Reason.DISK: "the disk is full, or its limit is reached",
    Reason.DATA_CAP: "this month's traffic is used up",
    Reason.NO_WORK: "the coordinator has nothing to do for it now",
    Reason.WAITING_FOR_PEERS: "waits for other workers",
    Reason.RUN_PAUSED: "the operator has paused the run",
    Reason.COORDINATOR_UNREACHABLE: "the coordinator does not answer",
    Reason.UPDATE_REQUIRED: "the run needs another version of tinylora",
    Reason.ERROR: "something is wrong",
}
_STYLES: dict[str, str] = {
    WorkerState.WORKING: "green",
    WorkerState.STARTING: "cyan",
    WorkerState.WAITING: "cyan",
    WorkerState.PAUSED: "yellow",
    WorkerState.LEAVING: "yellow",
    WorkerState.FINISHED: "green",
}
_SPARKS = "▁▂▃▄▅▆▇█"
_ASCII_SPARKS = "_.-=#"
KEYS_LINE = "[p]ause  [f]inish  [q]uit  [?]"
PAUSED_KEYS_LINE = "[p] goes on  [f]inish  [q]uit  [?]"
HELP = (
    "p  pause, and go on: the device's memory is free within two seconds, the unit goes on later",
    "f  finish: leave after the unit under way",
    "q  quit: checkpoint, give the unit back, leave; Ctrl-C does the same, twice is at once",
    "?  this help; `tinylora-worker --help` has the rest",
)
MIN_BAR, MAX_BAR = 8, 24
_AS_TOLD = ("where", "round", "bar", "share", "loss", "speed", "sync", "eta")
SHORT_WAIT_S = 5.0
"""A wait between two units that nobody need hear of."""
TREND_STEPS = 5
"""Losses whose mean is compared with that of as many before."""


# --- pure: text of a status -------------------------------------------------------------------------------------------


def where(status: Status) -> str:
    """What it works on: "leaf 0110", "node root"."""
    if not status.unit_id:
        return ""
    return {"sketch": "sketch", "probe": "scoring"}.get(status.kind, f"node {status.node or 'root'}")


def why(status: Status, zone: tzinfo | None, now_s: float) -> str:
    """Why it is not working, and until when: empty while it works."""
    if not status.reason:
        return ""
    text = REASONS.get(status.reason, status.reason)
    detail = f" ({status.detail})" if status.detail and status.reason != Reason.USER_PAUSED else ""
    until = f", until {clock(status.until_s, zone, now_s)}" if status.until_s else ""
    return f"{text}{detail}{until}"


def clock(at_s: float, zone: tzinfo | None, now_s: float) -> str:
    """A moment as hour and minute, with its day where that is another one."""
    at, now = datetime.fromtimestamp(at_s, zone), datetime.fromtimestamp(now_s, zone)
    return f"{at:%H:%M}" if at.date() == now.date() else f"{at:%a %d %b %H:%M}"


def sparkline(losses: Sequence[float], width: int, *, is_ascii: bool = False) -> str:
    """The last losses as a curve of one row; what is not finite is a gap."""
    marks = _ASCII_SPARKS if is_ascii else _SPARKS
    shown = list(losses)[-width:] if width > 0 else []
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    top = len(marks) - 1
    level = [round((value - low) / (high - low) * top) if high > low else 0 for value in finite]
    levels = iter(level)
    return "".join(marks[next(levels)] if math.isfinite(value) else " " for value in shown)


def trend(losses: Sequence[float], *, is_ascii: bool = False) -> str:
    """Whether the loss falls or rises: the mean of the last losses against that of those before."""
    finite = [value for value in losses if math.isfinite(value)]
    half = min(TREND_STEPS, len(finite) // 2)
    if not half:
        return ""
    late, early = sum(finite[-half:]) / half, sum(finite[-2 * half : -half]) / half
    down, up = ("v", "^") if is_ascii else ("▼", "▲")
    return down if late < early else up if late > early else "="


def bar(share: float, width: int, *, is_ascii: bool = False) -> str:
    """A bar that is filled to `share`."""
    full, empty = ("#", "-") if is_ascii else ("█", "░")
    n_full = round(min(max(share, 0.0), 1.0) * width)
    return full * n_full + empty * (width - n_full)


def headline(status: Status) -> str:
    """Whose worker in which run."""
    who = status.name or status.worker
    return f"TinyLoRA worker {status.version}  ·  run {_quoted(status.run)}  ·  {who}"


def _quoted(text: str) -> str:
    return f'"{text}"' if text else "not joined yet"


def progress_line(
    status: Status, zone: tzinfo | None, now_s: float, width: int, *, is_ascii: bool = False, has_bar: bool = True
) -> str:
    """Node, round, bar, share, loss, speed, next sync: as much of it as the width takes, the most needed first."""
    if not status.unit_id:
        return ""
    share = status.step / status.n_steps if status.n_steps else 0.0
    loss = f"loss {status.loss:.3f} {trend(status.losses, is_ascii=is_ascii)}".rstrip() if status.losses else ""
    parts = {
        "where": where(status),
        "share": f"{share:.0%}" if status.n_steps else "",
        "loss": loss,
        "bar": bar(share, MIN_BAR, is_ascii=is_ascii) if status.n_steps and has_bar else "",
        "round": f"round {status.round}" if status.round and status.kind == "train" else "",
        "speed": f"{status.tokens_per_s:,.0f} tok/s" if status.tokens_per_s else "",
        "sync": f"sync in {span(status.unit_eta_s)}" if status.unit_eta_s else "",
        "eta": f"ETA {clock(now_s + status.unit_eta_s, zone, now_s)}" if status.unit_eta_s else "",
    }
    kept = _fitting([(name, part) for name, part in parts.items() if part], width)
    if "bar" in kept:
        room = width - sum(cell_len(parts[name]) + 2 for name in kept) + 2
        parts["bar"] = bar(share, min(MIN_BAR + room, MAX_BAR), is_ascii=is_ascii)
    return "  ".join(parts[name] for name in _AS_TOLD if name in kept)


def _fitting(parts: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Names of the first parts that stand side by side in this width; the very first always."""
    kept: list[str] = []
    used = -2
    for name, part in parts:
        used += cell_len(part) + 2
        if kept and used > width:
            break
        kept.append(name)
    return kept


def facts_line(status: Status, width: int) -> str:
    """Device, temperature, traffic, credit: as much as the width takes."""
    month = f"{amount(status.month_bytes)} this month" if status.month_bytes else ""
    if month and status.month_cap_bytes:
        month = f"{amount(status.month_bytes)} of {amount(status.month_cap_bytes)} this month"
    parts = [
        f"{status.device} {status.dtype}".strip(),
        f"{status.temperature_c:.0f} °C" if status.temperature_c else "",
        f"{status.accepted_tokens:,} tokens accepted" if status.accepted_tokens else "",
        f"{amount(status.received_bytes)} down, {amount(status.sent_bytes)} up",
        f"{status.n_outbox} in the outbox" if status.n_outbox else "",
        month,
        f"{amount(status.memory_bytes)} used" if status.memory_bytes else "",
    ]
    return "  ·  ".join(_fitting_apart([part for part in parts if part], width, apart=5))


def _fitting_apart(parts: Sequence[str], width: int, *, apart: int) -> list[str]:
    kept: list[str] = []
    used = -apart
    for part in parts:
        if used + apart + cell_len(part) <= width or not kept:
            kept.append(part)
            used += apart + cell_len(part)
    return kept


def state_line(status: Status, zone: tzinfo | None, now_s: float) -> str:
    """State and reason in a sentence."""
    words = [status.state]
    if reason := why(status, zone, now_s):
        words.append(f"{reason}")
    text = ": ".join(words)
    return f"{text}; leaves after this unit" if status.is_finishing else text


def draw(
    status: Status,
    *,
    width: int,
    zone: tzinfo | None,
    now_s: float,
    has_keys: bool = True,
    has_help: bool = False,
    is_ascii: bool = False,
    n_log: int = 4,
) -> RenderableType:
    """The whole screen: at most nine lines, none wider than `width`."""
    sparks = sparkline(status.losses, min(width - 6, 40), is_ascii=is_ascii)
    lines = [
        Text(headline(status), style="bold"),
        Text(state_line(status, zone, now_s), style=_STYLES.get(status.state, "")),
        Text(progress_line(status, zone, now_s, width, is_ascii=is_ascii)),
        Text(f"loss  {sparks}" if len(status.losses) > 1 else "", style="cyan"),
        Text(facts_line(status, width), style="dim"),
        *(Text(line, style="dim") for line in (status.log[-n_log:] if n_log else ())),
        *(Text(line) for line in (HELP if has_help else ())),
        Text((PAUSED_KEYS_LINE if status.reason == Reason.USER_PAUSED else KEYS_LINE) if has_keys else ""),
    ]
    shown = [line for line in lines if line.plain]
    for line in shown:
        line.truncate(width, overflow="ellipsis" if not is_ascii else "crop")
        line.no_wrap = True
    return Group(*shown)


def line_of(status: Status, zone: tzinfo | None, now_s: float) -> str:
    """The same in one line, for logs; no bar."""
    parts = [state_line(status, zone, now_s), progress_line(status, zone, now_s, 200, has_bar=False)]
    return "  ".join(part for part in parts if part)


def as_document(status: Status) -> dict[str, object]:
    """For programs: every field of the message, also those that are empty; whole numbers as numbers."""
    document: dict[str, object] = {}
    for field in status.DESCRIPTOR.fields:
        value = getattr(status, field.name)
        if field.name == "fit":
            document[field.name] = {inner.name: getattr(value, inner.name) for inner in value.DESCRIPTOR.fields}
        else:
            document[field.name] = value if isinstance(value, str | int | float | bool) else list(value)
    return document


# --- showing ----------------------------------------------------------------------------------------------------------


class Wishes(Protocol):
    """What the keys do; the agent, or the command line's way to it."""

    def pause(self) -> object:
        """Hold still until resumed."""
        ...

    def resume(self) -> object:
        """Go on."""
        ...

    def finish(self) -> object:
        """Leave after the unit under way."""
        ...

    def leave(self) -> object:
        """Checkpoint, give the unit back, leave."""
        ...


class Show(Protocol):
    """Shows one status after another, while entered."""

    def __enter__(self) -> Self:
        """Take what it needs."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put it back."""
        ...

    def update(self, status: Status) -> None:
        """Show this one."""
        ...


class Picture:
    """One screen that is drawn anew; keys while a keyboard is there. Leaving it puts the terminal back.

    Args:
        console: Of the terminal.
        wishes: What the keys do; None: no keys.
        zone: Of the clock times.
        keyboard: Whose keys are read; None: none are.
        n_log: Latest lines of the log that are shown below.
    """

    def __init__(
        self,
        console: Console,
        wishes: Wishes | None,
        *,
        zone: tzinfo | None = None,
        keyboard: TextIO | None = None,
        n_log: int = 4,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._console, self._wishes, self._zone, self._clock, self._n_log = console, wishes, zone, clock, n_log
        self._status, self._has_help = Status(state=WorkerState.STARTING), False
        self._keys = Keys(keyboard, self.press) if wishes is not None and keyboard is not None else None
        self._live = Live(
            console=console, get_renderable=self._draw, refresh_per_second=4, transient=False, auto_refresh=True
        )

    def __enter__(self) -> Self:
        """Take the terminal."""
        if self._keys is not None:
            self._keys.__enter__()
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back as it was, whatever happened."""
        try:
            self._live.__exit__(kind, error, trace)
        finally:
            if self._keys is not None:
                self._keys.__exit__(kind, error, trace)

    def update(self, status: Status) -> None:
        """Show this one from now on."""
        self._status = status
        self._live.refresh()

    def press(self, key: str) -> None:
        """Do what a key means; keys without a meaning do nothing, and a wish that is refused is told."""
        if key == "?":
            self._has_help = not self._has_help
            self._live.refresh()
        elif (wish := self._wish_of(key.lower())) is not None:
            try:
                wish()
            except TinyLoraError as error:
                self._console.print(str(error), markup=False)

    def _wish_of(self, key: str) -> Callable[[], object] | None:
        if self._wishes is None:
            return None
        is_paused = self._status.reason == Reason.USER_PAUSED
        first = self._wishes.resume if is_paused else self._wishes.pause
        return {"p": first, "f": self._wishes.finish, "q": self._wishes.leave}.get(key)

    def _draw(self) -> RenderableType:
        return draw(
            self._status,
            width=self._console.width,
            zone=self._zone,
            now_s=self._clock(),
            has_keys=self._keys is not None and self._keys.is_reading,
            has_help=self._has_help,
            n_log=self._n_log,
            is_ascii=not is_unicode(self._console),
        )


def is_unicode(console: Console) -> bool:
    """Whether bars and curves can be printed there."""
    return "utf" in (console.encoding or "").lower()


class Lines:
    """A line for each change that matters; progress alone, at most one in `every_s` seconds.

    Between two units a worker waits for a moment: that is told when it lasts.

    Args:
        tell: Takes a line.
        zone: Of the clock times.
        every_s: Between two lines that tell of progress alone.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        tell: Callable[[str], object] = print,
        *,
        zone: tzinfo | None = None,
        every_s: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tell, self._zone, self._every_s, self._clock = tell, zone, every_s, clock
        self._told: tuple[object, ...] = ()
        self._told_at_s = -math.inf
        self._waits_since_s: float | None = None

    def __enter__(self) -> Self:
        """Nothing to take."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put back."""

    def update(self, status: Status) -> None:
        """Tell it, if it says something new."""
        now_s = self._clock()
        if status.state != WorkerState.WAITING:
            self._waits_since_s = None
        elif self._waits_since_s is None:
            self._waits_since_s = now_s
        is_moment = self._waits_since_s is not None and now_s < self._waits_since_s + SHORT_WAIT_S
        what = (status.state, status.reason, status.detail, status.until_s, status.is_finishing, status.unit_id)
        is_due = bool(status.unit_id) and now_s >= self._told_at_s + self._every_s
        if is_moment or (what == self._told and not is_due):
            return
        self._told, self._told_at_s = what, now_s
        self._tell(f"{clock(now_s, self._zone, now_s)}  {line_of(status, self._zone, now_s)}")


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Self:
        """Nothing to take."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put back."""

    def update(self, status: Status) -> None:
        """Let it pass."""


class JsonLines:
    """A status per line on `out`."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout

    def __enter__(self) -> Self:
        """Nothing to take."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put back."""

    def update(self, status: Status) -> None:
        """Print it."""
        print(json.dumps(as_document(status), sort_keys=True, ensure_ascii=False), file=self._out, flush=True)
