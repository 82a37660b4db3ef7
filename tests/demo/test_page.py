"""A browser opens where somebody sees it, or on request; never in a log."""

import webbrowser

import pytest

from tinylora.demo.page import has_desktop, open_page


@pytest.mark.parametrize(
    ("environment", "platform", "is_terminal", "expected"),
    [
        ({"DISPLAY": ":0"}, "linux", True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True, True),
        ({}, "darwin", True, True),
        ({}, "linux", True, False),
        ({"DISPLAY": ":0"}, "linux", False, False),
        ({"DISPLAY": ":0", "CI": "true"}, "linux", True, False),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "::1"}, "linux", True, False),
        ({"CI": "1"}, "darwin", True, False),
    ],
)
def test_has_desktop(environment, platform, is_terminal, expected):
    assert has_desktop(environment, platform=platform, is_terminal=is_terminal) is expected


@pytest.mark.parametrize(("is_wanted", "n_opened"), [(True, 1), (False, 0), (None, 0)])
def test_the_users_word_counts(monkeypatch, is_wanted, n_opened):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    assert open_page("http://127.0.0.1:1/", is_wanted=is_wanted, is_terminal=False) is bool(n_opened)
    assert len(opened) == n_opened


def test_a_machine_without_a_browser(monkeypatch):
    def fail(address: str) -> bool:
        raise webbrowser.Error("none")

    monkeypatch.setattr(webbrowser, "open", fail)
    assert open_page("http://127.0.0.1:1/", is_wanted=True, is_terminal=True) is False
