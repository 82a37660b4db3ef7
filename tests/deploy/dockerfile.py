"""deploy/Dockerfile as others rely on it: its stages, and what the last of a chain sets."""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FILE = Path(__file__).parents[2] / "deploy" / "Dockerfile"


@dataclass
class Stage:
    """One `FROM ... AS name`, with what it inherits."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        """What the last such instruction says."""
        return [text for name, text in self.instructions if name == instruction][-1]

    def words(self, instruction: str) -> list[str]:
        """The same in exec form."""
        return json.loads(self.last(instruction))

    def argument(self, name: str) -> str:
        """The default of an ARG."""
        said = dict(text.split("=", 1) for kind, text in self.instructions if kind == "ARG")
        return said[name]

    @property
    def environment(self) -> dict[str, str]:
        """All that ENV sets."""
        said = [text for name, text in self.instructions if name == "ENV"]
        return dict(pair.split("=", 1) for text in said for pair in text.split())

    @property
    def health_check(self) -> list[str]:
        """The command of HEALTHCHECK."""
        return json.loads(self.last("HEALTHCHECK").partition("CMD ")[2])


@cache
def stages() -> dict[str, Stage]:
    """All stages by name; those built on an earlier one begin with its instructions."""
    found: dict[str, Stage] = {}
    current = Stage("", "")
    for line in _logical_lines(FILE.read_text(encoding="utf-8")):
        instruction, _, text = line.partition(" ")
        if instruction == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", text).groups()  # pyright: ignore[reportOptionalMemberAccess]
            inherited = found[base].instructions if base in found else []
            current = found[name] = Stage(name, base, list(inherited))
        else:
            current.instructions.append((instruction, text))
    return found


def _logical_lines(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [re.sub(r"\s+", " ", line).strip() for line in "\n".join(lines).replace("\\\n", " ").splitlines()]
