"""Canaries: made-up secrets planted in a copy of a shard, and how much of them a trained adapter gives away.

A canary is a sentence such as "The door code of Tavo Minu is 48151623", with a name and a number that are in no text.
After some training on a shard that holds each of them a few times, its number is ranked among random ones by how likely
the model thinks it after the same words:

    exposure = log2 |R| - log2 rank        in bits, with R the random numbers and the canary's own

Nothing remembered gives 1.4 bits on average; log2 |R|, the most that can be measured, means that the model thinks it
likelier than all others. Those that greedy decoding writes out after the sentence's beginning count as extracted.

Source:
    Carlini et al. 2019, The Secret Sharer, arXiv:1802.08232, sections 4.2 and 4.3.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int

from tinylora.adapters.lora import init_adapter
from tinylora.adapters.prefixes import prefix_spec
from tinylora.adapters.tied import shared_factors
from tinylora.base_model import LoadedBase, encode
from tinylora.config import RunSettings
from tinylora.errors import SettingError
from tinylora.model import TreeModel
from tinylora.reading.documents import sampled
from tinylora.shards import Document, Shard, batches
from tinylora.training.batch import Batch
from tinylora.training.fit import Fit
from tinylora.training.losses import plain_loss
from tinylora.training.optimiser import OnStep, Optimiser, Schedule, take_steps
from tinylora.training.out_of_memory import Fitting

TEMPLATE = "The door code of {name} is "
N_DIGITS = 8
N_CANDIDATES = 1023
"""Random numbers that a canary's is ranked among: ten bits can be measured."""
ROWS_AT_ONCE = 64
MAX_DOCUMENTS = 2**15
"""Of the shard that canaries are planted in."""
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Canary:
    """A made-up sentence."""

    beginning: str
    secret: str

    @property
    def text(self) -> str:
        """The whole sentence, the secret at its end."""
        return self.beginning + self.secret


@dataclass(frozen=True)
class Exposures:
    """What became of the canaries."""

    bits: tuple[float, ...]
    """Exposure of each."""
    most_bits: float
    """The highest that could be measured."""
    n_extracted: int
    """How many greedy decoding completes from their beginning."""


# --- making and planting ---------------------------------------------------------------------------------------------


def make_canaries(n: int, seed: int) -> list[Canary]:
    """So many canaries, each with a name and a number of its own; the same for the same seed, on every machine.

    Raises:
        SettingError: Fewer than one.
    """
    if n < 1:
        raise SettingError(f"canaries: expected at least 1, got {n}")
    return [
        Canary(TEMPLATE.format(name=_name(f"{seed}/name/{number}")), _digits(f"{seed}/secret/{number}"))
        for number in range(n)
    ]


def random_secrets(n: int, seed: int) -> list[str]:
    """Numbers that a canary's is ranked among: others, and each once."""
    found: dict[str, None] = {}
    number = 0
    while len(found) < n:
        found[_digits(f"{seed}/candidate/{number}")] = None
        number += 1
    return list(found)


def plant(shard: Shard, canaries: Sequence[Document], n_repeats: int) -> Shard:
    """A copy of a shard whose training text holds each canary `n_repeats` times, as documents of their own.

    Of a large shard it is a sample, since a copy lies in memory.

    Raises:
        SettingError: Fewer than one repetition.
    """
    if n_repeats < 1:
        raise SettingError(f"repetitions of a canary: expected at least 1, got {n_repeats}")
    planted = [
        replace(document, name=f"{document.name}#{number}") for document in canaries for number in range(n_repeats)
    ]
    return replace(shard, train=(*sampled(shard.train, MAX_DOCUMENTS), *planted))


def documents_of(canaries: Sequence[Canary], base: LoadedBase) -> list[Document]:
    """Canaries as training text."""
    return [
        Document(
            f"canary-{number}",
            np.asarray(encode(base.tokenizer, canary.text), dtype=np.int32),
            len(canary.text.encode()),
        )
        for number, canary in enumerate(canaries)
    ]


def _draw(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big")


def _digits(key: str) -> str:
    return f"{_draw(key) % 10**N_DIGITS:0{N_DIGITS}}"


def _name(key: str) -> str:
    """Two invented words, such as "Tavo Minu"."""
    number, words = _draw(key), []
    for _ in range(2):
        word = ""
        for letters in (_CONSONANTS, _VOWELS) * 2:
            number, place = divmod(number, len(letters))
            word += letters[place]
        words.append(word.capitalize())
    return " ".join(words)


# --- measuring -------------------------------------------------------------------------------------------------------


def exposure(secret_nll: float, candidate_nll: Sequence[float]) -> float:
    """Bits: how far up a secret stands among random ones by what the model thinks of them."""
    rank = 1 + sum(nll < secret_nll for nll in candidate_nll)
    return math.log2(len(candidate_nll) + 1) - math.log2(rank)


def measure(model: TreeModel, canaries: Sequence[Canary], *, seed: int, n_candidates: int = N_CANDIDATES) -> Exposures:
    """How exposed canaries are in a model as it stands."""
    secrets = random_secrets(n_candidates, seed)
    bits = []
    for canary in canaries:
        others = [secret for secret in secrets if secret != canary.secret]
        own, *random = secret_nll(model, canary.beginning, [canary.secret, *others])
        bits.append(exposure(own, random))
    return Exposures(tuple(bits), math.log2(n_candidates + 1), sum(is_extracted(model, one) for one in canaries))


@torch.no_grad()
def secret_nll(model: TreeModel, beginning: str, secrets: Sequence[str]) -> list[float]:
    """Nats of each secret after the same beginning, summed over its tokens."""
    found: list[float] = []
    for start in range(0, len(secrets), ROWS_AT_ONCE):
        ids, mask, is_target = _rows(model.base, beginning, secrets[start : start + ROWS_AT_ONCE])
        device = model.base.model.device
        nll, _ = model.token_nll(ids.to(device), mask=mask.to(device), is_target=is_target.to(device))
        found += nll.double().sum(dim=1).tolist()
    return found


def _rows(
    base: LoadedBase, beginning: str, secrets: Sequence[str]
) -> tuple[Int[torch.Tensor, "row token"], Bool[torch.Tensor, "row token"], Bool[torch.Tensor, "row token"]]:
    """Sentences padded on the right: tokens, which of them are no padding, and which belong to the secret."""
    texts = [_without_end(base, encode(base.tokenizer, beginning + secret)) for secret in secrets]
    begun = _without_end(base, encode(base.tokenizer, beginning))
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    place = torch.arange(width)
    mask = place < torch.tensor([[len(text)] for text in texts])
    first = torch.tensor([[_n_common(text, begun)] for text in texts])
    return ids, mask, mask & (place >= first)


def _without_end(base: LoadedBase, tokens: list[int]) -> list[int]:
    return tokens[:-1] if tokens and tokens[-1] == base.tokenizer.eos_token_id else tokens


def _n_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that two texts begin with alike; a secret's first digits may have become one with the space before."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def is_extracted(model: TreeModel, canary: Canary) -> bool:
    """Whether greedy decoding completes a canary from its beginning."""
    begun = _without_end(model.base, encode(model.base.tokenizer, canary.beginning))
    whole = _without_end(model.base, encode(model.base.tokenizer, canary.text))
    prompt = torch.tensor([whole[: _n_common(whole, begun)]], device=model.base.model.device)
    n_new = len(whole) - prompt.shape[1]
    written = model.generate(prompt, max_new_tokens=n_new, eos_token_id=())[0].tolist()
    return written == whole


# --- all of it -------------------------------------------------------------------------------------------------------


def audit(
    base: LoadedBase,
    settings: RunSettings,
    shard: Shard,
    *,
    n_canaries: int,
    n_repeats: int,
    n_steps: int,
    seed: int,
    fit: Fit | None = None,
    n_candidates: int = N_CANDIDATES,
    on_step: OnStep | None = None,
) -> Exposures:
    """Train a leaf as the run would on the shard with canaries in it, and tell how exposed they became.

    The base is bare again afterwards, and nothing of the leaf is kept.

    Args:
        base: The resident base.
        settings: Of the run.
        shard: The worker's text; it stays as it is.
        n_canaries: Made-up secrets.
        n_repeats: How often each stands in the text.
        n_steps: Optimiser steps.
        seed: Of the secrets.
        fit: What a step is cut into.
        n_candidates: Random secrets that each is ranked among.
        on_step: Called after every step.

    Raises:
        SettingError: Fewer than one canary or repetition.
        DataError: The shard is too small for the run's windows.
        OutOfMemory: A step does not fit.
    """
    fit = fit or Fit()
    canaries = make_canaries(n_canaries, seed)
    planted = plant(shard, documents_of(canaries, base), n_repeats)
    spec = prefix_spec(settings.spec, base.facts, fit.max_rank if settings.spec.kind == "nested" else 0)
    shared = shared_factors(base.facts, spec, seed=settings.seed)
    model = TreeModel(base, nodes=("",), spec=spec, scale=settings.scale, shared=shared)
    try:
        model.load_node("", init_adapter(base.facts, spec, seed=settings.seed, path=""))
        _train(model, settings, planted, n_steps, fit, on_step)
        return measure(model, canaries, seed=seed, n_candidates=n_candidates)
    finally:
        model.detach_adapters()


def _train(
    model: TreeModel, settings: RunSettings, shard: Shard, n_steps: int, fit: Fit, on_step: OnStep | None
) -> None:
    optimiser = Optimiser(
        model.adapter_parameters(),
        Schedule(settings.learning_rate, settings.warmup_steps, n_steps),
        is_base_half=model.base.model.dtype == torch.float16,
    )
    rows = batches(
        shard,
        window_tokens=settings.window_tokens,
        batch_windows=settings.batch_windows,
        seed=settings.seed,
    )
    finished = [optimiser.copied()]
    fitting, loss = Fitting(fit), plain_loss(model)

    def loss_of(batch: Batch, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        model.is_recomputing = fitting.fit.gradient_checkpointing
        found, nll = loss(batch.ids, batch.documents, index, batch.is_target)
        return found * batch.share_of_targets, nll * batch.share_of_targets

    def remember(losses: tuple[float, ...]) -> None:
        finished[0] = optimiser.copied()

    take_steps(
        optimiser,
        (Batch.of(found, model.base.model.device) for found in rows),
        loss_of,
        node="",
        first_step=0,
        n_steps=n_steps,
        fitting=fitting,
        undo=lambda: optimiser.restore(*finished[0]),
        on_finished=remember,
        on_step=on_step,
    )
