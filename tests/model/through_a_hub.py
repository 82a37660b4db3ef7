"""A program of its own, as the hub's client reads its address and cache when it is imported: up, down, and without."""

import sys
from pathlib import Path

import torch

from tinylora.base_model import load_base
from tinylora.errors import BundleError, NetworkError, TinyLoraError
from tinylora.hub import find_bundle
from tinylora.model import TreeModel

base, file, cache = sys.argv[1:]
loaded = load_base(base)
ids = torch.arange(3, 15)[None]


def failing(kind: type[TinyLoraError], where: str, **options) -> None:
    """Say what is said."""
    try:
        find_bundle(where, cache_dir=cache, **options)
    except kind as error:
        print(f"{kind.__name__}: {error}")


with torch.no_grad():
    model = TreeModel.from_pretrained(loaded, file, policy="hard")
    expected = model(ids).logits
    print("commit", model.push_to_hub("me/tree", token="hf_secret"))
    model.detach_adapters()
    model = TreeModel.from_pretrained(None, "me/tree", cache_dir=cache, token="hf_secret")  # the base comes along
    print("equal", torch.equal(model(ids).logits, expected), model.policy, model.base.facts.base_id)
    found = find_bundle("me/tree", cache_dir=cache, local_files_only=True)
    print("cached", found.read_bytes() == Path(found).read_bytes() and Path(cache) in found.parents)
failing(BundleError, "me/nothing")
failing(BundleError, "me/tree", revision="elsewhere")
failing(BundleError, "me/empty")
failing(NetworkError, "me/unknown", local_files_only=True)
