"""The released file: a whole tree of adapters with its gates, in one safetensors file that checks itself.

    contents.py    what is in it once it is read; statistics of the leaves' texts
    metadata.py    its one metadata text: fields, sums, signature, older formats
    layout.py      its tensors: names, dtypes, shapes; bundle to tensors and back
    signature.py   who made it
    writing.py     to a file, atomically
    opening.py     the header of a file, strictly; its tensors as views of the mapped file
    reading.py     from a file to a bundle; part of it reads part of it

Tensors, all of them little-endian:

* `node.<path>.<projection>.lora_A` (n_layers, rank, in) and `.lora_B` (n_layers, out, rank): one adapter, stacked over
  layers; BF16 unless asked otherwise. A leaf that nobody has trained has none, and adds nothing. Tied
  adapters have one A (rank, in) and B (out, rank) for all layers, and `.lora_u` (n_layers, rank) and `.lora_v`
  (n_layers, out); a node holds those of them that were trained;
* `shared.<projection>.lora_A` and `.lora_B`: the others, once for all nodes, in the same dtype;
* `router.<path>.w` (feature,), `.b` (1,), `.tau` (1,): one gate per inner node. F64, as they were solved: a few
  kilobytes, and a reader routes exactly as the run did;
* `router.projection` (feature, embedding) F32: only where the routing feature is projected;
* `leaf.<path>.count` (1,), `leaf.<path>.mean` (feature,) and `leaf.<path>.covariance` (packed,), its upper
  triangle row by row, all F64: what the leaves' texts look like to the router. Or, in place of the single
  covariances, their mean `router.covariance` (feature, feature); or nothing of all this.

The header has exactly one metadata key, `tinylora`: canonical JSON with everything else (see `metadata.Description`),
among it a sha256 per tensor, one over the JSON itself, and the signature of the run if it gave one. Reading compares
the header with the one that we would write, byte for byte, so not a single byte of the file can change unnoticed. Equal
bundles are equal bytes: no time, duration or host is in them. The sums guard against accidents; who made a bundle is
what the signature says. Files of format 1, which had pooled statistics and no signature, are read as well.
"""

from tinylora.bundle.contents import Bundle, LeafStatistics, StatisticsKind, pack, summarise, unpack
from tinylora.bundle.metadata import FORMAT, METADATA_KEY, AdapterDtype, Description
from tinylora.bundle.opening import OpenBundle, open_bundle
from tinylora.bundle.reading import check_base, check_fingerprint, inspect, read_bundle, read_open, verify
from tinylora.bundle.signature import Signer
from tinylora.bundle.writing import to_bytes, write_bundle

__all__ = [
    "FORMAT",
    "METADATA_KEY",
    "AdapterDtype",
    "Bundle",
    "Description",
    "LeafStatistics",
    "OpenBundle",
    "Signer",
    "StatisticsKind",
    "check_base",
    "check_fingerprint",
    "inspect",
    "open_bundle",
    "pack",
    "read_bundle",
    "read_open",
    "summarise",
    "to_bytes",
    "unpack",
    "verify",
    "write_bundle",
]
