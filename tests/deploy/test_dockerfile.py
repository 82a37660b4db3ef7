"""What can be said of deploy/Dockerfile by reading it; test_image.py builds it."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.command_lines import parse
from tests.deploy.dockerfile import FILE, stages

ROOT = FILE.parents[1]
IMAGES = ("coordinator", "worker-cpu", "worker-cuda")
PIN = re.compile(r"^([\w.-]+)==(\S+)$", re.MULTILINE)


def pins(file: Path) -> dict[str, str]:
    return dict(PIN.findall(file.read_text(encoding="utf-8")))


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
    found = subprocess.run([hadolint, FILE], capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr, found.returncode) == ("", "", 0)


@pytest.mark.parametrize("image", IMAGES)
def test_image_starts_as_nobody_in_particular(image: str) -> None:
    stage = stages()[image]
    program = "tinylora-coordinator" if image == "coordinator" else "tinylora-worker"
    assert stage.last("USER") == "10001:10001"
    assert stage.last("STOPSIGNAL") == "SIGINT"
    assert stage.words("ENTRYPOINT") == [program]
    assert stage.environment["HF_HOME"] in stage.words("VOLUME")
    parse([program, *stage.words("CMD")])
    assert stage.health_check[0] == program
    parse(stage.health_check)


def test_volumes_are_where_the_programs_look() -> None:
    coordinator, worker = stages()["coordinator"], stages()["worker-cpu"]
    run = coordinator.words("CMD")[1]
    assert run == "/var/lib/tinylora" and run in coordinator.words("VOLUME") and run in coordinator.health_check
    assert worker.environment["TINYLORA_HOME"] == "/var/lib/tinylora-worker"
    assert worker.environment["TINYLORA_HOME"] in worker.words("VOLUME")


def test_no_layer_has_a_secret_or_a_cache() -> None:
    for stage in stages().values():
        assert all(not re.search(r"(?i)token|secret|password", text) for _, text in stage.instructions)
        if "pip" in " ".join(text for name, text in stage.instructions if name == "RUN"):
            assert stage.environment["PIP_NO_CACHE_DIR"] == "1"


def test_the_context_has_what_is_copied_and_no_more() -> None:
    let_through = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    copied = {"deploy/wheels"}
    for name, text in (line for stage in stages().values() for line in stage.instructions):
        if name == "COPY" and not text.startswith(("--from", "$")):
            copied |= set(text.split()[:-1])
    assert set(let_through) == copied
    assert all((ROOT / name).exists() for name in copied)


def test_requirements_are_those_of_the_project() -> None:
    required, pinned = pins(ROOT / "deploy" / "requirements.txt"), pins(ROOT / "constraints.txt")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = {plain(re.match(r"[\w.-]+", line).group()) for line in wanted}  # pyright: ignore[reportOptionalMemberAccess]
    assert names <= set(required)
    differing = {name for name in required if pinned.get(name, required[name]) != required[name]}
    assert differing == set(), "make deploy/requirements.txt anew: deploy/README.md, Images"
