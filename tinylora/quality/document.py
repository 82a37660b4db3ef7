"""`quality.json` and `quality.md`, and the pictures beside them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinylora.errors import StorageError
from tinylora.quality.plots import draw_all
from tinylora.quality.rows import Results
from tinylora.report.markdown import number, table


def write_documents(found: Mapping[str, Any], results: Results, out: Path) -> list[Path]:
    """Write tables and pictures; each file is whole or the one before.

    Raises:
        StorageError: `out` cannot be written.
    """
    try:
        pictures = draw_all(results, found["rows"], out)
        _replace(out / "quality.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
        _replace(out / "quality.md", to_markdown(found, results, [file.name for file in pictures]))
    except OSError as error:
        raise StorageError(f"{error.filename or out}: cannot write the report: {error.strerror}") from None
    return [out / "quality.json", out / "quality.md", *pictures]


def _replace(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def to_markdown(found: Mapping[str, Any], results: Results, pictures: list[str]) -> str:
    """The report as a page for people."""
    config = found["config"]
    parts = [
        "# Quality",
        f"`{found['how']}`: {config['leaf_steps']} steps of {config['batch_windows']} windows of "
        f"{config['window_tokens']} tokens for each of {results.config.n_workers} workers, rank {config['rank']}, "
        f"base in {config['dtype']}; "
        f"{found['train_seconds'] / 60:.0f} core-minutes of training. Every system has the same tokens; learning rates "
        "are tuned for each on validation documents. Intervals are of 95 %, from a paired bootstrap over documents and "
        "seeds. Rows of one seed say nothing of the luck of a seed.",
        _rows_table(found["rows"]),
        "## Systems",
        _systems_table(results),
        "Active rank is the rank that touches one token, tokens/s those scored by one core.",
        "## Behind the rows",
        *(_parts(key, row) for key, row in found["rows"].items() if row["parts"]),
        *(f"![{name.removesuffix('.png')}]({name})" for name in pictures),
    ]
    return "\n\n".join(parts) + "\n"


def _rows_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    header = ("what", "row", "value", "95 %", "goal", "met", "seeds", "active rank", "total rank")
    lines = [
        (
            row["what"],
            key,
            number(row["value"]),
            "-" if row["ci"] is None else f"{row['ci'][0]:+.4f} to {row['ci'][1]:+.4f}",
            row["goal"],
            "-" if row["met"] is None else "yes" if row["met"] else "**no**",
            str(row["seeds"]),
            str(row["active_rank"]),
            str(row["total_rank"]),
        )
        for key, row in rows.items()
    ]
    return table(header, lines)


def _systems_table(results: Results) -> str:
    header = ("system", "policy", "active rank", "total rank", "nll", "perplexity", "tokens/s", "MB sent", "seeds")
    lines = []
    for system, outcomes in results.outcomes.items():
        for policy, scored in outcomes[0].scored.items():
            if all(policy in outcome.scored for outcome in outcomes):
                row = results.table(system, policy)
                lines.append(
                    (
                        system,
                        policy,
                        str(scored.active_rank),
                        str(outcomes[0].total_rank),
                        f"{row.mean():.4f}",
                        f"{row.perplexity():.3f}",
                        f"{scored.tokens_per_s:,.0f}",
                        f"{outcomes[0].bytes_sent / 1e6:.1f}",
                        str(len(outcomes)),
                    )
                )
    return table(header, lines)


def _parts(key: str, row: Mapping[str, Any]) -> str:
    lines = [f"**Row {key}**: {row['what']} ({row['unit']})", ""]
    lines += [f"- {name}: {_shown(value)}" for name, value in row["parts"].items() if name != "curves"]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        if set(value) == {"value", "low", "high"}:
            return f"{value['value']:+.4f} ({value['low']:+.4f} to {value['high']:+.4f})"
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return " to ".join(_shown(inner) for inner in value) or "-"
    return number(value)
