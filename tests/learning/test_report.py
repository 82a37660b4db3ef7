"""The report: means and errors against hand arithmetic and a bootstrap, files that can be read, honest words."""

import json
import math
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tinylora.errors import DataError, StorageError
from tinylora.report import build_report, plot_loss, plot_routing, to_markdown, write_report
from tinylora.report import systems as report_systems
from tinylora.report.plots import loss_curves, smooth


@dataclass(frozen=True)
class Score:
    domain: str
    name: str
    nll_sum: float
    n_tokens: int
    n_bytes: int = 0
    nll_sum_late: float = 0.0
    n_tokens_late: int = 0


def _scores(seed=0, shift=0.0, n_documents=30, domains=("a", "b")):
    """Documents of uneven length; `shift` nats per token worse than without, with a little noise of its own."""
    random = np.random.default_rng(seed)
    noise = np.random.default_rng(seed + round(1000 * abs(shift)) + 1)
    scores = []
    for index, domain in enumerate(domains):
        for document in range(n_documents):
            n_tokens = int(random.integers(20, 400))
            rate = 2.0 + index + random.normal() * 0.3 + shift + noise.normal() * 0.02
            scores.append(Score(domain, f"d{document}", rate * n_tokens, n_tokens, n_tokens * 3))
    return scores


ROUTING = {
    "leaves": ["0", "1"],
    "leaf_of": {"a": "0", "b": "1"},
    "posterior": {"a": [0.9, 0.1], "b": [0.25, 0.75]},
    "accuracy": {"a": 0.95, "b": 0.8},
}


def _units():
    units = []
    for node, worker in (("0", "w0"), ("0", "w1"), ("1", "w2")):
        for number in range(3):
            losses = [2.5 - 0.1 * number - 0.02 * step for step in range(4)]
            units.append(
                {"unit_id": f"{worker}-{number}", "kind": "train", "node": node, "worker": worker, "tokens": 40_000,
                 "losses": losses, "heldout_nll_after": losses[-1] + 0.05, "seconds": 2.0}
            )  # fmt: skip
    return [{"unit_id": "s", "kind": "sketch", "node": "", "worker": "w0", "tokens": 0, "losses": []}, *units]


def _report(**changes):
    scores = {
        "base": _scores(shift=0.3),
        "fedavg_lora": _scores(shift=0.2),
        "oracle": _scores(shift=0.0),
        "routed:soft": _scores(shift=0.01),
        "routed:top2": _scores(shift=0.03),
    }
    run = {
        "workers": [{"worker": "w0", "name": "ann", "tokens": 120_000, "seconds": 6.0, "base_loads": 1}],
        "units": _units(),
        "rounds": [{"version": 1, "contributors": ["w0", "w1"], "drift": 1.0, "reason": "the first", "n_workers": 2}],
    }
    how = "tinylora simulate --seed 7"
    arguments: dict[str, Any] = dict(
        scores=scores, rank=8, n_leaves=2, how=how, seed=7, seconds=12.5, run=run, routing=ROUTING
    )
    arguments |= {"run": run, "routing": ROUTING} | changes
    return build_report(**arguments)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_mean_is_over_domains_and_tokens_within():
    scores = [Score("a", "1", 10.0, 10), Score("a", "2", 60.0, 20), Score("b", "1", 9.0, 3)]
    row = report_systems.system_row(scores, active_rank=8)
    assert row["nll"] == {"a": 70 / 30, "b": 3.0}
    assert row["nll_mean"] == pytest.approx((70 / 30 + 3.0) / 2)
    assert row["ppl_mean"] == pytest.approx(math.exp(row["nll_mean"]))
    assert row["worst_domain"] == "b"
    assert row["stderr"] is None  # domain b has one document


def test_bits_per_byte_and_late_tokens():
    scores = [
        Score("a", "1", math.log(2) * 12, 6, n_bytes=4, nll_sum_late=4.0, n_tokens_late=2),
        Score("a", "2", math.log(2) * 12, 6, n_bytes=8),
    ]
    row = report_systems.system_row(scores, active_rank=0)
    assert row["bits_per_byte"] == pytest.approx(2.0)
    assert row["nll_after_32"] == pytest.approx(2.0)


def test_equal_lengths_give_the_textbook_standard_error():
    values = np.array([1.0, 2.0, 4.0, 7.0])
    scores = [Score("a", str(index), 10 * value, 10) for index, value in enumerate(values)]
    assert report_systems.mean_nll(scores).stderr == pytest.approx(values.std(ddof=1) / 2)


def _bootstrap(left, right, n_draws=4000):
    """The slow reference: draw documents with replacement within each domain, take the difference of mean nll."""
    random = np.random.default_rng(1)
    draws = np.zeros(n_draws)
    domains = sorted({score.domain for score in left})
    for domain in domains:
        pairs = [(a.nll_sum - b.nll_sum, a.n_tokens) for a, b in zip(left, right, strict=True) if a.domain == domain]
        y, n = np.array(pairs).T
        chosen = random.integers(len(y), size=(n_draws, len(y)))
        draws += y[chosen].sum(1) / n[chosen].sum(1) / len(domains)
    return draws.std()


@pytest.mark.parametrize("shift", [0.05, 0.3])
def test_paired_standard_error_agrees_with_the_bootstrap(shift):
    left, right = _scores(n_documents=60), _scores(n_documents=60, shift=shift)
    difference = report_systems.paired_difference(left, right)
    assert difference.value == pytest.approx(-shift, abs=0.01)
    assert difference.stderr == pytest.approx(_bootstrap(left, right), rel=0.1)


def test_mean_standard_error_agrees_with_the_bootstrap():
    scores = _scores(n_documents=60)
    nothing = [replace(score, nll_sum=0.0) for score in scores]
    assert report_systems.mean_nll(scores).stderr == pytest.approx(_bootstrap(scores, nothing), rel=0.1)


def test_pairs_do_not_depend_on_order_and_need_the_same_documents():
    left, right = _scores(), _scores(shift=0.1)
    backwards = report_systems.paired_difference(left[::-1], right)
    assert backwards == report_systems.paired_difference(left, right)
    with pytest.raises(DataError, match="different documents"):
        report_systems.paired_difference(left, right[1:])


def test_regret_is_zero_for_the_oracle_and_one_for_the_base():
    report = _report()
    rows = {"base": {"nll_mean": 3.0}, "oracle": {"nll_mean": 2.0}, "routed:soft": {"nll_mean": 2.1}}
    assert report_systems.regrets(rows) == {"soft": pytest.approx(0.1)}
    assert report_systems.regrets(rows | {"oracle": {"nll_mean": 3.0}}) == {"soft": None}
    assert set(report["regret"]) == {"soft", "top2"}


@pytest.mark.parametrize(
    ("system", "rank"),
    [("base", 0), ("fedavg_lora", 8), ("oracle", 8), ("routed:soft", 32), ("routed:top2", 16), ("routed:hard", 8),
     ("routed:elastic", 8), ("routed:sequence", 8), ("routed:soft:weights", 32), ("routed:hard@window:64", 8)],
)  # fmt: skip
def test_active_rank(system, rank):
    assert report_systems.active_rank(system, rank=8, n_leaves=4) == rank


def test_a_domain_without_predictions_is_named():
    with pytest.raises(DataError, match="domain b"):
        report_systems.system_row([Score("a", "1", 1.0, 1), Score("b", "1", 0.0, 0)], active_rank=0)


# --- the report and its files ----------------------------------------------------------------------------------------


def test_report_has_what_readers_look_for():
    report = _report()
    assert report["systems"]["routed:soft"]["active_rank"] == 16
    assert {"nll_mean", "ppl_mean", "nll", "stderr", "bits_per_byte", "n_documents"} <= report["systems"]["base"].keys()
    assert report["comparisons"]["soft_vs_fedavg"]["is_lower"] is True
    assert report["comparisons"]["soft_vs_fedavg"]["ratio"] < -2
    assert [goal["is_met"] for goal in report["goals"]] == [True, True, True]
    assert {"python", "torch", "transformers", "flwr", "safetensors", "tinylora"} <= report["versions"].keys()
    assert report["how"] == "tinylora simulate --seed 7"
    assert report["peak_memory_mb"] > 0


def test_missed_goals_are_said():
    shifts = {"base": 0.0, "fedavg_lora": 0.1, "oracle": 0.0, "routed:soft": 0.2}
    worse = {name: _scores(shift=shift) for name, shift in shifts.items()}
    report = _report(scores=worse)
    assert not any(goal["is_met"] for goal in report["goals"])
    assert to_markdown(report).count("**Missed:** the goal was that") == 3


def test_files_are_written_and_readable(tmp_path):
    files = write_report(_report(), tmp_path / "out")
    assert {kind: file.name for kind, file in files.items()} == {
        "json": "report.json", "md": "report.md", "loss": "loss.png", "routing": "routing.png",
    }  # fmt: skip
    assert json.loads(files["json"].read_text())["regret"]["soft"] > 0
    page = files["md"].read_text()
    assert "| routed:soft | 16 |" in page
    assert "| version 1 | ann, w1 | 1.0000 | the first | 2 |" in page
    assert "tinylora simulate --seed 7" in page
    for kind in ("loss", "routing"):
        width, _ = struct.unpack(">II", files[kind].read_bytes()[16:24])
        assert width == 1200
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(file.name for file in files.values())


def test_nothing_to_draw_draws_nothing(tmp_path):
    files = write_report(_report(routing=None, run={}), tmp_path)
    assert set(files) == {"json", "md"}


def test_same_report_gives_the_same_bytes(tmp_path):
    report = _report()
    first, second = (write_report(report, tmp_path / name) for name in ("one", "two"))
    assert all(first[kind].read_bytes() == second[kind].read_bytes() for kind in first)


def test_unwritable_place_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the report"):
        write_report(_report(), tmp_path / "file" / "out")


def test_loss_curves_join_the_units_of_one_worker():
    curves = loss_curves(_units())
    assert [(curve.node, curve.worker) for curve in curves] == [("0", "w0"), ("0", "w1"), ("1", "w2")]
    assert curves[0].tokens[:5] == [5_000, 15_000, 25_000, 35_000, 45_000]
    assert curves[0].heldout_tokens == [40_000, 80_000, 120_000]
    assert curves[0].label == "leaf 0 · w0"


def test_smoothing_keeps_ends_and_straight_lines():
    assert smooth([]) == []
    assert smooth([1.0, 2.0, 3.0, 4.0]) == pytest.approx([1, 2, 3, 4])
    assert smooth([0.0] * 5 + [7.0] + [0.0] * 5)[5] == pytest.approx(1.0)


def test_one_leaf_trees_can_be_drawn(tmp_path):
    routing = {"leaves": [""], "leaf_of": {"a": ""}, "posterior": {"a": [1.0]}, "accuracy": {"a": 1.0}}
    assert plot_routing(routing, tmp_path / "r.png").exists()
    assert plot_loss([], tmp_path / "l.png").exists()


def test_importing_the_report_loads_neither_torch_nor_matplotlib():
    code = "import sys, tinylora.report; print({'torch', 'matplotlib'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
