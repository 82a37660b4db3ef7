"""Where a person is spoken to, and asked: standard error, and a terminal's keyboard where there is one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.text import Text

from tinylora_worker.preflight.check import Check
from tinylora_worker.preflight.consent import is_yes
from tinylora_worker.preflight.telling import check_lines
from tinylora_worker.screen import is_unicode


@dataclass
class Talk:
    """Where a person is spoken to, and asked."""

    console: Console
    keyboard: TextIO | None
    """None: nobody can be asked."""
    is_quiet: bool = False

    @classmethod
    def of_process(cls, *, is_quiet: bool = False) -> "Talk":
        """Standard error, and standard input where that is a terminal."""
        keyboard = sys.stdin if sys.stdin is not None and sys.stdin.isatty() else None
        return cls(Console(stderr=True, highlight=False, soft_wrap=True), keyboard, is_quiet)

    @property
    def is_ascii(self) -> bool:
        """Whether only plain characters can be printed."""
        return not is_unicode(self.console)

    def say(self, *lines: str | Text) -> None:
        """Print lines, unless quiet was asked for."""
        if not self.is_quiet:
            for line in lines:
                self.console.print(line, markup=False)

    def tell(self, check: Check) -> None:
        """Print a check's outcome; what fails is told to those who want quiet, too."""
        if not self.is_quiet or check.status == "fail":
            for line in check_lines(check, is_ascii=self.is_ascii):
                self.console.print(line, markup=False)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """While something takes long, a terminal says what."""
        if self.is_quiet or not self.console.is_terminal:
            yield
            return
        with self.console.status(f"  {what}"):
            yield

    def ask(self, question: str, *, default: bool) -> bool | None:
        """What somebody answers; None where there is nobody, or he says nothing that could be understood."""
        if self.keyboard is None:
            return None
        for _ in range(3):
            self.console.print(f" {question}", end="", markup=False)
            line = self.keyboard.readline()
            if not line:  # the end of the input is no consent
                return False
            if (answer := is_yes(line, default=default)) is not None:
                return answer
        return None
