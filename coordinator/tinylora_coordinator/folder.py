"""A run's folder, which nobody but its owner may enter. `init` writes the first six; the others come with use.

run.toml              what the operator decided; edit it before the first `serve`
base.json             what identifies the base model, and the shapes of its linears
keys/                 CA, certificate, the run's key, the admin secret (`keys.py`)
projection.safetensors  of the routing feature, where the base's embeddings are wider than it
lookup.safetensors, tokenizer.json  for the page that routes a text (`dashboard/lookup.py`)
places.json           where the base has its projections, for leaves as PEFT adapters
operator.sqlite       tokens, workers, orders (`operator_store.py`)
ledger.sqlite, blobs/ the run's memory
views.sqlite          what the dashboard shows; made again from the ledger when it is missing
link.db, flower/      Flower's own state: nodes and messages under way
bundle.safetensors    the result
bundles/              what was made of the run meanwhile (`shelf.py`)
served.json           where it is served, while it is (`served.py`)
restored.json         where it came from, if it was restored from a backup (`backup/`)
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from tinylora import durable
from tinylora.adapters.shapes import check_projections
from tinylora.config import BaseFacts, RunSettings, make_settings, read_settings
from tinylora.errors import SettingError, StorageError
from tinylora_coordinator.keys import KeyFolder, OwnCertificate, make_keys

_HEAD = """\
# A TinyLoRA run. Values may be changed until `tinylora-coordinator serve` is called for the first time; after that they
# belong to the run's history.
"""

SECTIONS: dict[str, dict[str, str]] = {
    "Name and seed": {
        "name": "shown to workers and in the bundle",
        "seed": "decides adapters' first values and the order of batches",
    },
    "The tree": {
        "depth": "levels of the perfect tree that the topology starts as: 2**depth leaves",
        "grow": "start as one leaf; those that stop improving split, into 2**depth leaves at most",
        "adapter": "kind of every adapter: lora, nested, nested:frozen, or tied and what is trained, as in tied:A,B,uv",
        "rank": "of every adapter",
        "ranks": 'of single projections, such as { "mlp.up_proj" = 4 }; at most rank',
        "alpha": "scale = alpha / rank",
        "where": '"leaves" carry adapters, or every node of a "path", whose adapters add up',
        "path_training": '"cascade": from the root down, ancestors frozen; "joint": all adapters of a path at once',
        "path_steps": "of a cascade: leaf_steps divided among the levels, the root's first; [] is equal shares",
    },
    "Learning": {
        "learning_rate": "peak, after the warm-up; falls to a tenth over leaf_steps",
        "warmup_steps": "optimiser steps from nothing to the peak",
        "leaf_steps": "optimiser steps that a leaf gets in all from one worker",
        "unit_steps": "optimiser steps of one work unit",
        "batch_windows": "windows in one optimiser step",
        "window_tokens": "tokens in one window; at most what the base can attend to",
    },
    "Several workers on one node": {
        "replicas": '"mean" of A and of B; "alternate": B and A trained in turn; "product": mean of B A, cut to rank',
        "outer_lr": "rate of the step from a round's start towards the mean; 1 takes the mean",
        "outer_momentum": "Nesterov momentum of these steps; 0.9 may pay from ten rounds on",
    },
    "Routing": {
        "router_sync": '"statistics": summed, exact; "weights": averaged; "both": statistics used, weights compared',
        "router_period": "accepted updates between two router versions",
        "router_feature": '"embedding": means of input embeddings; "embedding+table": and of random signs of tokens',
        "router_dim": "numbers in the routing feature at most; a worker's sums grow with the square",
    },
    "The start, and who may take part": {
        "min_workers": "sketches to wait for before the tree is set",
        "start_after_s": "seconds after which the tree is set with fewer",
        "min_sequences": "windows below which a shard is not sketched: its sums would tell too much of a single text",
    },
    "Leases": {
        "first_deadline_s": "seconds for a unit while no times were observed yet",
        "deadline_slack": "k in: deadline = median + k * MAD of observed times",
        "max_update_mib": "largest payload of a unit or an update",
    },
    "Trust": {
        "probes": "other workers who score an update before it counts; 0 believes it unscored",
        "probe_windows": "windows of its own held-out text that each of them scores",
        "probe_tolerance": "nats per token by which their median may find an update worse than what it replaces",
        "clip": "longest way of an update of something shared, in medians over the round; 0 is no limit",
        "influence_cap": "most that one worker's sums may count in the routers, in medians over all workers",
        "max_leaf_share": "largest share of other workers' text that the gates may send to one worker's leaf",
    },
    "Disk": {
        "disk_cap_mib": "blobs are pruned before they take more; 0 keeps all",
        "keep_versions": "latest versions of each node that are never pruned",
    },
}
"""Every setting with the comment that `init` writes beside it."""

durable.register_file("folder")


@dataclass(frozen=True)
class RunFolder:
    """Where things are."""

    root: Path

    @property
    def settings_file(self) -> Path:
        """What the operator decided."""
        return self.root / "run.toml"

    @property
    def base_file(self) -> Path:
        """Facts about the base."""
        return self.root / "base.json"

    @property
    def keys(self) -> KeyFolder:
        """The run's keys."""
        return KeyFolder(self.root / "keys")

    @property
    def lock_file(self) -> Path:
        """Locked while the run is served; names the process."""
        return self.root / "lock"

    @property
    def projection_file(self) -> Path:
        """The routing feature's projection, if it has one."""
        return self.root / "projection.safetensors"

    @property
    def lookup_file(self) -> Path:
        """What each token adds to the routing feature."""
        return self.root / "lookup.safetensors"

    @property
    def tokenizer_file(self) -> Path:
        """The base's tokenizer, if it can be used without transformers."""
        return self.root / "tokenizer.json"

    @property
    def places_file(self) -> Path:
        """Where the base has its projections, for leaves as PEFT adapters; runs of older programs have none."""
        return self.root / "places.json"

    @property
    def link_database(self) -> Path:
        """Flower's state."""
        return self.root / "link.db"

    @property
    def flower_home(self) -> Path:
        """Flower's home of this process."""
        return self.root / "flower"

    @property
    def bundle_file(self) -> Path:
        """The result."""
        return self.root / "bundle.safetensors"


@dataclass(frozen=True)
class Tables:
    """What a run needs to route a text without its base, as `dashboard.lookup` reads it."""

    table: bytes
    tokenizer: bytes


@dataclass(frozen=True)
class RunFiles:
    """What `init` wrote, read back."""

    settings: RunSettings
    base: BaseFacts


def run_id(settings: RunSettings) -> str:
    """The run's name as it stands in documents: letters, digits and a few signs."""
    return settings.run_id


def parse_changes(changes: list[str]) -> dict[str, object]:
    """Read `key=value` texts.

    Raises:
        SettingError: One has no equals sign.
    """
    values: dict[str, object] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise SettingError(f"--set {change}: expected key=value, such as --set depth=3")
        values[key.strip()] = value.strip()
    return values


def check_is_new(folder: RunFolder) -> None:
    """Refuse a folder that holds a run.

    Raises:
        SettingError: It does.
    """
    if folder.settings_file.exists():
        raise SettingError(f"{folder.root}: holds a run already; serve it, or choose another folder")


def check_settings(settings: RunSettings, base: BaseFacts) -> None:
    """Check settings against the base that they are for.

    Raises:
        SettingError: The window is longer than the base can attend to, or the adapters do not fit its projections.
    """
    check_projections(base, settings.spec)
    if settings.window_tokens > base.max_window_tokens:
        raise SettingError(
            f"window_tokens: {base.base_id} attends to at most {base.max_window_tokens} tokens, got "
            f"{settings.window_tokens}; add --set window_tokens={base.max_window_tokens}"
        )


def write_run(
    folder: RunFolder,
    settings: RunSettings,
    base: BaseFacts,
    projection: bytes | None,
    *,
    hosts: Sequence[str] = (),
    own: OwnCertificate | None = None,
    now: datetime | None = None,
    tables: Tables | None = None,
    places: str = "",
) -> None:
    """Write what a run starts from; run.toml comes last, so that a folder with one is complete.

    Args:
        folder: Made with mode 0700.
        settings: As the operator decided.
        base: Facts about the base.
        projection: Of the routing feature, where it has one.
        hosts: Names and addresses by which workers will reach the coordinator, beside this machine's own.
        own: The operator's certificate, used instead of one of ours.
        now: Time, with zone, that certificates count from; the present by default.
        tables: For the page that routes a text, where the base's tokenizer allows it.
        places: Where the base has its projections, as `export.Places` writes it.

    Raises:
        SettingError: A host is neither a name nor an address, or `own` is no certificate with its key.
        StorageError: The folder cannot be written.
    """
    try:
        folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.root.chmod(0o700)
        make_keys(folder.keys, run=settings.name, hosts=hosts, now=now or datetime.now(UTC), own=own)
        _write(folder.base_file, (json.dumps(base.model_dump(mode="json"), indent=1) + "\n").encode())
        if projection is not None:
            _write(folder.projection_file, projection)
        if tables is not None:
            _write(folder.tokenizer_file, tables.tokenizer)
            _write(folder.lookup_file, tables.table)
        if places:
            _write(folder.places_file, places.encode())
        _write(folder.settings_file, settings_text(settings).encode())
    except OSError as error:
        raise StorageError(f"{folder.root}: {error.strerror or error}; choose another folder") from None


def write_tables(folder: RunFolder, tables: Tables) -> None:
    """Write the tables of a run that is there already.

    Raises:
        StorageError: The folder cannot be written.
    """
    try:
        _write(folder.tokenizer_file, tables.tokenizer)
        _write(folder.lookup_file, tables.table)
    except OSError as error:
        raise StorageError(f"{folder.root}: {error.strerror or error}; free some space") from None


def _write(file: Path, data: bytes) -> None:
    durable.replace_file(file, data, name="folder", mode=0o644)


def settings_text(settings: RunSettings) -> str:
    """Settings as TOML with a comment for each."""
    values = settings.model_dump(mode="json")
    lines = [_HEAD]
    for title, comments in SECTIONS.items():
        lines.append(f"# {title}")
        lines += [f"{name} = {_toml(values[name])}  # {comment}" for name, comment in comments.items()]
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    """A value in one line; JSON writes all but tables as TOML does, if non-ASCII letters stay as they are."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(name)} = {_toml(part)}" for name, part in value.items()) + "}"
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f") if isinstance(value, str) else text


def read_run(folder: RunFolder) -> RunFiles:
    """Read what `init` wrote.

    Raises:
        SettingError: The folder holds no run, or a file of it is missing or unreadable.
    """
    if not folder.settings_file.is_file():
        raise SettingError(
            f"{folder.root}: no run here (run.toml is missing); make one with `tinylora-coordinator init {folder.root} "
            "--base PATH`"
        )
    settings = read_settings(folder.settings_file)
    base = _read_base(folder.base_file)
    check_settings(settings, base)
    return RunFiles(settings, base)


def _read_base(file: Path) -> BaseFacts:
    try:
        return BaseFacts.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{file}: not readable: {error}; `tinylora-coordinator init` writes it") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise SettingError(f"{file}: {where}: {first['msg']}; `tinylora-coordinator init` writes it") from None


def changed(values: dict[str, object]) -> RunSettings:
    """Settings with these values instead of the defaults.

    Raises:
        SettingError: One is unknown or out of range.
    """
    return make_settings("--set", values)
