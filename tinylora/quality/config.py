"""What `tinylora report` trains and scores: one TOML file with presets in, a frozen configuration out.

The file's top level holds what all presets share; `[presets.<name>]` overrides it. `[rates]` holds the learning rate
and the scale of every system, found by `tinylora report --tune` on validation documents and committed with the file.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinylora.errors import SettingError

ALL_ROWS = tuple(range(1, 18))
Positive = Annotated[int, Field(ge=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Rate(_Frozen):
    """How a system learns: both numbers are tuned for it, on documents that no table scores."""

    learning_rate: Annotated[float, Field(gt=0, le=1)]
    scale: Annotated[float, Field(gt=0)] = 2.0
    """alpha / rank; without meaning where the base itself is trained."""


class Tuning(_Frozen):
    """The sweep behind `[rates]`: every system gets the same share of its tokens, and the grid of its kind."""

    learning_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    scales: tuple[float, ...] = (2.0,)
    other_learning_rates: dict[str, tuple[float, ...]] = {}
    """By system, where its optimum lies elsewhere: the base's own weights, scalings alone."""
    other_scales: dict[str, tuple[float, ...]] = {}
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Of the steps of a full training."""


class QualityConfig(_Frozen):
    """One report: which rows, on which base and text, with how many steps and seeds."""

    base: str = "demo"
    """`demo`, a folder, or a hub id."""
    bloom: str = "benchmarks/bloom"
    """The second base, of row 16."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the base while it trains adapters and is scored; adapters are float32."""
    rows: tuple[Annotated[int, Field(ge=1, le=17)], ...] = ALL_ROWS
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2)
    """Of rows 1 to 5; the others take the first one."""

    depth: Annotated[int, Field(ge=1, le=6)] = 3
    """Of the tree: 2**depth leaves, one domain of text each."""
    rank: Positive = 16
    leaf_steps: Positive = 200
    """Steps of each worker. Every system has 2**depth workers' tokens in all."""
    side_steps: Positive = 100
    """The same for the rows that compare many variants with each other: 6, 7, 10, 14, 15 and 16."""
    long_steps: Positive = 600
    """The same for the curve of row 8."""
    round_steps: Positive = 20
    """Steps between two averages."""
    batch_windows: Positive = 8
    window_tokens: Annotated[int, Field(ge=8)] = 256

    shard_chars: Positive = 3_000_000
    """Text of each domain at most."""
    n_documents: Positive = 36
    """Documents of each domain that are held out at most: a third validates, two thirds are scored."""
    scored_tokens: Positive = 2048
    """Of each document; the rest of a long one is left out."""
    n_bootstrap: Positive = 2000

    rates: dict[str, Rate]
    tuning: Tuning = Tuning()

    @property
    def n_workers(self) -> int:
        """One worker for each domain."""
        return 2**self.depth

    def rate(self, system: str) -> Rate:
        """The tuned rate of a system, such as `fedavg:16`; any for the one without a name, which does not learn.

        Raises:
            SettingError: The file has none.
        """
        if not system:
            return Rate(learning_rate=1e-3)
        if system not in self.rates:
            raise SettingError(f"rates: no entry for {system!r}; `tinylora report --tune` finds one")
        return self.rates[system]


def read_config(file: Path, *, preset: str = "cpu", rows: tuple[int, ...] | None = None) -> QualityConfig:
    """Read a configuration; `rows`, where given, wins over the file.

    Raises:
        SettingError: The file is missing or no TOML, has no such preset, or a key or value is not right.
    """
    try:
        values: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(f"{file}: no such file; benchmarks/quality.toml is one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{file}: not readable as TOML: {error}") from None
    presets = values.pop("presets", {})
    if preset not in presets:
        raise SettingError(f"{file}: no preset {preset!r}; expected one of {', '.join(sorted(presets)) or '(none)'}")
    values |= presets[preset]
    if rows is not None:
        values["rows"] = rows
    try:
        return QualityConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(sorted(QualityConfig.model_fields))
        hint = f"; known keys: {known}" if first["type"] == "extra_forbidden" else ""
        raise SettingError(f"{file}: {name}: {first['msg'].lower()}, got {first['input']!r}{hint}") from None
