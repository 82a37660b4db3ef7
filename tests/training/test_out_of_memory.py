"""Memory that runs out, on purpose: at three points of a step, before and after it, and again and again."""

import errno
import itertools

import pytest
import torch
from torch import nn

from tests.learning.units import base, shard, unit
from tinylora.errors import BaseModelError, OutOfMemory
from tinylora.model import TreeModel
from tinylora.protocol.documents import Update
from tinylora.tensors import from_bytes
from tinylora.training import Fit, UnitRunner
from tinylora.training.optimiser import Optimiser
from tinylora.training.out_of_memory import Fitting, is_out_of_memory

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB")
ORDER = unit(n_steps=5, batch_windows=4)


@pytest.fixture(scope="module")
def text():
    return shard("letters")


# --- how it shows ----------------------------------------------------------------------------------------------------

SHORT = [
    CUDA,
    MemoryError(),
    OutOfMemory("nothing fits"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.02 GB, other allocations: 1.1 GB, max allowed: 9.07 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4294967296 bytes."),
    RuntimeError("Error cudaErrorMemoryAllocation at line 90 in file /bitsandbytes/csrc/ops.cu"),
    RuntimeError("cusparse error: CUSPARSE_STATUS_INSUFFICIENT_RESOURCES"),
]
OTHERS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("out of memory"),
    BaseModelError("no tokenizer"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", SHORT, ids=str)
def test_memory_that_ran_out_is_known_by_its_words(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_the_way_down():
    fit, steps = Fit(max_rank=4, max_leaves=1, quantise="nf4"), []
    while (smaller := fit.step_down(6)) is not None:
        fit = smaller
        steps.append((fit.micro_windows, fit.gradient_checkpointing))
        assert (fit.max_rank, fit.max_leaves, fit.quantise) == (4, 1, "nf4")
    assert steps == [(3, False), (2, False), (1, False), (1, True)]


def test_the_smaller_of_two():
    assert Fit().smaller(Fit(4)) == Fit(4).smaller(Fit()) == Fit(4).smaller(Fit(8)) == Fit(4)
    assert Fit(8, max_rank=2).smaller(Fit(2, True, max_rank=4)) == Fit(2, True, max_rank=2)


# --- in a unit -------------------------------------------------------------------------------------------------------


class Faults:
    """Memory that runs out at the calls of one kind that are named, counted from 0."""

    def __init__(self, *calls: int) -> None:
        self.calls, self.count = calls, itertools.count()

    def strike(self) -> None:
        if next(self.count) in self.calls:
            raise CUDA


class _Striking(torch.autograd.Function):
    """Nothing on the way there; on the way back memory runs out, when some gradients have been made already."""

    @staticmethod
    def forward(ctx, x, faults):
        ctx.faults = faults
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        ctx.faults.strike()
        return gradients[0], None


def in_forward(patched, faults):
    """Half-way through the blocks of a training pass."""
    block = base().blocks[1]
    plain = block.forward

    def forward(*arguments, **options):
        if torch.is_grad_enabled():
            faults.strike()
        return plain(*arguments, **options)

    patched.setattr(block, "forward", forward, raising=False)


def in_backward(patched, faults):
    """Between the blocks on the way back, when the upper block's adapters have their gradients."""
    block = base().blocks[1]
    plain = block.forward

    def forward(hidden, *arguments, **options):
        return plain(_Striking.apply(hidden, faults), *arguments, **options)

    patched.setattr(block, "forward", forward, raising=False)


def in_optimiser(patched, faults):
    """When AdamW has moved every parameter, and before anybody has taken note."""
    plain = Optimiser.update

    def update(self, step, factor=1.0):
        plain(self, step, factor)
        faults.strike()

    patched.setattr(Optimiser, "update", update)


def in_snapshot(patched, faults):
    """When the step is done, and is to be remembered."""
    plain = Optimiser.copied

    def copied(self):
        faults.strike()
        return plain(self)

    patched.setattr(Optimiser, "copied", copied)


PLACES = {"forward": in_forward, "backward": in_backward, "optimiser": in_optimiser, "snapshot": in_snapshot}


def run(text, fit=None, **options) -> tuple[Update, bytes]:
    return UnitRunner(base(), text, worker="w0", fit=fit or Fit(), **options).run(*ORDER)


@pytest.fixture
def patched(monkeypatch):
    """Undone before the next test looks at the shared base."""
    with monkeypatch.context() as patch:
        yield patch
    for block in base().blocks:
        block.__dict__.pop("forward", None)


@pytest.mark.parametrize("place", PLACES)
def test_the_step_is_repeated_in_halves_and_nothing_counts_twice(place, text, patched):
    whole, expected = run(text)
    steps, told = [], []
    one = UnitRunner(
        base(),
        text,
        worker="w0",
        on_step=lambda node, step, loss, speed: steps.append((step, loss)),
        on_step_down=lambda fit, reason: told.append((fit, reason)),
    )
    PLACES[place](patched, Faults(2))
    update, payload = one.run(*ORDER)
    assert [step for step, _ in steps] == [0, 1, 2, 3, 4]
    assert told == [(Fit(2), told[0][1])] and one.fit == Fit(2)
    assert "out of memory with the whole batch at once (CUDA out of memory." in told[0][1]
    assert "going on with 2 windows at once" in told[0][1]
    assert (update.n_steps, update.tokens) == (whole.n_steps, whole.tokens)
    assert update.losses == pytest.approx(whole.losses, abs=1e-4)
    for name, tensor in from_bytes(expected).items():
        if name.startswith("node."):
            torch.testing.assert_close(from_bytes(payload)[name], tensor, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("place", PLACES)
def test_a_repeated_step_begins_where_the_last_one_ended(place, text, patched):
    """Against a unit whose first two steps were whole, and the others in halves, without any failure: bit for bit."""
    seen = []
    first = UnitRunner(base(), text, worker="w0", on_step=lambda *_: seen.append(first.latest))
    first.run(*ORDER)
    n_before = 1 if place == "snapshot" else 2  # the state before the first step is the first to be remembered
    expected = UnitRunner(base(), text, worker="w0", fit=Fit(2)).run(*ORDER, resume=seen[n_before - 1])[1]
    PLACES[place](patched, Faults(2))
    payload = run(text)[1]
    heldout = {name: t for name, t in from_bytes(expected).items() if name.startswith("node.")}
    for name, tensor in heldout.items():
        assert torch.equal(from_bytes(payload)[name], tensor), name


def test_down_to_one_window_with_checkpointing(text, patched):
    whole, _ = run(text)
    told = []
    in_forward(patched, Faults(0, 1, 2))
    update, _ = run(text, on_step_down=lambda fit, _: told.append(fit))
    assert told == [Fit(2), Fit(1), Fit(1, True)]
    assert update.losses == pytest.approx(whole.losses, abs=1e-4)


def test_what_does_not_fit_at_all_is_said_in_a_sentence(text, patched):
    in_forward(patched, Faults(*range(100)))
    one = UnitRunner(base(), text, worker="w0")
    with pytest.raises(OutOfMemory, match="not even one window fits into memory, with gradient checkpointing"):
        one.run(*ORDER)
    assert one.latest is not None and one.latest.n_steps == 0
    assert not hasattr(base().blocks[0], "pairs")  # the base is bare again


def test_held_out_text_is_scored_in_parts_where_it_must_be(text, monkeypatch):
    whole, _ = run(text)
    plain, faults = TreeModel.loss, Faults(0)

    def loss(self, *arguments, **options):
        if not torch.is_grad_enabled():
            faults.strike()
        return plain(self, *arguments, **options)

    monkeypatch.setattr(TreeModel, "loss", loss)
    told = []
    update, _ = run(text, on_step_down=lambda fit, _: told.append(fit))
    assert len(told) == 1
    assert update.heldout_nll_before == pytest.approx(whole.heldout_nll_before, abs=1e-5)


def test_a_unit_that_goes_on_elsewhere_keeps_to_the_smaller_fit(text, patched):
    kept = []
    one = UnitRunner(base(), text, worker="w0", on_step=lambda *_: kept.append(one.latest))
    in_forward(patched, Faults(2))
    one.run(*ORDER)
    other = UnitRunner(base(), text, worker="w0")
    assert kept[3].fit == Fit(2)
    other.run(*ORDER, resume=kept[3])
    assert other.fit == Fit(2)


def test_other_errors_pass():
    fitting = Fitting(Fit())
    with pytest.raises(ZeroDivisionError):
        fitting.attempt(8, lambda fit: 1 / 0)
    assert fitting.fit == Fit()


def test_the_failed_pass_is_gone_when_the_next_one_begins():
    """Its tensors hang on the error's traceback: as long as that is alive, no memory comes back."""
    alive = []

    class Watched(nn.Module):
        def __del__(self):
            alive.remove(id(self))

    def work(fit):
        assert not alive
        held = Watched()
        alive.append(id(held))
        if fit.micro_windows != 1:
            raise MemoryError
        return fit

    assert Fitting(Fit()).attempt(8, work) == Fit(1)
