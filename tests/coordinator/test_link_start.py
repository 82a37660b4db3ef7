"""What the link does where its own address does not answer it."""

import pytest
from tinylora_coordinator.link_process import _check_surface

from tests.coordinator.running import free_port
from tinylora.errors import NetworkError


def test_an_address_that_does_not_answer_yet_is_asked_by_the_next_start() -> None:
    """A busy machine, or a fleet that comes back at once: no reason to end for good."""
    with pytest.raises(NetworkError, match="not served: no answer"):
        _check_surface(f"http://127.0.0.1:{free_port()}", [])
