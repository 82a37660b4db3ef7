"""Every link of every page leads somewhere, as a code host and the site resolve it, and what programs name is there."""

import re
from pathlib import Path

import pytest

from tests.docs.reference import source
from tests.docs.reference.markdown import anchor

ROOT = source.ROOT
IGNORED = {"node_modules", ".venv", "_build", "dist", "build", "demo-out", "report-out", "simulate-out"}
PAGES = sorted(
    file
    for folder in (".", "docs", "deploy", "examples", "coordinator", "worker", "benchmarks", "tests", "tinylora")
    for file in ((ROOT / folder).glob("*.md") if folder == "." else (ROOT / folder).rglob("*.md"))
    if not IGNORED & set(file.relative_to(ROOT).parts)
)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HTML = re.compile(r"\b(?:href|src|srcset)=\"([^\"]+)\"")
FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1`*\s*$", flags=re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(`+)(?:(?!\1).)+?\1")
NAMED = re.compile(r"(?<![\w/:.-])((?:docs|deploy|examples|benchmarks)/[\w./-]*\w\.md)(#[\w-]+)?")


def links(file: Path) -> list[str]:
    text = FENCE.sub("", file.read_text(encoding="utf-8"))
    shown = INLINE.sub(lambda span: "" if "](" in span[0] else span[0], text)
    found = LINK.findall(shown) + HTML.findall(shown)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(file: Path) -> set[str]:
    text = FENCE.sub("", file.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    names = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)) | set(
        re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)
    )
    for heading in re.findall(r"^#{1,6} +(.*?)(?: +#+)?$", text, flags=re.MULTILINE):
        plain = anchor(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading))
        names.add(plain if plain not in found else f"{plain}-{found[plain]}")
        found[plain] = found.get(plain, 0) + 1
    return names


def broken(place: Path, link: str) -> str:
    """Why a link of a file leads nowhere; empty if it does not."""
    target, _, part = link.partition("#")
    file = (place.parent / target).resolve() if target else place
    if not file.is_relative_to(ROOT) or not file.exists():
        return f"{link}: there is no such file"
    if part and file.suffix == ".md" and part not in anchors(file):
        return f"{link}: the page has no such heading"
    return ""


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(file: Path) -> None:
    assert [fault for link in links(file) if (fault := broken(file, link))] == []


def test_every_page_that_a_program_names_is_there() -> None:
    """In error messages, help texts and docstrings: paths from the repository's root."""
    wrong = [
        f"{place}: {fault}"
        for place in source.trees()
        for path, part in NAMED.findall((ROOT / place).read_text(encoding="utf-8"))
        if (fault := broken(ROOT / "README.md", path + part))
    ]
    assert wrong == []


def test_links_are_found_and_broken_ones_told(tmp_path: Path) -> None:
    file = ROOT / "README.md"
    assert broken(file, "docs/reference/errors.md#exit-6") == ""
    assert "no such file" in broken(file, "docs/nowhere.md") and "no such heading" in broken(file, "README.md#nowhere")
    page = tmp_path / "page.md"
    page.write_text(
        '[a](b.md "t") `[c](d.md)` [`e`](f.md#g)\n```\n[h](i.md)\n```\n'
        '<a href="j">[x](https://k)</a>\n# A: `b`\n# A: b\n'
    )
    assert links(page) == ["b.md", "f.md#g", "j"] and anchors(page) == {"a-b", "a-b-1"}
