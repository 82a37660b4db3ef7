"""Which jobs each row of the report needs. Pure; rows share jobs, and a job that is on disk is not done again."""

from collections.abc import Callable, Iterator

from tinylora.quality.config import QualityConfig, Rate
from tinylora.quality.jobs import MIXES, OTHER_ROUTERS, ROUTED, Job

ORDER = (1, 2, 4, 3, 5, 9, 12, 6, 7, 16, 8, 13, 10, 14, 11, 15)
"""Rows by weight: where time runs out, the first ones are there. Row 17 is measured by `make bench`."""
TIED = ("tied:A", "tied:A,uv", "tied:B", "tied:uv", "tied:A,B", "tied:A,B,uv")
ALPHAS = (0.5, 0.1, 0.01)
RULES = ("mean", "alternate", "product")
REPLICAS = (2, 4, 8)
LOCAL_STEPS = (10, 50, 200)
REGRET_PREFIXES = (8, 16, 32, 64, 128, 256)
N_CURVE = 12


def jobs_of(config: QualityConfig) -> list[Job]:
    """All jobs of the configuration's rows, each once, the most wanted first."""
    return [job.model_copy(update={"rate": config.rate(job.rate_key)}) for job in _unrated(config)]


def _unrated(config: QualityConfig) -> list[Job]:
    found: dict[tuple[str, int], Job] = {}
    for row in sorted(config.rows, key=ORDER_OF.__getitem__):
        for job in ROWS.get(row, _none)(config):
            found.setdefault((job.system, job.seed), job)
    return list(found.values())


def nested_ranks(config: QualityConfig) -> tuple[int, ...]:
    """Powers of two up to the rank, the rank itself last."""
    ranks = [2**power for power in range(config.rank.bit_length()) if 2**power < config.rank]
    return (*ranks, config.rank)


# --- systems ---------------------------------------------------------------------------------------------------------


def base(config: QualityConfig) -> Job:
    """The frozen base."""
    return Job(system="base", kind="base")


def tree(config: QualityConfig, seed: int) -> Job:
    """The federated tree: one worker and leaf for each domain."""
    rank = config.rank
    more = (*(f"hard@sequence:{n}" for n in REGRET_PREFIXES if n != 32), *OTHER_ROUTERS, *MIXES)
    is_first = seed == config.seeds[0]
    return Job(
        system=f"tree:{rank}",
        seed=seed,
        rate_key=f"tree:{rank}",
        settings={"router_sync": "both"} if is_first else {},
        policies=(*ROUTED, *more) if is_first else ROUTED,
        has_oracle=True,
        n_workers=config.n_workers,
    )


def fedavg(config: QualityConfig, rank: int, seed: int) -> Job:
    """One LoRA, averaged over all workers: a tree of depth 0."""
    return Job(
        system=f"fedavg:{rank}",
        seed=seed,
        rate_key=f"fedavg:{rank}",
        settings={"depth": 0, "rank": rank},
        n_workers=config.n_workers,
    )


def pooled(config: QualityConfig, rank: int, seed: int) -> Job:
    """One LoRA on all text in one place, for the same tokens in sequence."""
    n_steps = config.leaf_steps * config.n_workers
    return Job(
        system=f"pooled:{rank}",
        seed=seed,
        rate_key=f"pooled:{rank}",
        split="pooled",
        settings={"depth": 0, "rank": rank, "leaf_steps": n_steps, "unit_steps": n_steps},
        n_workers=1,
    )


def full(config: QualityConfig, seed: int) -> Job:
    """The base's own weights trained on all text in one place: the control for a base that was not done."""
    n_steps = config.leaf_steps * config.n_workers
    return Job(
        system="full",
        kind="full",
        seed=seed,
        rate_key="full",
        split="pooled",
        settings={"leaf_steps": n_steps},
        n_workers=1,
    )


def central(config: QualityConfig, seed: int) -> Job:
    """The same tree, trained in one place on labelled text, without units, and its gates fitted on all of it."""
    return Job(
        system=f"central:{config.rank}",
        kind="central",
        seed=seed,
        rate_key=f"tree:{config.rank}",
        policies=("soft", "top2", "hard"),
        has_oracle=True,
        n_workers=config.n_workers,
    )


def replicated_tree(config: QualityConfig) -> Job:
    """The tree with two workers for each leaf, half of the steps each."""
    return Job(
        system=f"replicated-tree:{config.rank}",
        rate_key=f"tree:{config.rank}",
        split="halves",
        settings={"leaf_steps": max(1, config.leaf_steps // 2)},
        policies=("soft", "top2", "hard"),
        has_oracle=True,
        n_workers=2 * config.n_workers,
    )


# --- rows ------------------------------------------------------------------------------------------------------------


def _none(config: QualityConfig) -> list[Job]:
    return []


def _active(config: QualityConfig) -> list[Job]:
    ranks = (config.rank, 2 * config.rank)
    return [
        job
        for seed in config.seeds
        for job in (base(config), tree(config, seed), *(fedavg(config, rank, seed) for rank in ranks))
    ]


def _total(config: QualityConfig) -> list[Job]:
    rank = config.rank * config.n_workers
    return [job for seed in config.seeds for job in (tree(config, seed), fedavg(config, rank, seed))]


def _centralised(config: QualityConfig) -> list[Job]:
    ranks = (config.rank, config.rank * config.n_workers)
    return [
        job
        for seed in config.seeds
        for job in (tree(config, seed), full(config, seed), *(pooled(config, rank, seed) for rank in ranks))
    ]


def _routing(config: QualityConfig) -> list[Job]:
    return [base(config), *(tree(config, seed) for seed in config.seeds)]


def _federation(config: QualityConfig) -> list[Job]:
    pairs = [job for seed in config.seeds for job in (tree(config, seed), central(config, seed))]
    return [*pairs, replicated_tree(config)]


def _nested(config: QualityConfig) -> list[Job]:
    return [
        nested(config, "nested"),
        nested(config, "nested:frozen"),
        *(side_tree(config, rank) for rank in nested_ranks(config)),
    ]


def nested(config: QualityConfig, kind: str) -> Job:
    """Leaves trained with DyLoRA, cut to every rank afterwards."""
    return Job(
        system=f"{kind}:{config.rank}",
        rate_key=kind,
        settings={"adapter": kind, "leaf_steps": config.side_steps},
        has_oracle=True,
        policies=("hard",),
        cuts=nested_ranks(config),
        n_workers=config.n_workers,
    )


def side_tree(config: QualityConfig, rank: int) -> Job:
    """The tree at another rank, with the steps of the side rows."""
    return Job(
        system=f"side-tree:{rank}",
        rate_key=f"tree:{rank}",
        settings={"rank": rank, "leaf_steps": config.side_steps},
        has_oracle=True,
        policies=("hard",),
        n_workers=config.n_workers,
    )


def _tied(config: QualityConfig) -> list[Job]:
    return [side_tree(config, config.rank), *(tied(config, kind) for kind in TIED)]


def tied(config: QualityConfig, kind: str) -> Job:
    """Leaves whose A and B are shared by all layers."""
    return Job(
        system=f"{kind}:{config.rank}",
        rate_key=kind,
        settings={"adapter": kind, "leaf_steps": config.side_steps},
        has_oracle=True,
        policies=("hard",),
        n_workers=config.n_workers,
    )


def _gain(config: QualityConfig) -> list[Job]:
    long = {"leaf_steps": config.long_steps}
    rank = config.rank
    grown = tree(config, config.seeds[0])
    peer = fedavg(config, rank, config.seeds[0])
    return [
        base(config).model_copy(update={"system": "base-validation", "on": "validation"}),
        grown.model_copy(
            update={
                "system": f"long-tree:{rank}",
                "settings": long,
                "n_checkpoints": N_CURVE,
                "policies": ("soft", "hard"),
            }
        ),
        peer.model_copy(
            update={"system": f"long-fedavg:{rank}", "settings": peer.settings | long, "n_checkpoints": N_CURVE}
        ),
        *(shape(config, depth) for depth in range(1, config.depth)),
    ]


def shapes(config: QualityConfig) -> dict[int, str]:
    """Systems of one total rank, by their number of leaves."""
    total = config.rank * config.n_workers
    between = {2**depth: f"shape:{2**depth}x{total // 2**depth}" for depth in range(1, config.depth)}
    return {1: f"fedavg:{total}", **between, config.n_workers: f"tree:{config.rank}"}


def shape(config: QualityConfig, depth: int) -> Job:
    """A shallower tree of the same total rank: all workers share its leaves."""
    n_leaves = 2**depth
    rank = config.rank * config.n_workers // n_leaves
    return Job(
        system=shapes(config)[n_leaves],
        rate_key=f"tree:{rank}",
        settings={"depth": depth, "rank": rank},
        policies=("soft", "hard"),
        n_workers=config.n_workers,
    )


def _iid(config: QualityConfig) -> list[Job]:
    rank, seed = config.rank, config.seeds[0]
    changes = {"split": "iid"}
    return [
        tree(config, seed).model_copy(
            update=changes | {"system": f"iid-tree:{rank}", "policies": ("soft", "hard"), "has_oracle": False}
        ),
        fedavg(config, rank, seed).model_copy(update=changes | {"system": f"iid-fedavg:{rank}"}),
    ]


def _replicas(config: QualityConfig) -> list[Job]:
    return [replica_job(config, alpha, rule) for alpha in ALPHAS for rule in RULES]


def replica_job(config: QualityConfig, alpha: float, rule: str) -> Job:
    """One leaf with all workers as its replicas, on text split by a Dirichlet draw."""
    return Job(
        system=f"replicas:{alpha:g}:{rule}",
        rate_key=f"fedavg:{config.rank}",
        split=f"dirichlet:{alpha:g}",
        settings={"depth": 0, "leaf_steps": config.side_steps, "replicas": rule},
        n_workers=config.n_workers,
    )


def _dropped(config: QualityConfig) -> list[Job]:
    whole = tree(config, config.seeds[0])
    return [whole, whole.model_copy(update={"system": f"dropped-tree:{config.rank}", "drop": 0.5, "policies": ROUTED})]


def _grown(config: QualityConfig) -> list[Job]:
    fixed = tree(config, config.seeds[0])
    changes = {
        "system": f"grown-tree:{config.rank}",
        "settings": {"grow": True, "unit_steps": max(1, config.round_steps // 4)},
        "policies": ("soft", "hard"),
        "joins_every_s": config.leaf_steps / (4 * config.n_workers),
    }
    return [fixed, fixed.model_copy(update=changes)]


def _quantised(config: QualityConfig) -> list[Job]:
    rank = config.rank
    side = {"leaf_steps": config.side_steps}
    options = {"has_oracle": True, "policies": ("soft", "hard"), "n_workers": config.n_workers}
    return [
        base(config),
        Job(system="nf4-base", kind="base", base="nf4"),
        side_tree(config, rank),
        Job(system=f"nf4-tree:{rank}", base="nf4", rate_key=f"tree:{rank}", settings=side, **options),
    ]


def _machines(config: QualityConfig) -> list[Job]:
    return [machines_job(config, n, steps) for n in REPLICAS for steps in LOCAL_STEPS]


def machines_job(config: QualityConfig, n_workers: int, local_steps: int) -> Job:
    """So many replicas of one adapter on IID text, averaged after so many local steps."""
    n_steps = max(LOCAL_STEPS) if config.side_steps >= LOCAL_STEPS[1] else config.side_steps
    return Job(
        system=f"machines:{n_workers}:{local_steps}",
        rate_key=f"fedavg:{config.rank}",
        split="iid",
        settings={
            "depth": 0,
            "leaf_steps": n_steps,
            "unit_steps": min(local_steps, n_steps),
            "batch_windows": max(1, config.batch_windows // 2),
        },
        n_workers=n_workers,
    )


def _searched(config: QualityConfig) -> list[Job]:
    return [
        Job(
            system=f"searched:{config.rank}",
            kind="searched",
            rate_key="nested",
            settings={"adapter": "nested", "leaf_steps": config.side_steps},
        )
    ]


def _bloom(config: QualityConfig) -> list[Job]:
    rank = config.rank
    options = {"base": "bloom", "n_workers": config.n_workers}
    side = {"leaf_steps": config.side_steps}
    return [
        Job(system="bloom-base", kind="base", base="bloom"),
        Job(
            system=f"bloom-tree:{rank}",
            rate_key="bloom-tree",
            settings=side,
            has_oracle=True,
            policies=("soft", "top2", "hard"),
            **options,
        ),
        Job(
            system=f"bloom-fedavg:{rank}",
            rate_key="bloom-fedavg",
            settings=side | {"depth": 0, "rank": rank},
            **options,
        ),
    ]


ROWS: dict[int, Callable[[QualityConfig], list[Job]]] = {
    1: _active,
    2: _total,
    3: _centralised,
    4: _routing,
    5: _federation,
    6: _nested,
    7: _tied,
    8: _gain,
    9: _iid,
    10: _replicas,
    11: _grown,
    12: _dropped,
    13: _quantised,
    14: _machines,
    15: _searched,
    16: _bloom,
}
ORDER_OF = {row: ORDER.index(row) if row in ORDER else len(ORDER) for row in range(1, 18)}


# --- the sweep -------------------------------------------------------------------------------------------------------


def tuning_jobs(config: QualityConfig) -> dict[str, list[Job]]:
    """For every key of `[rates]` that the rows need, the grid of short trainings that chooses it."""
    first: dict[str, Job] = {}
    for job in _unrated(config):
        if job.rate_key:
            first.setdefault(job.rate_key, job)
    return {key: list(_grid(config, key, job)) for key, job in first.items()}


def _grid(config: QualityConfig, key: str, job: Job) -> Iterator[Job]:
    tuning = config.tuning
    n_steps = max(1, round(tuning.share * int(job.settings.get("leaf_steps", config.leaf_steps))))
    n_local = max(1, round(tuning.share * int(job.settings.get("unit_steps", config.round_steps))))
    for learning_rate in tuning.other_learning_rates.get(key, tuning.learning_rates):
        for scale in tuning.other_scales.get(key, tuning.scales):
            yield job.model_copy(
                update={
                    "system": f"tune-{key}",
                    "seed": 0,
                    "rate": Rate(learning_rate=learning_rate, scale=scale),
                    "settings": job.settings | {"leaf_steps": n_steps, "unit_steps": max(n_local, n_steps // 4, 1)},
                    "policies": (),
                    "cuts": (),
                    "n_checkpoints": 0,
                    "drop": 0.0,
                    "on": "validation",
                }
            )
