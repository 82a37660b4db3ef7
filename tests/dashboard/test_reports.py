"""Workers' words on themselves, from the real worker over a real door to whoever shows them."""

import json
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from tinylora_coordinator.front_door import NodeAuth, listen
from tinylora_coordinator.operator_store import OperatorStore
from tinylora_coordinator.reports import BURST, RETRY_AFTER_S, Allowances, ReportDesk, report_routes
from tinylora_worker.limits import load, set_from_text

from tests.federation.facts import FACTS
from tests.flower.helpers import TOKEN, Federation, federation, until
from tests.hostile.texts import TEXTS
from tests.worker.agents import options, running
from tinylora.errors import SettingError
from tinylora.flower.enrolment import REPORT_PATH, join
from tinylora.flower.identity import Identity, new_identity
from tinylora.flower.link import PublicRoutes
from tinylora.flower.reach import Address, Trust
from tinylora.flower.receipts import signed_headers
from tinylora.flower.reporting import Answer, ReportLine
from tinylora.protocol.documents import MAX_NOTE
from tinylora.protocol.plain import MAX_MARKS
from tinylora.protocol.report import MAX_DETAIL, MAX_GPU, MAX_REPORT_BYTES, WorkerReport
from tinylora.protocol.standstill import WorkerState

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use
BASE = {"state": "working"}


class Ears:
    """Whoever shows what was heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, WorkerReport, float]] = []
        self.clock_s = 7.0
        self.desk = ReportDesk(self.hear, clock=lambda: self.clock_s, allowances=Allowances(burst=1000.0))

    def hear(self, worker: str, report: WorkerReport, at_s: float) -> None:
        self.heard.append((worker, report, at_s))

    def of(self, worker: str) -> list[WorkerReport]:
        return [report for who, report, _ in self.heard if who == worker]

    def routes(self, nodes: NodeAuth) -> PublicRoutes:
        return report_routes(self.desk, nodes.admit)


@pytest.fixture(scope="module")
def ears() -> Ears:
    return Ears()


@pytest.fixture(scope="module")
def served(ears: Ears, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("link"), facts=FACTS, routes_for=ears.routes) as found:
        yield found


@pytest.fixture(scope="module")
def worker(served: Federation) -> Identity:
    identity = new_identity()
    join(served.address, TOKEN, identity)
    return identity


@pytest.fixture(scope="module")
def http(served: Federation) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.address.url(), trust_env=False) as client:
        yield client


def post(http: httpx.Client, who: Identity, body: bytes | str) -> httpx.Response:
    return http.post(REPORT_PATH, content=body, headers=signed_headers(who, 0.0))


# --- the way ----------------------------------------------------------------------------------------------------------


def test_a_worker_tells_its_life(served: Federation, ears: Ears, tmp_path: Path) -> None:
    served.link.phase = "running"
    tmp_path.joinpath("home").mkdir()
    for limit in ("note=poems\x1b[31m", "vram=80%", "share_log=yes"):
        set_from_text(tmp_path / "home", limit)
    with running(options(served.address.url(), TOKEN, tmp_path / "home")) as agent:
        until(lambda: bool(agent.agent.status().worker), what="its name")
        name = agent.agent.status().worker
        until(lambda: any(report.state == "waiting" for report in ears.of(name)), what="a report of waiting")
        agent.agent.pause()
        until(lambda: any(report.reason == "user_paused" for report in ears.of(name)), what="a report of the pause")
    told = ears.of(name)
    assert [report.state for report in told][-1] == "leaving"
    assert {report.note for report in told} == {"poems [31m"} and told[0].limits == {"vram": "80%"}
    assert next(report for report in told if report.reason == "user_paused").gpu == "fake"
    lines = [line for report in told for line in report.log]
    assert any(line.startswith("paused: user_paused") for line in lines)
    assert not any(str(tmp_path) in line or "127.0.0.1" in line for line in lines)


def test_a_worker_speaks_of_itself_alone(http: httpx.Client, worker: Identity, ears: Ears) -> None:
    ears.heard.clear()
    ears.clock_s = 42.0
    assert post(http, worker, json.dumps(BASE)).status_code == 204
    assert [(who, at_s) for who, _, at_s in ears.heard] == [(worker.worker, 42.0)]
    refused = post(http, worker, json.dumps(BASE | {"worker": "w-another"}))
    assert refused.status_code == 400 and "field worker" in refused.json()["reason"]
    assert post(http, new_identity(), json.dumps(BASE)).status_code == 401
    assert http.post(REPORT_PATH, content=json.dumps(BASE)).status_code == 401
    assert http.get(REPORT_PATH).status_code == 405
    assert len(ears.heard) == 1


def test_the_connection_is_kept_and_what_comes_of_a_report_is_told(
    served: Federation, worker: Identity, ears: Ears
) -> None:
    sent: list[tuple[int, int]] = []
    line = ReportLine(served.address, Trust(), worker, meter=lambda out, back: sent.append((out, back)))
    report = WorkerReport(state=WorkerState.WORKING)
    assert line.send(report).is_heard
    client = line._client
    assert line.send(report).is_heard and line._client is client
    assert 0 < sum(out for out, _ in sent) < 6000  # bytes of two reports; headers are the most of them
    line.close()
    stranger = sent_by(ReportLine(served.address, Trust(), new_identity()))
    assert not stranger.is_heard and not stranger.is_lost and stranger.rest_s > 10.0


def sent_by(line: ReportLine) -> Answer:
    """What comes of one report on a line of its own."""
    answer = line.send(WorkerReport(state=WorkerState.WORKING))
    line.close()
    return answer


def test_a_coordinator_without_the_route_is_not_asked_again_soon(
    served: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinylora.flower.reporting.REPORT_PATH", "/tinylora/of-tomorrow")
    answer = sent_by(ReportLine(served.address, Trust(), new_identity()))
    assert (answer.is_heard, answer.is_lost) == (False, False) and answer.rest_s >= 600.0
    with listen("127.0.0.1", 0) as closed_soon:
        port = closed_soon.getsockname()[1]
    gone = sent_by(ReportLine(Address(f"127.0.0.1:{port}", is_plain=True), Trust(), new_identity()))
    assert gone.is_lost and gone.why


# --- too many ---------------------------------------------------------------------------------------------------------


def test_each_worker_has_its_own_allowance() -> None:
    allowances = Allowances(burst=2.0, per_s=0.5)
    assert [allowances.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert allowances.take("b", 0.0)
    assert not allowances.take("a", 1.0) and allowances.take("a", 2.0) and not allowances.take("a", 2.0)


def test_those_who_rested_are_forgotten() -> None:
    allowances = Allowances(burst=2.0, per_s=1.0)
    for number in range(5000):
        allowances.take(f"w{number}", float(number))
    assert len(allowances._by_worker) <= 4100


def test_one_report_too_many_is_refused_until_later(
    served: Federation, worker: Identity, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ears.desk, "_allowances", Allowances(per_s=0.0))
    line = ReportLine(served.address, Trust(), worker)
    answers = [line.send(WorkerReport(state=WorkerState.WORKING)) for _ in range(int(BURST) + 1)]
    line.close()
    assert [answer.is_heard for answer in answers] == [True] * int(BURST) + [False]
    assert answers[-1].is_lost and answers[-1].rest_s == RETRY_AFTER_S


# --- strangers' texts -------------------------------------------------------------------------------------------------

FIELDS = {
    "shown": lambda text: {"detail": text[:MAX_DETAIL], "gpu": text[:MAX_GPU], "note": text, "log": ["fine", text]},
    "limit": lambda text: {"limits": {"vram": text}},
    "name of a limit": lambda text: {"limits": {text: "1"}},
    "unit": lambda text: {"unit_id": text},
}


def is_plain(text: str, *, at_most: int = MAX_NOTE) -> bool:
    """Bounded, one line, nothing in it that acts."""
    marks = "".join(unicodedata.category(letter)[0] for letter in text)
    return len(text) <= at_most and text.isprintable() and "M" * (MAX_MARKS + 1) not in marks


def texts_of(report: WorkerReport) -> list[str]:
    """All that a report shows as text."""
    return [report.detail, report.gpu, report.note, *report.limits, *report.limits.values(), *report.log]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_strange_texts_are_refused_or_arrive_as_plain_ones(
    text: str, http: httpx.Client, worker: Identity, ears: Ears
) -> None:
    for field, of in FIELDS.items():
        ears.heard.clear()
        answer = post(http, worker, json.dumps(BASE | of(text)))
        if answer.status_code == 204:
            ((_, report, _),) = ears.heard
            assert all(map(is_plain, texts_of(report))), field
        else:
            assert answer.status_code in (400, 413) and not ears.heard
            sentence = answer.json()["reason"]
            assert is_plain(sentence, at_most=500), (field, sentence)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_strange_names_are_plain_where_they_are_kept(
    text: str, served: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a program sends them that takes nothing out."""
    monkeypatch.setattr("tinylora.flower.enrolment.printable", lambda text, at_most: text)
    identity = new_identity()
    if len(text) > 80 or "\ud800" in text:  # our own document does not take it, and the door's is the same
        with pytest.raises(ValidationError):
            join(served.address, TOKEN, identity, name=text)
        return
    join(served.address, TOKEN, identity, name=text)
    with OperatorStore(served.database.parent) as store:
        kept = next(found.name for found in store.workers() if found.worker == identity.worker)
    assert is_plain(kept, at_most=80)


def test_an_honest_program_tells_a_plain_name(served: Federation) -> None:
    identity = new_identity()
    join(served.address, TOKEN, identity, name=TEXTS["ansi title"] + TEXTS["lone surrogate"] + "x" * 100)
    with OperatorStore(served.database.parent) as store:
        kept = next(found.name for found in store.workers() if found.worker == identity.worker)
    assert is_plain(kept, at_most=80) and kept.startswith("]0;owned 31m xxx")


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_strange_notes_of_an_honest_program_are_one_sentence_or_plain(text: str, tmp_path: Path) -> None:
    try:
        set_from_text(tmp_path, f"note={text}")
    except SettingError as error:
        assert len(text) > MAX_NOTE and "at most 200 characters" in str(error)
    else:
        note = load(tmp_path).note
        assert is_plain(note) and WorkerReport(state=WorkerState.WORKING, note=note).note == note


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[" * 40_000,
        b'{"a":' * 8_000,
        b'{"state": "working", "step": 1e999}',
        b'{"state": "working", "step": ' + b"9" * 40_000 + b"}",
        b'{"state": "working", "loss": NaN}',
        b'{"state": "working", "limits": {' + b",".join(b'"a%d": "1"' % n for n in range(2000)) + b"}}",
        b'{"state": "working", "log": [' + b",".join([b'""'] * 9000) + b"]}",
        b"[" * MAX_REPORT_BYTES + b" ",
        b" " * 70_000,
        b"{" * 10_000_000,
    ],
    ids=lambda body: f"{len(body)} bytes",
)
def test_bodies_that_are_no_report_are_one_sentence(
    body: bytes, http: httpx.Client, worker: Identity, ears: Ears
) -> None:
    ears.heard.clear()
    begun_s = time.monotonic()
    answer = post(http, worker, body)
    assert answer.status_code in (400, 413) and answer.json()["reason"] and not ears.heard
    assert len(answer.content) < 2000 and time.monotonic() - begun_s < 5.0
