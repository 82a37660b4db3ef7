"""The doors of one run, put together: to everybody, and to the operator's own machine."""

from collections.abc import Callable

from starlette.types import ASGIApp

from tinylora.flower.enrolment import Phase
from tinylora.flower.identity import worker_of
from tinylora.flower.link import Link, PublicRoutes, state_routes
from tinylora_coordinator.folder import RunFiles, RunFolder, run_id
from tinylora_coordinator.front_door import Dashboard, FrontDoor, Limits, NodeAuth, own_hosts, public_pages
from tinylora_coordinator.joining import JoinCard, JoinDesk, join_routes
from tinylora_coordinator.keys import pin_of, run_key, run_public, served_ca
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.phase import PhaseReader
from tinylora_coordinator.proxies import NO_PROXIES, Proxies
from tinylora_coordinator.public_status import PublicStatus
from tinylora_coordinator.receipts import ReceiptOffice, receipt_routes
from tinylora_coordinator.reports import ReportDesk, report_routes


def make_door(
    link: Link,
    folder: RunFolder,
    files: RunFiles,
    store: OperatorStore,
    *,
    limits: Limits | None = None,
    dashboard: Dashboard | None = None,
    reports: ReportDesk | None = None,
    proxies: Proxies = NO_PROXIES,
) -> FrontDoor:
    """Everything that strangers, readers and workers may ask of this run: fleet, join, receipts, state and pages.

    A worker is let through while Flower knows its key and the operator has not revoked it.

    Raises:
        StorageError: A key of the run is missing or not readable.
        SettingError: The note of the operator's certificate, or of the public address, is not readable.
    """
    card = JoinCard(files.settings, files.base, run_public(folder.keys), pin_of(folder.keys))
    nodes = NodeAuth(lambda key: link.is_registered(key) and store.is_approved(worker_of(key)))
    office = ReceiptOffice(folder.root, run_id(files.settings), run_key(folder.keys))
    status = PublicStatus(folder.root)
    routes = {
        **_pages(link, folder, files, status),
        **state_routes(files.settings.name, phase_reader(link, store, status)),
        **join_routes(JoinDesk(card, store, link.register)),
        **receipt_routes(office, nodes.admit),
        **({} if reports is None else report_routes(reports, nodes.admit)),
    }
    return FrontDoor(routes, link.flower, nodes, limits=limits, spool=folder.root, dashboard=dashboard, proxies=proxies)


def make_local_door(
    link: Link, folder: RunFolder, files: RunFiles, *, port: int, dashboard: Dashboard | None
) -> FrontDoor:
    """What the operator's browser may ask on 127.0.0.1: the dashboard and the pages, and nothing that workers need.

    Raises:
        SettingError: The operator's certificate is not readable.
    """
    routes = _pages(link, folder, files, PublicStatus(folder.root))
    return FrontDoor(routes, spool=folder.root, dashboard=dashboard, own_hosts=own_hosts(port))


def phase_reader(link: Link, store: OperatorStore, status: PublicStatus) -> Callable[[], Phase]:
    """Tells what the run is doing, from any thread."""
    return PhaseReader(lambda: link.phase, store, status)


def _pages(link: Link, folder: RunFolder, files: RunFiles, status: PublicStatus) -> dict[tuple[str, str], ASGIApp]:
    pages: PublicRoutes = public_pages(
        ca_file=served_ca(folder.keys),
        bundle_file=folder.bundle_file,
        status=lambda: {"run": files.settings.name, "phase": link.phase, **status.read()},
    )
    return dict(pages)
