"""A bundle in use: its loss on your own files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tinylora import bundle as bundles
from tinylora.adapters.prefixes import highest_rank
from tinylora.base_model import LoadedBase, load_base
from tinylora.errors import SettingError
from tinylora.evaluation import score_domains
from tinylora.model import TreeModel
from tinylora.reading.layouts import text_in
from tinylora.report.systems import active_rank, comparison, system_row
from tinylora.routing.policy import Policy
from tinylora.shards import load_documents


def open_bundle(
    file: Path, base_where: str | Path, policy: str, quantise: str | None = None
) -> tuple[TreeModel, LoadedBase]:
    """A bundle on its base, ready to use; `quantise` as in `load_base`.

    Raises:
        SettingError: The policy or the quantisation is unknown.
        BundleError: The file is not a sound bundle.
        BaseModelError: The base cannot be loaded, or the bundle belongs to another one.
    """
    wanted = Policy.parse(policy)
    bundle = bundles.read_bundle(file)  # before the base: it is small, and the likelier mistake
    base = load_base(base_where, quantise=quantise, feature_dim=bundle.base.feature_dim)
    bundles.check_base(bundle, base.facts)
    return TreeModel.from_bundle(bundle, base, policy=wanted), base


def evaluate_bundle(
    file: Path,
    base_where: str | Path,
    data: Sequence[Path],
    *,
    policy: str = "soft",
    text_column: str = "text",
    window_tokens: int | None = None,
    max_tokens_per_document: int | None = None,
    threads: int = 2,
    quantise: str | None = None,
) -> dict[str, Any]:
    """Held-out loss of the routed bundle and of its base on text that nobody trained on; each path is a domain.

    Raises:
        SettingError: No data was named.
    """
    if not data:
        raise SettingError("eval: no text was named; give files or folders with --data, once for each kind of text")
    torch.set_num_threads(threads)
    model, base = open_bundle(file, base_where, policy, quantise)
    heldout = {path.name or str(path): load_documents([path], base, columns=text_in(text_column)) for path in data}
    window = min(window_tokens or base.facts.max_window_tokens, base.facts.max_window_tokens)
    options = {"window_tokens": window, "max_tokens_per_document": max_tokens_per_document}
    routed = score_domains(model, heldout, **options)
    model.detach_adapters()
    plain = TreeModel(base, nodes=(), spec=model.spec, scale=model.scale)
    scores = {"base": score_domains(plain, heldout, **options), f"routed:{policy}": routed}
    rank = highest_rank(model.spec, base.facts)
    ranks = {name: active_rank(name, rank=rank, n_leaves=len(model.nodes)) for name in scores}
    return {
        "systems": {name: system_row(rows, active_rank=ranks[name]) for name, rows in scores.items()},
        "comparison": comparison(scores[f"routed:{policy}"], scores["base"]),
        "window_tokens": window,
    }
