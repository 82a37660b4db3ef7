"""What others are told of a worker: its state, numbers and limits, and none of its owner's names."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylora_worker.agent.bench import UnderWay
from tinylora_worker.agent.desk import Orders, UnitOrder
from tinylora_worker.agent.outward import HIDDEN, Discretion, declared, make_report, with_statement
from tinylora_worker.limits import Limits

from tests.flower.helpers import make_unit
from tinylora.protocol.documents import Update
from tinylora.protocol.report import WorkerReport
from tinylora.protocol.standstill import Reason, WorkerState

AT_WORK = Orders(UnitOrder.GO_ON, True, True, False, WorkerState.WORKING)
NO_LIMITS = Limits()
HOME = "/home/alice-smith/.local/share/tinylora"
WORKER = "w-0123456789abcdef0123456789"
DISCRETION = Discretion.about(["alice-smith", "fort-knox", HOME, "notes.jsonl", "game.exe", "root", "al", ""], [WORKER])


def reported(orders: Orders, work: UnderWay | None = None, limits: Limits = NO_LIMITS, **known: object) -> WorkerReport:
    values = {"device": "NVIDIA RTX 3060", "memory_bytes": 12 * 2**30, "log": (), "now_s": 1000.0} | known
    return make_report(orders, work=work, limits=limits, **values)  # type: ignore[arg-type]


def test_a_worker_at_work_tells_how_far_it_is() -> None:
    work = UnderWay(make_unit("u1", b"", n_steps=50), folder=None, deadline_s=0.0)  # type: ignore[arg-type]
    work.progress.note(step=7, n_steps=50, loss=1.5, tokens_per_s=800.0, checkpoint_age_s=0.0, now_s=1.0)
    found = reported(AT_WORK, work)
    assert (found.state, found.unit_id, found.step, found.n_steps) == (WorkerState.WORKING, "u1", 7, 50)
    assert (found.tokens_per_s, found.loss, found.gpu, found.memory_bytes) == (
        800.0,
        1.5,
        "NVIDIA RTX 3060",
        12 * 2**30,
    )
    work.progress.losses.append(float("nan"))
    paused = replace(AT_WORK, state=WorkerState.PAUSED, reason=Reason.BATTERY, detail="40 %", until_s=1010.0)
    held = reported(paused, work)
    assert (held.tokens_per_s, held.loss, held.detail, held.resumes_in_s) == (0.0, 0.0, "40 %", 10.0)


@pytest.mark.parametrize("reason", list(Reason))
def test_further_words_are_told_only_of_limits(reason: Reason) -> None:
    orders = replace(AT_WORK, state=WorkerState.PAUSED, reason=reason, detail="game.exe in /home/alice")
    tells = reported(orders).detail
    names_others = reason in (
        Reason.EXCLUSIVE_APP,
        Reason.GPU_BUSY,
        Reason.ERROR,
        Reason.UPDATE_REQUIRED,
        Reason.COORDINATOR_UNREACHABLE,
    )
    assert reported(orders).reason == reason and not (names_others and tells)


def test_limits_are_declared_without_names() -> None:
    limits = Limits(
        gpu="GPU-5a1f0000-aaaa",
        vram="80%",
        schedule=("Sat-Sun",),
        exclusive_apps=("game.exe", "secret-project"),
        max_temp_c=80.0,
        note="poems",
        share_log=True,
    )
    assert declared(limits) == {
        "gpu": "cuda",
        "vram": "80%",
        "schedule": "Sat-Sun",
        "exclusive_apps": "2 programs",
        "max_temp_c": "80 °C",
    }
    assert declared(Limits()) == {}
    assert reported(AT_WORK, limits=limits).note == "poems"


def test_the_owners_word_goes_with_the_sketch_alone() -> None:
    limits = Limits(note="poems\x07  and letters", data_licence="CC0-1.0")
    sketch = Update(
        unit_id="u", run="r", kind="sketch", worker="w", nonce="n", shard_version="0" * 64, payload_sha256="0" * 64
    )
    said = with_statement(sketch, limits)
    assert (said.data_note, said.data_licence) == ("poems and letters", "CC0-1.0")
    assert with_statement(sketch, Limits()) == sketch
    train = sketch.model_copy(update={"kind": "train"})
    assert with_statement(train, limits) == train


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("u1 node root: 5 steps, loss 1.500 -> 1.200, 812 tokens/s", None),
        ("cpu, fp32; 12 documents to train on, 3 held out, 812 tokens", None),
        ("leaving; once more means at once", None),
        ("paused: schedule until 22:00:00", None),
        (f"run run: joined https://10.0.0.7:8443 as {WORKER}", f"run run: joined {HIDDEN} as {WORKER}"),
        ("paused: exclusive_app (game.exe, vlc) until 22:00:00", "paused: exclusive_app until 22:00:00"),
        (f"{HOME}/traffic.json: not readable; move it away", f"{HIDDEN} not readable; move it away"),
        (r"C:\Users\Alice Smith\x: gone", f"{HIDDEN} gone"),
        ("/a/My Own Folder/x y/z, 3 tokens/s", f"{HIDDEN} 3 tokens/s"),
        ("notes.jsonl, line 7: 'my diagnosis is X' is no example", f"{HIDDEN}, line 7: {HIDDEN} is no example"),
        ("ALICE-SMITH on Fort-Knox", f"{HIDDEN} on {HIDDEN}"),
        ("fe80::1 and 192.168.1.5:80 and aa:bb:cc:dd:ee:ff", f"{HIDDEN} and {HIDDEN} and {HIDDEN}"),
        ("mail bob@example.org, box.lan", f"mail {HIDDEN} {HIDDEN}"),
        ("token=tl1 api_key: abc", f"{HIDDEN} {HIDDEN}"),
        ("key AAAAB3NzaC1yc2EAAAADAQABAAABgQ", f"key {HIDDEN}"),
        ("\x1b[31mred\x1b[0m\u202e", "[31mred [0m"),
    ],
)  # fmt: skip
def test_lines_of_the_log_keep_what_they_say_and_lose_whom_it_concerns(said: str, told: str | None) -> None:
    assert DISCRETION.line(said) == (said if told is None else told)


@given(
    st.sampled_from([HOME, "alice-smith", "fort-knox", "notes.jsonl", "10.1.2.3", "a@b.example", "D:\\x", "/etc/x"]),
    st.text(max_size=400),
    st.text(max_size=900),
)
def test_whatever_stands_around_it_what_is_private_is_not_told(private: str, before: str, after: str) -> None:
    told = DISCRETION.line(f"{before} {private} {after}")
    assert private.lower() not in told.lower() and len(told) <= 200 and (told.isprintable())
