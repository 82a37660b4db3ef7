"""The description of the API is the one the page's types were made of, and no request makes the server stumble."""

from tinylora_coordinator.dashboard.openapi import is_stale


def test_the_description_in_the_repository_is_of_this_app() -> None:
    assert not is_stale(), "run: python -m tinylora_coordinator.dashboard.openapi, then npm run types"
