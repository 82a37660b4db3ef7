"""What `data check` tells: everything that training would make of some data, and nothing is sent or trained.

Bad rows do not stop it: they are counted and the first are told with their reason. What lies in a broken file before
its break counts, the file's own error is told among the rejected.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from tinylora.errors import DataError
from tinylora.reading.chat import PLAIN_TEMPLATE, Encoded, Encoder, TokenizerEncoder, encode_all
from tinylora.reading.documents import keyed
from tinylora.reading.examples import Findings, OnRejected, examples_of
from tinylora.reading.layouts import Example, check_columns
from tinylora.reading.rows import Rejected
from tinylora.reading.scan import Scan, find_in
from tinylora.reading.sources import find_sources

N_SAMPLES = 3
N_REJECTED = 20
"""Rejected rows that are told; all are counted."""
SAMPLE_CHARS = 600
_BINS = 26
"""Lengths are counted by powers of two: 0, 1, 2-3, 4-7, up to 16 million and more."""
_KEY_BYTES = 8


@dataclass(frozen=True)
class Sample:
    """One example as a model will see it, in pieces: what it says, and whether it is to be learnt."""

    name: str
    pieces: tuple[tuple[str, bool], ...]
    n_tokens: int
    n_targets: int
    is_cut: bool
    """Only the beginning is shown."""


@dataclass
class DataReport:
    """What is in some data. Of tokens, zero where it was checked without a tokenizer."""

    n_files: int = 0
    layouts: dict[str, int] = field(default_factory=dict)
    """Files by layout."""
    template: str = ""
    """By which chat template conversations are written; empty where there are none."""
    skipped: str = ""
    n_documents: int = 0
    """Usable ones, duplicates included."""
    n_duplicates: int = 0
    """Documents that say, white space aside, what another one says; trained on once."""
    n_blank: int = 0
    n_characters: int = 0
    n_tokens: int = 0
    n_targets: int = 0
    """Tokens to be predicted."""
    lengths: list[int] = field(default_factory=lambda: [0] * _BINS)
    """Documents by length: place k counts those of 2^(k-1) to 2^k - 1 tokens (characters without a tokenizer)."""
    longest: int = 0
    window_tokens: int = 0
    n_longer: int = 0
    """Documents longer than a window."""
    n_rejected: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)
    """Place and reason of the first of them."""
    scan: Scan = field(default_factory=Scan)
    samples: list[Sample] = field(default_factory=list)

    def refused(self, allow: Sequence[str] = ()) -> str:
        """Why this data cannot be trained on as it is; empty if it can."""
        if self.n_rejected:
            where, reason = self.rejected[0]
            return f"{self.n_rejected} rows cannot be used; the first: {where}: {reason}"
        if not self.n_documents:
            return "no text in it"
        try:
            self.scan.check(allow)
        except DataError as error:
            return str(error)
        return ""

    def histogram(self) -> list[tuple[int, int, int]]:
        """Shortest, longest, and how many documents are in between; without empty ends."""
        used = [place for place, n in enumerate(self.lengths) if n]
        if not used:
            return []
        places = range(used[0], used[-1] + 1)
        return [(2 ** (place - 1) if place else 0, 2**place - 1, self.lengths[place]) for place in places]

    def to_json(self, allow: Sequence[str] = ()) -> dict[str, Any]:
        """For programs; nothing that was found is in it, and of the text the samples alone."""
        told = {key: value for key, value in asdict(self).items() if key not in ("lengths", "scan")}
        findings = {
            kind: {"count": count, "allow": self.scan.allowances[kind], "places": self.scan.places[kind]}
            for kind, count in sorted(self.scan.counts.items())
        }
        return {**told, "histogram": self.histogram(), "findings": findings, "refused": self.refused(allow)}


def check_data(
    paths: Sequence[Path],
    tokenizer: Any = None,
    *,
    columns: Mapping[str, str] | None = None,
    window_tokens: int = 0,
) -> DataReport:
    """Read all of some data and say what is in it; memory does not grow with it but for eight bytes a document.

    Args:
        paths: Files, folders, globs.
        tokenizer: The base's, for tokens and rendered samples; None counts characters.
        columns: Which columns hold what; what is not said is detected.
        window_tokens: The run's window, to say how many documents are longer; 0: unknown.

    Raises:
        DataError: A path is missing or no file.
        SettingError: `columns` makes no sense.
    """
    check_columns(columns or {})
    find_sources(paths)  # a mistyped path is no bad row
    report, findings = DataReport(window_tokens=window_tokens), Findings()
    encoder = None if tokenizer is None else TokenizerEncoder(tokenizer)
    keys = bytearray()

    def reject(rejected: Rejected) -> None:
        report.n_rejected += 1
        if len(report.rejected) < N_REJECTED:
            report.rejected.append((rejected.where, rejected.reason))

    examples = _file_by_file(paths, columns or {}, reject, findings)
    for example, found in _with_tokens(examples, encoder):
        if isinstance(found, Rejected):
            reject(found)
            continue
        keys += keyed(example.text)[:_KEY_BYTES]
        _count(report, example, found)
        if len(report.samples) < N_SAMPLES:
            report.samples.append(_sample(example, found, tokenizer))
    report.n_files, report.layouts, report.n_blank = findings.n_files, findings.layouts, findings.n_blank
    report.skipped = findings.skipped() if findings.hidden or findings.binary or findings.empty else ""
    report.n_duplicates = report.n_documents - len(np.unique(np.frombuffer(bytes(keys), dtype=np.uint64)))
    if encoder is not None and any(layout.startswith("messages") for layout in report.layouts):
        report.template = encoder.template if encoder.template != "plain" else f"plain: {PLAIN_TEMPLATE}"
    return report


def _file_by_file(
    paths: Sequence[Path], columns: Mapping[str, str], reject: OnRejected, findings: Findings
) -> Iterator[Example]:
    """Examples of every file; one that breaks does not keep the others from being read."""
    for source in find_sources(paths):
        try:
            yield from examples_of(source, columns, reject, findings)
        except DataError as error:
            reject(Rejected(str(source.path), str(error).removeprefix(str(source.path)).lstrip(":, ")))


def _with_tokens(
    examples: Iterator[Example], encoder: Encoder | None
) -> Iterator[tuple[Example, Encoded | Rejected | None]]:
    if encoder is None:
        return ((example, None) for example in examples)
    return encode_all(examples, encoder)


def _count(report: DataReport, example: Example, found: Encoded | None) -> None:
    text = example.text
    size = len(text) if found is None else len(found.tokens)
    report.n_documents += 1
    report.n_characters += len(text)
    report.lengths[min(size.bit_length(), _BINS - 1)] += 1
    report.longest = max(report.longest, size)
    if found is not None:
        report.n_tokens += size
        report.n_targets += size if found.is_target is None else int(found.is_target.sum())
        report.n_longer += bool(report.window_tokens and size > report.window_tokens)
    report.scan.look_at(example.where, text)


def _sample(example: Example, found: Encoded | None, tokenizer: Any) -> Sample:
    """An example as the model will see it: from its tokens back to text, in runs; what was found in it is masked."""
    if found is None:
        runs = [(part.text, part.role in ("text", "completion", "assistant")) for part in example.parts]
        return _shortened(example.name, runs, 0, 0)
    is_target = np.ones(len(found.tokens), dtype=bool) if found.is_target is None else found.is_target
    bounds: Int64[np.ndarray, " bound"] = np.flatnonzero(np.diff(is_target.astype(np.int8))).astype(np.int64) + 1
    starts = [0, *bounds.tolist()]
    runs = [
        (tokenizer.decode(found.tokens[start : min(end, start + 2 * SAMPLE_CHARS)]), bool(is_target[start]))
        for start, end in zip(starts, [*starts[1:], len(is_target)], strict=True)
    ]
    return _shortened(example.name, runs, len(is_target), int(is_target.sum()))


def _shortened(name: str, runs: Sequence[tuple[str, bool]], n_tokens: int, n_targets: int) -> Sample:
    pieces, left = [], SAMPLE_CHARS
    for text, is_target in ((masked(text), is_target) for text, is_target in runs):
        if left > 0:
            pieces.append((text[:left], is_target))
        left -= len(text)
    return Sample(name, tuple(pieces), n_tokens, n_targets, is_cut=left < 0)


def masked(text: str) -> str:
    """A text in which nothing can be read that the scan finds in it."""
    for found in sorted(find_in(text), key=lambda found: -found.start):
        text = text[: found.start] + found.masked + text[found.end :]
    return text
