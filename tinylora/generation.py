"""Continuing prompts: rows of any length and any leaf in one batch, a cache of keys and values, greedy or drawn tokens.

What a row becomes does not hang on its neighbours: attention is masked where it is padded, the router skips padding,
draws come from the row's own seed. Only rounding differs with the shape of a batch, so greedy rows agree with the same
rows one by one wherever the two best logits are further apart than that.

A row that has ended leaves the batch: the cache and the router's state are gathered to those that run on. That is as
exact as any other batch of them, costs about what one step costs to append to the cache, and from then on the row costs
nothing; kept, it would cost a token's pass each time until the longest row ends.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from tinylora.base_model import LoadedBase
from tinylora.errors import SettingError
from tinylora.text_stream import TextStream

Finish: TypeAlias = Literal["end", "stop", "length"]
"""What ended a row: its own ending token, a stop text, or the number of tokens that was asked for."""
_END_TOKENS_BEFORE = 4  # of a prompt: enough for a decoder to know whether a space stands before the first new word


@runtime_checkable
class Continuable(Protocol):
    """What `generate` asks of a `TreeModel`."""

    base: LoadedBase
    routed_to: Any
    """What `route_to` was told last."""

    def route_to(self, path: Any) -> None:
        """Send every token to one node, or every row to its own; None gives the choice back to the router."""

    def __call__(self, input_ids: Any, **options: Any) -> Any:
        """One pass over new tokens: logits, the cache and the router's state after them."""


@dataclass(frozen=True)
class Continuation:
    """What came after one prompt."""

    tokens: tuple[int, ...]
    """New ones, the ending one and those that a stop text was in included."""
    text: str
    """Of them, without special tokens, up to the stop text."""
    finish: Finish


@torch.no_grad()
def continue_prompts(
    model: Continuable,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    n_begun: Sequence[int] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    seed: int | Sequence[int] | None = None,
    eos_token_id: int | Collection[int] | None = None,
    stop: Sequence[str] = (),
    on_token: Callable[[int, int], None] | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Continuation]:
    """Continue prompts of any length in one batch, routing every token that is read or written.

    Args:
        model: A `TreeModel`.
        prompts: Tokens, without padding.
        max_new_tokens: At most so many tokens are added to each; a sequence has a number for each row.
        n_begun: Of each prompt, how many tokens at its end are its continuation already, as where another process has
            begun it: they count as new ones, and the row goes on as if it had not been interrupted.
        temperature: 0 takes the likeliest token; otherwise the logits are divided by it and a token is drawn.
        top_p: Draw among the likeliest tokens only, those that hold this much of the probability.
        top_k: Draw among so many of the likeliest tokens only; None is all.
        seed: Of the draws. A number gives row i the seed `row_seed(seed, i)`; a sequence gives each row its own, so
            that it draws the same tokens in any batch; None draws differently each time.
        eos_token_id: What ends a row; None is the tokenizer's, () nothing.
        stop: Texts that end the row they appear in.
        on_token: Called with row and token as soon as each is known, the ending one included.
        on_text: Called with row and piece of text as soon as it is certain; see `TextStream`.

    Returns:
        One for each prompt, in their order.

    Raises:
        SettingError: A number out of range, an empty prompt or stop text, or more tokens than the base's window.
    """
    limits = _for_each("max_new_tokens", max_new_tokens, len(prompts))
    begun = _for_each("n_begun", n_begun or 0, len(prompts))
    _check(model.base, prompts, limits, begun, temperature, top_p, top_k, stop)
    if not prompts:
        return []
    ends = _ends(model.base, eos_token_id)
    cut = [len(prompt) - n for prompt, n in zip(prompts, begun, strict=True)]
    after = [prompt[:n][-_END_TOKENS_BEFORE:] for prompt, n in zip(prompts, cut, strict=True)]
    streams = [TextStream(model.base.tokenizer, stop=stop, after=tokens) for tokens in after]
    must_read = bool(stop) or on_text is not None
    rows = [_Row(stream, ends, n, must_read=must_read) for stream, n in zip(streams, limits, strict=True)]
    draws = [np.random.default_rng(own) for own in _row_seeds(seed, len(prompts))]
    for row, draw, prompt, n in zip(rows, draws, prompts, cut, strict=True):
        for token in prompt[n:]:
            row.add(token)
            draw.random()
    running = list(range(len(prompts)))
    with _reading(model, prompts) as passes:
        while running:
            uniform = torch.tensor([draws[row].random() for row in running], dtype=torch.float64)
            tokens = choose(passes.logits, temperature, top_k, top_p, uniform)
            for row, token in zip(running, tokens, strict=True):
                piece = rows[row].add(token)
                if on_token is not None:
                    on_token(row, token)
                if on_text is not None and piece:
                    on_text(row, piece)
            keep = [place for place, row in enumerate(running) if rows[row].finish is None]
            running = [running[place] for place in keep]
            if running:
                passes.go_on(tokens, keep)
    return [row.ended() for row in rows]


def generate(
    model: Continuable,
    input_ids: Int[Tensor, "batch token"],
    *,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Int[Tensor, "batch total"]:
    """Continue prompts that are one tensor; see `continue_prompts`.

    Args:
        model: A `TreeModel`.
        input_ids: Prompts, padded on either side where they differ in length.
        max_new_tokens: At most so many tokens are added to each.
        attention_mask: 1 on tokens, 0 on padding.
        **options: As of `continue_prompts`.

    Returns:
        Prompts and what was added, padded on the left as `left_pad` does. A row that ended early is filled up with its
        last token.

    Raises:
        SettingError: A number out of range, an empty prompt, padding between tokens, or more tokens than the base's
            window.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    prompts = _without_padding(input_ids, mask.bool())
    found = continue_prompts(model, prompts, max_new_tokens=max_new_tokens, **options)
    n_new = max((len(row.tokens) for row in found), default=0)
    whole = [
        [*prompt, *row.tokens, *[row.tokens[-1]] * (n_new - len(row.tokens))]
        for prompt, row in zip(prompts, found, strict=True)
    ]
    fill = int(input_ids[~mask.bool()][0]) if not mask.all() else 0
    return left_pad(whole, fill=fill)[0].to(input_ids.device)


def left_pad(prompts: Sequence[Sequence[int]], *, fill: int = 0) -> tuple[Int[Tensor, "batch token"], Tensor]:
    """Prompts of different length as one batch, padded on the left; returns ids and attention mask."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[fill] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def row_seed(seed: int, row: int) -> int:
    """The seed of one row's draws: whoever knows both draws it again alone, or in another batch."""
    return int(np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0])


# --- passes ----------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(model: Continuable, prompts: Sequence[Sequence[int]]) -> Iterator["_Passes"]:
    """The prompts read; whatever ends the writing, rows that were sent to nodes of their own are sent there again."""
    routed_to = model.routed_to
    try:
        yield _Passes(model, prompts)
    finally:
        if model.routed_to != routed_to:
            model.route_to(routed_to)


class _Passes:
    """The prompts read, and after that a token for each row that goes on."""

    def __init__(self, model: Continuable, prompts: Sequence[Sequence[int]]) -> None:
        self._model, self._device = model, model.base.model.device
        ids, mask = left_pad(prompts)
        self._mask = mask.to(self._device)
        self._lengths = [len(prompt) for prompt in prompts]
        self._cache: Any = None
        self._state: Any = None
        routed_to = model.routed_to
        self._nodes = routed_to if isinstance(routed_to, tuple) else None
        self._read(ids.to(self._device))

    def go_on(self, tokens: list[int], keep: list[int]) -> None:
        """Read the tokens of the rows to keep; the others are forgotten."""
        if len(keep) < len(self._lengths):
            index = torch.tensor(keep, device=self._device)
            self._cache.reorder_cache(index)  # unlike its twin for selecting, every kind of layer has it
            self._mask, self._state = self._mask[index], _rows_of(self._state, index)
            self._lengths = [self._lengths[place] for place in keep]
            if self._nodes is not None:
                self._nodes = tuple(self._nodes[place] for place in keep)
                self._model.route_to(self._nodes)
        unread = torch.tensor([[tokens[place]] for place in keep], device=self._device)
        self._mask = torch.cat([self._mask, torch.ones_like(unread)], dim=1)
        self._lengths = [length + 1 for length in self._lengths]
        self._read(unread)

    def _read(self, unread: Tensor) -> None:
        is_padded = min(self._lengths) < self._mask.shape[1]  # known here, without asking the device
        output = self._model(
            unread,
            attention_mask=self._mask if is_padded else None,
            past_key_values=self._cache,
            state=self._state,
            use_cache=True,
            last_only=True,
        )
        self._cache, self._state, self.logits = output.past_key_values, output.state, output.logits[:, -1]


def _rows_of(state: Any, index: Tensor) -> Any:
    """Some rows of a state: of every tensor in it, whose first axis is the batch."""
    if isinstance(state, Tensor):
        return state[index.to(state.device)]
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{field.name: _rows_of(getattr(state, field.name), index) for field in fields(state)})
    return state


# --- rows ------------------------------------------------------------------------------------------------------------


class _Row:
    """One row's new tokens, until it ends."""

    def __init__(self, stream: TextStream, ends: Collection[int], max_new_tokens: int, *, must_read: bool) -> None:
        self._stream, self._ends, self._left = stream, ends, max_new_tokens
        self._must_read = must_read
        """Token by token; else the text is made at the end, all at once, which takes less time."""
        self._tokens: list[int] = []
        self.finish: Finish | None = None

    def add(self, token: int) -> str:
        """Take a token; returns the text that is certain with it."""
        self._tokens.append(token)
        piece = self._stream.push(token) if self._must_read and token not in self._ends else ""
        self.finish = self._finish(token)
        is_over = self._must_read and self.finish in ("end", "length")
        return piece + self._stream.finish() if is_over else piece

    def ended(self) -> Continuation:
        """What it has become."""
        if not self._must_read:
            self._stream.push(*(token for token in self._tokens if token not in self._ends))
            self._stream.finish()
        return Continuation(tuple(self._tokens), self._stream.text, self.finish or "length")

    def _finish(self, token: int) -> Finish | None:
        if token in self._ends:
            return "end"
        if self._stream.is_stopped:
            return "stop"
        return "length" if len(self._tokens) == self._left else None


def _ends(base: LoadedBase, eos_token_id: int | Collection[int] | None) -> frozenset[int]:
    if eos_token_id is None:
        eos_token_id = base.tokenizer.eos_token_id
    if eos_token_id is None:
        return frozenset()
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)


def _for_each(name: str, wanted: int | Sequence[int], n_rows: int) -> list[int]:
    if isinstance(wanted, int):
        return [wanted] * n_rows
    if len(wanted) != n_rows:
        raise SettingError(f"{name}: expected one for each of {n_rows} rows, got {len(wanted)}")
    return list(wanted)


def _row_seeds(seed: int | Sequence[int] | None, n_rows: int) -> list[int | None]:
    if seed is None:
        return [None] * n_rows
    if isinstance(seed, int):
        return [row_seed(seed, row) for row in range(n_rows)]
    return list(_for_each("seed", seed, n_rows))


def _without_padding(input_ids: Tensor, mask: Tensor) -> list[list[int]]:
    n_begun = mask[:, :1].sum(dim=1) + (mask[:, 1:] & ~mask[:, :-1]).sum(dim=1)
    if bool((n_begun > 1).any()):
        raise SettingError("attention_mask: padding between tokens of a row; expected it on the left or on the right")
    return [row[own].tolist() for row, own in zip(input_ids, mask, strict=True)]


def _check(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    begun: Sequence[int],
    temperature: float,
    top_p: float,
    top_k: int | None,
    stop: Sequence[str],
) -> None:
    window = base.facts.max_window_tokens
    for prompt, limit, n in zip(prompts, limits, begun, strict=True):
        n_prompt = len(prompt) - n
        if n < 0 or n_prompt < 1:
            raise SettingError("prompt: expected at least one token in each row")
        if limit <= n:
            raise SettingError(f"max_new_tokens {limit}: expected at least {n + 1}")
        if n_prompt + limit > window:
            raise SettingError(
                f"prompt of {n_prompt} tokens and {limit} new ones: this base attends to {window} at most; shorten the "
                "prompt or ask for fewer"
            )
    if not temperature >= 0 or not 0 < top_p <= 1:
        raise SettingError(f"temperature {temperature}, top_p {top_p}: expected temperature >= 0 and 0 < top_p <= 1")
    if top_k is not None and top_k < 1:
        raise SettingError(f"top_k {top_k}: expected at least 1, or none for all tokens")
    if not all(stop):
        raise SettingError("stop: an empty text would end every row at once")


# --- choosing --------------------------------------------------------------------------------------------------------


def choose(
    logits: Float[Tensor, "row vocab"],
    temperature: float,
    top_k: int | None,
    top_p: float,
    uniform: Float64[Tensor, " row"],
) -> list[int]:
    """One token per row: the likeliest, or the one that a number from 0 to 1 points at.

    In main memory, so that a seed gives the same tokens on every device. Probabilities lie side by side in the order of
    the vocabulary, not of their size: two that are nearly equal may change places between batches of different shape.

    Args:
        logits: Of the next token.
        temperature: 0 takes the likeliest.
        top_k: So many of the likeliest alone; None is all.
        top_p: The likeliest that hold this much of the probability alone.
        uniform: One number per row; unused at temperature 0.
    """
    if temperature == 0:
        return logits.argmax(dim=-1).tolist()
    logits = logits.float().cpu()
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if top_k is not None and top_k < scaled.shape[-1]:
        least = scaled.topk(top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    shares = scaled.double().softmax(dim=-1)
    if top_p < 1:
        ordered, order = shares.sort(dim=-1, descending=True, stable=True)
        ordered = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered >= top_p, 0.0)
        shares = torch.zeros_like(shares).scatter(-1, order, ordered)
    edges = shares.cumsum(dim=-1)
    found = torch.searchsorted(edges, uniform[:, None] * edges[:, -1:], right=True)
    return found.squeeze(-1).clamp(max=shares.shape[-1] - 1).tolist()
