"""What becomes of the servers when a child does what children may do; the children hold no model."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import tiny_base_model
from tinylora.adapters.spec import AdapterSpec
from tinylora.bundle import Bundle, write_bundle
from tinylora.errors import OutOfMemory, SettingError, TinyLoraError
from tinylora.routing.gates import Gate, Gates
from tinylora.serving.process import ending
from tinylora.serving.servers import LeafServers
from tinylora.tree import Topology

FAKE = (str(Path(__file__).parent / "fake_child.py"),)
ROWS = [[0, 3], [1, 4], [0, 5], [1, 6], [1, 7]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tiny_base_model()
    bundle = Bundle(
        run="run", topology=Topology(("0", "1")), base=base.facts, spec=AdapterSpec("lora", 2), scale=1.0, nodes={},
        gates=Gates({"": Gate(np.ones(base.facts.feature_dim), 0.0, 1.0)}, base.facts.feature_dim),
        policy="hard@sequence:2", projection=base.routing_feature.projection,
    )  # fmt: skip
    file = tmp_path_factory.mktemp("bundle") / "bundle.safetensors"
    write_bundle(bundle, file)
    return file


@pytest.fixture
def make(file: Path):
    """Servers whose second child has a fault."""
    return lambda fault: LeafServers(file, fault, "0=cpu:0,1=cpu:1", command=FAKE)


def gone(pids: dict[str, int]) -> bool:
    def is_gone(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    return all(is_gone(pid) for pid in pids.values())


def test_rows_come_back_in_order(make) -> None:
    with make("none") as servers:
        pids = servers.pids
        assert {device: told["pid"] for device, told in servers.held.items()} == pids
        found = servers.generate(ROWS, max_new_tokens=2)
        assert [(row.text, row.device) for row in found] == [(f"{b} {b}", f"cpu:{a}") for a, b in ROWS]
    assert gone(pids)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("dies while it loads", TinyLoraError, "on cpu:1 is gone: it ended by itself .exit code 7.; it said: a driver"),
        ("cannot load", OutOfMemory, "cpu:1: out of memory .cannot allocate memory.; serve fewer rows"),
    ],
)  # fmt: skip
def test_a_start_that_fails_leaves_nothing_behind(make, monkeypatch, fault, kind, said) -> None:
    pids = {}
    closed = LeafServers.close
    monkeypatch.setattr(LeafServers, "close", lambda self: (pids.update(self.pids), closed(self)))
    servers = make(fault)
    with pytest.raises(kind, match=said):
        servers.start()
    assert len(pids) == 2 and gone(pids) and not servers.is_up


def test_a_crash_ends_all(make) -> None:
    with make("crashes") as servers:
        pids = servers.pids
        with pytest.raises(TinyLoraError, match=r"on cpu:1 is gone: it crashed .SIGSEGV."):
            servers.generate(ROWS, max_new_tokens=2)
        assert gone(pids) and not servers.is_up
        servers.start()
        assert servers.pids.keys() == pids.keys()


def test_out_of_memory_costs_the_request(make) -> None:
    with make("out of memory") as servers:
        with pytest.raises(OutOfMemory, match=r"cpu:1: out of memory .no room.; serve fewer rows at once"):
            servers.generate(ROWS, max_new_tokens=2)
        assert [row.tokens for row in servers.generate(ROWS[:2], max_new_tokens=1)] == [(3,), (4,)]
        with pytest.raises(TinyLoraError, match=r"cpu:[01]: ValueError: no scores by 16"):
            servers.score(ROWS)


def test_an_interrupt_ends_all_at_once(make) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    pids: dict[str, int] = {}
    with pytest.raises(KeyboardInterrupt), make("waits for ever") as servers:
        pids.update(servers.pids)
        servers.generate(ROWS, max_new_tokens=2, on_row=interrupt)
    assert gone(pids)


def test_refused_before_a_process_is_started(file: Path) -> None:
    for options, said in [
        ({"policy": "top2"}, "a text must stay on one path"),
        ({"dtype": "fp8"}, "expected fp32, bf16, fp16 or auto"),
        ({"batch_size": 0}, "at least 1"),
        ({"devices": "0=cpu:0"}, "leaf 1 has no device"),
    ]:
        with pytest.raises(SettingError, match=said):
            LeafServers(file, "base", **{"devices": "0=cpu:0,1=cpu:1", **options})
    assert LeafServers(file, "base", "root=cpu", policy="soft").policy.decision == "soft"
    with pytest.raises(SettingError, match="max_new_tokens 0"):
        LeafServers(file, "base", "root=cpu").generate([[1]], max_new_tokens=0)


def test_endings() -> None:
    assert ending(-9, "") == (
        "somebody, or the system for want of memory, ended it (SIGKILL); serve fewer rows or leaves at once"
    )
    assert ending(-999, "x") == "it crashed (signal 999); it said: x"
    assert ending(None, "") == "it says nothing any more"


def test_one_device_has_all_leaves_and_takes_any_policy(file: Path) -> None:
    with LeafServers(file, "none", "root=cpu", policy="soft", command=FAKE) as servers:
        assert servers.devices.devices == ("cpu",)
        assert [row.tokens for row in servers.generate(ROWS, max_new_tokens=2)] == [(row[1],) * 2 for row in ROWS]
