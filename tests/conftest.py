"""What holds for every test: one thread, no network, no folder of the person who runs them."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_home = tempfile.TemporaryDirectory(prefix="tinylora-tests-")

# Set before torch, transformers or flwr are imported anywhere: they read these at import.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HOME=str(Path(_home.name, "hf")),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    FLWR_HOME=str(Path(_home.name, "flwr")),
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    MPLBACKEND="Agg",
    MPLCONFIGDIR=str(Path(_home.name, "matplotlib")),
)

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

# Derandomised: a failure of today is a failure of tomorrow. `pytest --hypothesis-profile=thorough` searches on.
settings.register_profile("quick", deadline=None, derandomize=True, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test draws the same numbers, alone or among others."""
    torch.manual_seed(0)
    yield


def pytest_unconfigure() -> None:
    """Remove the temporary home when the run ends."""
    _home.cleanup()
