"""`tinylora simulate` writes what it promises, twice the same, and its files are good for the other verbs."""

import json
from pathlib import Path

import pytest
import safetensors

from tests.helpers import WINDOW_TOKENS, tiny_base_dir
from tinylora import cli
from tinylora.command_line import exit_code_of

WORDS = {
    "animals": "the cat and the dog ran over the green hill to see a bird ",
    "numbers": "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 ",
}
SYSTEMS = ("base", "fedavg_lora", "oracle", *(f"routed:{p}" for p in ("soft", "top2", "hard", "elastic", "sequence")))


def write_text(folder: Path, words: str, n_documents: int = 40) -> Path:
    folder.mkdir(parents=True)
    for number in range(n_documents):
        (folder / f"{number}.txt").write_text(f"document {number}: " + words * 25)
    return folder


def run(*arguments: object) -> int:
    return exit_code_of(lambda: cli.app([str(argument) for argument in arguments], standalone_mode=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("simulate")


@pytest.fixture(scope="module")
def data(place) -> list[Path]:
    return [write_text(place / name, words) for name, words in WORDS.items()]


def simulate(place: Path, data: list[Path], name: str, *more: object) -> Path:
    options = ["--base", tiny_base_dir(), "--depth", 1, "--leaf-steps", 4, "--threads", 1, "--out", place / name]
    folders = [part for folder in data for part in ("--data", folder)]
    assert run("simulate", *options, *folders, *more) == 0
    return place / name


@pytest.fixture(scope="module")
def out(place, data) -> Path:
    return simulate(place, data, "first")


def test_every_promised_file_is_there(out):
    assert sorted(file.name for file in out.iterdir()) == sorted(
        ["bundle.safetensors", "report.json", "report.md", "loss.png", "routing.png"]
    )
    for picture in ("loss.png", "routing.png"):
        assert (out / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_report_holds_what_it_promises(out):
    report = json.loads((out / "report.json").read_text())
    for system in (*SYSTEMS, "routed:soft:weights"):
        row = report["systems"][system]
        assert row["nll_mean"] == pytest.approx(sum(row["nll"].values()) / 2)
        assert set(row["nll"]) == set(WORDS) and row["ppl_mean"] > 1
    assert [report["systems"][name]["active_rank"] for name in ("base", "oracle", "routed:soft")] == [0, 8, 16]
    assert set(report["regret"]) >= {"soft", "top2", "hard", "elastic", "sequence"}
    assert {unit["kind"] for unit in report["units"]} == {"sketch", "train", "probe"}
    assert all(
        unit["base_loads"] >= 1 and unit["seconds"] > 0 and unit["bytes_received"] > 0 for unit in report["units"]
    )
    assert sum(unit["tokens"] for unit in report["units"]) == 2 * 4 * 8 * WINDOW_TOKENS
    assert len(report["workers"]) == 2 and len(report["rounds"]) >= 2
    assert report["seed"] == 0 and report["seconds"] > 0 and report["peak_memory_mb"] > 0 and report["versions"]["flwr"]


def test_the_bundle_is_one_file_with_one_key(out):
    with safetensors.safe_open(out / "bundle.safetensors", framework="pt") as file:
        assert list(file.metadata()) == ["tinylora"]
        assert any(name.startswith("node.0.") for name in file.keys())  # noqa: SIM118  # safe_open is no mapping


def test_one_seed_gives_the_same_bytes_twice(place, data, out):
    again = simulate(place, data, "second")
    assert (again / "bundle.safetensors").read_bytes() == (out / "bundle.safetensors").read_bytes()


def test_a_planned_fault_is_survived(place, data):
    folder = simulate(place, data, "faulty", "--silent", "0@1", "--json")
    report = json.loads((folder / "report.json").read_text())
    assert report["expired"]["n"] == 1 and report["rejected"]["n"] == 0
    done = [(unit["node"], unit["node_version"], unit["worker"]) for unit in report["units"] if unit["kind"] == "train"]
    assert len(done) == len(set(done)) and {node for node, _, _ in done} == {"0", "1"}  # nothing twice, nothing missing


def test_the_other_verbs_take_the_bundle(out, data, capsys):
    bundle = out / "bundle.safetensors"
    assert run("verify", bundle) == 0
    capsys.readouterr()
    assert run("inspect", bundle, "--json") == 0
    assert json.loads(capsys.readouterr().out)["leaves"] == ["0", "1"]
    base = ("--base", tiny_base_dir(), "--threads", 1)
    assert run("eval", bundle, *base, "--data", data[0], "--data", data[1], "--policy", "hard", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["systems"]["routed:hard"]["nll_mean"] < found["systems"]["base"]["nll_mean"]
    assert run("generate", bundle, *base, "--prompt", "the cat", "--max-new-tokens", 5) == 0
    assert capsys.readouterr().out.endswith("\n")
