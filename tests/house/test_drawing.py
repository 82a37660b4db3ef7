"""The drawing of the house is true."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOUSE = (ROOT / "docs" / "explanation" / "house.md").read_text(encoding="utf-8")
PACKAGES = ("tinylora", "coordinator", "worker")


def drawn() -> set[str]:
    """Paths in the drawing, each below the last folder that stands at the margin."""
    block = HOUSE.split("```")[1]
    paths, folder = set(), ""
    for line in block.strip().splitlines():
        name = re.match(r"(?:[├└]── )?([\w./]+)", line)
        assert name, line
        is_inside = line[0] in "├└"
        folder = folder if is_inside else name[1]
        paths.add((folder + name[1] if is_inside else name[1]).rstrip("/"))
    return paths


def test_everything_drawn_is_there() -> None:
    assert [path for path in sorted(drawn()) if not (ROOT / path).exists()] == []


def test_every_module_is_drawn() -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).iterdir()
        if (path.suffix == ".py" or path.is_dir()) and not path.name.startswith(("_", "."))
    }
    assert modules - drawn() == set()
