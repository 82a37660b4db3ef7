"""One leaf of a run as a zipped PEFT adapter, from the ledger as it stands. Loads torch."""

import errno
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tinylora.errors import BaseModelError, DiskFull, SettingError, StorageError
from tinylora.export import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Card, Places, export_leaf
from tinylora.federation.campaign import Campaign
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.release import make_bundle
from tinylora.tree import NodePath
from tinylora_coordinator.folder import RunFolder, read_run
from tinylora_coordinator.service import reading


def leaf_file(root: Path, leaf: NodePath, out: Path, *, base: str = "") -> dict[str, Any]:
    """Write a leaf of the run in `root`, whether it is being served, stopped or finished.

    Args:
        root: The run's folder.
        leaf: Its path.
        out: The file to write; it is whole, or as it was before.
        base: The run's base, folder or hub id, where the run's folder does not say how its modules are called.

    Returns:
        What was written, ready for JSON.

    Raises:
        SettingError: There is no run in `root`, no such leaf, or nobody has trained it.
        DataError: The run has no tree yet.
        BaseModelError: Nobody here knows how the base's modules are called.
        StorageError: `out` cannot be written.
    """
    places = _places(root, base)

    def write(ledger: SqliteLedger, campaign: Campaign) -> dict[str, Any]:
        bundle = make_bundle(campaign, ledger, statistics="none", leaf=leaf)
        known = campaign.leaves
        if leaf not in known:
            told = ", ".join(path or "root" for path in known[:16])
            raise SettingError(f"leaf {leaf or 'root'}: the tree has no such leaf; it has {told}")
        node = campaign.nodes[campaign.top_of(leaf)]
        with TemporaryDirectory(prefix="tinylora-leaf-", dir=out.parent) as place:
            made = export_leaf(bundle, leaf, Path(place) / "leaf", places=places, card=Card(n_steps=node.steps))
            files = [made.folder / name for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)]
            write_leaf(out, f"{campaign.run}-leaf-{leaf or 'root'}", files)
        return {
            "file": str(out),
            "leaf": leaf,
            "bytes": out.stat().st_size,
            "n_events": campaign.n_events,
            "n_steps": node.steps,
            "nodes": list(made.nodes),
            "rank": made.rank,
            "version": node.version,
        }

    return reading(root, write)


def _places(root: Path, base: str) -> Places:
    folder = RunFolder(root)
    facts = read_run(folder).base
    if not base and folder.places_file.exists():
        return Places.read(folder.places_file)
    try:
        return Places.find(base or facts.base_id)
    except BaseModelError:
        if base:
            raise
        raise BaseModelError(
            f"{root}: nothing here says how the modules of base {facts.base_id} are called (no places.json), and the "
            "base is not on this machine; name it with `tinylora-coordinator leaf --base PATH`"
        ) from None


def write_leaf(out: Path, folder: str, files: Iterable[Path]) -> None:
    """Zip these files as one folder, not packed: trained numbers have no pattern. The same files, the same bytes.

    Raises:
        StorageError: The file cannot be written.
    """
    beside = out.with_name(f".{out.name}.part")
    try:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as packed:
            for file in files:
                info = zipfile.ZipInfo(f"{folder}/{file.name}", date_time=(1980, 1, 1, 0, 0, 0))
                info.external_attr = 0o644 << 16
                with packed.open(info, "w", force_zip64=file.stat().st_size >= 2**31) as entry, file.open("rb") as data:
                    shutil.copyfileobj(data, entry, 2**20)
        beside.replace(out)
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"{out}: cannot be written: {error.strerror or error}; choose another place") from None
    finally:
        beside.unlink(missing_ok=True)
