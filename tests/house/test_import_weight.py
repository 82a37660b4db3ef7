"""What a program must not load before it needs it, seen from outside: `sys.modules` of a fresh process."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "flwr", "datasets", "matplotlib")
PURE = (
    "tinylora",
    "tinylora.errors",
    "tinylora.tree",
    "tinylora.config",
    "tinylora.protocol.documents",
    "tinylora.protocol.envelope",
    "tinylora.protocol.consent",
    "tinylora.protocol.report",
    "tinylora.routing.decision",
    "tinylora.routing.statistics",
    "tinylora.routing.gates",
    "tinylora.routing.ways",
    "tinylora.federation.loop",
    "tinylora.federation.ledger_memory",
    "tinylora.ledger.sqlite",
    "tinylora_coordinator.dashboard.app",
    "tinylora_coordinator.dashboard.lookup",
    "tinylora_worker.policy",
    "tinylora_worker.trainer.process",
    "tinylora_worker.traffic",
    "tinylora_worker.service_unit",
)
HELP = """
import sys, {module}
sys.argv = ["program", "--help"]
try:
    {module}.main()
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sorted(set({heavy!r}) & set(sys.modules)))
"""
EACH = """
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
    found = sorted(set({heavy!r}) & set(sys.modules))
    assert not found, f"{{module}} loads {{found}}"
"""


def run(program: str) -> str:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("module", ["tinylora.cli", "tinylora_coordinator.cli", "tinylora_worker.cli"])
def test_help_loads_nothing_heavy(module: str) -> None:
    assert run(HELP.format(module=module, heavy=HEAVY)).splitlines()[-1] == "loaded:"


def test_the_pure_part_loads_nothing_heavy() -> None:
    run(EACH.format(modules=PURE, heavy=HEAVY))


def test_the_network_edge_knows_flower_but_no_torch() -> None:
    run(EACH.format(modules=("tinylora.flower.fleet", "tinylora.flower.link"), heavy=("torch", "transformers")))
