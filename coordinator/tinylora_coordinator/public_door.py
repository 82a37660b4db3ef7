"""The front door of one run, put together: fleet, join, receipts, state and pages, for those who may have each."""

from tinylora.flower.identity import worker_of
from tinylora.flower.link import Link, state_routes
from tinylora_coordinator.folder import RunFiles, RunFolder, run_id
from tinylora_coordinator.front_door import FrontDoor, Limits, NodeAuth, public_pages
from tinylora_coordinator.joining import JoinCard, JoinDesk, join_routes
from tinylora_coordinator.keys import pin_of, run_key, run_public, served_ca
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.phase import PhaseReader
from tinylora_coordinator.public_status import PublicStatus
from tinylora_coordinator.receipts import ReceiptOffice, receipt_routes


def make_door(
    link: Link, folder: RunFolder, files: RunFiles, store: OperatorStore, *, limits: Limits | None = None
) -> FrontDoor:
    """Everything that strangers and workers may ask of this run.

    A worker is let through while Flower knows its key and the operator has not revoked it.

    Raises:
        StorageError: A key of the run is missing or not readable.
        SettingError: The operator's certificate is not readable.
    """
    card = JoinCard(files.settings, files.base, run_public(folder.keys), pin_of(folder.keys))
    nodes = NodeAuth(lambda key: link.is_registered(key) and store.is_approved(worker_of(key)))
    office = ReceiptOffice(folder.root, run_id(files.settings), run_key(folder.keys))
    status = PublicStatus(folder.root)
    pages = public_pages(
        ca_file=served_ca(folder.keys),
        bundle_file=folder.bundle_file,
        status=lambda: {"run": files.settings.name, "phase": link.phase, **status.read()},
    )
    routes = {
        **pages,
        **state_routes(files.settings.name, PhaseReader(lambda: link.phase, store, status)),
        **join_routes(JoinDesk(card, store, link.register)),
        **receipt_routes(office, nodes.admit),
    }
    return FrontDoor(routes, link.flower, nodes, limits=limits, spool=folder.root)
