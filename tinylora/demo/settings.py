"""What the demo runs with: small enough for two CPU cores and three minutes, large enough to learn something."""

from tinylora.config import RunSettings, make_settings

LEARNING_RATE = 1e-3
FEDAVG_LEARNING_RATE = 1e-3
"""Best of the same sweep as `LEARNING_RATE`; see `benchmarks/results/rates.json`."""
FEDAVG_ROUNDS = 4


def demo_settings(n_workers: int, depth: int, *, seed: int, router_sync: str, **overrides: object) -> RunSettings:
    """Settings of a demo run; `overrides` that are not None win.

    Raises:
        SettingError: A value is out of range.
    """
    values: dict[str, object] = {
        "name": "demo",
        "seed": seed,
        "depth": depth,
        "rank": 8,
        "alpha": 16.0,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 5,
        "leaf_steps": 64 if depth <= 2 else 32,
        "unit_steps": 16 if depth <= 2 else 8,
        "batch_windows": 8,
        "window_tokens": 256,
        "router_sync": router_sync,
        "router_period": max(1, min(n_workers, 2**depth)),
        "min_workers": n_workers,
        "start_after_s": 60.0,
        "min_sequences": 100,
        "first_deadline_s": 120.0,
    }
    return make_settings("demo", values | {key: value for key, value in overrides.items() if value is not None})


def fedavg_settings(settings: RunSettings) -> RunSettings:
    """The peer: one adapter of the same rank, trained by all workers for the same tokens, averaged every round.

    A tree of depth 0 is exactly that: one leaf with all workers as its replicas.
    """
    rounds = min(FEDAVG_ROUNDS, settings.leaf_steps)
    changes = {
        "name": f"{settings.name}-fedavg",
        "depth": 0,
        "learning_rate": settings.learning_rate * FEDAVG_LEARNING_RATE / LEARNING_RATE,
        "unit_steps": -(-settings.leaf_steps // rounds),
        "router_sync": "statistics",
    }
    return make_settings("fedavg", settings.model_dump() | changes)


def settings_options(settings: RunSettings) -> list[str]:
    """What `tinylora-coordinator init` is told of a run: all that is not the default."""
    changes = settings.model_dump(mode="json", exclude_defaults=True)
    return [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
