"""`tinylora report`: from a configuration file to `quality.json`, `quality.md` and pictures."""

import json
import time
from pathlib import Path
from typing import Any

from tinylora.errors import SettingError
from tinylora.quality.config import QualityConfig, Rate, read_config
from tinylora.quality.document import write_documents
from tinylora.quality.plan import jobs_of
from tinylora.quality.rows import Results, leaf_memory_row, make_rows
from tinylora.quality.run import Say, do_jobs, open_folder, tune
from tinylora.report import versions
from tinylora.report.plots import NO_PICTURES, can_draw


def report(
    config_file: Path,
    out: Path,
    *,
    preset: str,
    rows: tuple[int, ...] | None,
    n_processes: int,
    say: Say,
) -> dict[str, Any]:
    """Train and score what is missing in `out`, then write tables and pictures; returns what `quality.json` holds.

    Raises:
        SettingError: The configuration is wrong, `out` belongs to another one, or there is nothing to draw with.
        DataError: The machine has too little text.
        StorageError: `out` cannot be written.
    """
    if not can_draw():  # before an hour of work, not after it
        raise SettingError(NO_PICTURES)
    config = read_config(config_file, preset=preset, rows=rows)
    jobs = jobs_of(config)
    open_folder(out, config)
    started = time.monotonic()
    outcomes = do_jobs(config, jobs, out, n_processes=n_processes, say=say)
    rows_found = make_rows(Results(config, outcomes)) | _measured_elsewhere(config_file, config)
    found = {
        "format": 1,
        "preset": preset,
        "how": f"tinylora report --config {config_file} --preset {preset}",
        "seconds": round(time.monotonic() - started, 1),
        "train_seconds": round(sum(outcome.train_seconds for outcome in outcomes), 1),
        "versions": versions(),
        "config": config.model_dump(mode="json"),
        "rows": rows_found,
    }
    write_documents(found, Results(config, outcomes), out)
    return found


def _measured_elsewhere(config_file: Path, config: QualityConfig) -> dict[str, Any]:
    """Row 17, where `make bench` has left its figure beside the configuration."""
    file = config_file.parent / "results" / "leaf_memory.json"
    if 17 not in config.rows or not file.exists():
        return {}
    return {"17": leaf_memory_row(json.loads(file.read_text(encoding="utf-8")))}


def find_rates(
    config_file: Path,
    out: Path,
    *,
    preset: str,
    rows: tuple[int, ...] | None,
    n_processes: int,
    say: Say,
) -> dict[str, Rate]:
    """Tune the rates that the rows need, and write them as `rates.toml` into `out`, to be put into the configuration.

    Raises:
        SettingError: The configuration is wrong, or `out` belongs to another one.
    """
    config = read_config(config_file, preset=preset, rows=rows)
    open_folder(out, config)
    found = tune(config, out, n_processes=n_processes, say=say)
    (out / "rates.toml").write_text(rates_toml(config, found), encoding="utf-8")
    return found


def parse_rows(text: str) -> tuple[int, ...] | None:
    """Numbers of rows, separated by commas; None for an empty text.

    Raises:
        SettingError: Something is no number.
    """
    if not text:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SettingError(f"--rows {text}: expected numbers from 1 to 17, separated by commas") from None


def rates_toml(config: QualityConfig, found: dict[str, Rate]) -> str:
    """The `[rates]` of a configuration: what was found, and what was there before for other systems."""
    lines = ["[rates]"]
    for key, rate in sorted((config.rates | found).items()):
        lines.append(f"{json.dumps(key)} = {{ learning_rate = {rate.learning_rate:g}, scale = {rate.scale:g} }}")
    return "\n".join(lines) + "\n"
