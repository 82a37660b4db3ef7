"""Pages to visit, and what can be seen to be wrong with one without an eye."""

from playwright.sync_api import Page

PAGES = (
    "/", "/?view=tree", "/node/root", "/workers", "/timeline", "/routing", "/artifacts", "/join", "/admin", "/lite",
)  # fmt: skip


def settle(page: Page) -> None:
    """The page has its data, and has drawn it."""
    page.wait_for_load_state("load")
    page.wait_for_function("document.querySelector('main') && !document.querySelector('main [aria-busy=true]')")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def goto(page: Page, url: str) -> None:
    """Open an address and wait for what it shows."""
    page.goto(url)
    if not url.endswith("/lite"):
        page.wait_for_selector("main h1", state="attached")
    page.wait_for_timeout(400)  # lazy parts and charts; what follows looks at the outcome, not at a moment
    settle(page)


def faults(page: Page) -> list[str]:
    """What is cut or overlaps: text that ends at its box unannounced, text on text, a page wider than its window."""
    return page.evaluate(_FAULTS)


_FAULTS = """() => {
  const found = [];
  const root = document.scrollingElement;
  if (root.scrollWidth > innerWidth + 1) found.push(`the page is ${root.scrollWidth} px wide in ${innerWidth}`);
  const isShown = at => { const s = getComputedStyle(at); const r = at.getBoundingClientRect();
    return s.visibility !== 'hidden' && s.display !== 'none' && +s.opacity > 0 && r.width > 1 && r.height > 1
      && !at.closest('.visually-hidden, [hidden], .u-legend, canvas, [inert]') && at.checkVisibility(); };
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode, at = text.parentElement;
    if (!text.data.trim() || !isShown(at)) continue;
    const style = getComputedStyle(at);
    const isCut = at.scrollWidth > at.clientWidth + 1 && ['hidden', 'clip'].includes(style.overflowX) && at.clientWidth;
    if (isCut && style.textOverflow !== 'ellipsis')
      found.push(`cut: "${text.data.trim().slice(0, 60)}" in ${at.className || at.tagName}`);
    const range = document.createRange(); range.selectNodeContents(text);
    for (const r of range.getClientRects()) if (r.width > 2 && r.height > 2) boxes.push([r, text.data.trim(), at]);
  }
  const layer = at => at.closest('dialog, .sticky, th, header, nav, svg');
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [a, s, m] = boxes[i], [b, t, n] = boxes[j];
    if (m === n || m.contains(n) || n.contains(m) || layer(m) !== layer(n)) continue;
    const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (w > 2 && h > Math.min(a.height, b.height) * .35)
      found.push(`"${s.slice(0, 40)}" lies on "${t.slice(0, 40)}"`);
  }
  return found.slice(0, 20);
}"""
