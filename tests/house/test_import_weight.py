"""What a program must not load before it needs it, seen from outside: `sys.modules` of a fresh process."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "flwr", "datasets", "matplotlib")
PROBE = """
import sys
sys.argv = ["program", "--help"]
try:
    import {module}
    {call}
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sorted(set({heavy!r}) & set(sys.modules)))
"""


def loaded(module: str, call: str = "", heavy: tuple[str, ...] = HEAVY) -> list[str]:
    probe = PROBE.format(module=module, call=call, heavy=heavy)
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("module", ["tinylora.cli", "tinylora_coordinator.cli", "tinylora_worker.cli"])
def test_help_loads_nothing_heavy(module: str) -> None:
    assert loaded(module, f"{module}.main()") == []


@pytest.mark.parametrize(
    "module",
    [
        "tinylora",
        "tinylora.errors",
        "tinylora.tree",
        "tinylora.config",
        "tinylora.protocol.documents",
        "tinylora.routing.statistics",
        "tinylora.routing.gates",
        "tinylora.federation.loop",
        "tinylora.federation.ledger_sqlite",
    ],
)
def test_the_pure_part_loads_nothing_heavy(module: str) -> None:
    assert loaded(module) == []


@pytest.mark.parametrize("module", ["tinylora.flower.fleet", "tinylora.flower.link"])
def test_the_network_edge_knows_flower_but_no_torch(module: str) -> None:
    assert loaded(module, heavy=("torch", "transformers")) == []
