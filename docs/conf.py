"""The pages as a site: `make docs` writes docs/_build/html, with every warning an error and nothing from the network.

The pages are written for a code host and read well there. What a host does and a site does not is done here: a link to
a file of the repository becomes that file to download, and three files that stand elsewhere are pages, too.
"""

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from tinylora import __version__  # noqa: E402

MIRRORED = {"deploy": "deploy/README.md", "changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
"""Pages that stand elsewhere. In docs/ lies a line with a link for who reads there; the site shows the file itself."""

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\[]*)\]\((?P<target>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")
"""A link to a file: pictures, addresses and anchors of the same page are left alone."""
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1`*$", flags=re.MULTILINE | re.DOTALL)

project = "TinyLoRA"
copyright = "TinyLoRA's contributors, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_static"]
nitpicky = True
language = "en_GB"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4  # as code hosts make them: page.md#some-heading

html_theme = "furo"
html_title = "TinyLoRA"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["tinylora.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "sidebar_hide_name": False,
    "light_css_variables": {"color-brand-primary": "#4f46c8", "color-brand-content": "#4f46c8"},
    "dark_css_variables": {"color-brand-primary": "#a29bf6", "color-brand-content": "#a29bf6"},
}
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_line_continuation_character = "\\"
copybutton_exclude = ".linenos, .gp, .go"


def between_fences(text: str, change: re.Pattern[str], by) -> str:
    """The text with what `change` finds outside of code blocks put through `by`."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [change.sub(by, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join(parts) + change.sub(by, text[end:])


def rebased(text: str, *, standing_in: Path, page: Path) -> str:
    """Links of a file of the repository as the site needs them.

    Args:
        text: The file's Markdown.
        standing_in: The folder that its links start from.
        page: Where the site has it, as a file below docs/.

    Returns:
        The text. A link to a page that stands elsewhere goes to it; any other file outside of docs/ becomes a
        download; what is not there stays, so that the build says so.
    """
    pages = {(ROOT / file).resolve(): DOCS / f"{name}.md" for name, file in MIRRORED.items()}

    def changed(link: re.Match[str]) -> str:
        target = (standing_in / link["target"]).resolve()
        target = pages.get(target, target)
        target = target / "index.md" if (target / "index.md").exists() else target
        if not target.exists():
            return link[0]
        way = os.path.relpath(target, page.parent)
        if target.is_relative_to(DOCS):
            return f"[{link['text']}]({way}{link['anchor'] or ''})"
        if target.is_dir():
            return link["text"]
        return f"{{download}}`{link['text'].replace('`', '')} <{way}>`"

    return between_fences(text, LINK, changed)


def read(app: Sphinx, docname: str, content: list[str]) -> None:
    """Give Sphinx a page's text as the site has it."""
    page = DOCS / f"{docname}.md"
    source = ROOT / MIRRORED[docname] if docname in MIRRORED else page
    if docname in MIRRORED and source.exists():
        app.env.note_dependency(str(source))
        content[0] = source.read_text(encoding="utf-8")
    content[0] = rebased(content[0], standing_in=source.parent, page=page)


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", read)
