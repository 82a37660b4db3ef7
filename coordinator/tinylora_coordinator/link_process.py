"""The link: Flower's app for our rounds on an inner listener, a door for everybody, and one for the operator's machine.

A child of the supervisor, which has opened all sockets. It may be killed at any moment: all it knows is in link.db and
operator.sqlite, and both ends repeat what was under way.
"""

import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tinylora.errors import NetworkError, SettingError
from tinylora.flower import use_home
from tinylora_coordinator.folder import RunFolder, read_run
from tinylora_coordinator.lifeline import UP, Told, run_child, tell
from tinylora_coordinator.operator_store import OperatorStore

_LOOK_S = 0.2


def main() -> None:
    """Entry point of the process."""
    run_child(_load, _work)


def _load(root: Path) -> None:
    use_home(RunFolder(root).flower_home)
    import tinylora_coordinator.dashboard.opening
    import tinylora_coordinator.public_door  # noqa: F401  Flower reads its home when it is imported


def _work(root: Path, first: dict[str, Any], stop: threading.Event, listen: Callable[[Told], None]) -> None:
    from tinylora.flower.link import LinkSecrets, create_link
    from tinylora_coordinator.dashboard.opening import opened, reach_of
    from tinylora_coordinator.front_door import own_hosts, serve_internal, serve_public, server_tls
    from tinylora_coordinator.proxies import Proxies, read_networks
    from tinylora_coordinator.public_door import make_door, make_local_door, phase_reader
    from tinylora_coordinator.public_status import PublicStatus

    folder = RunFolder(root)
    files = read_run(folder)
    tls = None if first["certificate"] is None else server_tls(Path(first["certificate"]), Path(first["private_key"]))
    link = create_link(folder.link_database, LinkSecrets(first["admin"], bytes.fromhex(first["superexec_secret"])))
    end = _End()

    def told(line: dict[str, Any]) -> None:
        link.phase = line.get("phase", link.phase)
        end.told(line)

    inner, public = (socket.socket(fileno=first[name]) for name in ("inner_fd", "public_fd"))
    local = None if first["local_fd"] is None else socket.socket(fileno=first["local_fd"])
    local_port = 0 if local is None else local.getsockname()[1]
    with ExitStack() as held:
        store = held.enter_context(OperatorStore(root))
        held.enter_context(serve_internal(link.app, inner))
        host, port = public.getsockname()[:2]
        reach = reach_of(folder.keys, host, port, is_tls=tls is not None, local=own_hosts(local_port))
        phase = phase_reader(link, store, PublicStatus(root))
        shown = held.enter_context(
            opened(
                folder,
                files,
                store,
                phase=phase,
                reach=reach,
                viewers=first["viewers"],
                bundle_every=first["bundle_every"],
                log=_say,
            )
        )
        proxies = Proxies(
            read_networks(first["proxies"]),
            speak_first=first["proxy_protocol"],
            end_tls=first["by_proxy"],
            only=tls is None and bool(first["proxies"]),
        )
        door = make_door(link, folder, files, store, dashboard=shown.dashboard, reports=shown.reports, proxies=proxies)
        held.enter_context(serve_public(door, public, tls=tls))
        if local is not None:
            own = make_local_door(link, folder, files, port=local_port, dashboard=shown.dashboard)
            held.enter_context(serve_public(own, local, tls=None, name="dashboard"))
        if first["url"]:
            _check_surface(first["url"], link.routes())
        told(first)
        listen(told)
        tell(UP)
        while not stop.wait(_LOOK_S) and not end.is_due(lambda: not link.online_workers()):
            pass


def _say(line: str) -> None:
    """One line for the operator; stdout is the supervisor's."""
    print(line, file=sys.stderr, flush=True)


def _check_surface(url: str, routes: list[tuple[str, str]]) -> None:
    """See with a stranger's eyes that nothing of Flower but the fleet's part answers.

    Raises:
        SettingError: Something else does.
        NetworkError: Nothing does, which may pass: a machine that is busy, or workers who all come back at once.
    """
    from tinylora_coordinator.selfcheck import check_surface

    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # we know who answers; on this address no certificate needs to hold
    ours.check_hostname, ours.verify_mode = False, ssl.CERT_NONE
    check = check_surface(url, routes, tls=ours if url.startswith("https:") else None)
    if check.status == "fail":
        kind = NetworkError if check.code == "surface-unreachable" else SettingError
        raise kind(f"{url}: not served: {check.found}; {check.cure}")


class _End:
    """A finished run lingers until its workers have noticed, and not longer than it was told."""

    def __init__(self) -> None:
        self._at: float | None = None

    def told(self, line: dict[str, Any]) -> None:
        """Begin to linger, if the line says so."""
        if line.get("phase") == "finished":
            self._at = time.monotonic() + line["linger_s"]

    def is_due(self, is_alone: Callable[[], bool]) -> bool:
        """Whether it is time to go."""
        return self._at is not None and (time.monotonic() >= self._at or is_alone())


if __name__ == "__main__":
    main()
