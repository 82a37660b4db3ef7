"""Writes bundles while the run goes on: one at a time, in a process of low priority, so that nobody waits for it.

A bundle is made of the ledger as it stands, read-only; then its hash is compared, it is put on the shelf, and the
rounds are ordered to name it in the log. What went wrong is one sentence in `error`, until the next one is written.
"""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import ValidationError

from tinylora.errors import DiskFull, RefusedError, StorageError, TinyLoraError
from tinylora.federation.events import BundlePublished
from tinylora_coordinator.dashboard.log_watch import LogWatch
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.shelf import Shelf

KEEP = 5
"""Files of bundles that stay."""
SPARE_BYTES = 64 << 20
"""Of free space that are left to the run, at least."""
LOOK_S = 2.0
NICE = 10
_LONGEST = 300


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Below zero: the signal that killed it."""
    out: str
    said: str
    """Its stderr."""


class Child:
    """A command of ours in a process of low priority, which does not outlive `kill`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._is_over = False

    def run(self, words: Sequence[str]) -> Ended:
        """Run `tinylora-coordinator` with these words to its end."""
        with self._lock:
            if self._is_over:
                return Ended(-15, "", "")
            command = [sys.executable, "-m", "tinylora_coordinator", *words]
            self._process = process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        with suppress(psutil.Error, OSError, ValueError):
            _make_gentle(psutil.Process(process.pid))
        out, said = process.communicate()
        return Ended(process.returncode, out, said)

    def kill(self) -> None:
        """End it, and run nothing any more."""
        with self._lock:
            self._is_over = True
            if self._process is not None and self._process.poll() is None:
                self._process.kill()


def _make_gentle(process: psutil.Process) -> None:
    process.nice(NICE)
    if hasattr(process, "ionice") and hasattr(psutil, "IOPRIO_CLASS_IDLE"):
        process.ionice(psutil.IOPRIO_CLASS_IDLE)


class Press:
    """Writes bundles of one run. Its methods may be called from any thread.

    Args:
        root: The run's folder.
        store: Its operator's file; orders to name bundles in the log go there.
        every: Write one after so many versions of the routers; 0: only when told to.
        keep: Files that stay.
        run: Runs `tinylora-coordinator` with some words.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        root: Path,
        store: OperatorStore,
        *,
        every: int = 0,
        keep: int = KEEP,
        run: Callable[[Sequence[str]], Ended] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.shelf, self.watch = Shelf(root), LogWatch(root)
        self._root, self._store, self._every, self._keep, self._clock = root, store, every, keep, clock
        self._child = Child()
        self._run = run or self._child.run
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._is_making = False
        self._error = ""
        self._tried_version = 0
        self._erased = 0

    @property
    def is_making(self) -> bool:
        """Whether one is being written now."""
        return self._is_making

    @property
    def error(self) -> str:
        """Why the last one was not written; empty where it was."""
        return self._error

    def start(self) -> None:
        """Clear up after a process that was killed; from here on, look at the log.

        Raises:
            StorageError: The folder cannot be written.
        """
        try:
            self.shelf.tidy()
        except OSError as error:
            raise StorageError(f"{self.shelf.folder}: {error.strerror or error}") from None
        self._tried_version = max((made.router_version for made in self.shelf.all()), default=0)
        self._begin(self._watch, "press-watch")

    def close(self) -> None:
        """Stop, at once; what was being written is cleared away by the next one."""
        self._stop.set()
        self._child.kill()
        for thread in self._threads:
            thread.join()
        self.watch.close()

    def make(self) -> None:
        """Begin to write one; returns at once.

        Raises:
            RefusedError: One is being written already.
            DiskFull: There is no space.
        """
        with self._lock:
            if self._is_making:
                raise RefusedError("a bundle is being written already; it is there in a moment")
            self._check_space()
            self._is_making, self._error = True, ""
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._begin(self._make, "press")

    def _begin(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _check_space(self) -> None:
        last = max((made.bytes for made in self.shelf.all()[:1]), default=0)
        free = shutil.disk_usage(self._root).free
        if free < last + SPARE_BYTES:
            raise DiskFull(
                f"{self.shelf.folder}: {free >> 20} MiB are free, a bundle and the run need "
                f"{(last + SPARE_BYTES) >> 20}; free some"
            )

    # --- one bundle --------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        error = ""
        try:
            self._make_one()
        except TinyLoraError as raised:
            error = str(raised)
        except OSError as raised:
            error = f"{self.shelf.folder}: {raised.strerror or raised}"
        except BaseException as raised:  # whatever it was, the button must not stay grey
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            with self._lock:
                self._error = "" if self._stop.is_set() else error[:_LONGEST]
                self._is_making = False

    def _make_one(self) -> None:
        file = self.shelf.new_file()
        try:
            made = read_made(self._run(["bundle", str(self._root), "--out", str(file), "--json"]))
            self.shelf.take(file, made)
        finally:
            file.unlink(missing_ok=True)
        self.watch.look()
        if made.sha256 not in {*self.watch.named, *self._ordered()}:
            self._store.order("record", reason=made.model_dump_json(), now_s=self._clock())
        self.shelf.prune(self._keep, {*self.watch.named, made.sha256, *self._ordered()})

    def _ordered(self) -> set[str]:
        """Bundles that the rounds will name in the log."""
        waiting = (order.reason for order in self._store.orders() if order.kind == "record")
        return {found.group() for reason in waiting if (found := re.search("[0-9a-f]{64}", reason))}

    # --- after some rounds -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            with suppress(TinyLoraError, OSError):
                self.look()

    def look(self) -> None:
        """Begin to write one if so many versions of the routers have been made since the last.

        Where somebody was erased, the files go that were made before.

        Raises:
            TinyLoraError: It cannot be written now; it is tried again after as many versions.
        """
        self.watch.look()
        if self.watch.erased > self._erased:
            self._erased = self.watch.erased
            self.shelf.forget(before=self._erased, named=self.watch.named)
        version = self.watch.router_version
        if not self._every or version < self._tried_version + self._every or self._is_making:
            return
        self._tried_version = version
        try:
            self.make()
        except TinyLoraError as error:
            self._error = str(error)
            raise


def read_made(ended: Ended) -> BundlePublished:
    """What the process says that it wrote.

    Raises:
        StorageError: It wrote nothing; the sentence is its own.
    """
    check_ended(ended)
    try:
        fields = json.loads(ended.out)
        names = BundlePublished.model_fields.keys() - {"type"}
        return BundlePublished.model_validate({name: fields[name] for name in names})
    except (ValueError, KeyError, TypeError, ValidationError):
        raise StorageError("the process that writes bundles said something else than expected; see its log") from None


def check_ended(ended: Ended) -> None:
    """Refuse to go on after a process that failed.

    Raises:
        StorageError: It failed; the sentence is its own where it has said one.
    """
    if ended.code == 0:
        return
    if ended.code < 0:
        raise StorageError(f"the process that was to write it was killed by signal {-ended.code}; is memory short?")
    said = [line.removeprefix("error: ") for line in ended.said.splitlines() if line.startswith("error: ")]
    raise StorageError(said[-1] if said else f"the process that was to write it ended with code {ended.code}")
