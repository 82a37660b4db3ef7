"""From files to a file: what is refused before any work, and what every derived bundle tells of its origin."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tinylora import tensors
from tinylora.adapters.shapes import adapter_shapes
from tinylora.bundle import METADATA_KEY, AdapterDtype, Bundle, inspect, read_bundle, write_bundle
from tinylora.bundle.layout import describe, expected_manifest
from tinylora.bundle.metadata import metadata_text
from tinylora.errors import BundleError, SettingError, StorageError

MAX_REPORT_BYTES = 1 << 18
"""Of an earlier report that goes on in a derived bundle."""
MAX_REPORT_LEVELS = 16
MAX_REPORT_PARTS = 8192
"""Lists and objects in it."""
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Source:
    """A bundle as it was read, and the file that it came from."""

    bundle: Bundle
    file: Path
    dtype: AdapterDtype
    """Of the adapters in the file."""
    sha256: str
    """Of the whole file."""


def read_source(file: Path) -> Source:
    """Read a bundle and check every byte of it.

    Raises:
        BundleError: The file is not a sound bundle.
    """
    bundle = read_bundle(file)
    return Source(bundle, file, inspect(file)["dtype"], file_sha256(file))


def file_sha256(file: Path) -> str:
    """Hex sha256 of a file.

    Raises:
        BundleError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def check_output(out: Path, sources: Iterable[Path]) -> None:
    """Refuse an output before any work is done for it. What stands there is replaced, unless it is read.

    Raises:
        SettingError: It is one of the inputs.
        StorageError: It is a folder, or there is no folder to write it to, or none that can be written.
    """
    for file in sources:
        if file.resolve() == out.resolve() or (out.exists() and file.exists() and out.samefile(file)):
            raise SettingError(f"--out {out}: is the bundle that is read; choose another name")
    if out.exists() and not out.is_file():
        raise StorageError(f"{out}: not a file; expected a file name to write the bundle to")
    if not out.absolute().parent.is_dir():
        raise StorageError(f"{out}: there is no folder {out.parent}; make it or choose another place")
    if not os.access(out.absolute().parent, os.W_OK):
        raise StorageError(f"{out}: the folder {out.parent} cannot be written; choose another place")


def write_derived(
    bundle: Bundle, out: Path, sources: Sequence[Source], *, dtype: AdapterDtype | None = None
) -> AdapterDtype:
    """Write a bundle that was made of others, unsigned, with the sums of their files; returns the adapters' dtype.

    Args:
        bundle: What was made.
        out: Where to.
        sources: What it was made of.
        dtype: Of the adapters; None is the narrowest of the sources' in which no number changes, else F32.

    Raises:
        SettingError: It has more tensors, or a longer header, than a bundle may have.
        StorageError: `out` cannot be written.
    """
    check_size(bundle)
    dtype = dtype or exact_dtype(bundle, [source.dtype for source in sources])
    made_of = tuple(dict.fromkeys(source.sha256 for source in sources))
    write_bundle(replace(bundle, derived_from=made_of), out, dtype=dtype)
    return dtype


def check_size(bundle: Bundle) -> None:
    """Refuse what no reader would take.

    Raises:
        SettingError: More tensors, or a longer header, than a bundle may have.
    """
    n_nodes, cure = len(bundle.nodes), "cut a subtree first, or drop leaves"
    n_tensors = n_nodes * len(adapter_shapes(bundle.base, bundle.spec)) + 3 * len(bundle.topology.inner)
    if n_tensors > tensors.MAX_TENSORS:
        raise SettingError(
            f"a bundle of {n_nodes} adapters would have {n_tensors} tensors and more: expected at most "
            f"{tensors.MAX_TENSORS}; {cure}"
        )
    n_bytes = _header_length(bundle)
    if n_bytes > tensors.MAX_HEADER_BYTES:
        raise SettingError(
            f"a bundle of {n_nodes} adapters would have a header of {n_bytes} bytes: expected at most "
            f"{tensors.MAX_HEADER_BYTES}; {cure}"
        )


def _header_length(bundle: Bundle) -> int:
    """Of the file that the bundle would become; sums are as long as any others, dtypes too."""
    description = describe(bundle, "BF16", {}, signed_by="")
    manifest = expected_manifest(description)
    sums = dict.fromkeys(manifest, "0" * 64)
    whole = description.model_copy(update={"tensors": sums, "derived_from": ("0" * 64,) * 2})
    return len(tensors.header_bytes(manifest, {METADATA_KEY: metadata_text(whole, None)}))


def exact_dtype(bundle: Bundle, dtypes: Sequence[AdapterDtype]) -> AdapterDtype:
    """The narrowest of these in which every number of the adapters stays what it is; F32 where none is."""
    states = [*bundle.nodes.values(), bundle.shared]
    for dtype in sorted(set(dtypes) - {"F32"}):
        if all(_is_exact(tensor, tensors.DTYPES[dtype]) for state in states for tensor in state.values()):
            return dtype
    return "F32"


def _is_exact(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    return tensor.dtype == dtype or torch.equal(tensor.to(dtype).float(), tensor.float())


def told(operation: Mapping[str, Any], **earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a derived bundle: what was done, and the reports of what it was made of by name.

    One that has grown too long or too deep over many operations is left out, and that is said.
    """
    return {**operation, **{name: _short(report) for name, report in earlier.items()}}


def _short(report: Mapping[str, Any]) -> Mapping[str, Any]:
    text = json.dumps(report)
    is_long = len(text) > MAX_REPORT_BYTES or text.count("[") + text.count("{") > MAX_REPORT_PARTS
    if is_long or _levels(report) > MAX_REPORT_LEVELS:
        return {"left_out": "it was too long"}
    return report


def _levels(value: Any) -> int:
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return 1 + max(map(_levels, inside), default=0)
