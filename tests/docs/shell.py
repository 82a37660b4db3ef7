"""One page is one session: a shell in an empty folder, with a home of its own, that types what stands there."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.coordinator.running import free_port
from tests.docs.reading import ROOT, Block, Command

PATIENCE_S = 600.0
UNTIL_STOPPED = re.compile(
    r"^(tinylora-coordinator (serve|replay)|tinylora-worker (join(?!.*--dry-run)|run)|tinylora route-proxy)\b"
)
"""What works until somebody stops it: in the background, until the page ends."""


class Unlike(AssertionError):
    """The page shows something else than what comes."""


def pattern(shown: Iterable[str]) -> re.Pattern[str]:
    """What is shown as an expression: `...` is anything on its line, and any lines where it stands alone."""
    rows = []
    for row in shown:
        text = row.rstrip()
        rows.append(r"(?:.*\n)*?" if text.strip() == "..." else _row(text) + r"[ \t]*\n")
    return re.compile("".join(rows))


def _row(text: str) -> str:
    return r"[^\n]*".join(re.escape(part) for part in re.split(r"\.\.\.|…", text))


class Session:
    """A shell and what it started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = {"8443": str(free_port()), "8444": str(free_port())}
        (folder / "home").mkdir(parents=True)
        (folder / "work").mkdir()
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder / "work",
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._n = 0

    def _environment(self) -> dict[str, str]:
        kept = {key: os.environ[key] for key in ("PYTHONPATH", "LANG", "TMPDIR") if key in os.environ}
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
        ours = {"PATH": path, "HOME": str(self._folder / "home"), "COLUMNS": "120", "NO_COLOR": "1", "ROOT": str(ROOT)}
        return (
            kept
            | ours
            | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
        )

    def play(self, block: Block) -> None:
        """Do what a block says, and compare.

        Raises:
            Unlike: It ends otherwise than the page says, or prints something else.
        """
        if name := block.remarks.get("file"):
            (self._folder / "work" / name).write_text(block.text, encoding="utf-8")
            return
        if block.language == "python" and "run" not in block.remarks:
            script = self._folder / f"block-{block.line}.py"
            script.write_text(block.text, encoding="utf-8")
            self._type(Command(f"python {shlex.quote(str(script))}", (), block.line), block, "0")
            return
        *first, last = block.commands
        for command in first:
            self._type(command, block, "0")
        self._type(last, block, block.remarks.get("exits", "0"))

    def _type(self, command: Command, block: Block, expected: str) -> None:
        self._n += 1
        said, ended = self._folder / f"{self._n}.said", self._folder / f"{self._n}.ended"
        is_background = "background" in block.remarks or UNTIL_STOPPED.match(command.text) is not None
        typed = self._with_free_ports(command.text)
        close = "&" if is_background else ""
        assert self._shell.stdin is not None
        self._shell.stdin.write(
            f"{{ {typed}\n}} >{said} 2>&1 </dev/null {close}\n"
            + ("" if is_background else f"echo $? >{ended}.part; mv {ended}.part {ended}\n")
        )
        self._shell.stdin.flush()
        if is_background:
            self._wait_for(command, said, block)
        else:
            self._compare(command, said, ended, block, expected)

    def _wait_for(self, command: Command, said: Path, block: Block) -> None:
        """Until what is shown has come; where nothing is shown, nobody waits."""
        shown = pattern(command.shown)
        until = time.monotonic() + PATIENCE_S
        while command.shown and not shown.search(self._read(said)):
            if time.monotonic() > until:
                raise Unlike(self._difference(command, block, self._read(said), "never came"))
            time.sleep(0.1)

    def _compare(self, command: Command, said: Path, ended: Path, block: Block, expected: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not ended.exists():
            if time.monotonic() > until or self._shell.poll() is not None:
                raise Unlike(self._difference(command, block, self._read(said), "did not end"))
            time.sleep(0.02)
        code = ended.read_text().strip()
        text = self._read(said)
        if code != expected:
            raise Unlike(self._difference(command, block, text, f"ended with {code} instead of {expected}"))
        if command.shown and not pattern(command.shown).fullmatch(text):
            raise Unlike(self._difference(command, block, text, "printed something else"))

    def _read(self, said: Path) -> str:
        text = said.read_text(encoding="utf-8", errors="replace") if said.exists() else ""
        for written, free in self._ports.items():
            text = text.replace(free, written)
        return text if text.endswith("\n") or not text else text + "\n"

    def _with_free_ports(self, text: str) -> str:
        if text.startswith("tinylora-coordinator serve") and "--port" not in text:
            text = text.replace("serve", "serve --port 8443 --dashboard-port 8444", 1)
        for written, free in self._ports.items():
            text = re.sub(rf"(?<!\d){written}(?!\d)", free, text)
        return text

    @staticmethod
    def _difference(command: Command, block: Block, text: str, what: str) -> str:
        shown = "\n".join(command.shown) or "(nothing is shown)"
        return f"{block.where}: {what}\n$ {command.text}\n--- shown\n{shown}\n--- said\n{text}"

    def close(self) -> None:
        """End everything that the page started."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        for sign in (signal.SIGTERM, signal.SIGKILL):
            until = time.monotonic() + 15
            while time.monotonic() < until and _is_there(self._shell.pid):
                _signal(self._shell.pid, sign)
                self._shell.poll()
                time.sleep(0.1)
        if self._shell.stdin is not None:
            with suppress(BrokenPipeError):
                self._shell.stdin.close()


def _signal(group: int, sign: signal.Signals) -> None:
    try:
        os.killpg(group, sign)
    except ProcessLookupError:
        return


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def session(folder: Path) -> Iterator[Session]:
    """A page's session; whatever it started has ended afterwards."""
    opened = Session(folder)
    try:
        yield opened
    finally:
        opened.close()
