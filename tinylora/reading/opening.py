"""Bytes of a file as they were before they were packed, as a stream that says clearly where it breaks.

gzip and Zstandard are unpacked here and not by their libraries' file objects: that of `zstandard` takes a file that was
cut short for one that ends, and none has a bound on what comes out of a few bytes.
"""

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol, runtime_checkable

from tinylora.errors import DataError
from tinylora.reading.sources import Packing, Source

MAX_RATIO = 250
"""Bytes that a packed byte may stand for on average; text comes to 3 to 30."""
FREE_BYTES = 64 * 2**20
"""So much may come out of any file, whatever the ratio."""
_CHUNK_BYTES = {"gz": 2**16, "zst": 2**11}
"""Read at once. A kilobyte of Zstandard can stand for 32 MiB, and its library cannot be told to stop."""
MAX_DOCUMENT_BYTES = 64 * 2**20
"""Of one text, or one line of JSON."""


@runtime_checkable
class _Unpacking(Protocol):
    """What zlib's and zstandard's decompression objects have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


@contextmanager
def opened(source: Source) -> Iterator[io.BufferedReader]:
    """The file's unpacked bytes.

    Raises:
        DataError: It cannot be opened or read, is cut short, is not packed as its name says, or unpacks to far more
            than text does.
    """
    try:
        with source.path.open("rb") as file:
            yield file if not source.packing else io.BufferedReader(_Unpacked(file, source), 2**18)
    except OSError as error:
        raise DataError(f"{source.path}: cannot be read: {error.strerror or error}") from None


class _Unpacked(io.RawIOBase):
    """Frame after frame of a packed file."""

    def __init__(self, file: BinaryIO, source: Source) -> None:
        self._file, self._source = file, source
        self._frame: _Unpacking | None = None
        self._rest, self._out = b"", memoryview(b"")
        self._n_in = self._n_out = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._out:
            data = self._rest or self._file.read(_CHUNK_BYTES[self._source.packing])
            if not data:
                self._check_end()
                return 0
            self._out = memoryview(self._unpack(data))
        target = memoryview(buffer).cast("B")
        n = min(len(target), len(self._out))
        target[:n], self._out = self._out[:n], self._out[n:]
        return n

    def _unpack(self, data: bytes) -> bytes:
        self._n_in += len(data) - len(self._rest)
        self._rest = b""
        self._frame = self._frame or _new_frame(self._source.packing)
        try:
            out = self._frame.decompress(data)
        except Exception as error:  # zlib.error, ZstdError: neither has a base of its own
            what = f"not readable as {_NAMES[self._source.packing]}: {error}"
            raise DataError(f"{self._source.path}: {what}; pack it again") from None
        if self._frame.eof:
            # Some writers fill gzip files up with zeros.
            self._rest, self._frame = self._frame.unused_data.lstrip(b"\0"), None
        self._n_out += len(out)
        if self._n_out > FREE_BYTES and self._n_out > MAX_RATIO * self._n_in:
            raise DataError(
                f"{self._source.path}: unpacks to more than {MAX_RATIO} times its size, which no text does; "
                "unpack it yourself if you trust it"
            )
        return out

    def _check_end(self) -> None:
        if self._frame is not None or not self._n_in:
            raise DataError(
                f"{self._source.path}: cut short: the {_NAMES[self._source.packing]} data ends in the middle; "
                "get the whole file"
            )


_NAMES = {"gz": "gzip", "zst": "Zstandard"}


def _new_frame(packing: Packing) -> _Unpacking:
    if packing == "gz":
        return zlib.decompressobj(wbits=31)
    import zstandard  # late: only those who have such files pay for it

    return zstandard.ZstdDecompressor().decompressobj()


def read_all(stream: io.BufferedReader, source: Source) -> bytes:
    """All of a file that is one document.

    Raises:
        DataError: It is too large for one.
    """
    data = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{source.path}: larger than {MAX_DOCUMENT_BYTES // 2**20} MiB, which is the most for one document; "
            "cut it into several files, or give it as .jsonl with one document a line"
        )
    return data
