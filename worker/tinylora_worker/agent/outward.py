"""What others are told of this worker, and what they never are: names of files, machines, people and programs. Pure.

Of the reasons why it does not work, the word is told always, the further words only where they are of this worker's own
limits. Lines of its log are told where the owner chose so, with everything taken out that may be a path, an address, a
secret or a quotation; that is found by its shape, and what is known to be private by its letters.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tinylora.protocol.documents import MAX_LICENCE, MAX_NOTE, Update
from tinylora.protocol.plain import plain
from tinylora.protocol.report import (
    MAX_DETAIL,
    MAX_GPU,
    MAX_LIMIT,
    MAX_LINE,
    MAX_LINES,
    WorkerReport,
)
from tinylora.protocol.standstill import Reason, WorkerState
from tinylora_worker.agent.bench import UnderWay
from tinylora_worker.agent.desk import Orders
from tinylora_worker.limits import Limits

HIDDEN = "…"
_TELLABLE = frozenset(
    {Reason.SCHEDULE, Reason.BATTERY, Reason.TOO_HOT, Reason.VRAM, Reason.DISK, Reason.DATA_CAP, Reason.USER_PAUSED}
)
"""Reasons whose further words are numbers of limits. Those of the others may name programs, files and addresses."""
_LEAST_WORD = 3
"""Shorter private words, such as the user name "a", would take ordinary letters out."""
_EVERYBODYS = frozenset({"root", "user", "localhost"})
"""Names that tell nothing; the first is a node's, too."""
_LONGEST = 4 * MAX_LINE
_PAUSED = re.compile(r"^(paused: [a-z_]+) \(.*\)")
_RATE = re.compile(r"(?<!\S)((?:tokens|steps|[kMG]i?B|Mbit|\d+))/(s|h|min|month|\d+)(?=[\s,;.)]|$)")
_SLASH = "\x00"
"""In place of the slash of a rate, while paths are looked for."""
_PRIVATE_SHAPES = re.compile(
    r"""
    \x22[^\x22]*\x22 | '[^']*' | `[^`]*` | “[^”]*”          # whatever is quoted: names, or text of the owner
    | \S*[\w.+-]+@[\w.-]+\S*                                # mail addresses, user@host
    | \S*://\S*                                             # addresses
    | \S*[/\\](?:.*[/\\])?\S*                              # paths; with blanks in them, to the last of the line
    | \b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b                  # IPv4
    | \[?(?:[0-9a-fA-F]{0,4}:){2,}[0-9a-fA-F:.]*\]?         # IPv6, MAC
    | \S*\.[A-Za-z][A-Za-z0-9]{1,11}\b                      # file.jsonl, host.example
    | \b\w*(?:secret|token|password|passwd|api_?key)\w*\s*[=:]\s*\S+   # secrets by their name
    | [A-Za-z0-9+_=-]{24,}                                  # secrets by their length
    """,
    re.VERBOSE | re.IGNORECASE,
)
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?")


@dataclass(frozen=True)
class Discretion:
    """Takes out of a line what is nobody else's business.

    Attributes:
        private: Words known to be private: names of this machine, of its user, of folders and files.
        known: Words that are known to others anyway: this worker's own name on the wire.
    """

    private: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()

    @classmethod
    def about(cls, private: Iterable[str], known: Iterable[str] = ()) -> "Discretion":
        """Of these words, those that can be told from ordinary letters."""
        return cls(
            frozenset(word for word in private if len(word) >= _LEAST_WORD and word.lower() not in _EVERYBODYS),
            frozenset(word for word in known if word),
        )

    def line(self, text: str) -> str:
        """The line as others may read it."""
        if len(text) > _LONGEST:
            text = text[:_LONGEST].rpartition(" ")[0]  # half a word would not be recognised
        text = _PAUSED.sub(r"\1", text)
        text = _RATE.sub(rf"\1{_SLASH}\2", text.replace(_SLASH, " "))
        for word in sorted(self.private, key=len, reverse=True):
            text = re.sub(re.escape(word), HIDDEN, text, flags=re.IGNORECASE)
        text = _PRIVATE_SHAPES.sub(self._judge, text)
        return plain(text.replace(_SLASH, "/"), at_most=MAX_LINE)

    def _judge(self, found: "re.Match[str]") -> str:
        text = found[0]
        return text if _CLOCK.fullmatch(text) or text.strip(",;:()") in self.known else HIDDEN


def make_report(
    orders: Orders,
    *,
    work: UnderWay | None,
    device: str,
    memory_bytes: int,
    limits: Limits,
    log: Sequence[str],
    now_s: float,
) -> WorkerReport:
    """What is told at this moment.

    Args:
        orders: What it does, and why it does not.
        work: The unit under way.
        device: Model of the device; empty before it is known.
        memory_bytes: Of the device; 0: not known.
        limits: Of its owner; the note is one of them.
        log: Lines that may be told.
        now_s: Seconds since 1970.
    """
    progress = None if work is None else work.progress
    is_working = orders.state is WorkerState.WORKING
    return WorkerReport(
        state=orders.state,
        reason=orders.reason or "",
        detail=plain(orders.detail, at_most=MAX_DETAIL) if orders.reason in _TELLABLE else "",
        resumes_in_s=min(max(orders.until_s - now_s, 0.0), 1e9) if orders.until_s else None,
        unit_id="" if work is None else work.unit.unit_id,
        step=0 if progress is None else progress.step,
        n_steps=0 if work is None else work.unit.n_steps,
        tokens_per_s=_number(progress.tokens_per_s) if progress is not None and is_working else 0.0,
        loss=_number(progress.loss) if progress is not None and progress.losses else None,
        gpu=plain(device, at_most=MAX_GPU),
        memory_bytes=memory_bytes,
        note=plain(limits.note, at_most=MAX_NOTE),
        limits=declared(limits),
        log=tuple(log)[-MAX_LINES:],
    )


def with_statement(update: Update, limits: Limits) -> Update:
    """A sketch with what its owner says of the text; other updates as they are."""
    if update.kind != "sketch":
        return update
    note, licence = plain(limits.note, at_most=MAX_NOTE), plain(limits.data_licence, at_most=MAX_LICENCE)
    return update.model_copy(update={"data_note": note, "data_licence": licence})


def declared(limits: Limits) -> dict[str, str]:
    """Limits as others see them: what is limited, and neither which card it is by its number nor which programs."""
    n_apps = len(limits.exclusive_apps)
    told = {
        "gpu": limits.device,
        "vram": limits.vram,
        "cpu_threads": "" if limits.cpu_threads is None else str(limits.cpu_threads),
        "disk": limits.disk,
        "data_cap": limits.data_cap,
        "schedule": "; ".join(limits.schedule),
        "on_battery": "yes" if limits.on_battery else "",
        "when_gpu_busy": limits.when_gpu_busy if limits.when_gpu_busy != "pause" else "",
        "exclusive_apps": f"{n_apps} program{'s' * (n_apps != 1)}" if n_apps else "",
        "max_temp_c": "" if limits.max_temp_c is None else f"{limits.max_temp_c:g} °C",
    }
    return {key: plain(value, at_most=MAX_LIMIT) for key, value in told.items() if value}


def _number(value: float) -> float:
    return min(max(value, 0.0), 1e6) if math.isfinite(value) else 0.0
