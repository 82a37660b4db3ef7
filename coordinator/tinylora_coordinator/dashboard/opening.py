"""A run's dashboard, put together for the link: opened and closed with it, and never in its way.

Whatever goes wrong here costs the dashboard alone. Workers are served all the same, and the log has a sentence of it.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tinylora.errors import TinyLoraError
from tinylora.flower.enrolment import Phase
from tinylora.protocol.consent import CODE, NEVER_SENT, SENT
from tinylora_coordinator.access_tokens import mark_of
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.access import Viewers
from tinylora_coordinator.dashboard.addresses import is_ours
from tinylora_coordinator.dashboard.admin import RunAdmin
from tinylora_coordinator.dashboard.app import close_streams, create_app
from tinylora_coordinator.dashboard.artifacts import RunArtifacts
from tinylora_coordinator.dashboard.follower import Follower
from tinylora_coordinator.dashboard.lookup import TextRouter
from tinylora_coordinator.dashboard.machine import MachineWatch, certificate_end
from tinylora_coordinator.dashboard.press import Press
from tinylora_coordinator.dashboard.run_access import RunAccess
from tinylora_coordinator.dashboard.services import Services
from tinylora_coordinator.dashboard.views import RunViews
from tinylora_coordinator.folder import RunFiles, RunFolder, run_id
from tinylora_coordinator.front_door import Dashboard
from tinylora_coordinator.keys import KeyFolder, admin_secret, host_to_name, read_own, read_public, run_public
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.reports import ReportDesk

VIEWS_FILE = "views.sqlite"


@dataclass(frozen=True)
class Reach:
    """Where the run is reached.

    Attributes:
        for_workers: scheme://host:port for whoever is not told better.
        local: host:port of the loopback listener, by all its names.
        is_said: Whether the operator said it, so that nobody is told better.
        is_tls: Whether the certificate is shown here, rather than by a proxy or by nobody.
    """

    for_workers: str
    local: frozenset[bytes] = frozenset()
    is_said: bool = False
    is_tls: bool = False

    def as_workers_do(self, address: str) -> str:
        """Where workers reach the run, for a reader who came by an address: by the same, if that is public."""
        is_none = urlsplit(address).netloc.lower().encode() in (*self.local, b"")
        return self.for_workers if self.is_said or is_none else address


def reach_of(keys: KeyFolder, host: str, port: int, *, is_tls: bool, local: frozenset[bytes]) -> Reach:
    """Where a run is reached that listens on an address.

    Args:
        keys: The run's; its certificate names the host that workers use.
        host: That it listens on.
        port: That it listens on.
        is_tls: Whether it is served in TLS; without, it is this machine's alone.
        local: See `Reach`.

    Raises:
        SettingError: The note of the public address is not readable.
        StorageError: The certificate cannot be read.
    """
    if (public := read_public(keys)) is not None:
        return Reach(public.url, local, is_said=True, is_tls=is_tls)
    name = host_to_name(keys) if is_tls else f"[{host}]" if ":" in host else host
    return Reach(f"{'https' if is_tls else 'http'}://{name}:{port}", local, is_tls=is_tls)


@dataclass(frozen=True)
class Opened:
    """What the doors need of it.

    Attributes:
        dashboard: For both; None where it cannot be shown.
        reports: Takes in what workers say of themselves; they are asked to whether or not anybody sees it.
    """

    dashboard: Dashboard | None
    reports: ReportDesk


@contextmanager
def opened(
    folder: RunFolder,
    files: RunFiles,
    store: OperatorStore,
    *,
    phase: Callable[[], Phase],
    reach: Reach,
    viewers: Viewers,
    bundle_every: int = 0,
    log: Callable[[str], None],
) -> Iterator[Opened]:
    """The dashboard of a run, until the block ends.

    Args:
        folder: The run's.
        files: Its settings and its base.
        store: The operator's file.
        phase: Tells what the run is doing, from any thread.
        reach: Where the run is reached.
        viewers: Who may look at the public address.
        bundle_every: Write a bundle after so many versions of the routers; 0: only when asked to.
        log: Takes one line for the operator.
    """
    with ExitStack() as held:
        try:
            found = _open(held, folder, files, store, phase, reach, viewers, bundle_every, log)
        except Exception as error:  # whatever it is, workers are served
            held.close()
            said = error if isinstance(error, TinyLoraError) else f"{type(error).__name__}: {error}"
            log(f"the dashboard cannot be shown ({said}); the run goes on without it")
            found = Opened(None, ReportDesk(lambda worker, report, at_s: None, clock=lambda: 0.0))
        yield found


def _open(
    held: ExitStack,
    folder: RunFolder,
    files: RunFiles,
    store: OperatorStore,
    phase: Callable[[], Phase],
    reach: Reach,
    viewers: Viewers,
    bundle_every: int,
    log: Callable[[str], None],
) -> Opened:
    views = _views(folder.root / VIEWS_FILE, run_id(files.settings), log)
    held.callback(views.close)
    press = Press(folder.root, store, every=bundle_every)
    held.callback(press.close)
    press.start()
    artifacts = RunArtifacts(folder.root, views, press)
    machine = MachineWatch(
        folder.root,
        n_orders=lambda: len(store.orders()),
        certificate_ends_s=_certificate_end(folder.keys) if reach.is_tls else None,
    )
    held.callback(machine.close)
    services = Services(
        views=views,
        look_up=_look_up(folder, files, views),
        artifacts=artifacts,
        admin=RunAdmin(folder.root, store, as_workers_do=reach.as_workers_do),
        join=lambda address: join_info(files, reach.as_workers_do(address), phase()),
        access=RunAccess(store, mark=mark_of(run_public(folder.keys)), key=_session_key(folder.keys), viewers=viewers),
        machine=machine.look,
    )
    app = create_app(services)
    held.callback(app.state.threads.close)
    held.callback(close_streams, app)
    held.callback(artifacts.close)
    follower = Follower(folder.root, views, store, phase)
    follower.start()
    held.callback(follower.stop)
    return Opened(Dashboard(app, is_ours), ReportDesk(views.hear, clock=lambda: views.clock_s))


def _certificate_end(keys: KeyFolder) -> float | None:
    own = read_own(keys)
    return certificate_end(keys.server if own is None else own.certificate)


def _views(file: Path, run: str, log: Callable[[str], None]) -> RunViews:
    """All of it can be made again from the events, so a disk that takes nothing is no reason to show nothing."""
    try:
        return RunViews(file, run=run)
    except Exception as error:
        log(f"{file}: {error}; the dashboard keeps its views in memory until the next start")
        return RunViews(None, run=run)


def _look_up(folder: RunFolder, files: RunFiles, views: RunViews) -> TextRouter:
    """Routes texts by the gates of now."""
    return TextRouter(
        folder,
        feature_hash=files.base.feature_hash,
        router_version=lambda: views.state().run.router_version,
        notes=lambda: {leaf.path: leaf.data_notes for leaf in views.routing().leaves},
    )


def _session_key(keys: KeyFolder) -> bytes:
    """What browsers' cookies are sealed with: the same after each start, and nobody's who has not the folder."""
    return hmac.new(admin_secret(keys).encode(), b"tinylora dashboard session", hashlib.sha256).digest()


def join_info(files: RunFiles, address: str, phase: Phase) -> doc.JoinInfo:
    """What somebody needs who wants to lend a machine."""
    return doc.JoinInfo(
        run=files.settings.name,
        address=address,
        command=f"tinylora-worker join {address} --data TEXTS",
        base_id=files.base.base_id,
        min_sequences=files.settings.min_sequences,
        sent=SENT,
        never_sent=NEVER_SENT,
        code=CODE,
        is_open=phase not in ("finished", "stopping"),
    )
