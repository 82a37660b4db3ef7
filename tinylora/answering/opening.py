"""A bundle on its base, on the device and in the dtype that a command was told."""

from pathlib import Path

import torch

from tinylora.base_model import LoadedBase
from tinylora.errors import SettingError
from tinylora.hub import base_named_in, find_bundle
from tinylora.model import TreeModel
from tinylora.serving.servers import LeafServers
from tinylora.tree import NodePath

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "auto": None}


def open_tree(
    bundle: Path,
    base: str | LoadedBase | None,
    *,
    demo_base: str,
    policy: str | None = None,
    device: str = "auto",
    dtype: str = "fp32",
    leaves: str | None = None,
    verify: bool = True,
    quantise: str | None = None,
    threads: int = 2,
) -> TreeModel:
    """Make a tree ready to answer.

    Args:
        bundle: File, folder or hub repository.
        base: Folder or hub id; None is the one that the bundle names where that is on the hub, else the demo's.
        demo_base: Its folder.
        policy: None is the bundle's own.
        device: "auto" is a GPU of CUDA where there is one, else the CPU.
        dtype: Of the base: fp32, bf16, fp16, or auto for the one it is stored in.
        leaves: Such as "00,1": these leaves, or all below these nodes; None is all.
        verify: Whether to check the bundle's numbers against their sums.
        quantise: "int8" or "nf4".
        threads: Of the CPU.

    Raises:
        SettingError: A word is unknown.
        BundleError: The file is not a sound bundle.
        BaseModelError: The base cannot be loaded, or the bundle belongs to another one.
        NetworkError: The hub cannot be reached.
    """
    if dtype not in _DTYPES:
        raise SettingError(f"dtype {dtype!r}: expected one of {', '.join(_DTYPES)}")
    torch.set_num_threads(threads)
    file = find_bundle(bundle)
    return TreeModel.from_pretrained(
        base_named_in(file, demo_base) if base is None else base,
        file,
        policy=policy,
        leaves=None if leaves is None else node_paths(leaves),
        verify=verify,
        device=_device(device),
        dtype=_DTYPES[dtype],
        quantise=quantise,
    )


def open_servers(
    bundle: Path,
    base: str | None,
    devices: str,
    *,
    demo_base: str,
    policy: str | None = None,
    dtype: str = "fp32",
    verify: bool = True,
    quantise: str | None = None,
    threads: int = 2,
    batch_size: int = 8,
) -> LeafServers:
    """Servers of a tree whose leaves lie on devices of their own; they start when they are entered.

    Args:
        bundle: File, folder or hub repository.
        base: As of `open_tree`.
        devices: A device map.
        demo_base: As of `open_tree`.
        policy: None is the bundle's own.
        dtype: As of `open_tree`.
        verify: As of `open_tree`.
        quantise: As of `open_tree`.
        threads: Of the CPU, for all processes together.
        batch_size: Questions that a process answers at once.

    Raises:
        SettingError: The map or the policy does not suit, or a word is unknown.
        BundleError: The file is not a sound bundle.
        NetworkError: The hub cannot be reached.
    """
    file = find_bundle(bundle)
    return LeafServers(
        file,
        base_named_in(file, demo_base) if base is None else base,
        devices,
        policy=policy,
        dtype=dtype,
        quantise=quantise,
        verify=verify,
        threads=threads,
        batch_size=batch_size,
    )


def node_paths(text: str) -> list[NodePath]:
    """Nodes as a command names them, such as "00,1"; the root is "root"."""
    return ["" if part.strip() == "root" else part.strip() for part in text.split(",")]


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
