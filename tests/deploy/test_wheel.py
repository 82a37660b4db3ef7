"""The wheel in a fresh environment, in an empty folder, with nothing of the repository within reach."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
PROGRAMS = ("tinylora", "tinylora-coordinator", "tinylora-worker")
PLACES = ("tinylora", "coordinator/tinylora_coordinator", "worker/tinylora_worker")
NEVER_IN_IT = ("tests/", "benchmarks/", "web/", "node_modules", ".svelte", "__pycache__")
FOR_NOBODY_WHO_JOINS = re.compile(r"^(datasets|pandas|pyarrow|matplotlib|zstandard|pytest|ruff|sphinx|playwright|node)")
NOT_IMPORTED = {
    "tinylora.eval_harness": "lm_eval",  # of the extra `eval`; the verb says so in a sentence
    "tinylora.ledger.migrations.env": "alembic.context",  # a script that Alembic runs
}


@dataclass(frozen=True)
class Built:
    """What `python -m build` leaves, and the wheel that is made from the tree itself."""

    archive: Path
    wheel: Path
    wheel_of_tree: Path


@dataclass(frozen=True)
class Installed:
    """A fresh environment with the wheel, and an empty folder to work in."""

    programs: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        path = f"{self.programs}{os.pathsep}{kept['PATH']}"
        return {**kept, "PATH": path, "HOME": str(self.folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(self, *words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        """A command of the environment, which must end with `status`."""
        program, *rest = map(str, words)
        done = subprocess.run(
            [self.programs / program, *rest],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=1500,
        )  # fmt: skip
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    out, of_tree = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("dist-tree")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for options, place in (([], out), (["--wheel"], of_tree)):
        line = [sys.executable, "-m", "build", *options, "--outdir", str(place), str(ROOT)]
        done = subprocess.run(line, cwd=out, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    return Built(next(out.glob("*.tar.gz")), next(out.glob("*.whl")), next(of_tree.glob("*.whl")))


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("fresh")
    (place / "empty").mkdir()
    constraints = ROOT / "constraints.txt"
    torch = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
    subprocess.run([sys.executable, "-m", "venv", place / "env"], check=True, timeout=300)
    fresh = Installed(place / "env" / "bin", place / "empty")
    pip = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    pip.pop("PYTHONPATH", None)
    for what in (torch, str(built.wheel)):
        line = [fresh.programs / "python", "-m", "pip", "install", "-q", "-c", constraints, what]
        done = subprocess.run(line, cwd=fresh.folder, env=pip, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr
    return fresh


# --- what is in it ----------------------------------------------------------------------------------------------------


def committed() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {line for line in listed.stdout.splitlines() if (ROOT / line).exists()}


def test_the_wheel_is_the_three_packages_and_nothing_else(built: Built) -> None:
    names = set(zipfile.ZipFile(built.wheel).namelist())
    packages = {f"{place}/": place.rpartition("/")[2] for place in PLACES}
    wanted = {
        f"{package}/{file.removeprefix(place)}"
        for file in committed()
        for place, package in packages.items()
        if file.startswith(place)
    }
    facts = {name for name in names if ".dist-info/" in name}
    assert names - facts == wanted
    assert [name for name in names for part in NEVER_IN_IT if part in name] == []
    for needed in (
        *("tinylora/demo/base/model.safetensors", "tinylora/demo/base/tokenizer.json", "tinylora/py.typed"),
        *("tinylora/ledger/migrations/versions/rev_0001_events.py", "tinylora_coordinator/py.typed"),
        *("tinylora_coordinator/dashboard/static/index.html", "tinylora_coordinator/dashboard/templates/lite.html"),
        *("tinylora_coordinator/dashboard/example.jsonl.gz", "tinylora_coordinator/dashboard/static/licenses.md"),
        *("tinylora_worker/wire/worker.proto", "tinylora_worker/py.typed"),
    ):
        assert needed in names


def test_the_archive_can_be_built_and_tested_and_gives_the_same_wheel(built: Built) -> None:
    assert built.wheel.read_bytes() == built.wheel_of_tree.read_bytes()
    with tarfile.open(built.archive) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert committed() - names == {".ci/run", ".pre-commit-config.yaml"}
    assert [name for name in names if "node_modules" in name] == []


def test_the_facts_about_it_are_true(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        prefix = next(name for name in wheel.namelist() if name.endswith("/METADATA")).removesuffix("METADATA")
        facts = HeaderParser().parsestr(wheel.read(f"{prefix}METADATA").decode())
        assert (ROOT / "LICENSE").read_bytes() == wheel.read(f"{prefix}licenses/LICENSE")
    assert facts["License-Expression"] == "Apache-2.0 AND MIT AND ISC" and facts["Name"] == "tinylora"
    assert facts["Description-Content-Type"] == "text/markdown"
    assert facts.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert facts.get_all("Project-URL") is None  # none is known that would stay true


# --- what it brings ---------------------------------------------------------------------------------------------------


def test_it_fits_together_and_brings_no_tools(installed: Installed) -> None:
    installed.run("python", "-m", "pip", "check")
    listed = installed.run("python", "-m", "pip", "list", "--format=freeze").stdout.splitlines()
    print(f"{len(listed)} packages")
    assert [line for line in listed if FOR_NOBODY_WHO_JOINS.match(line.lower())] == []


IMPORT_ALL = """
import importlib, json, pkgutil
failed = {}
for top in ("tinylora", "tinylora_coordinator", "tinylora_worker"):
    package = importlib.import_module(top)
    assert "site-packages" in package.__file__, package.__file__
    for found in pkgutil.walk_packages(package.__path__, f"{top}."):
        if not found.name.endswith(".__main__"):
            try:
                importlib.import_module(found.name)
            except Exception as error:
                failed[found.name] = str(error)
print(json.dumps(failed))
"""


def test_every_module_can_be_imported(installed: Installed) -> None:
    failed = json.loads(installed.run("python", "-c", IMPORT_ALL).stdout)
    assert failed.keys() == NOT_IMPORTED.keys(), failed
    assert all(reason in failed[name] for name, reason in NOT_IMPORTED.items()), failed


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_says_what_it_is(installed: Installed, program: str) -> None:
    assert re.fullmatch(rf"{program} \d+\.\d+\.\d+\n", installed.run(program, "--version").stdout)
    assert "Usage:" in installed.run(program, "--help").stdout


COMPLETE = """
source "$HOME/.bashrc"
ask() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    local answer; answer=$(complete -p "$1"); answer=${answer##*-F }
    "${answer%% *}" "$1"
    echo "${COMPREPLY[@]}"
}
ask tinylora ver
ask tinylora demo --leaf
ask tinylora-coordinator token cr
ask tinylora-coordinator serve --viewers t
ask tinylora-worker join --token-
"""


def test_bash_completes_verbs_and_options(installed: Installed) -> None:
    for program in PROGRAMS:
        typed = f"{program} --install-completion; true"  # bash itself must be the parent, whose name is looked for
        subprocess.run(["bash", "-c", typed], cwd=installed.folder, env=installed.environment, check=True, timeout=100)
    done = subprocess.run(
        ["bash", "-c", COMPLETE],
        cwd=installed.folder, env=installed.environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["verify", "--leaf-steps", "create", "token", "--token-file"], done.stderr


# --- what it does -----------------------------------------------------------------------------------------------------


def test_a_worker_looks_at_its_machine(installed: Installed) -> None:
    found = json.loads(installed.run("tinylora-worker", "doctor", "--json").stdout)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["packages"]["status"] == checks["python"]["status"] == checks["disk"]["status"] == "ok"
    assert checks["network"]["status"] == "skip"
    (installed.folder / "text.parquet").write_bytes(b"")
    done = installed.run("tinylora-worker", "doctor", "--data", "text.parquet", status=2)
    assert "'tinylora[data]'" in done.stdout + done.stderr


@pytest.fixture
def served(installed: Installed) -> Iterator[tuple[subprocess.Popen[str], str]]:
    ask = "from tinylora.commands.options import DEMO_BASE; print(DEMO_BASE)"
    base = installed.run("python", "-c", ask).stdout.strip()
    installed.run("tinylora-coordinator", "init", "run", "--base", base)
    serve = subprocess.Popen(
        [installed.programs / "tinylora-coordinator", "serve", "run", "--port", "0", "--dashboard-port", "0"],
        cwd=installed.folder, env=installed.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines = []
    try:
        assert serve.stdout is not None
        for line in serve.stdout:
            lines.append(line)
            found = re.search(r"https://127\.0\.0\.1:\d+", line)
            if found:
                yield serve, found[0]
                return
        raise AssertionError("".join(lines))
    finally:
        serve.kill()
        serve.communicate()


def test_a_coordinator_serves_until_it_is_interrupted(
    installed: Installed, served: tuple[subprocess.Popen[str], str]
) -> None:
    serve, address = served
    trusted = ssl.create_default_context(cafile=next((installed.folder / "run").rglob("ca*.pem")))
    with httpx.Client(base_url=address, verify=trusted, timeout=60) as client:
        assert client.get("/health").status_code == 200
        page = client.get("/")
    assert page.status_code == 200 and "<script" in page.text
    assert json.loads(installed.run("tinylora-coordinator", "status", "run", "--json").stdout)
    serve.send_signal(signal.SIGINT)
    assert serve.wait(timeout=120) == 0


def test_the_demo_makes_a_bundle_that_holds(installed: Installed) -> None:
    done = installed.run("tinylora", "demo", "--workers", 2, "--depth", 1, "--leaf-steps", 4, "--no-open")
    assert "pip install 'tinylora[pictures]'" in " ".join(done.stdout.split())
    assert "each as its sha256 says" in installed.run("tinylora", "verify", "demo-out/bundle.safetensors").stdout
    assert "routed:soft" in (installed.folder / "demo-out" / "report.md").read_text()


def test_verbs_that_need_an_extra_say_which(installed: Installed) -> None:
    says = installed.run("tinylora", "report", status=2).stderr
    assert says == "error: pictures are drawn by matplotlib, which is not installed: pip install 'tinylora[pictures]'\n"
    (installed.folder / "a.zst").write_bytes(b"")
    assert "'tinylora[data]'" in installed.run("tinylora", "simulate", "--data", "a.zst", "--depth", 0, status=3).stderr
    says = installed.run("tinylora", "lm-eval", "demo-out/bundle.safetensors", "--tasks", "any", status=2).stderr
    assert "'tinylora[eval]'" in says
