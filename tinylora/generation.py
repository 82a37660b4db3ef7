"""Continuing prompts: one batch, every row routed on its own, a cache of keys and values, greedy or drawn tokens."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from tinylora.base_model import LoadedBase
from tinylora.errors import SettingError


@runtime_checkable
class Continuable(Protocol):
    """What `generate` asks of a `TreeModel`."""

    base: LoadedBase

    def __call__(self, input_ids: Any, **options: Any) -> Any:
        """One pass over new tokens: logits, the cache and the router's state after them."""


@torch.no_grad()
def generate(
    model: Continuable,
    input_ids: Int[Tensor, "batch token"],
    *,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    eos_token_id: int | Collection[int] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> Int[Tensor, "batch total"]:
    """Continue prompts, routing every token that is read or written.

    Args:
        model: A `TreeModel`.
        input_ids: Prompts, padded on the left where they differ in length (`left_pad`).
        max_new_tokens: At most so many tokens are added.
        attention_mask: 1 on tokens, 0 on padding.
        temperature: 0 takes the likeliest token; otherwise the logits are divided by it and a token is drawn.
        top_p: Draw among the likeliest tokens only, those that hold this much of the probability.
        seed: Of the draws; None draws differently each time.
        eos_token_id: What ends a row; None is the tokenizer's, () nothing.
        on_token: Called with row and token as soon as each is known, the ending one included.

    Returns:
        Prompts and what was added. A row that ended early is filled up with its ending token.

    Raises:
        SettingError: A number out of range, an empty prompt, padding on the right, or more tokens than the base's
            window.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    _check(model.base, mask, max_new_tokens, temperature, top_p)
    ends = torch.tensor(_ends(model.base, eos_token_id), dtype=torch.long, device=input_ids.device)
    generator = _generator(seed)
    is_running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    unread, cache, state = input_ids, None, None
    for _ in range(max_new_tokens):
        seen = None if mask.all() else mask
        output = model(unread, attention_mask=seen, past_key_values=cache, state=state, use_cache=True)
        cache, state = output.past_key_values, output.state
        drawn = _draw(output.logits[:, -1], temperature, top_p, generator).to(input_ids.device)
        tokens = torch.where(is_running, drawn, input_ids[:, -1])
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
        mask = torch.cat([mask, is_running[:, None].long()], dim=1)
        _report(on_token, is_running, tokens)
        is_running = is_running & ~torch.isin(tokens, ends)
        if not is_running.any():
            break
        unread = tokens[:, None]
    return input_ids


def left_pad(prompts: Sequence[Sequence[int]], *, fill: int = 0) -> tuple[Int[Tensor, "batch token"], Tensor]:
    """Prompts of different length as one batch, padded on the left; returns ids and attention mask."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[fill] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _ends(base: LoadedBase, eos_token_id: int | Collection[int] | None) -> list[int]:
    if eos_token_id is None:
        eos_token_id = base.tokenizer.eos_token_id
    if eos_token_id is None:
        return []
    return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)


def _check(base: LoadedBase, mask: Tensor, max_new_tokens: int, temperature: float, top_p: float) -> None:
    window = base.facts.max_window_tokens
    if mask.shape[1] == 0 or not bool(mask[:, -1].all()):
        raise SettingError("prompt: expected at least one token in each row, and padding on the left only")
    if max_new_tokens < 1:
        raise SettingError(f"max_new_tokens {max_new_tokens}: expected at least 1")
    if mask.shape[1] + max_new_tokens > window:
        raise SettingError(
            f"prompt of {mask.shape[1]} tokens and {max_new_tokens} new ones: this base attends to {window} "
            "at most; shorten the prompt or ask for fewer"
        )
    if not temperature >= 0 or not 0 < top_p <= 1:
        raise SettingError(f"temperature {temperature}, top_p {top_p}: expected temperature >= 0 and 0 < top_p <= 1")


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def _draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token per row, in main memory where it is drawn, so that a seed gives the same tokens on every device."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    shares, order = (logits.float().cpu() / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    shares[shares.cumsum(dim=-1) - shares >= top_p] = 0.0
    return order.gather(-1, torch.multinomial(shares, 1, generator=generator)).squeeze(-1)


def _report(on_token: Callable[[int, int], None] | None, is_running: Tensor, tokens: Tensor) -> None:
    if on_token is not None:
        for row in is_running.nonzero().flatten().tolist():
            on_token(row, int(tokens[row]))
