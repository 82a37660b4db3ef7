"""What a configuration asks for: read strictly, shared between rows, and tuned on a grid of its own."""

from pathlib import Path

import pytest

from tinylora.errors import SettingError
from tinylora.quality.config import QualityConfig, Rate, read_config
from tinylora.quality.plan import ORDER, ROWS, jobs_of, tuning_jobs

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "quality.toml"


class AnyRate(dict[str, Rate]):
    def __missing__(self, key: str) -> Rate:
        return Rate(learning_rate=1e-3)

    def __contains__(self, key: object) -> bool:
        return True


def config(**changes: object) -> QualityConfig:
    plain = QualityConfig(rates={})
    return plain.model_copy(update={"rates": AnyRate(), **changes})


def write(folder: Path, text: str) -> Path:
    file = folder / "quality.toml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("preset", ["ci", "cpu", "full"])
def test_the_committed_file_has_a_rate_for_every_job_of_every_preset(preset):
    found = read_config(COMMITTED, preset=preset)
    assert len(jobs_of(found)) > 3


def test_an_unknown_key_is_named_with_those_that_exist(tmp_path):
    with pytest.raises(SettingError, match=r"quality\.toml: leaf_stesp: extra.*known keys: .*leaf_steps"):
        read_config(write(tmp_path, "leaf_stesp = 3\n[presets.cpu]\n[rates]\n"))


def test_a_preset_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(SettingError, match="no preset 'fast'; expected one of cpu, slow"):
        read_config(write(tmp_path, "[presets.cpu]\n[presets.slow]\n[rates]\n"), preset="fast")


@pytest.mark.parametrize("text", ["rank = 0", "rows = [18]", "dtype = 'int4'", "rank = ["])
def test_values_out_of_range_are_refused(tmp_path, text):
    with pytest.raises(SettingError, match=r"quality\.toml"):
        read_config(write(tmp_path, f"{text}\n[presets.cpu]\n[rates]\n"))


def test_a_missing_file_and_a_missing_rate_say_what_to_do(tmp_path):
    with pytest.raises(SettingError, match=r"no such file; benchmarks/quality\.toml is one"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(SettingError, match=r"no entry for 'tree:16'; .*--tune"):
        jobs_of(QualityConfig(rates={}, rows=(1,)))


def test_rows_share_jobs_and_every_system_gets_the_same_tokens():
    one, both = jobs_of(config(rows=(1,))), jobs_of(config(rows=(1, 2, 4)))
    assert {job.system for job in one} < {job.system for job in both}
    assert len({(job.system, job.seed) for job in both}) == len(both)
    plan = config(rows=(1, 2, 3, 5))
    for job in jobs_of(plan):
        if job.kind != "base":
            steps = int(job.settings.get("leaf_steps", plan.leaf_steps))
            assert steps * job.n_workers == plan.leaf_steps * plan.n_workers, job.system


def test_the_first_five_rows_have_three_seeds_and_the_others_one():
    seeds = {job.system: set() for job in jobs_of(config())}
    for job in jobs_of(config()):
        seeds[job.system].add(job.seed)
    assert seeds["tree:16"] == seeds["fedavg:16"] == seeds["fedavg:128"] == seeds["full"] == {0, 1, 2}
    assert seeds["nested:16"] == seeds["iid-tree:16"] == {0}


def test_the_order_of_work_puts_the_first_rows_first():
    order = [job.system for job in jobs_of(config())]
    assert order.index("fedavg:128") < order.index("iid-tree:16") < order.index("nested:16")
    assert set(ROWS) <= set(ORDER)


def test_every_rate_that_rows_need_is_tuned_on_validation_documents_at_a_share_of_the_steps():
    plan = config()
    grids = tuning_jobs(plan)
    assert {job.rate_key for job in jobs_of(plan)} - {""} == set(grids)
    for key, grid in grids.items():
        assert len(grid) >= 4 and {job.on for job in grid} == {"validation"} and {job.rate_key for job in grid} == {key}
        assert len({(job.rate.learning_rate, job.rate.scale) for job in grid}) == len(grid)
    assert [job.settings["leaf_steps"] for job in grids["tree:16"]] == [20] * 4
    assert grids["pooled:16"][0].settings["leaf_steps"] == 160
