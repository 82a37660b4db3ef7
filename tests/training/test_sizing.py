"""What fits: real steps on a small base, on machines whose memory is made up, and on this one."""

import itertools
from dataclasses import dataclass, field

import pytest
import torch

from tests.learning.units import base
from tinylora.adapters.lora import AdapterLinear
from tinylora.config import RunSettings
from tinylora.errors import OutOfMemory
from tinylora.model import TreeModel
from tinylora.routing.policy import Router
from tinylora.training import memory, sizing
from tinylora.training.fit import Fit
from tinylora.training.memory import CudaMeter, MainMemoryMeter, MpsMeter, Taken, meter_of
from tinylora.training.sizing import find_fit, saved_by_nf4

SETTINGS = RunSettings(name="sized", depth=2, rank=4, batch_windows=8, window_tokens=64)
NESTED = SETTINGS.model_copy(update={"adapter": "nested"})
OF_A_WINDOW, OF_A_RECOMPUTED_ONE, OF_A_ROW, OF_THE_BASE = 100, 40, 2, 1000


@dataclass
class Machine:
    """Made-up memory: so much for each window at once, less with recomputing, and so much for each row of a leaf.

    As a meter it tells what the passes since `begin` took; as an allocator it refuses what is more than there is.
    """

    total: int
    must_begin_small: bool = False
    refuses: bool = True
    peak: int = OF_THE_BASE
    passes: list[tuple[int, bool, int]] = field(default_factory=list)
    """Windows, recomputed or not, rows of all leaves."""

    def begin(self) -> None:
        self.peak = OF_THE_BASE

    def end(self) -> Taken:
        return Taken(self.peak, OF_THE_BASE, self.total)

    def take(self, n_windows: int, is_recomputing: bool, rows: int) -> None:
        self.passes.append((n_windows, is_recomputing, rows))
        per_window = OF_A_RECOMPUTED_ONE if is_recomputing else OF_A_WINDOW
        needed = OF_THE_BASE + n_windows * per_window + OF_A_ROW * rows
        if self.refuses and needed > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        self.peak = max(self.peak, needed)


def size(monkeypatch, machine: Machine, settings=SETTINGS, **options):
    """Steps of real adapters under a made-up loss, which takes the machine's memory and no time."""

    def loss(self, ids, **_):
        rows = len(self.nodes) * max(pair.lora_a.shape[0] for pair in self.adapters["mlp.up_proj"][0].pairs)
        machine.take(len(ids), self.is_recomputing, rows)
        return sum((parameter.sum() for parameter in self.adapter_parameters()), torch.zeros(()))

    with monkeypatch.context() as patched:
        patched.setattr(TreeModel, "loss", loss)
        patched.setattr(sizing, "BYTES_PER_NUMBER", 0)
        patched.setattr(Router, "entropy", lambda self, ids, **_: self.w.sum())
        return find_fit(base(), settings, meter=machine, clock=itertools.count(0.0).__next__, **options)


def room(n_windows=0, rows=4, recomputed=0):
    return OF_THE_BASE + n_windows * OF_A_WINDOW + recomputed * OF_A_RECOMPUTED_ONE + rows * OF_A_ROW


SIZES = [
    (room(8, 16), SETTINGS, Fit()),  # all, four leaves of four rows included
    (room(8, 15), SETTINGS, Fit(max_leaves=2)),
    (room(8, 4), SETTINGS, Fit(max_leaves=1)),
    (room(8) - 1, SETTINGS, Fit(4)),
    (room(4) - 1, SETTINGS, Fit(2)),
    (room(2) - 1, SETTINGS, Fit(1)),
    (room(1) - 1, SETTINGS, Fit(1, True)),
    (room(0, 4, 1), SETTINGS, Fit(1, True, max_leaves=1)),
    (room(0, 3, 1), NESTED, Fit(1, True, max_rank=2, max_leaves=1)),
    (room(0, 1, 1), NESTED, Fit(1, True, max_rank=1, max_leaves=1)),
    (room(8), SETTINGS.model_copy(update={"depth": 0}), Fit()),
    (room(8, 12), SETTINGS.model_copy(update={"where": "path"}), Fit()),  # three nodes of a path
    (room(8, 11), SETTINGS.model_copy(update={"where": "path"}), Fit(4)),
]


@pytest.mark.parametrize(("total", "settings", "fit"), SIZES)
def test_halved_until_it_fits(total, settings, fit, monkeypatch):
    found = size(monkeypatch, Machine(total), settings)
    assert found.fit == fit
    assert OF_THE_BASE < found.peak_bytes <= total and found.free_bytes == total - found.peak_bytes


@pytest.mark.parametrize(("total", "settings", "fit"), SIZES[1::3])
def test_what_takes_too_much_without_being_refused_is_too_large_as_well(total, settings, fit, monkeypatch):
    assert size(monkeypatch, Machine(total, refuses=False), settings).fit == fit


@pytest.mark.parametrize(("total", "settings", "fit"), SIZES[::2])
def test_main_memory_is_approached_from_below(total, settings, fit, monkeypatch):
    """Never more windows at once than were predicted to fit; what is found is at most what a brave search finds."""
    machine = Machine(total, must_begin_small=True, refuses=False)
    found = size(monkeypatch, machine, settings).fit
    assert found.windows_at_once(8) <= fit.windows_at_once(8)
    assert machine.passes[0][0] == 1
    leaf_passes = [one for one in machine.passes if one[2] <= 4]
    assert all(room(n, rows) <= total for n, recomputed, rows in leaf_passes if n > 1 and not recomputed)


def test_what_does_not_fit_at_all_is_said_with_found_and_needed(monkeypatch):
    pattern = (
        r"cannot be trained here: one window of 64 tokens with gradient checkpointing needs more than 0\.00 GiB, this "
        r"worker may take 0\.00 GiB of the cpu's memory; close what else uses it, raise the limit, or load the base "
        r"quantised"
    )
    with pytest.raises(OutOfMemory, match=pattern) as caught:
        size(monkeypatch, Machine(room(0, 4, 1) - 1))
    assert caught.value.rule == sizing.NEEDS_QUANTISING
    with pytest.raises(OutOfMemory, match="choose a run with a smaller base") as caught:
        size(monkeypatch, Machine(room(0, 4, 1) - 1), quantise="nf4")
    assert caught.value.rule == sizing.TOO_SMALL
    with pytest.raises(OutOfMemory, match="needs 0"):
        size(monkeypatch, Machine(room(0, 0, 1), refuses=False), NESTED)
    assert not any(isinstance(module, AdapterLinear) for module in base().model.modules())


def test_the_owner_s_limits_hold(monkeypatch):
    plenty = room(8, 100)
    assert size(monkeypatch, Machine(plenty), max_leaves=2).fit == Fit(max_leaves=2)
    assert size(monkeypatch, Machine(plenty), max_leaves=1).fit == Fit(max_leaves=1)
    assert size(monkeypatch, Machine(plenty), NESTED, max_rank=3).fit == Fit(max_rank=3)
    assert size(monkeypatch, Machine(plenty), NESTED, max_rank=9).fit == Fit()
    assert size(monkeypatch, Machine(plenty), quantise="nf4").fit == Fit(quantise="nf4")


def test_many_large_leaves_are_not_even_tried(monkeypatch):
    machine = Machine(room(8, 100))
    monkeypatch.setattr(sizing, "saved_by_nf4", lambda _: 0)
    with monkeypatch.context() as patched:
        patched.setattr(sizing._Search, "_can_hold", lambda self, fit, n, taken: n <= 2)
        assert size(monkeypatch, machine).fit == Fit(max_leaves=2)
    assert max(rows for _, _, rows in machine.passes) == 2 * 4


def test_attempts_are_told(monkeypatch):
    found = size(monkeypatch, Machine(room(4, 4)))
    assert found.attempts[0].startswith("the whole batch at once: out of memory (CUDA out of memory.")
    assert found.attempts[1] == "4 windows at once: 0.00 GiB of 0.00 GiB"
    assert found.attempts[2].startswith("4 leaves, 4 windows at once: out of memory")
    assert found.tokens_per_s == 8 * 64  # two parts of four windows, in one tick of the clock


def test_other_errors_are_no_size(monkeypatch):
    monkeypatch.setattr(TreeModel, "loss", lambda self, ids, **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find_fit(base(), SETTINGS, meter=Machine(10**6))
    assert not any(isinstance(module, AdapterLinear) for module in base().model.modules())


def test_bits_that_four_save():
    numbers = sum(s.n_layers * s.in_features * s.out_features for s in base().facts.projections.values())
    assert saved_by_nf4(base()) == pytest.approx(numbers * (4 - 0.516), rel=0.01)


# --- meters ----------------------------------------------------------------------------------------------------------


def test_on_this_machine_all_of_a_small_base_fits():
    found = find_fit(base(), SETTINGS.model_copy(update={"batch_windows": 2, "depth": 1}))
    assert found.fit == Fit()
    assert found.tokens_per_s > 0 and found.peak_bytes > 1 << 20 and found.free_bytes > 0
    assert isinstance(meter_of(torch.device("cpu")), MainMemoryMeter)


def test_main_memory_is_sampled_and_the_record_counts_where_it_rose():
    resident, record = [100], [500]
    meter = MainMemoryMeter(resident=lambda: resident[0], available=lambda: 1000, record=lambda: record[0])
    meter.begin()
    resident[0] = 300
    assert meter.end() == Taken(peak=300, before=100, allowed=1000)
    meter.begin()
    record[0] = 700
    taken = meter.end()
    assert taken == Taken(peak=700, before=300, allowed=1200)
    assert taken.is_within and taken.free == 500
    limited = MainMemoryMeter(600, resident=lambda: 100, available=lambda: 1000, record=lambda: 0)
    limited.begin()
    assert limited.end().allowed == 600
    assert memory.peak_resident_bytes() > 1 << 20


def test_cuda_counts_for_itself(monkeypatch):
    context = memory.CONTEXT_BYTES
    for name, value in (("mem_get_info", (700, 1000)), ("memory_reserved", 200), ("max_memory_reserved", 450)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    resets = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    device = torch.device("cuda", 1)
    for limit, allowed in ((0, 200 + context + 700), (context + 300, context + 300)):
        meter = CudaMeter(device, limit)
        meter.begin()
        assert meter.end() == Taken(peak=450 + context, before=200 + context, allowed=allowed)
    assert resets == [device, device]
    assert isinstance(meter_of(device), CudaMeter)


def test_metal_keeps_what_it_took(monkeypatch):
    taken = iter([100, 900])
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: next(taken))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1000)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    meter = meter_of(torch.device("mps"), 800)
    assert isinstance(meter, MpsMeter)
    meter.begin()
    assert meter.end() == Taken(peak=900, before=100, allowed=800)
