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
from beartype import BeartypeConf
from beartype.claw import beartype_package
from jaxtyping import install_import_hook

_ROOT = Path(__file__).parents[1]
# beartype alone looks up every name in quotes, also those that only a type checker imports, and makes of an ASGI
# application's coroutine what uvicorn takes for another protocol: these stay with jaxtyping's hook.
_BY_THE_HOOK = ("bundle/signature", "commands/", "flower/", "quality/plots", "report/plots", "serving/__init__")
_WITH_SHAPES = tuple(
    file.relative_to(_ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for file in sorted((_ROOT / "tinylora").rglob("*.py"))
    if file.relative_to(_ROOT / "tinylora").as_posix().startswith(_BY_THE_HOOK)
    or "from jaxtyping import" in file.read_text(encoding="utf-8")
)
# Every annotation of the package is checked while tests run. Shapes need a memo for each call, which costs several
# times the check itself, so modules that speak of none have their types checked alone.
install_import_hook(list(_WITH_SHAPES), "beartype.beartype")
beartype_package("tinylora", conf=BeartypeConf(claw_is_pep526=False, claw_skip_package_names=_WITH_SHAPES))

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
