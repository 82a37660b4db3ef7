"""A trainer's life, from the first line on its stdin to the end of that stream.

It ends with its agent, whatever ended that: by the stream, before whose end it is given a second to write the last
finished step down; and on Linux, should the stream's end not be heard, by a signal from the system that nothing stops.
"""

import ctypes
import json
import logging
import os
import shutil
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import psutil

from tinylora_worker.trainer.jobs import Bench
from tinylora_worker.trainer.service import TrainerService
from tinylora_worker.trainer.watching import ORPHANED
from tinylora_worker.wire.endpoint import listen
from tinylora_worker.wire.worker_pb2_grpc import add_TrainerServicer_to_server

NAME = "tinylora-train"
"""In lists of processes; Linux shows fifteen letters."""
NICE = 10
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's affair
    parent = os.getppid()
    _die_with_parent()
    first = json.loads(sys.stdin.readline() or "null")
    if first is None or os.getppid() != parent:
        sys.exit(ORPHANED)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
    _be_modest()
    folder = None if first["folder"] is None else Path(first["folder"])
    bench = Bench()
    service = TrainerService(Path(first["home"]), bench, checkpoint_every_s=first["checkpoint_every_s"])
    leave = partial(_leave, service, folder)
    signal.signal(signal.SIGTERM, lambda *_: leave())
    threading.Thread(target=_hold_life_line, args=(leave,), name="life line", daemon=True).start()
    # The server lives as long as somebody holds it.
    server, address = listen([partial(add_TrainerServicer_to_server, service)], folder, "trainer", first["token"])
    _answer({"target": address.target})
    service.warm_up()
    bench.work()
    server.stop(None)


def _answer(line: dict[str, str]) -> None:
    """The one line for the agent. What libraries print from now on goes into the log."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        out.write(json.dumps(line) + "\n")


def _hold_life_line(leave: partial[NoReturn]) -> None:
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    leave()


def _leave(service: TrainerService, folder: Path | None) -> NoReturn:
    """The end, at once: no step in progress is waited for, no library cleans up."""
    service.write_down()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(ORPHANED)


def _be_modest() -> None:
    """Whoever sits at this machine goes first."""
    this = psutil.Process()
    # Each system has names of its own in psutil, and the type checker knows those of one: hence the two marks.
    with suppress(psutil.Error, OSError):
        this.nice(max(this.nice(), NICE) if os.name == "posix" else psutil.IDLE_PRIORITY_CLASS)  # type: ignore[attr-defined]
    with suppress(psutil.Error, OSError, AttributeError):
        this.ionice(psutil.IOPRIO_CLASS_IDLE)  # type: ignore[attr-defined]


def _die_with_parent() -> None:
    """Linux: be killed when the parent's thread that started us ends, and have a name of our own in lists."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NAME, NAME.encode(), 0, 0, 0)
