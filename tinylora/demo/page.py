"""The demo's live page: whether a browser is opened on it, and how it is opened."""

import os
import sys
import webbrowser
from collections.abc import Mapping
from contextlib import suppress


def has_desktop(environment: Mapping[str, str], *, platform: str, is_terminal: bool) -> bool:
    """Whether somebody sits here who would see a browser open: not in a log, over ssh, or in somebody's CI."""
    if not is_terminal or environment.get("CI") or environment.get("SSH_CONNECTION"):
        return False
    return platform == "darwin" or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def open_page(address: str, *, is_wanted: bool | None, is_terminal: bool) -> bool:
    """Open the page, if that is wanted, or nobody said and there is a desktop; whether it was done.

    Args:
        address: Of the page.
        is_wanted: What the user said; None: nothing.
        is_terminal: Whether the demo talks to a terminal.
    """
    if is_wanted is None:
        is_wanted = has_desktop(os.environ, platform=sys.platform, is_terminal=is_terminal)
    if is_wanted:
        with suppress(webbrowser.Error):
            return webbrowser.open(address)
    return False
