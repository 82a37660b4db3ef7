"""What anybody can take away from a run: its bundles, and single leaves as PEFT adapters."""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tinylora.errors import DataError, SettingError, StorageError, TinyLoraError
from tinylora.federation.events import BundlePublished
from tinylora.tree import NodePath, is_path, is_under
from tinylora_coordinator.dashboard import documents as doc
from tinylora_coordinator.dashboard.press import Child, Ended, Press, check_ended
from tinylora_coordinator.dashboard.source import Views
from tinylora_coordinator.folder import RunFolder

MOST_BUNDLES = 50
"""That are listed, the newest."""
KEEP_LEAVES = 16
"""Zipped leaves that stay, those that were made last."""


class RunArtifacts:
    """Implements `services.ArtifactDesk` on a run's folder. May be used from any thread.

    Args:
        root: The run's folder.
        views: Knows the tree.
        press: Writes bundles; started and closed by the caller.
        run: Runs `tinylora-coordinator` with some words.
    """

    def __init__(
        self, root: Path, views: Views, press: Press, *, run: Callable[[Sequence[str]], Ended] | None = None
    ) -> None:
        self._root, self._views, self._press = root, views, press
        self._child = Child()
        self._run = run or self._child.run
        self._published = _FileHash(RunFolder(root).bundle_file)
        self._leaf_lock = threading.Lock()

    def close(self) -> None:
        """End what is being written, and write nothing any more."""
        self._child.kill()

    # --- bundles -----------------------------------------------------------------------------------------------------

    def list(self, can_make: bool) -> doc.Artifacts:
        """All there is, the newest first.

        Args:
            can_make: Whether whoever asks may have a new one written.
        """
        return doc.Artifacts(
            bundles=tuple(self._bundles()[:MOST_BUNDLES]),
            is_making=self._press.is_making,
            making_error=self._press.error,
            leaves=tuple(self._leaves()),
            can_make=can_make,
        )

    def _bundles(self) -> Sequence[doc.BundleRow]:
        with suppress(TinyLoraError):  # what was known of the log holds
            self._press.watch.look()
        named, published = self._press.watch.named, self._published.sha256()
        known = {made.sha256: made for made in (*self._press.shelf.all(), *named.values())}
        rows = [
            self._row(made, is_named=made.sha256 in named, is_published=made.sha256 == published)
            for made in sorted(known.values(), key=lambda made: (-made.n_events, made.sha256))
        ]
        if published and published not in known:  # written by the command, before it noted what it writes
            rows.insert(0, self._unknown(published))
        return rows

    def _row(self, made: BundlePublished, *, is_named: bool, is_published: bool) -> doc.BundleRow:
        is_here = is_published or self._press.shelf.file(made.sha256) is not None
        return doc.BundleRow(
            sha256=made.sha256,
            bytes=made.bytes,
            n_events=made.n_events,
            log_sha256=made.log_sha256,
            router_version=made.router_version,
            at_s=made.at_s,
            is_published=is_published,
            is_recorded=is_named,
            url=f"/api/v1/bundles/{made.sha256}" if is_here else "",
        )

    def _unknown(self, sha256: str) -> doc.BundleRow:
        return doc.BundleRow(
            sha256=sha256,
            bytes=self._published.n_bytes(),
            n_events=0,
            log_sha256="",
            router_version=0,
            at_s=0.0,
            is_published=True,
            url=f"/api/v1/bundles/{sha256}",
        )

    def make(self) -> None:
        """Have a bundle of the present tree written; returns at once.

        Raises:
            RefusedError: One is being written.
            StorageError: There is no space.
        """
        self._press.make()

    def bundle(self, sha256: str) -> Path | None:
        """The file of a bundle; None where there is none of that hash."""
        file = self._press.shelf.file(sha256)
        if file is None and sha256 == self._published.sha256():
            return self._published.file
        return file

    # --- leaves ------------------------------------------------------------------------------------------------------

    def _leaves(self) -> Sequence[doc.LeafFile]:
        """The leaves that somebody has trained, or something on the way to them."""
        nodes = {node.path: node for node in self._views.state().nodes}
        return [
            doc.LeafFile(path=path, version=node.version, n_steps=node.n_steps, url=f"/api/v1/leaves/{path or 'root'}")
            for path, node in sorted(nodes.items())
            if node.kind == "leaf" and any(_versions(nodes, path))
        ]

    def leaf(self, path: str) -> Path | None:
        """A leaf as a zipped PEFT adapter; None where the tree has no such leaf, or nobody has trained it.

        The same version is made once. Making it takes some seconds in a process of low priority, one at a time.

        Raises:
            SettingError: Nobody here knows how the base's modules are called.
            StorageError: It cannot be written.
        """
        nodes = {node.path: node for node in self._views.state().nodes}
        node = nodes.get(path) if is_path(path) else None
        if node is None or node.kind != "leaf" or not any(_versions(nodes, path)):
            return None
        name = f"leaf-{path or 'root'}-{'.'.join(map(str, _versions(nodes, path)))}"
        with self._leaf_lock:
            return self._press.shelf.leaf(name) or self._make_leaf(path, name)

    def _make_leaf(self, path: NodePath, name: str) -> Path:
        file = self._press.shelf.new_leaf()
        try:
            _check_leaf(self._run(["leaf", str(self._root), path or "root", "--out", str(file)]))
            return self._press.shelf.take_leaf(file, name, KEEP_LEAVES)
        except OSError as error:
            raise StorageError(f"{file.parent}: {error.strerror or error}") from None
        finally:
            file.unlink(missing_ok=True)


def _versions(nodes: dict[str, doc.Node], path: NodePath) -> tuple[int, ...]:
    """Of all nodes on the way to a leaf, the root's first: what its file depends on."""
    return tuple(node.version for above, node in sorted(nodes.items()) if is_under(path, above))


def _check_leaf(ended: Ended) -> None:
    try:
        check_ended(ended)
    except StorageError as error:
        if ended.code in (SettingError.exit_code, DataError.exit_code, 4):
            raise SettingError(str(error)) from None
        raise


class _FileHash:
    """sha256 of a file that may be replaced: of gigabytes one does not take it for each request."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._known: tuple[tuple[int, ...], str] = ((), "")

    def sha256(self) -> str:
        """Of the version there is now; empty where there is none."""
        try:
            with self.file.open("rb") as opened, self._lock:
                stat = os.fstat(opened.fileno())
                version = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
                if self._known[0] != version:
                    self._known = (version, hashlib.file_digest(opened, "sha256").hexdigest())
                return self._known[1]
        except OSError:
            return ""

    def n_bytes(self) -> int:
        """Its size; 0 where there is none."""
        try:
            return self.file.stat().st_size
        except OSError:
            return 0
