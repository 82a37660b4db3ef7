"""TinyLoRA: one frozen base LLM, a binary tree of LoRA adapters on it, grown by volunteers over Flower.

The names below are the public surface. Each is imported when it is first used, so `import tinylora` costs nothing and
pulls in no torch; everything else is reached by its module and may change.

    import tinylora

    model = tinylora.TreeModel.from_pretrained("path/of/a/base", "bundle.safetensors")
    model.save_pretrained("folder")

    bundle = tinylora.read_bundle("bundle.safetensors")  # or step by step
    model = tinylora.TreeModel.from_bundle(bundle, tinylora.load_base("path/of/a/base"))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinylora.base_model import LoadedBase, load_base
    from tinylora.bundle import Bundle, read_bundle, write_bundle
    from tinylora.config import BaseFacts, RunSettings, read_settings
    from tinylora.errors import TinyLoraError
    from tinylora.model import TreeModel
    from tinylora.routing.policy import Policy
    from tinylora.shards import Shard, load_shard
    from tinylora.tree import Topology

__version__ = "0.1.0"

__all__ = [
    "BaseFacts",
    "Bundle",
    "LoadedBase",
    "Policy",
    "RunSettings",
    "Shard",
    "TinyLoraError",
    "Topology",
    "TreeModel",
    "load_base",
    "load_shard",
    "read_bundle",
    "read_settings",
    "write_bundle",
]

_HOMES = {
    "BaseFacts": "config",
    "Bundle": "bundle",
    "LoadedBase": "base_model",
    "Policy": "routing.policy",
    "RunSettings": "config",
    "Shard": "shards",
    "TinyLoraError": "errors",
    "Topology": "tree",
    "TreeModel": "model",
    "load_base": "base_model",
    "load_shard": "shards",
    "read_bundle": "bundle",
    "read_settings": "config",
    "write_bundle": "bundle",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tinylora' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tinylora.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Public names, for tab completion."""
    return sorted([*__all__, "__version__"])
