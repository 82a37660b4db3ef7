"""Small bases fill no memory: none has to be collected, which takes longer than the rest."""

import pytest

from tinylora.training import memory, out_of_memory, sizing


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch):
    for module in (memory, out_of_memory, sizing):
        monkeypatch.setattr(module, "give_memory_back", lambda: None)
