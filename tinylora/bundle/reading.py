"""From a file to a bundle: nothing in it is believed before it was checked, and only what is asked for is read."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from tinylora import tensors
from tinylora.adapters.prefixes import highest_rank
from tinylora.bundle.contents import Bundle
from tinylora.bundle.layout import assemble, check_meaning, gate_names, names_on_the_way
from tinylora.bundle.metadata import altered
from tinylora.bundle.opening import OpenBundle, contradiction, open_bundle
from tinylora.bundle.signature import check_signer
from tinylora.config import BaseFacts
from tinylora.errors import BaseModelError, ProtocolError, SettingError
from tinylora.tensors import Tensors
from tinylora.tree import NodePath


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
    return read_open(open_bundle(file), leaves=leaves, verify=verify)


def read_open(opened: OpenBundle, *, leaves: Collection[NodePath] | None = None, verify: bool = True) -> Bundle:
    """The same of a bundle whose header was read already: once for any number of parts.

    Raises:
        BundleError: A byte was altered, or the numbers contradict the metadata.
        SettingError: There is no such leaf.
    """
    names = sorted(opened.description.tensors) if leaves is None else _names_of(opened, leaves)
    named = opened.map(names, is_part=leaves is not None)
    if verify:
        _check_numbers(opened, named if leaves is None else named | opened.map(gate_names(opened.description)))
    return assemble(opened.description, named, opened.gates)


def _names_of(opened: OpenBundle, leaves: Collection[NodePath]) -> list[str]:
    known = opened.description.topology.leaves
    strange = sorted(set(leaves) - set(known))
    if strange:
        told = ", ".join(path or "root" for path in known[:16])
        raise SettingError(f"{opened.file}: no leaf {strange[0]!r}; the bundle has {told}")
    return names_on_the_way(opened.description, leaves)


def inspect(file: Path) -> dict[str, Any]:
    """What a bundle says of itself. The header is checked; the numbers are not read.

    Raises:
        BundleError: Missing, truncated, no bundle, or its header was altered.
    """
    return _told_of(open_bundle(file))


def _told_of(opened: OpenBundle) -> dict[str, Any]:
    told = opened.description.model_dump(mode="json", exclude={"tensors"})
    return {"format": opened.format, **told, "n_tensors": len(opened.entries), "n_bytes": opened.n_bytes}


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
    opened = open_bundle(file)
    facts = _told_of(opened)
    if key is not None:
        check_signer(facts["signed_by"], key, where=str(file))
    bundle = read_open(opened)
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
    needed = open_bundle(file).description.base
    if needed.fingerprint != fingerprint:
        raise BaseModelError(
            f"{file}: needs the base {needed.base_id} (fingerprint {needed.fingerprint[:12]}), {of} is another one "
            f"({fingerprint[:12]})"
        )


# --- the numbers -----------------------------------------------------------------------------------------------------


def _check_numbers(opened: OpenBundle, named: Tensors) -> None:
    """The tensors that were read are those that were written, and numbers that a bundle may hold."""
    description = opened.description
    for name, tensor in named.items():
        if tensors.tensor_sha256(tensor) != description.tensors[name]:
            raise altered(opened.file, f"tensor {name} does not fit its sha256", "tensor_sum")
    try:
        tensors.check_finite(named, where=str(opened.file))
        check_meaning(description, named, where=str(opened.file))
    except (ProtocolError, SettingError) as error:
        raise contradiction(opened.file, error) from None
