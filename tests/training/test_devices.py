"""Which device and dtype is chosen from what there is, and what a base in fp16 makes of a step."""

import pytest
import torch

from tests.helpers import tiny_base_dir
from tests.learning.units import base, shard, unit
from tinylora.base_model import load_base
from tinylora.errors import SettingError
from tinylora.training import UnitRunner, devices
from tinylora.training.batch import Batch
from tinylora.training.devices import Gpu, Present, choose_device, is_finite_in, limit_memory, lowest_capability
from tinylora.training.fit import Fit
from tinylora.training.optimiser import LESS, Optimiser, Schedule, take_step

GB = 1 << 30
OLD = Gpu(0, "Tesla M60", "11111111-aaaa", (5, 2), 8 * GB)
TURING = Gpu(1, "NVIDIA T4", "22222222-bbbb", (7, 5), 16 * GB)
AMPERE = Gpu(2, "NVIDIA GeForce RTX 3060", "33333333-CCCC", (8, 6), 12 * GB)
THREE = Present((OLD, TURING, AMPERE), lowest_capability=(5, 0))
APPLE = Present(has_mps=True, has_mps_bf16=True)

CHOICES = [
    ("", "", Present(), "cpu", "fp32", "fp32: on a CPU 16 bits are seldom faster"),
    ("cpu", "", THREE, "cpu", "fp32", "runs on CPUs keep their numbers"),
    ("cpu", "bf16", THREE, "cpu", "bf16", "bf16: as asked for"),
    ("", "", Present((AMPERE,)), "cuda:2", "bf16", "computes in it (compute capability 8.6)"),
    ("auto", "auto", Present((TURING,)), "cuda:1", "fp16", "fp16: compute capability 7.5 has no bf16"),
    ("", "", Present((OLD,)), "cuda:0", "fp32", "fp32: compute capability 5.2 has neither"),
    ("", "", THREE, "cuda:1", "fp16", "7.5 has no bf16"),  # the most memory
    ("cuda", "fp32", THREE, "cuda:1", "fp32", "as asked for"),
    ("cuda:2", "", THREE, "cuda:2", "bf16", "8.6"),
    ("GPU-33333333-cccc", "", THREE, "cuda:2", "bf16", "8.6"),
    ("33333333-cccc", "fp16", THREE, "cuda:2", "fp16", "as asked for"),
    ("", "", APPLE, "mps", "bf16", "macOS 14"),
    ("mps", "", Present(has_mps=True), "mps", "fp16", "before macOS 14"),
    ("", "", Present((OLD,), lowest_capability=(7, 5)), "cpu", "fp32", "CPU"),
    ("", "", Present((OLD, AMPERE), lowest_capability=(7, 5)), "cuda:2", "bf16", "8.6"),
    ("", "", Present((OLD,), is_rocm=True), "cuda:0", "bf16", "computes in it"),
]


@pytest.mark.parametrize(("wanted", "dtype", "present", "device", "chosen", "reason"), CHOICES)
def test_the_best_of_what_there_is(wanted, dtype, present, device, chosen, reason):
    found = choose_device(wanted, dtype, present)
    assert (str(found.device), found.dtype) == (device, chosen)
    assert reason in found.reason
    assert found.torch_dtype == devices.DTYPES[chosen]
    assert found.max_leaves == (1 if device == "mps" else 0)


REFUSALS = [
    ("cuda", "", Present(), "torch finds no GPU on this machine"),
    ("mps", "", Present(), "no Metal"),
    ("cuda:7", "", THREE, r"expected cpu, mps, or one of cuda:0 \(Tesla M60\), cuda:1 \(NVIDIA T4\), cuda:2"),
    ("GPU-9", "", THREE, "expected cpu, mps, or one of"),
    ("tpu", "", THREE, "expected cpu, mps, or one of"),
    ("cuda:1", "bf16", THREE, "NVIDIA T4 does not compute in it .*; use fp16"),
    ("cuda:0", "fp16", THREE, "Tesla M60 does not compute in it .*; use fp32"),
    ("mps", "bf16", Present(has_mps=True), "Metal does not compute in it"),
    ("cpu", "fp8", THREE, "dtype 'fp8': expected bf16, fp16, fp32"),
    ("cuda:0", "", Present((OLD,), lowest_capability=(7, 5)), "has compute capability 5.2, and .* begins at 7.5"),
    ("cuda", "", Present((OLD,), lowest_capability=(7, 5)), "begins at 7.5"),
]


@pytest.mark.parametrize(("wanted", "dtype", "present", "message"), REFUSALS)
def test_what_is_not_there_is_refused_in_a_sentence(wanted, dtype, present, message):
    with pytest.raises(SettingError, match=message):
        choose_device(wanted, dtype, present)


def test_builds_of_torch_say_where_they_begin():
    assert lowest_capability(["sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "compute_120"]) == (7, 5)
    assert lowest_capability(["sm_100a", "sm_120"]) == (10, 0)
    assert lowest_capability(["gfx90a", "gfx1100"]) == (0, 0)


def test_a_limit_is_handed_to_the_allocator(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: type("P", (), {"total_memory": 16 * GB}))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, index: asked.append((share, index))
    )
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 * GB)
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", asked.append)
    on_gpu, on_apple = choose_device("cuda:1", "", THREE), choose_device("mps", "", APPLE)
    limit_memory(on_gpu, 4 * GB + devices.CONTEXT_BYTES)
    limit_memory(on_gpu, 64 * GB)
    limit_memory(on_apple, 8 * GB)
    limit_memory(on_gpu, 0)
    limit_memory(choose_device("cpu"), GB)
    assert asked == [(0.25, 1), (1.0, 1), 0.5]
    with pytest.raises(SettingError, match="memory limit of 512 MiB: CUDA alone takes about 512 MiB"):
        limit_memory(on_gpu, devices.CONTEXT_BYTES)


def test_this_machine_is_looked_at():
    assert choose_device("cpu", "", devices.look()).kind == "cpu"


# --- fp16 ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves():
    return {name: load_base(tiny_base_dir(), dtype=devices.DTYPES[name]) for name in ("fp16", "bf16")}


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_a_base_in_16_bits_learns_as_the_exact_one_does(name, halves):
    text = shard("letters")
    exact, _ = UnitRunner(base(), text, worker="w0").run(*unit(n_steps=8, total_steps=8))
    update, _ = UnitRunner(halves[name], text, worker="w0").run(*unit(n_steps=8, total_steps=8))
    assert update.losses == pytest.approx(exact.losses, abs=0.05)
    assert update.heldout_nll_after == pytest.approx(exact.heldout_nll_after, abs=0.05)
    assert is_finite_in(halves[name])


def test_a_base_that_leaves_the_range_of_fp16_is_found_out(halves):
    model = load_base(tiny_base_dir(), dtype=torch.float16)
    with torch.no_grad():
        model.model.get_submodule("model.norm").weight.fill_(6e4)
    assert not is_finite_in(model)


class Tiny(torch.autograd.Function):
    """A base in fp16, as gradients see it: what is below its range is nothing, what is above it is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0].half().float()


@pytest.mark.parametrize("slope", [1e-9, 1e-3, 900.0, 1e5])
def test_gradients_keep_within_the_range_of_fp16(slope):
    batch = Batch(torch.zeros(4, 1025, dtype=torch.long), torch.zeros(4, 1025, dtype=torch.long))
    parameter = torch.nn.Parameter(torch.zeros(3))
    factors: list[float] = []

    class Watched(Optimiser):
        def update(self, step: int, factor: float = 1.0) -> None:
            factors.append(factor)
            super().update(step, factor)

    optimiser = Watched([parameter], Schedule(0.0, 0, 1), is_base_half=True)

    def loss_of(part, index):
        loss = (Tiny.apply(parameter) * slope).sum()
        return loss, loss.detach()

    take_step(optimiser, batch, loss_of, 0, 0, Fit())
    assert factors == [{1e-9: 4096, 1e-3: 4096, 900.0: 4096 / LESS, 1e5: 1}[slope]]
    if slope < 1e4:
        before_clipping = slope * 3**0.5
        expected = slope / max(1.0, before_clipping)
        torch.testing.assert_close(parameter.grad, torch.full((3,), expected), rtol=0.02, atol=0)
