"""Why a trainer ended, and when one that says nothing is to be taken for dead. Decisions alone; no process here."""

import signal
from dataclasses import dataclass
from pathlib import Path

ORPHANED = 3
"""Exit code of a trainer whose agent has gone."""
_VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True)
class Patience:
    """How long a trainer may say nothing."""

    start_s: float = 60.0
    """From its start until it listens."""
    silent_s: float = 60.0
    """Without an event and without an answer to a ping: nothing runs in it."""
    stuck_s: float = 3600.0
    """Without an event of a unit, though it answers: its device does not come back from a step. To load a base, or to
    read much text, may take longer."""
    stop_s: float = 1.5
    """From the word to stop until it is killed."""


def hang(patience: Patience, *, now_s: float, event_s: float, answer_s: float, has_steps: bool) -> str:
    """Why a trainer at work is to be ended; empty while it is not.

    Args:
        patience: How long to wait.
        now_s: The time.
        event_s: When it last told an event of its job, or was given it.
        answer_s: When it last answered a ping, or was given its job.
        has_steps: Whether the job is one that gets on in steps, and tells of them.
    """
    if now_s - max(event_s, answer_s) >= patience.silent_s:
        return f"it gave no sign of life for {patience.silent_s:g} s"
    if has_steps and now_s - event_s >= patience.stuck_s:
        return f"it did not get any further for {patience.stuck_s:g} s"
    return ""


def ending(code: int, *, n_oom_kills: int, log: Path) -> str:
    """Why a process ended that was not told to, in words.

    Args:
        code: As `Popen.returncode`: a signal's number is negative.
        n_oom_kills: Processes that the system has ended for want of memory while it lived.
        log: Where it wrote what it had to say.
    """
    if code in (-signal.SIGTERM, ORPHANED):
        return "somebody ended it (SIGTERM)"
    if code == -getattr(signal, "SIGKILL", 9):
        if n_oom_kills:
            return "the system ended it for want of memory (SIGKILL): close other programs, or take a smaller base"
        return "somebody, or the system for want of memory, ended it (SIGKILL)"
    if code < 0:
        return f"it crashed ({_signal_name(-code)}); {log} may tell more"
    return f"it ended by itself (exit code {code}); {log} tells why"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def oom_kills(vmstat: Path = _VMSTAT) -> int:
    """Processes that this machine has ended for want of memory since it was started; 0 where it does not tell."""
    try:
        lines = vmstat.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
