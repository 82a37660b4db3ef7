"""The bundle of a run: written at any time, published at its end."""

from pathlib import Path
from typing import Any

from tinylora import tensors
from tinylora.bundle import write_bundle
from tinylora.errors import DataError, StorageError
from tinylora.federation.campaign import Campaign, fold
from tinylora.federation.ports import Ledger
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.release import make_bundle
from tinylora_coordinator.folder import RunFolder, read_run

_PROJECTION = "router.projection"


def release(folder: RunFolder, ledger: Ledger, campaign: Campaign, file: Path, *, without: str = "") -> str:
    """Write the run's tree as it stands, or as it would without a worker; returns the file's sha256.

    Raises:
        DataError: The run has no tree yet, or does not know the worker.
        StorageError: The file cannot be written.
    """
    projection = None
    if folder.projection_file.exists():
        projection = tensors.from_bytes(folder.projection_file.read_bytes())[_PROJECTION]
    return write_bundle(make_bundle(campaign, ledger, projection=projection, without=without), file)


def projection_bytes(projection: Any) -> bytes | None:
    """The routing feature's projection as `init` keeps it; None where the feature needs none."""
    return None if projection is None else tensors.to_bytes({_PROJECTION: projection})


def bundle(root: Path, out: Path, *, without: str = "") -> str:
    """Write the bundle of the run in `root`, whether it is being served, stopped or finished.

    Args:
        root: The run's folder.
        out: The file to write.
        without: A worker whose share is left out; the run stays as it is.

    Raises:
        SettingError: There is no run in `root`.
        DataError: It has no tree yet, or does not know the worker.
        StorageError: `out` cannot be written.
    """
    folder = RunFolder(root)
    files = read_run(folder)
    if not out.parent.is_dir():
        raise StorageError(f"{out}: no such folder; make it first")
    with SqliteLedger.open_readonly(root) as ledger:
        campaign = fold(ledger.events())
        if campaign is None:
            raise DataError(f"{root}: run {files.settings.name} has not begun; serve it first")
        return release(folder, ledger, campaign, out, without=without)
