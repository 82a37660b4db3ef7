"""Named places where a process can be made to die, or a disk to fail: between any two steps that reach the disk.

    TINYLORA_FAILPOINT="name[:nth][:kill|enospc|eio]"     what happens the nth time (1) that `name` is reached (kill)
    TINYLORA_FAILPOINT_MARK=FILE                          happens at most once, for all processes that name this file

Without the first variable a failpoint does nothing. A module names its own when it is imported, so the list is complete
once everything is imported. `….before` stands before a step and may fail as the step itself might; `….after` stands
behind it, where nothing can fail any more: there a process can only die. Whoever adds a durable step adds both.

Source: failpoints as in etcd (tests/robustness); the classes of faults from Pillai et al., OSDI 2014 ("ALICE").
"""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

VARIABLE = "TINYLORA_FAILPOINT"
MARK_VARIABLE = "TINYLORA_FAILPOINT_MARK"

Action: TypeAlias = Literal["kill", "enospc", "eio"]
_ERRNO = {"enospc": errno.ENOSPC, "eio": errno.EIO}


@dataclass
class _Armed:
    name: str
    nth: int
    action: str
    n_reached: int = 0


_names: set[str] = set()
_armed: _Armed | None = None
_watchers: list[Callable[[str], None]] = []


def register(*names: str) -> None:
    """Make failpoints known, so that tests can go through all of them; twice is once.

    Raises:
        ValueError: A name ends neither with `.before` nor with `.after`.
    """
    for name in names:
        if not name.endswith((".before", ".after")):
            raise ValueError(f"failpoint {name}: expected a name that ends with .before or .after")
    _names.update(names)


def around(*steps: str) -> None:
    """Register `step.before` and `step.after` for each of these steps."""
    register(*(f"{step}.{side}" for step in steps for side in ("before", "after")))


def registered() -> tuple[str, ...]:
    """Names known so far, sorted: those of all modules that were imported."""
    return tuple(sorted(_names))


def reach(name: str) -> None:
    """Say that this place was reached. What is armed for it happens now.

    Raises:
        KeyError: The name was never registered.
        OSError: As armed.
    """
    if name not in _names:
        raise KeyError(f"failpoint {name}: not registered")
    for watcher in _watchers:
        watcher(name)
    if _armed is not None and _armed.name == name:
        _fire(_armed)


@contextmanager
def armed(text: str) -> Iterator[None]:
    """Within it this process is armed as if the variable had said `text`.

    Raises:
        ValueError: The text is not of the form `name[:nth][:kill|enospc|eio]`.
    """
    global _armed
    before, _armed = _armed, _parse(text)
    try:
        yield
    finally:
        _armed = before


@contextmanager
def watched(watcher: Callable[[str], None]) -> Iterator[None]:
    """Within it `watcher` is told every failpoint that is reached, before anything happens there."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def _fire(place: _Armed) -> None:
    place.n_reached += 1
    if place.n_reached != place.nth or not _is_first():
        return
    if place.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    code = _ERRNO[place.action]
    raise OSError(code, os.strerror(code), f"failpoint {place.name}")


def _is_first() -> bool:
    """Whether no process with the same mark has fired yet."""
    mark = os.environ.get(MARK_VARIABLE)
    if not mark:
        return True
    try:
        Path(mark).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _parse(text: str) -> _Armed:
    name, *rest = text.split(":")
    action = rest.pop() if rest and rest[-1] in ("kill", *_ERRNO) else "kill"
    nth = rest.pop() if rest else "1"
    if not name or rest or not nth.isdecimal() or int(nth) < 1:
        raise ValueError(f"{VARIABLE}={text}: expected name[:nth][:kill|enospc|eio], nth from 1")
    if action != "kill" and name.endswith(".after"):
        raise ValueError(f"{VARIABLE}={text}: behind a step nothing fails any more; arm {name[:-6]}.before instead")
    return _Armed(name, int(nth), action)


if os.environ.get(VARIABLE):
    _armed = _parse(os.environ[VARIABLE])
