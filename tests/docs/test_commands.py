"""Every page of the docs, played: its commands in their order, in a shell, in an empty folder. `make docs-test`."""

from pathlib import Path

import pytest

from tests.docs.reading import ROOT, Block, blocks, pages
from tests.docs.shell import session

pytestmark = [pytest.mark.docs, pytest.mark.timeout(1800)]


def played(page: Path) -> list[Block]:
    return [block for block in blocks(page) if not block.reason]


@pytest.mark.parametrize(
    "page", [page for page in pages() if played(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_page(page: Path, tmp_path: Path) -> None:
    with session(tmp_path / "session") as shell:
        for block in played(page):
            shell.play(block)
