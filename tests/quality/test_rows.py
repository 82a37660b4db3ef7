"""Verdicts from outcomes with known answers, written by hand: no training here."""

import json
import math

import pytest

from tinylora.quality.config import QualityConfig, Rate
from tinylora.quality.document import to_markdown, write_documents
from tinylora.quality.jobs import Job, Outcome, Point, Score, Scored
from tinylora.quality.plan import ALPHAS, LOCAL_STEPS, REPLICAS, RULES
from tinylora.quality.rows import Results, leaf_memory_row, make_rows

CONFIG = QualityConfig(rates={}, rank=4, depth=1, seeds=(0, 1), n_bootstrap=50)


def scored(nll: float, *, active_rank: int = 4) -> Scored:
    rows = tuple(
        Score(domain=domain, name=f"{n}", nll_sum=100 * (nll + 0.01 * n), n_tokens=100, n_bytes=300)
        for domain in "ab"
        for n in range(5)
    )
    return Scored(active_rank=active_rank, seconds=0.5, scores=rows)


def outcome(system: str, seed: int = 0, /, **policies: float) -> Outcome:
    job = Job(system=system, seed=seed, rate=Rate(learning_rate=1e-3))
    found = {name.replace("__", ":"): scored(nll) for name, nll in (policies or {"one": 3.0}).items()}
    return Outcome(
        job=job, scored=found, total_rank=8, n_parameters=1000, tokens=4096, bytes_sent=5000, train_seconds=2.0
    )


def rows_of(*outcomes: Outcome, rows: tuple[int, ...]) -> dict:
    return make_rows(Results(CONFIG.model_copy(update={"rows": rows}), outcomes))


def both(system: str, **policies: float) -> list[Outcome]:
    return [outcome(system, seed, **policies) for seed in CONFIG.seeds]


TREE = {"soft": 2.81, "top2": 2.82, "hard": 2.84, "elastic": 2.83, "oracle": 2.8}


def test_row_1_needs_both_comparisons_at_five_percent():
    good = rows_of(*both("tree:4", **TREE), *both("fedavg:4", one=2.95), *both("fedavg:8", one=2.9), rows=(1,))["1"]
    assert good["met"] and good["policy"] == "elastic" and good["seeds"] == 2
    assert good["parts"]["elastic"]["value"] == pytest.approx(math.expm1(-0.12))
    assert good["value"] == pytest.approx(math.expm1(-0.08)), "the worse of the two comparisons"
    close = rows_of(*both("tree:4", **TREE), *both("fedavg:4", one=2.95), *both("fedavg:8", one=2.86), rows=(1,))["1"]
    assert not close["met"]


def test_row_2_is_missed_where_the_interval_holds_zero():
    peer = [outcome("fedavg:8", 0, one=2.7), outcome("fedavg:8", 1, one=3.0)]
    row = rows_of(*both("tree:4", **TREE), *peer, rows=(2,))["2"]
    assert row["value"] < 0 < row["ci"][1] and not row["met"]


def test_row_4_asks_for_all_three_regrets():
    row = rows_of(outcome("base", one=3.0), *both("tree:4", **TREE), rows=(4,))["4"]
    assert row["parts"]["soft"]["value"] == pytest.approx(0.05)
    assert row["parts"]["top2"]["value"] == pytest.approx(0.1)
    assert not row["met"], "top2 loses 10 % of the gain, 9 % is the goal"


def test_row_5_is_about_a_distance_in_either_direction():
    central = {"soft": 2.83, "top2": 2.82, "hard": 2.84, "oracle": 2.8}
    row = rows_of(*both("tree:4", **TREE), *both("central:4", **central), rows=(5,))["5"]
    assert row["value"] == pytest.approx(math.expm1(-0.02)) and not row["met"]


def test_row_6_takes_the_worst_rank_and_the_time_of_all():
    nested = {"oracle": 2.8, "hard": 2.8, "cut__1": 2.9, "cut__2": 2.85, "cut__4": 2.8}
    systems = [outcome("nested:4", **nested), outcome("nested:frozen:4", **nested)]
    systems += [outcome(f"side-tree:{rank}", oracle=nll, hard=nll) for rank, nll in ((1, 2.9), (2, 2.82), (4, 2.8))]
    row = rows_of(*systems, rows=(6,))["6"]
    assert row["value"] == pytest.approx(math.expm1(0.03)) and not row["met"]
    assert row["parts"]["time of one training for each rank over one nested"] == pytest.approx(3.0)


def test_row_8_compares_plateaus():
    def long(system: str, **curves: tuple[float, ...]) -> Outcome:
        points = [
            Point(tokens=1000 * (i + 1), nll={name: values[i] for name, values in curves.items()}) for i in range(3)
        ]
        return outcome(system, **{name: values[-1] for name, values in curves.items()}).model_copy(
            update={"curve": tuple(points)}
        )

    tree = long("long-tree:4", soft=(2.9, 2.8, 2.7), hard=(2.9, 2.85, 2.8))
    row = rows_of(tree, long("long-fedavg:4", one=(2.95, 2.9, 2.9)), outcome("base-validation"), rows=(8,))["8"]
    assert row["met"] and row["value"] == pytest.approx(math.expm1(-0.1))
    assert row["parts"]["fall over the last quarter of the tokens"]["one LoRA, FedAvg"] == pytest.approx(0.0)


def test_row_10_judges_the_default_rule_by_its_worst_skew():
    systems = [outcome(f"replicas:{alpha:g}:{rule}", one=2.9) for alpha in ALPHAS for rule in RULES]
    row = rows_of(*systems, rows=(10,))["10"]
    assert row["value"] == 0 and row["met"]


def test_row_13_is_the_share_of_the_gain_each_against_its_own_base():
    systems = [outcome("base", one=3.0), outcome("side-tree:4", oracle=2.8, hard=2.8, soft=2.8)]
    systems += [outcome("nf4-base", one=3.1), outcome("nf4-tree:4", oracle=2.92, hard=2.95, soft=2.92)]
    row = rows_of(*systems, rows=(13,))["13"]
    assert row["value"] == pytest.approx(0.9) and row["parts"]["hard"] == pytest.approx(0.75)


def test_row_17_takes_the_figure_of_the_benchmark():
    details = {"rank": 16, "held_as": "float32", "leaf_mib_held": 7.0, "growth_mib": 7.2, "leaf_mib_in_file": 3.5}
    row = leaf_memory_row({"figure": {"ratio": 1.03}, "details": details})
    assert row["met"] and row["value"] == 1.03
    assert not leaf_memory_row({"figure": {"ratio": 1.11}, "details": details})["met"]


def test_rows_whose_systems_are_missing_are_left_out():
    assert rows_of(*both("tree:4", **TREE), rows=(1, 2, 3, 4, 5, 9)) == {}


def test_the_documents_are_written_with_every_number(tmp_path):
    machines = [outcome(f"machines:{n}:{steps}") for n in REPLICAS for steps in LOCAL_STEPS]
    outcomes = [outcome("base", one=3.0), *both("tree:4", **TREE), *machines]
    results = Results(CONFIG.model_copy(update={"rows": (4, 14)}), outcomes)
    found = {
        "how": "tinylora report",
        "train_seconds": 60.0,
        "config": CONFIG.model_dump(mode="json"),
        "rows": make_rows(results),
    }
    files = write_documents(found, results, tmp_path)
    assert {file.name for file in files} >= {"quality.json", "quality.md", "gain-domain.png", "loss-bytes.png"}
    assert set(json.loads((tmp_path / "quality.json").read_text())["rows"]) == {"4", "14"}
    page = to_markdown(found, results, [])
    assert "| tree:4 | soft | 4 | 8 | 2.8300 |" in page and "**no**" in page
    for row in found["rows"].values():
        assert {"value", "ci", "goal", "met", "seeds", "active_rank", "total_rank", "tokens_per_s"} <= row.keys()
