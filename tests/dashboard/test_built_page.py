"""The built page that is shipped: of the present sources, within its budget, with nothing that its policy forbids."""

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest
from tinylora_coordinator.dashboard.pages import STATIC

ROOT = Path(__file__).parents[2]
WEB = ROOT / "coordinator" / "web"
SINGLE = ("index.html", "openapi.json", "package-lock.json", "sources.ts", "tsconfig.json", "vite.config.ts")
BUDGET_BYTES = 80_000
"""Of JavaScript, compressed, until the overview stands."""


def hash_of_sources(web: Path) -> str:
    """The same as `hashOfSources` in `coordinator/web/sources.ts`."""
    found = [file for folder in ("public", "src") for file in (web / folder).rglob("*") if file.is_file()]
    paths = [*SINGLE, *(file.relative_to(web).as_posix() for file in found)]
    sources = sorted(path for path in paths if not path.endswith(".test.ts") and path != "src/lib/schema.d.ts")
    lines = [f"{path}\0{hashlib.sha256((web / path).read_bytes()).hexdigest()}\n" for path in sources]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture(scope="module")
def static() -> Path:
    assert (STATIC / "sources.sha256").exists(), "the page was not built; `make web` builds it, and it is committed"
    return STATIC


def test_is_of_the_present_sources(static: Path) -> None:
    built = (static / "sources.sha256").read_text().strip()
    assert built == hash_of_sources(WEB), "the page's sources have changed since it was built; run `make web`"


def test_the_types_are_of_the_present_description() -> None:
    named = re.findall(r"^ {8}(\w+): \{$", (WEB / "src/lib/schema.d.ts").read_text(), re.MULTILINE)
    described = json.loads((WEB / "openapi.json").read_text())["components"]["schemas"]
    assert set(described) <= set(named), "src/lib/schema.d.ts is older than openapi.json; run `make web`"


def test_first_load_is_within_its_budget(static: Path) -> None:
    manifest = json.loads((static / "manifest.json").read_text())
    wanted = ["index.html"]
    loaded: dict[str, int] = {}
    while wanted:
        entry = manifest[wanted.pop()]
        if entry["file"] not in loaded:
            loaded[entry["file"]] = len(gzip.compress((static / entry["file"]).read_bytes(), 9))
            wanted += entry.get("imports", [])
    scripts = sum(size for file, size in loaded.items() if file.endswith(".js"))
    assert 0 < scripts <= BUDGET_BYTES


def test_nothing_stands_in_the_document_itself(static: Path) -> None:
    document = (static / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", document)
    assert re.findall(r"<script(?![^>]*\bsrc=)", document) == []


def test_nothing_is_loaded_from_elsewhere(static: Path) -> None:
    document = (static / "index.html").read_text()
    addresses = re.findall(r"(?:src|href)=\"([^\"]+)\"", document)
    assert addresses
    for address in addresses:
        assert address.startswith("/")
        assert not address.startswith("//")
        if address != "/lite":
            assert (static / address.removeprefix("/")).is_file()
    styles = "".join(file.read_text() for file in static.rglob("*.css"))
    assert re.findall(r"url\((?!#)[^)]*\)|@import", styles) == []


@pytest.mark.parametrize("name", ["src/app.css", "public/favicon.svg", "package-lock.json"])
def test_any_change_of_a_source_is_noticed(tmp_path: Path, name: str) -> None:
    for path in (*SINGLE, "src/app.css", "src/main.ts", "public/favicon.svg"):
        copy = tmp_path / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((WEB / path).read_bytes())
    before = hash_of_sources(tmp_path)
    (tmp_path / "src" / "tree.test.ts").write_text("a test")
    assert hash_of_sources(tmp_path) == before
    (tmp_path / name).write_text("changed")
    assert hash_of_sources(tmp_path) != before
