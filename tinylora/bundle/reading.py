"""From a file to a bundle: nothing in it is believed before it was checked, and only what is asked for is read."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import safetensors

from tinylora import tensors
from tinylora.adapters.prefixes import highest_rank
from tinylora.bundle.contents import Bundle
from tinylora.bundle.layout import assemble, check_meaning, expected_manifest, names_on_the_way
from tinylora.bundle.metadata import METADATA_KEY, Description, altered, parse_metadata
from tinylora.bundle.signature import check_signer
from tinylora.config import BaseFacts
from tinylora.errors import BaseModelError, BundleError, ProtocolError, SettingError, TinyLoraError
from tinylora.protocol.documents import Manifest
from tinylora.protocol.plain import plain
from tinylora.tensors import Tensors
from tinylora.tree import NodePath

_MAX_REASON = 600


def read_bundle(file: Path, *, leaves: Collection[NodePath] | None = None, verify: bool = True) -> Bundle:
    """Read a bundle, and check every byte of what is read.

    The tensors are mapped from the file, not copied; they stay readable when it is replaced.

    Args:
        file: The bundle.
        leaves: Read the adapters on the way to these alone, and no statistics: the others are missing, as if nobody had
            trained them. Tree and gates are whole.
        verify: Whether to check the numbers: their sums, and that they are finite and fit each other. Without, only the
            header is checked, for a file that was verified before.

    Raises:
        BundleError: Missing, truncated, altered, no bundle, or of a format that this version does not read.
        SettingError: There is no such leaf.
    """
    _, _, description = _read_description(file)
    names = sorted(description.tensors)
    if leaves is not None:
        names = _names_of(file, description, leaves)
    try:
        named = _read_tensors(file, names)
        if verify:
            _check_numbers(file, description, named)
        return assemble(description, named)
    except (ProtocolError, SettingError) as error:
        raise _contradiction(file, error) from None


def inspect(file: Path) -> dict[str, Any]:
    """What a bundle says of itself. The header is checked; the numbers are not read.

    Raises:
        BundleError: Missing, truncated, no bundle, or its header was altered.
    """
    header, number, description = _read_description(file)
    told = description.model_dump(mode="json", exclude={"tensors"})
    sizes = {"n_tensors": len(header.entries), "n_bytes": file.stat().st_size}
    return {"format": number, **told, **sizes}


def verify(file: Path, *, key: str | None = None) -> list[str]:
    """Check every byte of a bundle; returns sentences about what was found.

    Args:
        file: The bundle.
        key: Public key of the run that must have signed it, 64 hex digits; None takes whoever did, or nobody.

    Raises:
        BundleError: Missing, truncated, altered, no bundle, of a format that this version does not read, or not signed
            by the key.
        SettingError: `key` is no key.
    """
    bundle, facts = read_bundle(file), inspect(file)
    if key is not None:
        check_signer(facts["signed_by"], key, where=str(file))
    rank = highest_rank(bundle.spec, bundle.base)
    findings = [
        f"{facts['n_tensors']} tensors in {facts['n_bytes']} bytes, each as its sha256 says",
        f"{len(bundle.topology.leaves)} leaves, {len(bundle.nodes)} nodes with an adapter of rank {rank}",
        f"made for base {bundle.base.base_id}, fingerprint {bundle.base.fingerprint}",
        _told_of_signature(facts["signed_by"], key),
    ]
    findings += [
        f"leaf {leaf} has no adapter: text that is routed there meets the base alone"
        for leaf in bundle.topology.leaves
        if not any(leaf.startswith(node) for node in bundle.nodes)
    ]
    return findings


def _told_of_signature(signed_by: str, key: str | None) -> str:
    if not signed_by:
        return "not signed: its sums guard against accidents, and say nothing of who made it"
    whose = "the key that was asked for" if key else "compare it with the run's own, or give it with --key"
    return f"signed by key {signed_by}: {whose}"


def check_base(bundle: Bundle, facts: BaseFacts) -> None:
    """Check that a bundle was made for this very base.

    Raises:
        BaseModelError: It was made for another one.
    """
    needed = bundle.base
    if needed.fingerprint != facts.fingerprint:
        raise BaseModelError(
            f"the bundle of run {bundle.run} needs the base {needed.base_id} (fingerprint {needed.fingerprint[:12]}), "
            f"got {facts.base_id} ({facts.fingerprint[:12]}); name the base that the bundle was trained on"
        )
    if needed.feature_hash != facts.feature_hash:
        raise BaseModelError(
            f"the bundle of run {bundle.run} routes by features of {needed.feature_dim} numbers "
            f"({needed.feature_hash[:12]}), got {facts.feature_dim} ({facts.feature_hash[:12]}); load the base "
            f"{needed.base_id} with feature_dim {needed.feature_dim}"
        )


def check_fingerprint(file: Path, fingerprint: str, *, of: str) -> None:
    """Check that a bundle's file names the base that has this fingerprint.

    Args:
        file: The bundle; only its header is read.
        fingerprint: See `base_model.fingerprint_of`.
        of: Where that base is, for the message.

    Raises:
        BundleError: The file is no bundle.
        BaseModelError: It was made for another base.
    """
    needed = _read_description(file)[2].base
    if needed.fingerprint != fingerprint:
        raise BaseModelError(
            f"{file}: needs the base {needed.base_id} (fingerprint {needed.fingerprint[:12]}), {of} is another one "
            f"({fingerprint[:12]})"
        )


# --- the header ------------------------------------------------------------------------------------------------------


def _read_description(file: Path) -> tuple[tensors.Header, int, Description]:
    """The header, the format and the metadata of a file, which fit each other and were not changed by a single byte."""
    header, raw = _read_header(file)
    number, description = parse_metadata(file, header.metadata.get(METADATA_KEY))
    if tensors.header_bytes(header.manifest, header.metadata) != raw:
        raise altered(file, "the header is not laid out as TinyLoRA writes it", "layout")
    try:
        expected = expected_manifest(description)
        tensors.compare_manifests(header.manifest, expected, where=str(file))
    except (ProtocolError, SettingError) as error:
        raise _contradiction(file, error) from None
    _check_sums_are_there(file, description, expected)
    return header, number, description


def _read_header(file: Path) -> tuple[tensors.Header, bytes]:
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no such file"
        raise BundleError(f"{file}: {what}; expected a bundle, such as bundle.safetensors", rule="no_file")
    try:
        header = tensors.read_file_header(file)
        with file.open("rb") as stream:
            return header, stream.read(header.n_bytes)
    except ProtocolError as error:
        raise BundleError(f"{_told_of(file, error)}; it is no whole bundle, fetch it again", rule=error.rule) from None
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror or error}") from None


def _check_sums_are_there(file: Path, description: Description, expected: Manifest) -> None:
    wrong = sorted(description.tensors.keys() ^ expected.keys())
    if wrong:
        reason = f"the metadata have a sha256 for other tensors than the file has, first {wrong[0][:200]}"
        raise BundleError(f"{file}: {plain(reason, at_most=_MAX_REASON)}", rule="sums")


# --- the numbers -----------------------------------------------------------------------------------------------------


def _names_of(file: Path, description: Description, leaves: Collection[NodePath]) -> list[str]:
    strange = sorted(set(leaves) - set(description.topology.leaves))
    if strange:
        known = ", ".join(path or "root" for path in description.topology.leaves[:16])
        raise SettingError(f"{file}: no leaf {strange[0]!r}; the bundle has {known}")
    return names_on_the_way(description, leaves)


def _read_tensors(file: Path, names: Collection[str]) -> Tensors:
    """Tensors by name, mapped."""
    try:
        with safetensors.safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise BundleError(f"{file}: cannot be read: {error}", rule="not_readable") from None


def _check_numbers(file: Path, description: Description, named: Tensors) -> None:
    """The tensors that were read are those that were written, and numbers that a bundle may hold."""
    for name, tensor in named.items():
        if tensors.tensor_sha256(tensor) != description.tensors[name]:
            raise altered(file, f"tensor {name} does not fit its sha256", "tensor_sum")
    tensors.check_finite(named, where=str(file))
    check_meaning(description, named, where=str(file))


def _contradiction(file: Path, error: TinyLoraError) -> BundleError:
    return BundleError(
        f"{_told_of(file, error)}; the file contradicts its own metadata", rule=error.rule or "contradiction"
    )


def _told_of(file: Path, error: Exception) -> str:
    """A reader's sentence, with the file in front of it, and nothing in it that the file put there to be acted upon."""
    text = str(error).removeprefix("tensors: ").removeprefix(f"{file}").removeprefix(": ")
    return f"{file}: {plain(text, at_most=_MAX_REASON)}"
