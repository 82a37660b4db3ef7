"""Frozen settings: TOML and environment in, checked values out. No torch, no Flower.

`RunSettings` is what an operator decides about a run; `BaseFacts` is what a run must know of its base model, so that
the coordinator can check every tensor without holding the base.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tinylora.adapters.spec import AdapterSpec, parse_ranks
from tinylora.errors import SettingError
from tinylora.tree import MAX_DEPTH

MAX_RANK = 1024
MAX_FEATURE_DIM = 1024
RouterSync = Literal["statistics", "weights", "both"]
RouterFeature = Literal["embedding", "embedding+table"]
Replicas = Literal["mean", "alternate", "product"]
Where = Literal["leaves", "path"]
PathTraining = Literal["cascade", "joint"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class ProjectionShape(_Frozen):
    """One linear of a transformer block, stacked over the layers that have it."""

    n_layers: Annotated[int, Field(ge=1)]
    in_features: Annotated[int, Field(ge=1)]
    out_features: Annotated[int, Field(ge=1)]


class BaseFacts(_Frozen):
    """What identifies a base model and what its adapters look like; made by `base_model.describe`."""

    base_id: str
    fingerprint: str
    """sha256 over weights, config and tokenizer."""
    tokenizer_fingerprint: str
    feature_dim: Annotated[int, Field(ge=1, le=MAX_FEATURE_DIM)]
    """Numbers in the routing feature."""
    feature_hash: str
    """sha256 of what turns tokens into features besides the base: the widths, and the projection P."""
    max_window_tokens: Annotated[int, Field(ge=1)]
    """Longest window the base can attend to."""
    projections: dict[str, ProjectionShape]


class RunSettings(_Frozen):
    """What an operator decides about a run. Every field has a unit in its name or its text."""

    name: Annotated[str, Field(min_length=1, max_length=80)] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    # the tree
    depth: Annotated[int, Field(ge=0, le=MAX_DEPTH)] = 2
    """Levels of the perfect tree that the topology starts as; a tree that grows has 2**depth leaves at most."""
    grow: bool = False
    """Whether the run starts as one leaf, and leaves that stopped improving split (see `federation.growth`)."""
    adapter: str = "lora"
    """Kind of every adapter, as `AdapterSpec.parse` reads it."""
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)] = 8
    ranks: dict[str, int] = {}
    """Rank by projection, at most `rank`; the others have `rank`."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """scale = alpha / rank."""

    where: Where = "leaves"
    """Which nodes carry an adapter: the leaves, or every node of a path, whose adapters add up."""
    path_training: PathTraining = "cascade"
    """How the adapters of a path are trained: from the root down, each beside its frozen ancestors; or all at once."""
    path_steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Of a cascade: how `leaf_steps` is divided among the levels, the root's first; none given means equal shares."""

    # learning
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    leaf_steps: Annotated[int, Field(ge=1)] = 400
    """Optimiser steps that a leaf gets in all from one worker; the learning rate falls to a tenth over them."""
    unit_steps: Annotated[int, Field(ge=1)] = 50
    """Optimiser steps of one work unit."""
    batch_windows: Annotated[int, Field(ge=1)] = 8
    window_tokens: Annotated[int, Field(ge=8)] = 256

    # replicas: several workers on one node
    replicas: Replicas = "mean"
    """How their updates become one: the mean of A and that of B; the same with one of the two trained in turn, which is
    exact; or the mean of the products, cut to the rank."""
    outer_lr: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Rate of the step from a round's start towards the mean of its replicas (DiLoCo, arXiv:2311.08105)."""
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Nesterov momentum of these steps."""

    # routing
    router_sync: RouterSync = "statistics"
    """How routers are kept in step: summed statistics, averaged weights, or both (statistics decide)."""
    router_period: Annotated[int, Field(ge=1)] = 4
    """Accepted updates between two router versions."""
    router_feature: RouterFeature = "embedding+table"
    """What routers read: means of the base's input embeddings, or these filled up with random signs of every token,
    which make each gate a token table, too."""
    router_dim: Annotated[int, Field(ge=8, le=MAX_FEATURE_DIM)] = 256
    """Numbers in the routing feature at most; a worker's sums grow with the square: 0.26 MB at 256, 1 MB at 512."""

    # the start of a run, and who may take part
    min_workers: Annotated[int, Field(ge=1)] = 1
    start_after_s: Annotated[float, Field(ge=0)] = 600.0
    """With fewer sketches than `min_workers`, the topology is set after this many seconds."""
    min_sequences: Annotated[int, Field(ge=1)] = 2000
    """Shards with fewer windows than this are not sketched: their sums would tell too much of a single text."""

    # leases
    first_deadline_s: Annotated[float, Field(gt=0)] = 600.0
    """Deadline of a unit while no times were observed yet."""
    deadline_slack: Annotated[float, Field(ge=1)] = 6.0
    """k in: deadline = median + k * MAD of observed times (and never under twice the median)."""
    max_update_mib: Annotated[float, Field(gt=0)] = 512.0

    # trust
    probes: Annotated[int, Field(ge=0, le=15)] = 3
    """How many other workers score an update before it counts; 0 believes it unscored."""
    probe_windows: Annotated[int, Field(ge=1)] = 8
    """Windows of its own held-out text that each of them scores."""
    probe_tolerance: Annotated[float, Field(gt=0)] = 0.1
    """Nats per token by which the median of them may find an update worse than what it replaces."""
    clip: Annotated[float, Field(ge=0)] = 2.0
    """Longest way of one worker's update of something shared, in medians over the round; 0 is no limit."""
    influence_cap: Annotated[float, Field(ge=1)] = 10.0
    """Most that one worker's sums may count in the routers, in medians over the workers' amounts of text."""
    max_leaf_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Largest share of other workers' text that the gates may send to one worker's leaf."""

    # disk
    disk_cap_mib: Annotated[float, Field(ge=0)] = 0.0
    """Blobs are pruned before they take more than this; 0 keeps all."""
    keep_versions: Annotated[int, Field(ge=2)] = 2
    """Latest versions of each node that are never pruned."""

    @field_validator("ranks", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        try:
            return parse_ranks(value) if isinstance(value, str) else value
        except SettingError as error:
            raise PydanticCustomError("ranks", "{reason}", {"reason": str(error)}) from None

    @field_validator("path_steps", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        """Also "1,7,12", as it is given on a command line."""
        if not isinstance(value, str):
            return value
        return [part.strip() for part in value.strip("[]").split(",") if part.strip()]

    @field_validator("adapter", "ranks")
    @classmethod
    def _can_be_made(cls, value: Any, info: Any) -> Any:
        adapter = value if info.field_name == "adapter" else "lora"
        ranks = value if info.field_name == "ranks" else {}
        try:
            AdapterSpec.parse(adapter, info.data.get("rank", MAX_RANK), ranks)
        except SettingError as error:
            raise PydanticCustomError("adapter", "{reason}", {"reason": str(error)}) from None
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "RunSettings":
        reason = next(_contradictions(self), "")
        if reason:
            raise PydanticCustomError("settings", "{reason}", {"reason": reason})
        return self

    @property
    def run_id(self) -> str:
        """The run's name as it stands in documents: letters, digits and a few signs."""
        return re.sub(r"[^A-Za-z0-9._:-]+", "-", self.name).strip("-._:") or "run"

    @property
    def spec(self) -> AdapterSpec:
        """Kind and ranks of every adapter of the run."""
        return AdapterSpec.parse(self.adapter, self.rank, self.ranks)

    @property
    def level_steps(self) -> tuple[int, ...]:
        """Optimiser steps of each level of a cascade, the root's first; what does not divide goes to the leaves."""
        share = self.leaf_steps // (self.depth + 1)
        return self.path_steps or (*[share] * self.depth, self.leaf_steps - share * self.depth)

    @property
    def scale(self) -> float:
        """The quotient alpha / rank: the one scale of all adapters of the run."""
        return self.alpha / self.rank

    @property
    def unit_tokens(self) -> int:
        """Tokens of one optimiser step."""
        return self.batch_windows * self.window_tokens


def _contradictions(settings: RunSettings) -> Iterator[str]:
    """Settings that are fine alone and make no sense together."""
    is_plain = (settings.outer_lr, settings.outer_momentum) == (1.0, 0.0)
    if settings.replicas != "mean" and settings.spec.kind == "tied":
        yield (
            f"replicas = {settings.replicas}: expected mean for the adapter {settings.adapter}: the tensors of a tied "
            "adapter are no pairs A, B of one layer"
        )
    if settings.replicas == "product" and not is_plain:
        yield (
            "replicas = product: expected outer_lr = 1 and outer_momentum = 0, because its factors turn between rounds "
            f"and a step from one to the next means nothing; got {settings.outer_lr} and {settings.outer_momentum}"
        )
    yield from _path_contradictions(settings)


def _path_contradictions(settings: RunSettings) -> Iterator[str]:
    is_cascade = settings.where == "path" and settings.path_training == "cascade"
    if settings.path_steps and not is_cascade:
        yield 'path_steps: expected none, they are for where = "path" and path_training = "cascade"'
    if is_cascade and (len(settings.level_steps), sum(settings.level_steps)) != (
        settings.depth + 1,
        settings.leaf_steps,
    ):
        yield (
            f"path_steps: expected {settings.depth + 1} numbers, one for each level of a tree of depth "
            f"{settings.depth}, that add up to the {settings.leaf_steps} leaf_steps; got {settings.path_steps}"
        )
    if is_cascade and min(settings.level_steps) < 1:
        yield f"leaf_steps {settings.leaf_steps}: expected at least {settings.depth + 1}, a step for each level"
    if settings.where == "path" and settings.grow:
        yield 'grow: expected where = "leaves"; a tree whose inner nodes have adapters keeps its shape'
    if settings.where == "path" and settings.path_training == "joint" and settings.replicas == "alternate":
        yield (
            "replicas = alternate: expected path_training = cascade: nodes that are trained together move on at "
            "different times, and cannot take turns"
        )


def read_settings(file: Path, **overrides: object) -> RunSettings:
    """Read `run.toml`; `overrides` that are not None win.

    Raises:
        SettingError: The file is missing or no TOML, or a value is unknown or out of range.
    """
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(f"{file}: no such file; `tinylora-coordinator init` writes one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{file}: not readable as TOML: {error}") from None
    return make_settings(str(file), values | {key: value for key, value in overrides.items() if value is not None})


def make_settings(where: str, values: dict[str, object]) -> RunSettings:
    """Check raw values and freeze them.

    Raises:
        SettingError: A value is unknown or out of range; the message names it and says what was expected.
    """
    try:
        return RunSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        sentence = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        if not name:
            raise SettingError(f"{where}: {sentence}") from None
        raise SettingError(f"{where}: {name}: {sentence}, got {first['input']!r}") from None


def settings_hash(document: BaseModel) -> str:
    """sha256 of a settings object's canonical JSON."""
    text = json.dumps(document.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
