"""Texts of two kinds, a shard of them, and work units for it."""

import functools
import random
from typing import Any

import numpy as np

from tests.helpers import WINDOW_TOKENS, tiny_base_model
from tinylora.base_model import LoadedBase, encode
from tinylora.protocol.documents import WorkUnit, sha256
from tinylora.shards import Document, Shard, make_shard
from tinylora.tensors import Tensors, manifest_of, to_bytes

WORDS = {
    "letters": ["alpha", "beta", "gamma", "delta"],
    "digits": ["0123", "4567", "89", "314159"],
    "signs": ["++--", "{([", "])}", "<=>"],
    "capitals": ["LOREM", "IPSUM", "DOLOR", "SIT"],
}
TOPOLOGY = ("0", "10", "11")


@functools.cache
def base() -> LoadedBase:
    """One base for all tests of a process; units leave it as they found it."""
    return tiny_base_model()


def texts(kind: str, n: int, *, seed: int = 0, n_words: int = 40) -> list[tuple[str, str]]:
    """Documents of one kind, each with its own words."""
    draw = random.Random(f"{kind}{seed}")
    return [(f"{kind}-{i}", " ".join(draw.choice(WORDS[kind]) for _ in range(n_words))) for i in range(n)]


def tokens_of(text: str) -> list[int]:
    return encode(base().tokenizer, text)


def shard(*kinds: str, n: int = 16, seed: int = 0, n_words: int = 40) -> Shard:
    """A worker's text: `n` documents of each kind."""
    documents = [text for kind in kinds for text in texts(kind, n, seed=seed, n_words=n_words)]
    return make_shard(documents, tokens_of, tokenizer_fingerprint=base().facts.tokenizer_fingerprint, name="test")


def documents(kind: str, n: int, *, seed: int = 1, n_words: int = 40) -> list[Document]:
    """Tokenised documents outside of any shard."""
    found = texts(kind, n, seed=seed, n_words=n_words)
    return [Document(name, np.asarray(tokens_of(text), dtype=np.int32), len(text.encode())) for name, text in found]


def unit(
    kind: str = "train", node: str = "0", payload: Tensors | None = None, **changes: Any
) -> tuple[WorkUnit, bytes]:
    """A unit with its payload; by default fifteen steps on leaf 0 of the tree 0, 10, 11."""
    facts, data = base().facts, to_bytes(payload or {})
    fields: dict[str, Any] = {
        "unit_id": "u1",
        "run": "test",
        "kind": kind,
        "node": node,
        "leaves": tuple(leaf for leaf in TOPOLOGY if leaf.startswith(node)) if kind == "train" else (),
        "nonce": "n",
        "deadline_s": 60.0,
        "base_fingerprint": facts.fingerprint,
        "tokenizer_fingerprint": facts.tokenizer_fingerprint,
        "feature_hash": facts.feature_hash,
        "topology_leaves": TOPOLOGY,
        "rank": 2,
        "scale": 2.0,
        "n_steps": 4,
        "total_steps": 8,
        "batch_windows": 2,
        "window_tokens": WINDOW_TOKENS,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "seed": 3,
        "manifest": manifest_of(payload or {}),
        "payload_sha256": sha256(data),
    }
    return WorkUnit(**(fields | changes)), data
