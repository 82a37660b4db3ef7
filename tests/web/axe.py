"""What axe-core finds on a page (https://github.com/dequelabs/axe-core)."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

SCRIPT = Path(__file__).parents[2] / "coordinator" / "web" / "node_modules" / "axe-core" / "axe.min.js"
_RUN = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations.map(found => ({
    id: found.id, impact: found.impact, help: found.help,
    nodes: found.nodes.slice(0, 5).map(node => node.target.join(' ') + ' | ' + node.failureSummary)}))"""


def violations(page: Page) -> list[dict[str, Any]]:
    """Serious and critical ones; the page's policy lets nothing in, so the script comes by the debugger."""
    page.evaluate(SCRIPT.read_text(encoding="utf-8") + ";0")
    return [found for found in page.evaluate(_RUN) if found["impact"] in ("serious", "critical")]
