"""The way of a text through the tree, found without torch and without the base: from a table that `init` wrote.

    lookup.safetensors    one tensor `table` (vocab, feature): what each token adds to the routing feature; float32, or
                          float16 where that would be large. Its metadata says which feature it is, and which tokens
                          stand before and behind a document.
    tokenizer.json        the base's tokenizer, as the tokenizers library reads it

A routing feature is a mean of rows of that table, so a text costs as many rows as it has different tokens. The table is
mapped, not read: only those rows come into memory. The gates are those of the ledger's latest router version.
"""

import json
import mmap
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors.numpy

from tinylora.errors import DataError, StorageError
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.routing.gates import Gates
from tinylora.routing.ways import likeliest, mean_row, posterior_of, way_of
from tinylora.tree import NodePath
from tinylora_coordinator.dashboard.documents import GatePass, LeafPosterior, Lookup
from tinylora_coordinator.dashboard.gate_blobs import read_gates
from tinylora_coordinator.folder import RunFolder

MAX_CHARACTERS = 20_000
MAX_LEAVES = 64
"""In an answer."""
MOST_FLOAT32_BYTES = 64 << 20
"""A larger table is kept in float16: its rows' rounding, some 1e-4, is lost in the mean over a text."""
_LENGTH_BYTES, _MAX_HEADER_BYTES = 8, 1 << 16
Notes: TypeAlias = Callable[[], Mapping[NodePath, tuple[str, ...]]]
"""What the holders of each leaf say of their text."""


# --- the table's file -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ends:
    """Tokens before and behind each document, as shards have them; None where the tokenizer has no such token."""

    begin: int | None = None
    end: int | None = None

    def around(self, ids: Sequence[int]) -> list[int]:
        """The document with its ends."""
        return [*([] if self.begin is None else [self.begin]), *ids, *([] if self.end is None else [self.end])]


def table_bytes(table: Any, ends: Ends, *, feature_hash: str) -> bytes:
    """The file of a routing feature's table.

    Args:
        table: float32 (vocab, feature).
        ends: Of documents.
        feature_hash: Of the feature, as in the facts on the base.
    """
    found = np.ascontiguousarray(table, dtype=np.float32)
    if found.nbytes > MOST_FLOAT32_BYTES:
        largest = float(np.finfo(np.float16).max)
        found = found.clip(-largest, largest).astype(np.float16)
    metadata = {"feature_hash": feature_hash, "ends": json.dumps([ends.begin, ends.end])}
    return safetensors.numpy.save({"table": found}, metadata)


@dataclass(frozen=True, eq=False)
class MappedTable:
    """The table as it lies on disk."""

    rows: np.ndarray
    """(vocab, feature)."""
    ends: Ends

    @classmethod
    def open(cls, file: Path, *, feature_hash: str) -> "MappedTable":
        """Map the file; nothing of the rows is read.

        Raises:
            DataError: It is not there, damaged, or of another feature.
        """
        try:
            with file.open("rb") as opened:
                return cls._of(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), file, feature_hash)
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise DataError(
                f"{file.name}: not readable ({error}); `tinylora-coordinator lookup` makes it anew"
            ) from None

    @classmethod
    def _of(cls, data: mmap.mmap, file: Path, feature_hash: str) -> "MappedTable":
        (length,) = struct.unpack("<Q", data[:_LENGTH_BYTES])
        if length > _MAX_HEADER_BYTES:
            raise ValueError("its header is too long")
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        told, metadata = header["table"], header["__metadata__"]
        if metadata["feature_hash"] != feature_hash:
            raise DataError(f"{file.name}: of another routing feature; `tinylora-coordinator lookup` makes it anew")
        dtype = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}[told["dtype"]]
        n_rows, dim = told["shape"]
        start = _LENGTH_BYTES + length + told["data_offsets"][0]
        rows = np.frombuffer(data, dtype, count=n_rows * dim, offset=start).reshape(n_rows, dim)
        return cls(rows, Ends(*json.loads(metadata["ends"])))

    def mean(self, ids: Sequence[int]) -> np.ndarray:
        """The routing feature at the end of a document.

        Raises:
            DataError: The tokenizer knows tokens that the table does not.
        """
        if max(ids, default=0) >= len(self.rows):
            raise DataError(f"token {max(ids)}: not in the table; `tinylora-coordinator lookup` makes it anew")
        return mean_row(self.rows, ids)


# --- for the page -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Loaded:
    table: MappedTable
    tokenizer: Any


class TextRouter:
    """Routes texts of one run; see `source.LookUp`. Nothing of a text is kept.

    Args:
        folder: Of the run; only read.
        feature_hash: Of the run's routing feature.
        router_version: Of now; 0 while there are no gates.
        notes: What the holders of each leaf say of their text.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        feature_hash: str,
        router_version: Callable[[], int],
        notes: Notes = dict,
    ) -> None:
        self._folder, self._feature_hash, self._notes = folder, feature_hash, notes
        self._router_version, self._lock = router_version, threading.Lock()
        self._loaded: _Loaded | None = None
        self._gates: tuple[int, Gates] | None = None

    def why_not(self) -> str:
        """Why it cannot; nothing where it can."""
        if not (self._folder.lookup_file.exists() and self._folder.tokenizer_file.exists()):
            return (
                "this run has no table to look texts up in; the operator makes one with "
                "`tinylora-coordinator lookup DIR --base BASE`, while the run goes on"
            )
        return "" if self._router_version() else "there are no gates yet; they are solved when the tree is set"

    def __call__(self, text: str) -> Lookup:
        """The way of a text.

        Raises:
            DataError: It cannot; see `why_not`.
        """
        if why_not := self.why_not():
            raise DataError(why_not)
        if len(text) > MAX_CHARACTERS:
            raise DataError(f"expected at most {MAX_CHARACTERS} characters, got {len(text)}")
        with self._lock:
            loaded = self._loaded = self._loaded or self._load()
            version, gates = self._gates = self._latest_gates()
        ids = loaded.table.ends.around(
            loaded.tokenizer.encode(text.encode(errors="replace").decode(), add_special_tokens=False).ids
        )
        feature = loaded.table.mean(ids)
        if gates.nodes and gates.dim != len(feature):
            raise DataError(f"the table has {len(feature)} numbers a token, the gates {gates.dim}")
        posterior, notes = posterior_of(gates, feature), self._notes()
        way = way_of(gates, feature)
        return Lookup(
            path="".join(step.went for step in way),
            n_tokens=len(ids),
            gates=tuple(GatePass(path=step.node, right=step.right, went=step.went) for step in way),
            leaves=tuple(
                LeafPosterior(path=leaf, posterior=min(posterior[leaf], 1.0), data_notes=notes.get(leaf, ()))
                for leaf in likeliest(posterior)[:MAX_LEAVES]
            ),
            router_version=version,
        )

    def _load(self) -> _Loaded:
        return _Loaded(
            MappedTable.open(self._folder.lookup_file, feature_hash=self._feature_hash),
            _open_tokenizer(self._folder.tokenizer_file),
        )

    def _latest_gates(self) -> tuple[int, Gates]:
        version = self._router_version()
        if self._gates is not None and self._gates[0] == version:
            return self._gates
        try:
            with SqliteLedger.open_readonly(self._folder.root) as ledger:
                return version, read_gates(ledger, version)
        except StorageError as error:
            raise DataError(f"gates of version {version}: not readable now ({error})") from None


def _open_tokenizer(file: Path) -> Any:
    """The tokenizer as shards use it: nothing cut, padded or added, and markup that looks special is text."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{file.name}: not readable ({error}); `tinylora-coordinator lookup` makes it anew") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
