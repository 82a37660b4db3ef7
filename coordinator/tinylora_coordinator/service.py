"""The bundle of a run: written at any time, published at its end."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from tinylora import tensors
from tinylora.bundle import Signer, StatisticsKind, write_bundle
from tinylora.errors import DataError, DiskFull, StorageError
from tinylora.federation.campaign import Campaign
from tinylora.federation.events import BundlePublished
from tinylora.federation.ports import Ledger
from tinylora.federation.record import past
from tinylora.ledger.sqlite import SqliteLedger
from tinylora.release import described, make_bundle, record
from tinylora_coordinator.folder import RunFiles, RunFolder, read_run
from tinylora_coordinator.keys import run_key
from tinylora_coordinator.shelf import Shelf

Made = TypeVar("Made")

_PROJECTION = "router.projection"
_TRIES = 3


def release(
    folder: RunFolder,
    ledger: Ledger,
    campaign: Campaign,
    file: Path,
    *,
    without: str = "",
    statistics: StatisticsKind = "leaf",
) -> BundlePublished:
    """Write the run's tree as it stands, or as it would without a worker; returns what the log would say of the file.

    It is signed by the run's key: the same log gives the same bytes.

    Raises:
        DataError: The run has no tree yet, or does not know the worker.
        StorageError: The file cannot be written, or the run's key is not there.
    """
    made = make_bundle(campaign, ledger, projection=_projection(folder), without=without, statistics=statistics)
    sha256 = write_bundle(made, file, sign=Signer.of(run_key(folder.keys)))
    return described(campaign, ledger, sha256=sha256, n_bytes=file.stat().st_size)


def publish(folder: RunFolder, ledger: Ledger, campaign: Campaign) -> BundlePublished:
    """Write the bundle of a finished run where it is handed out, and name it in the log, once.

    Killed anywhere in between, it is called again when the run is taken up: the same events give the same bytes.

    Raises:
        DataError: The run has no tree.
        StorageError: The file or the log cannot be written.
    """
    made = release(folder, ledger, campaign, folder.bundle_file)
    record(campaign, ledger, made)
    return made


def _projection(folder: RunFolder) -> Tensor | None:
    if not folder.projection_file.exists():
        return None
    return tensors.from_bytes(folder.projection_file.read_bytes())[_PROJECTION]


def projection_bytes(projection: Any) -> bytes | None:
    """The routing feature's projection as `init` keeps it; None where the feature needs none."""
    return None if projection is None else tensors.to_bytes({_PROJECTION: projection})


def bundle(root: Path, out: Path, *, without: str = "", statistics: StatisticsKind = "leaf") -> BundlePublished:
    """Write the bundle of the run in `root`, whether it is being served, stopped or finished.

    Args:
        root: The run's folder.
        out: The file to write.
        without: A worker whose share is left out; the run stays as it is.
        statistics: What the file tells of the leaves' texts; see `tinylora.bundle.summarise`.

    Returns:
        What the file is: its hash, and of which log.

    Raises:
        SettingError: There is no run in `root`.
        DataError: It has no tree yet, or does not know the worker.
        StorageError: `out` cannot be written.
    """
    folder = RunFolder(root)
    if not out.parent.is_dir():
        raise StorageError(f"{out}: no such folder; make it first")
    made = reading(
        root, lambda ledger, campaign: release(folder, ledger, campaign, out, without=without, statistics=statistics)
    )
    if out == folder.bundle_file and not without:
        _note(root, made)
    return made


def _note(root: Path, made: BundlePublished) -> None:
    """So that the run's pages can tell of which log the published bundle is. Not worth failing for."""
    with suppress(OSError):
        Shelf(root).note(made)


def reading(root: Path, make: Callable[[SqliteLedger, Campaign], Made]) -> Made:
    """What `make` makes of the run in `root`, which may be being served.

    Meanwhile the rounds may prune a blob that the state named when it was read. Then they have gone on, and what they
    need now is there: it is read and made anew.

    Raises:
        SettingError: There is no run in `root`.
        DataError: It has not begun.
        StorageError: It cannot be read; or as `make` raises it.
    """
    files = read_run(RunFolder(root))
    with SqliteLedger.open_readonly(root) as ledger:
        for _ in range(_TRIES - 1):
            campaign = _begun(root, files, ledger)
            try:
                return make(ledger, campaign)
            except DiskFull:
                raise
            except StorageError:
                if ledger.head()[0] == campaign.n_events:
                    raise
        return make(ledger, _begun(root, files, ledger))


def _begun(root: Path, files: RunFiles, ledger: SqliteLedger) -> Campaign:
    campaign = past(ledger)
    if campaign is None:
        raise DataError(f"{root}: run {files.settings.name} has not begun; serve it first")
    return campaign
