"""`tinylora-worker data check`: what is in some data, on this machine alone; nothing is sent."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from tinylora.errors import DataError
from tinylora.reading.report import DataReport, Sample, check_data
from tinylora.reading.scan import check_allowances

_BAR = 40


def run_data_check(
    paths: Sequence[Path],
    base: str | None,
    columns: Mapping[str, str],
    allow: Sequence[str],
    as_json: bool,
    *,
    window_tokens: int = 0,
    out: TextIO | None = None,
) -> None:
    """Print what is in the data; it ends like `join` would if this data cannot be trained on.

    Args:
        paths: Files, folders, globs.
        base: The run's base, for its tokenizer alone, from a folder or the local cache; None counts characters.
        columns: What `--map` said.
        allow: What `--allow` said.
        as_json: One JSON object instead of lines for people.
        window_tokens: The run's window; 0: unknown.
        out: Where to print; stdout unless told otherwise.

    Raises:
        DataError: The data cannot be trained on: rows that cannot be used, nothing in it, or findings not allowed.
        SettingError: `columns` or `allow` makes no sense.
        BaseModelError: The base has no tokenizer on this machine.
    """
    check_allowances(allow)
    tokenizer = None
    if base is not None:
        from tinylora.base_model import load_tokenizer  # late: it brings torch and transformers

        tokenizer = load_tokenizer(base)
    report = check_data(paths, tokenizer, columns=columns, window_tokens=window_tokens)
    stream = out or sys.stdout
    if as_json:
        print(json.dumps(report.to_json(allow), ensure_ascii=False, indent=1), file=stream)
    else:
        print("\n".join(lines(report, allow)), file=stream)
    refused = report.refused(allow)
    if refused:
        raise DataError(refused, rule="findings" if report.scan.refused(allow) and not report.n_rejected else "")


def lines(report: DataReport, allow: Sequence[str] = ()) -> Iterator[str]:
    """A report for people."""
    unit = "tokens" if report.n_tokens else "characters"
    yield from _counts(report)
    yield from _lengths(report, unit)
    yield from _rejected(report)
    yield from _findings(report, allow)
    for sample in report.samples:
        yield from _sample(sample)
    yield ""
    yield "Nothing was sent."


def _counts(report: DataReport) -> Iterator[str]:
    layouts = "; ".join(f"{layout}: {n} file{'s' if n > 1 else ''}" for layout, n in sorted(report.layouts.items()))
    yield f"layout      {layouts or 'none'}"
    if report.template:
        yield f"template    {report.template}"
    yield f"documents   {report.n_documents:,} in {report.n_files:,} files"
    yield f"duplicates  {report.n_duplicates:,}, white space aside; each text is trained on once"
    if report.n_blank:
        yield f"blank       {report.n_blank:,} rows, left out"
    if report.skipped:
        yield f"folders     {report.skipped}"
    yield f"characters  {report.n_characters:,}"
    if report.n_tokens:
        share = report.n_targets / report.n_tokens
        yield f"tokens      {report.n_tokens:,}, of them to be learnt {report.n_targets:,} ({share:.0%})"


def _lengths(report: DataReport, unit: str) -> Iterator[str]:
    most = max((n for _, _, n in report.histogram()), default=0)
    yield f"lengths     in {unit}; the longest has {report.longest:,}"
    for shortest, longest, n in report.histogram():
        yield f"  {shortest:>10,} to {longest:>10,}  {'█' * -(-_BAR * n // most):<{_BAR}}  {n:,}"
    if report.window_tokens:
        yield (
            f"windows     {report.n_longer:,} documents are longer than a window of {report.window_tokens:,} tokens. "
            "Nothing is cut off: documents are packed end to end into windows, and a long one goes on in the next, "
            "where its beginning is not seen. Only the rest of an epoch that fills no window is left out of it."
        )


def _rejected(report: DataReport) -> Iterator[str]:
    yield f"rejected    {report.n_rejected:,} rows or files"
    for where, reason in report.rejected:
        yield f"  {where}: {reason}"
    if report.n_rejected > len(report.rejected):
        yield f"  and {report.n_rejected - len(report.rejected):,} more"


def _findings(report: DataReport, allow: Sequence[str]) -> Iterator[str]:
    if not report.scan.counts:
        yield "findings    no secrets, e-mail addresses or phone numbers; which is no proof that there are none"
        return
    yield "findings    an adapter can repeat what it was trained on"
    for kind, count in sorted(report.scan.counts.items()):
        allowance = report.scan.allowances[kind]
        yield f"  {count:,} × {kind}: {'allowed' if allowance in allow else f'refused without --allow {allowance}'}"
        yield from (f"    {place}" for place in report.scan.places[kind])


def _sample(sample: Sample) -> Iterator[str]:
    """What is to be learnt stands in marks, since colours do not survive a file."""
    yield ""
    of_them = f", {sample.n_tokens:,} tokens, {sample.n_targets:,} to be learnt" if sample.n_tokens else ""
    yield f"sample      {sample.name}{of_them}; «what is to be learnt»"
    text = "".join(f"«{text}»" if is_target else text for text, is_target in sample.pieces)
    printable = "".join(sign if sign.isprintable() or sign == "\n" else "·" for sign in text)
    yield from (f"  {line}" for line in (printable + (" ..." if sample.is_cut else "")).split("\n"))
