"""Where the tokens of some data lie, so that a restart finds them again: a folder named by what they follow from."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinylora.errors import DataError
from tinylora.reading.sources import Source

VERSION = 1
"""Raised when the same files give other tokens than before."""
_SAMPLES = 64
_SAMPLE_BYTES = 2**16


def cache_key(sources: Sequence[Source], tokenizer: str, columns: Mapping[str, str]) -> str:
    """A name for the tokens of these files.

    Args:
        sources: The files; of each the name, size and time of change count, and a hash of its bytes. Of files above
            4 MiB it is the hash of 64 pieces from everywhere: a change that keeps size and time can only be seen there.
        tokenizer: Whatever tells one tokenizer and its chat template from another.
        columns: The mapping of columns.

    Raises:
        DataError: A file cannot be read.
    """
    digest = hashlib.sha256(json.dumps([VERSION, tokenizer, sorted(columns.items())]).encode())
    for source in sources:
        try:
            facts = source.path.stat()
            digest.update(repr((source.name, source.kind, facts.st_size, facts.st_mtime_ns)).encode(errors="replace"))
            digest.update(_content(source.path, facts.st_size))
        except OSError as error:
            raise DataError(f"{source.path}: cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()[:40]


def _content(path: Path, size: int) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for number in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


def keep_only(cache: Path, key: str) -> None:
    """Remove the tokens of other data: one worker has one shard, and its disk is lent."""
    for folder in cache.iterdir():
        if folder.is_dir() and folder.name.startswith("tokens-") and folder.name != folder_of(cache, key).name:
            shutil.rmtree(folder, ignore_errors=True)


def folder_of(cache: Path, key: str) -> Path:
    """Where tokens of this name lie."""
    return cache / f"tokens-{key}"
