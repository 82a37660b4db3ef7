"""The demo's processes: started with a log file each, watched, and never left behind."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil


@dataclass
class Child:
    """One process of the demo."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def last_log_lines(self, n_lines: int = 5) -> str:
        """The end of its log, for a message about why it stopped."""
        return "\n".join(self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-n_lines:])


@dataclass
class Family:
    """Children of this process; leaving the context ends all of them. `peak_memory_mb` counts this process too."""

    log_dir: Path
    children: list[Child] = field(default_factory=list)
    peak_memory_mb: float = 0.0

    def start(
        self, name: str, command: Sequence[str], *, threads: int = 1, environment: Mapping[str, str] | None = None
    ) -> Child:
        """Start a command with its output in `<log_dir>/<name>.log`, and with these variables beside ours."""
        self.log_dir.mkdir(parents=True, exist_ok=True)
        log_file = self.log_dir / f"{name}.log"
        own = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        variables = os.environ | own | dict(environment or {})
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=variables
            )
        child = Child(name, process, log_file)
        self.children.append(child)
        return child

    def note_memory(self) -> None:
        """Take a look at the memory of all processes now and remember the most that was seen."""
        me = psutil.Process()
        self.peak_memory_mb = max(self.peak_memory_mb, sum(map(_memory_mb, [me, *me.children(recursive=True)])))

    def stop(self, *, patience_s: float = 10.0) -> None:
        """Ask all children to end, wait, and kill what does not."""
        for child in self.children:
            if child.is_running:
                child.process.terminate()
        end = time.monotonic() + patience_s
        for child in self.children:
            try:
                child.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def __enter__(self) -> Self:
        """Nothing is started yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all children, whatever happened."""
        self.stop()


def _memory_mb(process: psutil.Process) -> float:
    """Proportional set size where the system tells it (pages shared by processes count once), else resident size."""
    try:
        info = process.memory_full_info()
        return getattr(info, "pss", info.rss) / 2**20
    except psutil.AccessDenied:
        return process.memory_info().rss / 2**20
    except psutil.NoSuchProcess:
        return 0.0
