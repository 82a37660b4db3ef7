"""The parts of the preflight: what is found, where the base is, what it will cost, what is sent, how it is told."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
from tinylora_worker.preflight import looking
from tinylora_worker.preflight.amounts import amount, rate, span
from tinylora_worker.preflight.audit import audit_lines
from tinylora_worker.preflight.base import download_bytes, find_base, hub_cache, is_offline
from tinylora_worker.preflight.check import Check
from tinylora_worker.preflight.consent import NEVER_SENT, SENT, consent_lines, is_yes
from tinylora_worker.preflight.estimate import estimate
from tinylora_worker.preflight.judging import judge_device
from tinylora_worker.preflight.telling import check_lines

from tests.federation.facts import FACTS, SETTINGS
from tests.worker.fake_nvml import FakeGpu, FakeNvml
from tinylora.config import RunSettings

ADAPTER = 2 * 2 * (3 + 5) * 4
"""Bytes of a node's adapter: two layers, rank 2, three in, five out, four bytes each."""


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_numbers_as_people_read_them() -> None:
    assert [amount(n) for n in (0, 999, 34e6, 2.43e9, 9.96e9, 1e13)] == [
        "0 B",
        "999 B",
        "34 MB",
        "2.4 GB",
        "10 GB",
        "10 TB",
    ]
    assert [span(s) for s in (0.42, 12.3, 240, 6600, 7200, 3e5)] == [
        "0.4 s",
        "12 s",
        "4 min",
        "1 h 50 min",
        "2 h",
        "3 days",
    ]
    assert [rate(b) for b in (88e6, 2.14e6, 1e4)] == ["88", "2.1", "0.0"]


# --- what is found ----------------------------------------------------------------------------------------------------


class Driver(FakeNvml):
    """With what only the preflight asks for."""

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.1"

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> tuple[int, int]:
        return (8, 6)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGpu) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in gpu.computing]


def test_gpus_are_found_by_their_driver_and_it_is_closed_again() -> None:
    driver = Driver(FakeGpu(), FakeGpu(uuid="GPU-1", computing={2**30: None}))
    found = looking.look_at_devices(driver)
    assert [gpu.index for gpu in found.gpus] == [0, 1] and found.driver == "570.1" and not driver.is_open
    assert found.gpus[0].capability == (8, 6) and found.gpus[1].users == (f"process {2**30}",)
    assert judge_device(replace(found, torch_cuda="12.8"), "1").code == "TL-DEV-004"


def test_a_container_without_power_supplies_is_on_mains_for_all_we_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise FileNotFoundError(2, "No such file or directory", "/sys/class/power_supply")

    monkeypatch.setattr(looking.psutil, "sensors_battery", missing, raising=False)
    assert looking.look_at_power().is_on_battery is None


def test_a_driver_that_is_broken_is_told_from_one_that_is_absent() -> None:
    broken = looking.look_at_devices(Driver(init_error=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    lost = Driver(FakeGpu(errors={"handle": pynvml.NVML_ERROR_GPU_IS_LOST}))
    assert broken.trouble and looking.look_at_devices(lost).trouble and not lost.is_open
    absent = looking.look_at_devices(Driver(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert not absent.trouble and not absent.gpus and absent.torch and absent.n_cpus >= 1


def test_a_home_is_looked_at_and_nothing_stays(tmp_path: Path) -> None:
    from filelock import FileLock

    assert not looking.look_at_home(tmp_path / "not" / "yet").trouble and not (tmp_path / "not").exists()
    assert not looking.look_at_home(tmp_path).running and list(tmp_path.iterdir()) == []
    with FileLock(tmp_path / looking.LOCK_FILE):
        assert looking.look_at_home(tmp_path).running
    (tmp_path / "file").touch()
    assert looking.look_at_home(tmp_path / "file" / "home").trouble == "cannot be made"
    assert looking.look_at_home(Path("/proc/self")).trouble


def test_text_is_counted_and_what_is_missing_is_named(tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl", "deep/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("12345")
    found = looking.look_at_text([str(tmp_path), str(tmp_path / "*.txt"), str(tmp_path / "b.jsonl")])
    assert (found.n_files, found.n_bytes, found.missing) == (5, 25, "")
    assert looking.look_at_text([str(tmp_path / "*.parquet")]).missing.endswith("*.parquet")


# --- the base ---------------------------------------------------------------------------------------------------------


def test_the_base_is_found_where_it_is(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    snapshot = cache / "models--org--name" / "snapshots" / "abc"
    for folder in (snapshot, cache / "mine", tmp_path / "here"):
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    (tmp_path / "empty").mkdir()
    facts = FACTS.model_copy(update={"base_id": "mine"})
    assert find_base("", facts, cache=cache).base == str(cache / "mine")  # of that name in the cache
    assert find_base("org/name", facts, cache=cache).folder == snapshot
    assert find_base("org/name", facts, cache=cache).base == "org/name"
    assert find_base(str(tmp_path / "here"), None, cache=cache).folder == tmp_path / "here"
    assert find_base("org/other", FACTS, cache=cache).download_bytes == download_bytes(FACTS) > 0
    assert "HF_HUB_OFFLINE" in find_base("org/other", FACTS, cache=cache, is_offline=True).trouble
    assert "no config.json" in find_base(str(tmp_path / "empty"), FACTS, cache=cache).trouble
    for name in ("../here", "no such base", "fake"):
        assert find_base(name, FACTS, cache=cache).trouble and find_base(name, FACTS, cache=cache).folder is None
    assert find_base("", None, cache=cache).trouble


def test_a_cache_that_cannot_be_written_is_named_only_when_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    closed = find_base("org/other", FACTS, cache=tmp_path / "file" / "hub")
    assert closed.is_cache_closed and "cannot be written" in closed.trouble
    (tmp_path / "config.json").touch()
    assert find_base(str(tmp_path), FACTS, cache=tmp_path / "file" / "hub").folder == tmp_path


def test_the_cache_is_where_the_hub_has_it() -> None:
    assert hub_cache({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert hub_cache({"HF_HOME": "/b"}) == Path("/b/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert hub_cache({}) == Path("~/.cache/huggingface/hub").expanduser()
    assert is_offline({"HF_HUB_OFFLINE": "1"}) and not is_offline({"HF_HUB_OFFLINE": "0"}) and not is_offline({})


# --- cost and consent -------------------------------------------------------------------------------------------------


def test_what_a_leaf_costs_is_counted_on_paper() -> None:
    found = estimate(SETTINGS, FACTS, download_bytes=0, tokens_per_s=100.0, watts=170.0)
    tokens = SETTINGS.unit_steps * SETTINGS.batch_windows * SETTINGS.window_tokens
    assert (found.down_bytes, found.up_bytes) == (ADAPTER, ADAPTER)
    assert found.unit_s == tokens / 100.0 and found.n_units == SETTINGS.leaf_steps / SETTINGS.unit_steps
    text = dict(found.lines())
    assert "about 3.2 s per unit, about 13 s for a whole leaf" in text["Your share"]
    assert text["Traffic"] == "no download, about 144 kB/h down, 144 kB/h up for a leaf"
    assert text["Energy"].startswith("about 0.17 kWh/h")


@pytest.mark.parametrize(
    ("changes", "down", "up"),
    [
        ({"probes": 3}, 4, 1),  # others' updates are scored, too
        ({"where": "path", "depth": 3, "leaf_steps": 20}, 4, 1),  # the nodes above come along, one is trained
        ({"where": "path", "path_training": "joint", "depth": 3}, 4, 4),  # all are trained
    ],
)
def test_what_travels_depends_on_the_run(changes: dict[str, object], down: int, up: int) -> None:
    settings = RunSettings.model_validate(SETTINGS.model_dump() | changes)
    found = estimate(settings, FACTS, download_bytes=0)
    assert (found.down_bytes, found.up_bytes) == (down * ADAPTER, up * ADAPTER)


def test_what_is_not_known_is_not_guessed() -> None:
    text = dict(estimate(SETTINGS, FACTS, download_bytes=2_400_000_000, max_leaves=1).lines())
    assert (
        "the time of a unit shows once the base is loaded" in text["Your share"] and "subtree" not in text["Your share"]
    )
    assert text["Traffic"].startswith("about 2.4 GB once, then about") and "per unit" in text["Traffic"]
    assert text["Energy"].startswith("unknown")


def test_consent_names_what_is_sent_and_what_never_is() -> None:
    told = " ".join(text for _, text in consent_lines("quiet-otter"))
    for words in ("topics and frequent words", "reveal passages", "losses", "model of its GPU", "quiet-otter"):
        assert words in told
    assert all(sent in told for sent in SENT) and all(never in told for never in NEVER_SENT)
    assert "none" in dict(consent_lines(""))["Your name"]


def test_consent_tells_that_note_and_licence_are_published() -> None:
    told = dict(consent_lines("", "poems", "CC0-1.0"))
    for heading, said in (("Your note", "poems"), ("Its licence", "CC0-1.0")):
        assert said in told[heading] and "published with its bundle" in told[heading]
    assert "published with its bundle" in " ".join(SENT) and "not told" in dict(consent_lines(""))["Its licence"]


@pytest.mark.parametrize(
    ("typed", "meant"), [("", True), ("Y\n", True), ("yes", True), ("n", False), ("No ", False), ("perhaps", None)]
)
def test_what_somebody_meant(typed: str, meant: bool | None) -> None:
    assert is_yes(typed) is meant and is_yes("", default=False) is False


@pytest.mark.parametrize(
    ("bits", "most", "verdict"),
    [([1.0, 1.8], 10.0, "low"), ([4.0, 5.0], 10.0, "some"), ([12.0], 16.0, "high"), ([10.0, 10.0], 10.0, "can tell")],
)
def test_an_audit_in_words_and_numbers(bits: list[float], most: float, verdict: str) -> None:
    text = dict(audit_lines(bits, most, 1))
    assert verdict in text["Exposure"] and f"{max(bits):.1f} at most, of {most:.1f}" in text["Exposure"]
    assert text["Read out"].startswith(f"1 of {len(bits)}")


# --- how it is told ---------------------------------------------------------------------------------------------------


def test_a_check_is_told_with_its_cure_and_where_it_is_explained() -> None:
    failing = Check("token", "fail", "the token has expired", "a valid one", "ask for a new one", "TL-TOK-003")
    lines = [line.plain for line in check_lines(failing)]
    assert lines[0].startswith("  ✘ token") and "needed: a valid one" in lines[1] and "ask for" in lines[2]
    assert lines[3].endswith("TL-TOK-003: tinylora-worker doctor --explain TL-TOK-003")
    assert check_lines(failing, is_ascii=True)[0].plain.startswith("  x token")
    assert len(check_lines(Check("disk", "ok", "61 GB free"))) == 1
