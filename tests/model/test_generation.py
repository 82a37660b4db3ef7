"""A batch says what each of its rows says alone: any policy, padding on either side, drawn or not, stopped or not."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import byte_tokenizer
from tests.model.families import family_base, fill_randomly, some_ids
from tinylora.adapters.spec import AdapterSpec
from tinylora.base_model import wrap_tokenizer
from tinylora.errors import SettingError
from tinylora.generation import Continuation, TextStream, continue_prompts, left_pad, row_seed
from tinylora.model import TreeModel
from tinylora.routing.gates import Gate, Gates
from tinylora.routing.policy import Policy, Router
from tinylora.tree import Topology

TREE = Topology(("00", "01", "1"))
DECISIONS = ("soft", "top2", "hard", "elastic")
GRANULARITIES = ("", "@window:3", "@sequence:4")
POLICIES = [decision + granularity for granularity in GRANULARITIES for decision in DECISIONS]
LENGTHS = (2, 9, 5)
N_NEW = 6
MARGIN = 1e-4
"""Between the two best logits; below it rounding may decide, and rounding depends on the shape of a batch."""
TOKENIZER = wrap_tokenizer(byte_tokenizer(), bos="<s>", eos="</s>", pad="<pad>", max_tokens=64)


@functools.cache
def tree(family: str) -> TreeModel:
    """Every node has an adapter that shows, and the gates turn now left, now right."""
    base = family_base(family)
    feature, draw = base.routing_feature, np.random.default_rng(0)
    gates = Gates({node: Gate(3 * draw.standard_normal(feature.dim), 0.0, 1.0) for node in TREE.inner}, feature.dim)
    router = Router(feature, gates, TREE, TREE.nodes)
    spec = AdapterSpec("lora", 2)
    model = TreeModel(base, nodes=TREE.nodes, spec=spec, scale=0.7, router=router)
    fill_randomly(model)
    return model


@pytest.fixture
def model() -> TreeModel:
    found = tree("llama")
    found.policy = Policy.parse("soft")
    return found


def prompts_of(model: TreeModel, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [some_ids(model.base, batch=1, tokens=n, seed=n)[0].tolist() for n in lengths]


def padded(prompts: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = left_pad(prompts, fill=2)
    if side == "left":
        return ids, mask
    shifts = [-int((row == 0).sum()) for row in mask]
    ids, mask = (torch.stack([row.roll(n) for row, n in zip(rows, shifts, strict=True)]) for rows in (ids, mask))
    return ids, mask


@torch.no_grad()
def alone(model: TreeModel, prompt: list[int], n_new: int) -> tuple[list[int], int]:
    """One prompt continued without any cache, and how many tokens of that rounding cannot have decided."""
    text = torch.tensor([prompt])
    for _ in range(n_new):
        text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], dim=1)
    best = model(text).logits[0, len(prompt) - 1 : -1].topk(2).values
    is_clear = (best[:, 0] - best[:, 1] > MARGIN).tolist()
    return text[0, len(prompt) :].tolist(), len(list(itertools.takewhile(bool, is_clear)))


SOME = ("soft", "top2", "hard", "elastic", "hard@window:3", "soft@sequence:4")
CASES = [("llama", policy) for policy in POLICIES] + [
    (family, policy) for family in ("bloom", "gpt2") for policy in SOME
]


@pytest.mark.parametrize(("family", "policy"), CASES)
def test_a_batch_of_mixed_leaves_is_its_rows_one_by_one(family: str, policy: str) -> None:
    model = tree(family)
    model.policy = Policy.parse(policy)
    prompts = prompts_of(model)
    expected = [alone(model, prompt, N_NEW) for prompt in prompts]
    by_side = [padded(prompts, side) for side in ("left", "right")]
    left, right = (
        model.generate(ids, attention_mask=mask, max_new_tokens=N_NEW, eos_token_id=()) for ids, mask in by_side
    )
    assert torch.equal(left, right)
    for row, prompt, (tokens, n_clear) in zip(left.tolist(), prompts, expected, strict=True):
        assert row[: -len(prompt) - N_NEW] == [2] * (max(LENGTHS) - len(prompt))
        assert row[-len(prompt) - N_NEW : -N_NEW] == prompt
        assert row[-N_NEW:][:n_clear] == tokens[:n_clear]
    assert sum(n_clear for _, n_clear in expected) > 2 * N_NEW


def test_the_rows_of_the_tests_go_different_ways(model: TreeModel) -> None:
    """Otherwise the test above would say little of mixed leaves."""
    model.policy = Policy.parse("hard")
    tokens = [torch.tensor([[*prompt, *alone(model, prompt, N_NEW)[0]]]) for prompt in prompts_of(model)]
    assert model.router is not None
    feature = model.router.feature
    found = [model.router.log_posterior(model.router.scores(feature(ids)[0]))[0].argmax(-1) for ids in tokens]
    assert len(torch.cat(found).unique()) > 1


# --- rows that end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral"])  # whose layers keep all keys and values, or the last few
def test_rows_that_end_leave_the_others_as_they_are(family: str) -> None:
    """Each row in turn ends early; then the batch grows smaller, and what is left goes on in it."""
    model = tree(family)
    model.policy = Policy.parse("hard@window:3")
    prompts = prompts_of(model, (3, 6, 4, 9))
    free = continue_prompts(model, prompts, max_new_tokens=8, eos_token_id=())
    for row, other in ((0, 1), (3, 0), (2, 3), (1, 2)):
        ends = [free[row].tokens[1], free[other].tokens[4]]
        found = continue_prompts(model, prompts, max_new_tokens=8, eos_token_id=ends)
        assert found == [cut(model, whole, ends) for whole in free]


def cut(model: TreeModel, whole: Continuation, ends: list[int]) -> Continuation:
    """What a row is that ends at the first of some tokens."""
    at = next((place for place, token in enumerate(whole.tokens) if token in ends), None)
    if at is None:
        return whole
    return Continuation(whole.tokens[: at + 1], model.base.tokenizer.decode(whole.tokens[:at]), "end")


def test_ended_rows_are_passed_no_more(model: TreeModel, monkeypatch) -> None:
    prompts, sizes = prompts_of(model), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda ids, **more: sizes.append(len(ids)) or forward(ids, **more))
    free = continue_prompts(model, prompts, max_new_tokens=5, eos_token_id=())
    sizes.clear()
    ends = {free[0].tokens[0]}
    found = continue_prompts(model, prompts, max_new_tokens=5, eos_token_id=ends)
    running = [sum(len(row.tokens) > step for row in found) for step in range(5)]
    assert sizes == [size for size in running if size] and sizes[-1] < 3


def test_rows_that_were_sent_to_nodes_of_their_own_stay_there(model: TreeModel) -> None:
    """Also when others have ended; and afterwards the next batch goes there, too."""
    prompts, nodes = prompts_of(model), ("00", "1", "")
    expected = []
    for prompt, node in zip(prompts, nodes, strict=True):
        model.route_to(node)
        expected += continue_prompts(model, [prompt], max_new_tokens=6, eos_token_id=())
    model.route_to(nodes)
    assert continue_prompts(model, prompts, max_new_tokens=6, eos_token_id=()) == expected
    ends = [expected[0].tokens[1]]
    found = continue_prompts(model, prompts, max_new_tokens=6, eos_token_id=ends)
    assert found == [cut(model, whole, ends) for whole in expected] and found[0].finish == "end"
    assert model.routed_to == nodes
    model.route_to(None)


def test_a_stop_text_ends_its_row(model: TreeModel) -> None:
    prompts = prompts_of(model)
    free = continue_prompts(model, prompts, max_new_tokens=8, eos_token_id=())
    stop = free[1].text[3:5]
    heard = [""] * 3
    found = continue_prompts(
        model, prompts, max_new_tokens=8, eos_token_id=(), stop=[stop],
        on_text=lambda row, piece: heard.__setitem__(row, heard[row] + piece),
    )  # fmt: skip
    assert found[1].finish == "stop" and stop in TOKENIZER.decode(found[1].tokens)
    for row, whole in zip(found, free, strict=True):
        assert row.text == whole.text.partition(stop)[0]
        assert row.tokens == whole.tokens[: len(row.tokens)]
        assert row.finish == ("stop" if stop in whole.text else "length")
    assert heard == [row.text for row in found]


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_row_that_was_begun_elsewhere_goes_on_as_if_it_had_not_been(model: TreeModel, temperature: float) -> None:
    prompts = prompts_of(model)
    options = {"temperature": temperature, "seed": 5, "eos_token_id": ()}
    whole = continue_prompts(model, prompts, max_new_tokens=8, **options)
    n_begun = [i % 4 for i in range(len(prompts))]
    limits = [max(1, n) for n in n_begun]
    begun = continue_prompts(model, prompts, max_new_tokens=limits, **options)
    assert [len(row.tokens) for row in begun] == limits
    again = [[*prompt, *row.tokens[:n]] for prompt, row, n in zip(prompts, begun, n_begun, strict=True)]
    assert continue_prompts(model, again, max_new_tokens=8, n_begun=n_begun, **options) == whole
    stop = whole[2].text[1:3]  # its first token was made elsewhere, the second is made here
    stopped = continue_prompts(model, prompts, max_new_tokens=8, stop=[stop], **options)
    assert stopped[2].finish == "stop" and len(stopped[2].tokens) < 8
    assert continue_prompts(model, again, max_new_tokens=8, n_begun=n_begun, stop=[stop], **options) == stopped
    with pytest.raises(SettingError, match="max_new_tokens 3: expected at least 4"):
        continue_prompts(model, [prompts[0] * 4], max_new_tokens=3, n_begun=[3])


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2"])
def test_of_a_prompt_the_last_logits_alone_are_made(family: str) -> None:
    model = tree(family)
    ids = some_ids(model.base)
    last = model(ids, last_only=True).logits
    assert last.shape[1] == 1 and torch.allclose(last, model(ids).logits[:, -1:], atol=1e-6)


def test_nothing_in_nothing_out(model: TreeModel) -> None:
    assert continue_prompts(model, [], max_new_tokens=3) == []


# --- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"top_p": 0.7}, {"top_k": 5}, {"top_k": 9, "top_p": 0.9}])
def test_a_row_draws_the_same_tokens_in_any_batch(model: TreeModel, options: dict) -> None:
    prompts, drawing = prompts_of(model), {"max_new_tokens": 6, "temperature": 1.3, "eos_token_id": (), **options}
    together = continue_prompts(model, prompts, seed=5, **drawing)
    seeds = [row_seed(5, row) for row in range(3)]
    assert continue_prompts(model, prompts[::-1], seed=seeds[::-1], **drawing) == together[::-1]
    for prompt, seed, row in zip(prompts, seeds, together, strict=True):
        assert continue_prompts(model, [prompt], seed=[seed], **drawing) == [row]
    same = continue_prompts(model, [prompts[0]] * 2, seed=5, **drawing)
    assert same[0] != same[1]


def test_top_k_draws_among_the_likeliest_alone(model: TreeModel) -> None:
    prompt = prompts_of(model)[0]
    best = model(torch.tensor([prompt])).logits[0, -1].topk(3).indices.tolist()
    found = continue_prompts(model, [prompt] * 60, max_new_tokens=1, temperature=9.0, top_k=3, seed=0)
    assert {row.tokens[0] for row in found} == set(best)
    (one,) = continue_prompts(model, [prompt], max_new_tokens=1, temperature=9.0, top_k=1, seed=0)
    assert one.tokens == (best[0],)


# --- text as it comes ------------------------------------------------------------------------------------------------


def ids_of(data: bytes) -> list[int]:
    """One token per byte, as the tests' tokenizer has it; it writes bytes that are no letters as signs from 256 on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in plain]
    signs = [chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in data]
    return TOKENIZER.convert_tokens_to_ids(signs)


@given(st.text(max_size=12), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_pieces_are_the_text_up_to_a_stop_text(text: str, stop: list[str]) -> None:
    stream = TextStream(TOKENIZER, stop=stop, after=[5, 6])
    pieces = [stream.push(token) for token in ids_of(text.encode())]
    pieces.append(stream.finish())
    ends = [at for at in map(text.find, stop) if at >= 0]
    assert "".join(pieces) == stream.text == text[: min(ends, default=len(text))]
    assert stream.is_stopped == bool(ends)


def test_no_half_character_is_given_out() -> None:
    stream = TextStream(TOKENIZER)
    assert [stream.push(token) for token in ids_of("né€😀.".encode())] == [
        "n", "", "é", "", "", "€", "", "", "", "😀", ".",
    ]  # fmt: skip


@given(st.binary(max_size=16))
def test_bytes_that_are_no_text_come_out_as_the_tokenizer_has_them(data: bytes) -> None:
    tokens, stream = ids_of(data), TextStream(TOKENIZER)
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) + stream.finish() == TOKENIZER.decode(tokens)


def test_what_may_be_a_stop_text_waits() -> None:
    stream = TextStream(TOKENIZER, stop=["\nUser:"])
    assert [stream.push(token) for token in ids_of(b"a\nUb\nUser:x")] == ["a", "", "", "\nUb", *[""] * 7]
    assert stream.is_stopped and stream.finish() == "" and stream.text == "a\nUb"


def test_special_tokens_say_nothing() -> None:
    stream = TextStream(TOKENIZER)
    assert [stream.push(token) for token in (0, *ids_of(b"a"), 2)] == ["", "a", ""]
