"""From a bundle to its file: checked by the rules of the reader, equal bytes for equal bundles, whole or not at all."""

import errno
import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from tinylora import tensors
from tinylora.bundle.contents import Bundle
from tinylora.bundle.layout import check_meaning, describe, expected_manifest, gates_of, named_tensors
from tinylora.bundle.metadata import METADATA_KEY, AdapterDtype, metadata_text, parse_metadata
from tinylora.bundle.signature import Signer
from tinylora.durable import flush_folder
from tinylora.errors import BundleError, DiskFull, ProtocolError, StorageError
from tinylora.failpoints import around, reach
from tinylora.tensors import Tensors

around("bundle.write", "bundle.flush", "bundle.rename", "bundle.folder")


def write_bundle(bundle: Bundle, file: Path, *, dtype: AdapterDtype = "BF16", sign: Signer | None = None) -> str:
    """Write a bundle so that `file` holds all of it, or what it held before; returns the file's sha256.

    Args:
        bundle: What to write.
        file: Where.
        dtype: Of the adapters.
        sign: Who vouches for it; equal bundles signed by the same key are equal bytes too.

    Raises:
        StorageError: The disk is full or the place cannot be written; nothing is left behind.
        ProtocolError: The bundle contradicts itself: a tensor is missing, of another shape, or not finite.
        SettingError: The policy is none.
    """
    named, metadata = _contents(bundle, dtype, sign)
    return _write_atomically(file, tensors.to_pieces(named, metadata))


def to_bytes(bundle: Bundle, *, dtype: AdapterDtype = "BF16", sign: Signer | None = None) -> bytes:
    """The bytes that `write_bundle` writes.

    Raises:
        ProtocolError: The bundle contradicts itself: a tensor is missing, of another shape, or not finite.
        SettingError: The policy is none.
    """
    return tensors.to_bytes(*_contents(bundle, dtype, sign))


def _contents(bundle: Bundle, dtype: AdapterDtype, sign: Signer | None) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of the file, checked by the rules of the reader."""
    named = named_tensors(bundle, dtype)
    sums = {name: tensors.tensor_sha256(named[name]) for name in sorted(named)}
    where = f"bundle of run {bundle.run}"
    try:
        description = describe(bundle, dtype, sums, signed_by="" if sign is None else sign.public_key)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ProtocolError(
            f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}", rule="description"
        ) from None
    tensors.check_manifest(named, expected_manifest(description), where=where)
    tensors.check_finite(named, where=where)
    gates_of(description, named)
    check_meaning(description, named, where=where)
    text = metadata_text(description, sign)
    try:
        parse_metadata(Path(where), text)
    except BundleError as error:
        raise ProtocolError(str(error), rule=error.rule) from None
    return named, {METADATA_KEY: text}


def _write_atomically(file: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Write beside `file`, make it durable, then rename: at every moment the old content or the new is there."""
    if file.exists() and not file.is_file():
        raise StorageError(f"{file}: not a file; expected a file name to write the bundle to")
    # One name, not a random one: what a killed process left behind is overwritten by the next.
    unfinished = file.with_name(f".{file.name}.part")
    digest = hashlib.sha256()
    try:
        with unfinished.open("wb") as stream:
            reach("bundle.write.before")
            for piece in pieces:
                digest.update(piece)
                stream.write(piece)
            stream.flush()
            reach("bundle.write.after")
            reach("bundle.flush.before")
            os.fsync(stream.fileno())
        reach("bundle.flush.after")
        reach("bundle.rename.before")
        os.replace(unfinished, file)
        reach("bundle.rename.after")
        flush_folder(file.parent, name="bundle")
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"{file}: cannot be written: {_reason(error, file)}") from None
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return digest.hexdigest()


def _reason(error: OSError, file: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space or choose another place"
    if isinstance(error, FileNotFoundError):
        return f"there is no folder {file.parent}; make it or choose another place"
    return f"{error.strerror or error}; choose another place"
