"""The owner's limits: every key, every way to get it wrong, and a file that stays his."""

import json
import os
import re
import threading
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylora_worker import limits
from tinylora_worker.limits import FILE, KEYS, Limits, LimitsFile, bytes_of, load, set_from_text
from tinylora_worker.toml_lines import edit

from tinylora.errors import SettingError, StorageError

GOOD = [
    ("gpu=1", {"gpu": "1"}),
    ("gpu=GPU-5a1f00aa", {"gpu": "GPU-5a1f00aa"}),
    ("vram=8GB", {"vram": "8GB"}),
    ('vram="80%"', {"vram": "80%"}),
    (" cpu_threads = 4 ", {"cpu_threads": 4}),
    ("disk=20 GiB", {"disk": "20 GiB"}),
    ("data_cap=50GB/month", {"data_cap": "50GB/month"}),
    ("data_cap=1.5 TB per month", {"data_cap": "1.5 TB per month"}),
    ("schedule=Mon-Fri 22:00-07:00, Sat-Sun", {"schedule": ("Mon-Fri 22:00-07:00", "Sat-Sun")}),
    ('schedule=["Sat", "Sun"]', {"schedule": ("Sat", "Sun")}),
    ("on_battery=yes", {"on_battery": True}),
    ("on_battery=off", {"on_battery": False}),
    ("when_gpu_busy=share", {"when_gpu_busy": "share"}),
    ("exclusive_apps=game.exe; blender", {"exclusive_apps": ("game.exe", "blender")}),
    ("max_temp_c=78.5", {"max_temp_c": 78.5}),
]

BAD = [
    ("vram", "expected key=value, such as vram=8GB"),
    ("vrm=8GB", "vrm: no such limit; did you mean vram?"),
    ("colour=red", "colour: no such limit; there are gpu, vram"),
    ("gpu=best", 'gpu = "best": expected auto, cpu, cuda, mps, a number'),
    ("vram=lots", 'vram = "lots": expected a size such as "8GB" or a share such as "80%"'),
    ("vram=8", 'vram = "8": expected a size'),
    ("vram=0GB", 'vram = "0GB": expected a size'),
    ("vram=120%", 'vram = "120%": expected a size'),
    ("cpu_threads=0", "cpu_threads = 0: expected a whole number from 1"),
    ("cpu_threads=2.5", "cpu_threads = 2.5: expected a whole number"),
    ("cpu_threads=many", 'cpu_threads = "many": expected a whole number'),
    ("disk=50%", 'disk = "50%": expected a size such as "20GB"'),
    ("data_cap=50GB/week", 'data_cap = "50GB/week": expected an amount a month such as "50GB/month"'),
    ("schedule=Mo-Fr", '"Mo" is neither a day'),
    ("schedule=[", 'schedule = "["'),
    ("on_battery=maybe", 'on_battery = "maybe": expected true or false'),
    ("when_gpu_busy=fight", 'when_gpu_busy = "fight": expected "pause" or "share"'),
    ("exclusive_apps=[1]", "exclusive_apps = [1]: expected a list of program names"),
    ("max_temp_c=300", "max_temp_c = 300: expected a temperature from 30 to 110"),
    ("max_temp_c=nan", 'max_temp_c = "nan": expected a temperature'),
]


def test_without_a_file_nothing_is_limited_but_the_battery(tmp_path: Path) -> None:
    assert load(tmp_path) == Limits() == LimitsFile(tmp_path).current()
    assert not Limits().on_battery and Limits().when_gpu_busy == "pause"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("assignment", "values"), GOOD)
def test_what_is_set_holds_and_can_be_lifted(tmp_path: Path, assignment: str, values: dict[str, object]) -> None:
    key = next(iter(values))
    sentence = set_from_text(tmp_path, assignment)
    assert load(tmp_path) == Limits.model_validate(values)
    assert sentence.startswith(f"{key} is ") and "\n" not in sentence
    set_from_text(tmp_path, f"{key}=none") if key != "on_battery" else set_from_text(tmp_path, "on_battery=")
    assert load(tmp_path) == Limits()


@pytest.mark.parametrize(("assignment", "message"), BAD)
def test_what_makes_no_sense_is_one_sentence_and_changes_nothing(tmp_path: Path, assignment: str, message: str) -> None:
    set_from_text(tmp_path, "max_temp_c=80")
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(SettingError) as caught:
        set_from_text(tmp_path, assignment)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vram = ", "not TOML"),
        ("vram = 8", 'vram = 8: expected a size such as "8GB"'),
        ("cpu_threads = true", "cpu_threads = true: expected a whole number"),
        ("max_temp_c = false", "max_temp_c = false"),
        ("on_battery = 'x'", 'on_battery = "x": expected true or false'),
        ("schedule = [7]", "schedule = [7]"),
        ("[limits]\nvram = '8GB'", "limits: no such limit"),
        ("when_gpu_bussy = 'pause'", "did you mean when_gpu_busy?"),
        ("gpu = '\xff'", "gpu"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    for read in (load, LimitsFile):
        with pytest.raises(SettingError) as caught:
            read(tmp_path)
        assert str(tmp_path / FILE) in str(caught.value) and message in str(caught.value)


def test_the_running_worker_follows_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    live, file = LimitsFile(tmp_path), tmp_path / FILE
    set_from_text(tmp_path, "vram=8GB")
    assert live.current().vram == "8GB" and live.problem == ""
    file.write_text("vram = '4GB'")  # as an editor would
    assert live.current().vram == "4GB"
    file.write_text("vram = '3GB")
    assert live.current().vram == "4GB" and "not TOML" in live.problem and "still holds" in live.problem
    file.unlink()  # a deleted file lifts no limit
    assert live.current().vram == "4GB" and "is gone" in live.problem
    file.write_text("vram = '4GB'")
    assert live.current().vram == "4GB" and live.problem == ""
    file.write_bytes(b"\xff")
    assert live.current().vram == "4GB" and "not TOML" in live.problem
    file.write_text("vram = '2GB'")
    assert live.current().vram == "2GB" and live.problem == ""


def test_two_edits_within_one_tick_are_two(tmp_path: Path) -> None:
    live, file = LimitsFile(tmp_path), tmp_path / FILE
    for value in ("4GB", "5GB"):
        file.write_text(f"vram = '{value}'")
        os.utime(file, ns=(0, 0))
        assert live.current().vram == value


def test_a_folder_in_place_of_the_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(StorageError, match=r"limits\.toml"):
        load(tmp_path)
    with pytest.raises(StorageError, match=r"limits\.toml"):
        set_from_text(tmp_path, "vram=8GB")


OWNERS = """\
# my machine
vram = "8GB"   # the card has 12; "#" is no comment in a string
schedule = [
    "Mon-Fri 22:00-07:00", # nights
    "Sat-Sun",
]

  max_temp_c   = 80
"""


def test_comments_order_and_other_lines_stay(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(OWNERS)
    set_from_text(tmp_path, "vram=80%")
    set_from_text(tmp_path, "schedule=20:00-24:00")
    set_from_text(tmp_path, "max_temp_c=none")
    set_from_text(tmp_path, "exclusive_apps=a#b")
    assert (tmp_path / FILE).read_text() == (
        "# my machine\n"
        'vram = "80%"  # the card has 12; "#" is no comment in a string\n'
        'schedule = ["20:00-24:00"]\n'
        "\n"
        'exclusive_apps = ["a#b"]\n'
    )


def test_the_first_file_explains_every_key(tmp_path: Path) -> None:
    set_from_text(tmp_path, "disk=20GB")
    text = (tmp_path / FILE).read_text()
    assert tomllib.loads(text) == {"disk": "20GB"}
    lines = text.splitlines()
    assert lines[lines.index('# disk = "20GB"') + 1] == 'disk = "20GB"'
    # every example of it is valid, all at once
    proposed = "\n".join(line.removeprefix("# ") for line in lines if " = " in line and line.startswith("# "))
    assert set(tomllib.loads(proposed)) == set(KEYS)
    assert limits.parse(proposed.encode(), Path("limits.toml"))


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target = tmp_path / "settings" / "tinylora.toml"
    target.parent.mkdir()
    target.write_text("# mine\n")
    home = tmp_path / "home"
    home.mkdir()
    (home / FILE).symlink_to(target)
    set_from_text(home, "vram=8GB")
    assert (home / FILE).is_symlink() and target.read_text() == '# mine\nvram = "8GB"\n'


def test_two_who_set_at_once_both_have_their_way(tmp_path: Path) -> None:
    assignments = ["vram=8GB", "disk=20GB", "cpu_threads=3", "max_temp_c=70", "gpu=1", "on_battery=true"]
    threads = [threading.Thread(target=set_from_text, args=(tmp_path, one)) for one in assignments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = load(tmp_path)
    assert (found.vram, found.disk, found.cpu_threads) == ("8GB", "20GB", 3)
    assert (found.max_temp_c, found.gpu, found.on_battery) == (70, "1", True)


LETTERS = st.sampled_from("a ä\"'\\#=[]\n\t\x00\x7f\x85\u2028🦙")


@given(
    key=st.sampled_from(["exclusive_apps", "vram", "max_temp_c"]),
    value=st.text(LETTERS, max_size=12)
    | st.lists(st.text(LETTERS, max_size=6), max_size=3)
    | st.integers(-5, 5)
    | st.booleans()
    | st.none(),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_one_key_is_exchanged_and_the_rest_stays(key: str, value: object, newline: str) -> None:
    before = tomllib.loads(OWNERS)
    edited = edit(OWNERS.replace("\n", newline), key, value)
    assert tomllib.loads(edited) == {k: v for k, v in (before | {key: value}).items() if v is not None}
    assert edited.startswith(f"# my machine{newline}")
    assert tomllib.loads(edit(edited, key, "again")) == before | {key: "again"}
    assert edit(edit(edited, key, None), key, None) == edit(edited, key, None)


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("1B", 1), ("8GB", 8_000_000_000), ("8 GiB", 2**33), ("1.5kb", 1500), ("0.1B", 1)]
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert bytes_of(text) == n_bytes


def test_amounts() -> None:
    assert Limits(vram="80%").vram_bytes(1000) == 800 and Limits(vram="1kB").vram_bytes(10) == 1000
    assert Limits().vram_bytes(5) is None and Limits().disk_bytes is None and Limits().cap_bytes is None
    assert Limits(data_cap="50GB/month").cap_bytes == Limits(data_cap="50GB").cap_bytes == 50 * 10**9


@pytest.mark.parametrize(
    ("gpu", "device", "visible"),
    [
        ("auto", "", None),
        ("cpu", "cpu", ""),
        ("mps", "mps", ""),
        ("cuda", "cuda", None),
        ("1", "cuda", "1"),
        ("cuda:1", "cuda", "1"),
        ("GPU-5a1f", "cuda", "GPU-5a1f"),
    ],
)
def test_the_trainer_sees_the_owners_device_alone(gpu: str, device: str, visible: str | None) -> None:
    found = Limits(gpu=gpu)
    assert found.device == device and found.trainer_environment().get("CUDA_VISIBLE_DEVICES") == visible
    assert found.trainer_environment()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert Limits(gpu="2", vram="1GB").with_device(gpu) == Limits(gpu=gpu, vram="1GB")
    assert found.with_device("") == found
    with pytest.raises(SettingError, match='--device: gpu = "tpu"'):
        found.with_device("tpu")
    assert found.needs_another_trainer(Limits(gpu="2")) and not found.needs_another_trainer(
        found.model_copy(update={"max_temp_c": 70})
    )


def test_what_people_and_programs_are_shown(tmp_path: Path) -> None:
    set_from_text(tmp_path, "schedule=Sat-Sun")
    lines = limits.show(tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == list(KEYS)
    assert lines[KEYS.index("schedule")].split()[1] == "Sat-Sun" and "no limit" in lines[KEYS.index("vram")]
    assert json.loads(limits.show(tmp_path, as_json=True))["schedule"] == ["Sat-Sun"]
    assert limits.get(tmp_path, "schedule") == "Sat-Sun" and limits.get(tmp_path, "on_battery") == "false"
    assert json.loads(limits.get(tmp_path, "schedule", as_json=True)) == ["Sat-Sun"]
    with pytest.raises(SettingError, match="did you mean schedule"):
        limits.get(tmp_path, "shedule")


def test_the_volunteers_page_names_every_limit_and_its_examples_hold(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "join.md").read_text(encoding="utf-8")
    section = page.split("## Limits")[1].split("## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", section, flags=re.MULTILINE)
    assert [key for key, _ in rows] == list(KEYS)
    for key, examples in rows:
        for example in re.findall(r"`(.+?)`", examples):
            set_from_text(tmp_path, f"{key}={example}")
