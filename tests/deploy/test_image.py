"""The images are built and a small run is made in them: coordinator, two workers, the bundle.

Built from Debian's packages and from wheels that were fetched before, with buildah (see images.py). It takes some
minutes. TINYLORA_IMAGES names a folder that is kept, so that the next time only what has changed is made.
"""

import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tinylora
from tests.deploy.dockerfile import stages
from tests.deploy.images import Images
from tinylora.demo.corpus import available_domains, read_documents

pytestmark = pytest.mark.deploy

Processes = tuple[subprocess.Popen[bytes], ...]

RUN, HOME, HUB, TEXT, TOKENS = (
    "/var/lib/tinylora",
    "/var/lib/tinylora-worker",
    "/var/cache/huggingface",
    "/text",
    "/run/tinylora-token",
)
WORKERS = ("worker-1", "worker-2")
SETTINGS = {
    "name": "images",
    "depth": 1,
    "leaf_steps": 16,
    "unit_steps": 8,
    "batch_windows": 4,
    "window_tokens": 128,
    "min_workers": 2,
    "min_sequences": 50,
    "first_deadline_s": 600,
}
STICKY = {"/tmp", "/var/tmp", "/run/lock"}
"""Debian's, for everybody; a root that cannot be written leaves only a /tmp of its own."""
SHARED = {"/var/lib/tinylora-joining", "/var/lib/tinylora-monitoring"}
"""Where compose's volumes lie; a new volume takes its owner from the image's folder."""
_NOT_LOOKED_AT = "( ! -readable -o -path /proc -o -path /sys -o -path /dev ) -prune"
FIND_WRITABLE = f"find / -xdev {_NOT_LOOKED_AT} -o ! -type l -writable -print -prune"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    kept = os.environ.get("TINYLORA_IMAGES", "")
    made = Images(Path(kept) if kept else tmp_path_factory.mktemp("images"))
    made.folder.mkdir(parents=True, exist_ok=True)
    made.make_base()
    made.make_context()
    try:
        yield made
    finally:
        if not kept:
            made.remove()


@pytest.fixture(scope="module")
def names(images: Images) -> dict[str, str]:
    """Both images for the CPU, by target; how long they took and how large they are is printed."""
    found = {}
    for target in ("coordinator", "worker-cpu"):
        begun = time.monotonic()
        found[target] = images.build(target, tinylora.__version__)
        size = json.loads(images.call("images", "--json", found[target]))[0]["size"]
        print(f"{target}: {time.monotonic() - begun:.0f} s, {size}")
    return found


@contextmanager
def started(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block."""
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def until(is_so: Callable[[], bool], what: str, log: Path, timeout_s: float = 600, alive: Processes = ()) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        is_hopeless = time.monotonic() > end or any(process.poll() is not None for process in alive)
        assert not is_hopeless, f"{what}: {log.read_text(errors='replace')[-3000:]}"
        time.sleep(1)


def own(folder: Path) -> Path:
    """A volume as an engine gives it: of the image's user, and empty."""
    folder.mkdir(parents=True)
    os.chown(folder, 10001, 10001)
    folder.chmod(0o700)
    return folder


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def write_texts(folder: Path, domain_index: int) -> None:
    domain = list(available_domains())[domain_index]
    folder.mkdir(parents=True)
    for number, document in enumerate(read_documents(domain, "shard", max_chars=300_000)):
        (folder / f"{number}.txt").write_text(document.text, encoding="utf-8")
    folder.chmod(0o755)


def exit_code(words: list[str]) -> int:
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode


@pytest.mark.parametrize("target", ["coordinator", "worker-cpu"])
def test_image_says_what_the_dockerfile_says(images: Images, names: dict[str, str], target: str) -> None:
    told, stage = images.config(names[target]), stages()[target]
    assert (told["User"], told["StopSignal"]) == ("10001:10001", "SIGINT")
    assert (told["Entrypoint"], told["Cmd"]) == (stage.words("ENTRYPOINT"), stage.words("CMD"))
    assert told["Healthcheck"]["Test"] == ["CMD", *stage.health_check]
    assert set(told["Volumes"]) == set(stage.words("VOLUME"))
    assert told["Labels"]["org.opencontainers.image.version"] == tinylora.__version__


def test_a_small_run_in_the_images(images: Images, names: dict[str, str], tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    coordinator = images.container(names["coordinator"], "coordinator")
    volumes = {RUN: own(tmp_path / "run"), HUB: own(tmp_path / "hub")}

    def at_coordinator(*words: str) -> list[str]:
        return images.run(coordinator, words, volumes)

    def said(*words: str) -> str:
        done = subprocess.run(at_coordinator(*words), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    assert said("id").startswith("uid=10001(tinylora) gid=10001(tinylora)")
    writable = set(said(*shlex.split(FIND_WRITABLE)).split())
    assert writable <= {*STICKY, *SHARED, RUN, HUB, HOME}, writable

    port = free_port()
    url = f"https://127.0.0.1:{port}"
    changes = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    init = ["tinylora-coordinator", "init", RUN, "--if-missing", "--base", "demo", "--host", "127.0.0.1", *changes]
    said(*init)
    said(*init)
    token = said("tinylora-coordinator", "token", "create", RUN, "--uses", "2").strip()
    (own(tmp_path / "token") / "token").write_text(f"{token}\n")
    os.chown(tmp_path / "token" / "token", 10001, 10001)

    serve = ["tinylora-coordinator", "serve", RUN, "--host", "127.0.0.1", "--port", str(port), "--dashboard-port", "0"]
    logs = {name: tmp_path / f"{name}.log" for name in ("coordinator", *WORKERS)}
    with started(at_coordinator(*serve), logs["coordinator"]) as serving:
        health = at_coordinator(*stages()["coordinator"].health_check)
        until(lambda: exit_code(health) == 0, "coordinator's health", logs["coordinator"])
        one, two = (worker(images, names, tmp_path, url, number) for number in range(2))
        with started(*one) as first, started(*two) as second:
            for name in WORKERS:
                well = images.run(name, stages()["worker-cpu"].health_check, worker_volumes(tmp_path, name))
                until(lambda well=well: exit_code(well) == 0, f"{name}'s health", logs[name], alive=(first, second))
            until(lambda: serving.poll() is not None, "the run's end", logs["coordinator"], 1500)
            assert serving.returncode == 0, logs["coordinator"].read_text()
            assert first.wait(60) == second.wait(60) == 0, logs[WORKERS[0]].read_text()
    assert json.loads(said("tinylora-coordinator", "status", RUN, "--json"))["phase"].startswith("finished")
    said("tinylora", "verify", f"{RUN}/bundle.safetensors")
    assert {path.stat().st_uid for path in (tmp_path / "run").rglob("*")} == {10001}


def test_a_root_that_cannot_be_written(images: Images, names: dict[str, str], tmp_path: Path) -> None:
    name = images.container(names["coordinator"], "read-only")
    run = own(tmp_path / "run")
    init = f"tinylora-coordinator init {RUN} --base demo --set depth=1"
    words = ["sh", "-c", f"touch /opt/x; {init} && {init} --if-missing"]
    done = subprocess.run(images.run_read_only(name, words, {RUN: run}), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Read-only file system" in done.stderr and "is there already" in done.stderr
    assert (run / "run.toml").stat().st_uid == 10001


def worker_volumes(folder: Path, name: str) -> dict[str, Path]:
    return {
        HOME: folder / name / "home",
        HUB: folder / name / "hub",
        TEXT: folder / name / "text",
        TOKENS: folder / "token",
    }


def worker(images: Images, names: dict[str, str], folder: Path, url: str, number: int) -> tuple[list[str], Path]:
    """The command of a worker with text and home of its own, and where it talks."""
    name = images.container(names["worker-cpu"], WORKERS[number])
    volumes = worker_volumes(folder, name)
    own(volumes[HOME])
    own(volumes[HUB])
    write_texts(volumes[TEXT], number)
    said = ["--token-file", f"{TOKENS}/token", "--data", TEXT, "--base", "demo", "--threads", "1", "--yes"]
    said += [word for kind in ("secrets", "emails", "phones") for word in ("--allow", kind)]  # licences have addresses
    return images.run(name, ["tinylora-worker", "join", url, *said], volumes), folder / f"{name}.log"
