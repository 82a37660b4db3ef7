"""Programs that run on this machine, by psutil."""

import os
from collections.abc import Iterable, Iterator
from pathlib import PurePath

import psutil

TRAINER = "tinylora_worker.trainer"
"""The module that a trainer's command line names."""


def name_of(pid: int) -> str | None:
    """A running program's name; empty where the system does not tell, None if there is no such process."""
    try:
        return psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:
        return ""


def is_descendant(pid: int, ancestors: frozenset[int]) -> bool:
    """Whether a process is one of these or comes from one of them."""
    if pid in ancestors:
        return True
    try:
        return any(parent.pid in ancestors for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return False


def is_younger_trainer(pid: int, ours: frozenset[int]) -> bool:
    """Whether a process is the trainer of another worker, begun after the last of ours.

    Of two workers on one device the older one goes on; if each of them stood back for the other, none would work.
    """
    try:
        process = psutil.Process(pid)
        is_trainer = TRAINER in process.cmdline()
        return is_trainer and process.create_time() > max(psutil.Process(own_pid).create_time() for own_pid in ours)
    except (psutil.Error, ValueError):
        return False


def all_programs() -> Iterator[tuple[int, str]]:
    """Number and name of every process that can be seen; cheap enough for every few seconds."""
    for process in psutil.process_iter(["name"]):
        name = process.info["name"]  # pyright: ignore[reportAttributeAccessIssue]
        if name:
            yield process.pid, name


def running(wanted: Iterable[str], programs: Iterable[tuple[int, str]], ours: frozenset[int]) -> tuple[str, ...]:
    """Those of the wanted programs that run, in their order; ours do not count.

    Upper and lower case are one, and so are "game" and "game.exe"; of a path, its last part counts.
    """
    found = {_plain(name) for pid, name in programs if pid not in ours}
    return tuple(name for name in wanted if _plain(name) in found)


def own(trainer_pid: int | None) -> frozenset[int]:
    """This process and its trainer."""
    return frozenset({os.getpid()} | ({trainer_pid} if trainer_pid else set()))


def _plain(name: str) -> str:
    return PurePath(name.replace("\\", "/")).name.lower().removesuffix(".exe")
