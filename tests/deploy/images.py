"""Builds the images of deploy/Dockerfile without registry, package index or daemon, and runs what is in them.

    FOLDER/rootfs.tar   Debian with Python, by mmdebstrap: what BASE_IMAGE is made of
    FOLDER/wheels/      all that pip would fetch, fetched before: no index is asked during the build
    FOLDER/context/     what `.dockerignore` lets through
    FOLDER/store/       buildah's images and containers

What is there already is used again. `buildah run` with chroot isolation has the image's files, user and environment,
and this machine's network and devices; it limits nothing.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.dockerfile import FILE, stages

ROOT = FILE.parents[1]
BASE = "localhost/tinylora-base"
TORCH_CPU_INDEX = stages()["needs-cpu"].argument("TORCH_INDEX_CPU")
COPIED = (
    ".dockerignore",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "constraints.txt",
    "deploy/Dockerfile",
    "deploy/requirements.txt",
    "tinylora",
    "coordinator/tinylora_coordinator",
    "worker/tinylora_worker",
)


@dataclass(frozen=True)
class Images:
    """The images, and how to call buildah on them."""

    folder: Path
    driver: str = os.environ.get("TINYLORA_BUILDAH_DRIVER", "overlay")

    def buildah(self, *words: str | Path) -> list[str]:
        """The command with its own places."""
        places = ["--root", self.folder / "store", "--runroot", self.folder / "run", "--storage-driver", self.driver]
        return ["buildah", *map(str, [*places, *words])]

    def call(self, *words: str | Path) -> str:
        """What it prints, if it succeeds."""
        done = subprocess.run(self.buildah(*words), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"buildah {' '.join(map(str, words))}: {done.stderr[-2000:]}"
        return done.stdout

    # --- making them --------------------------------------------------------------------------------------------------

    def make_base(self) -> None:
        """Debian with Python: what the official image has, by other means."""
        rootfs = self.folder / "rootfs.tar"
        if not rootfs.exists():
            packages = "--include=python3,python3-venv,ca-certificates"
            quiet = ["mmdebstrap", "--quiet", "--variant=minbase", packages, "bookworm", f"{rootfs}.part"]
            subprocess.run([*quiet, "--format=tar"], check=True)
            Path(f"{rootfs}.part").rename(rootfs)
        if BASE not in self.call("images"):
            (self.folder / "Base").write_text("FROM scratch\nADD rootfs.tar /\n")
            self.call("bud", "--isolation", "chroot", "-t", BASE, "-f", self.folder / "Base", self.folder)

    def fetch_wheels(self) -> Path:
        """All that pip would fetch; torch from its CPU index, or where that does not answer, from the usual one."""
        wheels = self.folder / "wheels"
        if not (wheels / ".complete").exists():
            [torch] = [line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch==")]
            if not self._download(wheels, torch, "--retries=0", "--timeout=15", "--index-url", TORCH_CPU_INDEX):
                assert self._download(wheels, torch)
            needed = ROOT / "deploy" / "requirements.txt"
            assert self._download(wheels, "--find-links", str(wheels), "-r", str(needed))
            build = [word for _, text in stages()["tools"].instructions for word in text.split() if "hatchling" in word]
            assert self._download(wheels, *build, "-c", str(needed), with_needs=True)
            (wheels / ".complete").touch()
        return wheels

    def _download(self, wheels: Path, *words: str, with_needs: bool = False) -> bool:
        """Whether pip could fetch it."""
        wheels.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        python = ["--python-version", "3.11", "--only-binary", ":all:", "--dest", str(wheels)]
        how = [] if with_needs else ["--no-deps"]
        return subprocess.run([*pip, *how, *python, *words], capture_output=True, check=False).returncode == 0

    def make_context(self) -> Path:
        """A clone's worth of files, with wheels where the Dockerfile looks for them."""
        context = self.folder / "context"
        shutil.rmtree(context, ignore_errors=True)
        for name in COPIED:
            source, target = ROOT / name, context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target, ignore=_ignored) if source.is_dir() else shutil.copy2(source, target)
        wheels = context / "deploy" / "wheels"
        wheels.mkdir()
        for wheel in self.fetch_wheels().glob("*.whl"):
            (wheels / wheel.name).hardlink_to(wheel)
        return context

    def build(self, target: str, version: str) -> str:
        """Build one of the images; returns its name."""
        context, name = self.folder / "context", f"localhost/tinylora-{target}:{version}"
        said = [f"BASE_IMAGE={BASE}", "PIP_NO_INDEX=1", f"VERSION={version}"]
        arguments = [word for pair in said for word in ("--build-arg", pair)]
        how = ["--isolation", "chroot", "--layers", "--format", "docker", *arguments]
        self.call("bud", *how, "--target", target, "-t", name, "-f", context / "deploy" / "Dockerfile", context)
        return name

    # --- looking at them, and running them ----------------------------------------------------------------------------

    def config(self, image: str) -> dict[str, Any]:
        """What the image says of itself."""
        return json.loads(self.call("inspect", "--type", "image", image))["Docker"]["config"]

    def container(self, image: str, name: str) -> str:
        """A container of the image, by this name; an old one of that name is gone."""
        if name in self.call("containers", "--format", "{{.ContainerName}}").split():
            self.call("rm", name)
        self.call("from", "--name", name, image)
        # Where an image declares a volume and `run` is given one for the same place, buildah 1.28 lets chance decide.
        for place in self.config(image)["Volumes"]:
            self.call("config", "--volume", f"{place}-", name)
        return name

    def run(self, container: str, words: Sequence[str], volumes: Mapping[str, Path]) -> list[str]:
        """The command that runs these words in a container, as the image's own user."""
        mounts = [word for place, folder in volumes.items() for word in ("--volume", f"{folder}:{place}")]
        return self.buildah("run", "--isolation", "chroot", *mounts, container, "--", *words)

    def run_read_only(self, container: str, words: Sequence[str], volumes: Mapping[str, Path]) -> list[str]:
        """The same with a root that cannot be written and an empty /tmp, which chroot isolation does not offer."""
        root = self.call("mount", container).strip()
        config = json.loads(self.call("inspect", container))["Docker"]["config"]
        binds = [f"mount --bind {shlex.quote(str(folder))} {root}{place}" for place, folder in volumes.items()]
        steps = [
            f"mount --bind {root} {root}",
            f"mount -o remount,bind,ro {root}",
            f"mount -t tmpfs -o mode=1777 tmpfs {root}/tmp",
            f"mount --rbind /dev {root}/dev",
            f"mount -t proc proc {root}/proc",
            *binds,
        ]
        inside = ["chroot", f"--userspec={config['User']}", root, "/usr/bin/env", "-i", *config["Env"], *words]
        script = " && ".join([*steps, f"exec {shlex.join(inside)}"])
        return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script]

    def remove(self) -> None:
        """Containers, images and what is mounted are gone; what was fetched stays."""
        subprocess.run(self.buildah("rm", "--all"), capture_output=True, check=False)
        subprocess.run(self.buildah("rmi", "--all", "--force"), capture_output=True, check=False)


def _ignored(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]
