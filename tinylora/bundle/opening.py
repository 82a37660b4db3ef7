"""A bundle's header, checked to the byte, and its tensors as views of the mapped file.

A sound header is recognised quickly: its metadata say which tensors there are, so it must be, byte for byte, the header
that we would write for them. Only one that is not goes through all the rules of `tensors.parse_header`, which say what
is wrong with it.
"""

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import torch

from tinylora import tensors
from tinylora.bundle.layout import PROJECTION, expected_manifest, gate_names, gates_of
from tinylora.bundle.metadata import METADATA_KEY, Description, altered, parse_metadata
from tinylora.errors import BundleError, ProtocolError, SettingError, TinyLoraError
from tinylora.protocol.plain import plain
from tinylora.routing.gates import Gates
from tinylora.tensors import Entry, Tensors

_MAX_REASON = 600
_LENGTH_BYTES = 8
_START = f'{{"__metadata__":{{"{METADATA_KEY}":'


@dataclass(frozen=True, eq=False)
class OpenBundle:
    """A file whose header was found sound; of its numbers nothing was read yet.

    The file is mapped: replacing it leaves what was opened readable, cutting it off under our hands does not.
    """

    file: Path
    format: int
    description: Description
    entries: dict[str, Entry]
    """In the order of the file."""
    n_before: int
    """Bytes before the data area."""
    n_bytes: int
    """Of the whole file."""
    mapped: mmap.mmap

    def map(self, names: Sequence[str], *, is_part: bool = False) -> Tensors:
        """Tensors by name, as views of the mapping; writing to them changes no file.

        Args:
            names: Of the tensors.
            is_part: Whether the others are not needed: then the system is told to read these bytes and no others ahead.
        """
        if is_part and hasattr(mmap, "MADV_RANDOM"):
            self.mapped.madvise(mmap.MADV_RANDOM)
            for start, end in self._pages_of(names):
                self.mapped.madvise(mmap.MADV_WILLNEED, start, end - start)
        return {name: self._view(self.entries[name]) for name in names}

    @cached_property
    def gates(self) -> Gates:
        """The gates, copied out of the file once, finite and with temperatures above 0.

        Raises:
            BundleError: They are not.
        """
        try:
            return gates_of(self.description, self.map(gate_names(self.description)))
        except ProtocolError as error:
            raise contradiction(self.file, error) from None

    def _view(self, entry: Entry) -> torch.Tensor:
        dtype = tensors.DTYPES[entry.dtype]
        n_numbers = (entry.end - entry.start) // dtype.itemsize
        if not n_numbers:
            return torch.empty(entry.shape, dtype=dtype)
        flat = torch.frombuffer(self.mapped, dtype=dtype, count=n_numbers, offset=self.n_before + entry.start)
        return flat.reshape(entry.shape)

    def _pages_of(self, names: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Whole pages that hold the tensors; neighbours in the file are one range. The router's projection is left out.

        Nobody needs that to use the bundle on its base, and it may be as large as a leaf.
        """
        wanted = sorted((self.entries[name].start, self.entries[name].end) for name in names if name != PROJECTION)
        ranges: list[tuple[int, int]] = []
        for start, end in wanted:
            if ranges and start <= ranges[-1][1] + mmap.PAGESIZE:
                start, _ = ranges.pop()
            ranges.append((start, end))
        for start, end in ranges:
            yield (self.n_before + start) // mmap.PAGESIZE * mmap.PAGESIZE, self.n_before + end


def open_bundle(file: Path) -> OpenBundle:
    """Read and check a bundle's header.

    Raises:
        BundleError: Missing, truncated, no bundle, of a format that this version does not read, or its header was
            altered.
    """
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no such file"
        raise BundleError(f"{file}: {what}; expected a bundle, such as bundle.safetensors", rule="no_file")
    try:
        with file.open("rb") as stream:
            return _opened(file, stream)
    except ProtocolError as error:
        raise BundleError(f"{told_of(file, error)}; it is no whole bundle, fetch it again", rule=error.rule) from None
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror or error}", rule="not_readable") from None


def _opened(file: Path, stream: BinaryIO) -> OpenBundle:
    n_bytes = os.fstat(stream.fileno()).st_size
    if hasattr(os, "posix_fadvise"):  # else the system reads megabytes behind the header ahead
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    n_header = tensors.header_length(stream.read(_LENGTH_BYTES), n_bytes)
    text = stream.read(n_header)
    found = _as_we_write(file, text, n_bytes) or _strictly(file, text, n_bytes)
    mapped = mmap.mmap(stream.fileno(), n_bytes, access=mmap.ACCESS_COPY)
    return OpenBundle(file, *found, n_before=_LENGTH_BYTES + n_header, n_bytes=n_bytes, mapped=mapped)


Found = tuple[int, Description, dict[str, Entry]]


def _as_we_write(file: Path, text: bytes, n_bytes: int) -> Found | None:
    """What a header says that is, to the byte, the one that belongs to its metadata; None where anything is wrong."""
    try:
        decoded = text.decode("ascii")
        if not decoded.startswith(_START):
            return None
        metadata, _ = json.JSONDecoder().raw_decode(decoded, len(_START))
        if not isinstance(metadata, str):
            return None
        number, description = parse_metadata(file, metadata)
        manifest = expected_manifest(description)
        entries = tensors.file_layout(manifest)
        expected = tensors.layout_bytes(entries, {METADATA_KEY: metadata})
    except (ValueError, RecursionError, TinyLoraError):
        return None
    n_data = max((entry.end for entry in entries.values()), default=0)
    is_ours = expected[_LENGTH_BYTES:] == text and len(expected) + n_data == n_bytes
    return (number, description, entries) if is_ours and description.tensors.keys() == manifest.keys() else None


def _strictly(file: Path, text: bytes, n_bytes: int) -> Found:
    """The same by all the rules, one after the other: the first that is broken is told.

    Raises:
        ProtocolError: The header breaks a rule of safetensors files.
        BundleError: It is none of a bundle.
    """
    header = tensors.parse_header(text, n_bytes)
    number, description = parse_metadata(file, header.metadata.get(METADATA_KEY))
    if tensors.layout_bytes(tensors.file_layout(header.manifest), header.metadata)[_LENGTH_BYTES:] != text:
        raise altered(file, "the header is not laid out as TinyLoRA writes it", "layout")
    try:
        expected = expected_manifest(description)
        tensors.compare_manifests(header.manifest, expected, where=str(file))
    except (ProtocolError, SettingError) as error:
        raise contradiction(file, error) from None
    wrong = sorted(description.tensors.keys() ^ expected.keys())
    if wrong:
        reason = f"the metadata have a sha256 for other tensors than the file has, first {wrong[0][:200]}"
        raise BundleError(f"{file}: {plain(reason, at_most=_MAX_REASON)}", rule="sums")
    return number, description, header.entries


def contradiction(file: Path, error: TinyLoraError) -> BundleError:
    """The refusal of a file whose metadata say one thing and whose tensors another."""
    return BundleError(
        f"{told_of(file, error)}; the file contradicts its own metadata", rule=error.rule or "contradiction"
    )


def told_of(file: Path, error: Exception) -> str:
    """A reader's sentence, with the file in front of it, and nothing in it that the file put there to be acted upon."""
    text = str(error).removeprefix("tensors: ").removeprefix(f"{file}").removeprefix(": ").removeprefix(", ")
    return f"{file}: {plain(text, at_most=_MAX_REASON)}"
