"""What taking part will cost, before anybody agrees to it. Pure; every number is an estimate, and is told as one."""

from dataclasses import dataclass

from tinylora.adapters.shapes import n_adapter_parameters
from tinylora.config import BaseFacts, RunSettings
from tinylora_worker.preflight.amounts import amount, span

BYTES_PER_NUMBER = 4


@dataclass(frozen=True)
class Estimate:
    """Cost of taking part. 0 where it is not known."""

    depth: int
    max_leaves: int
    download_bytes: int
    unit_s: float
    """Time of one unit: from one exchange with the coordinator to the next."""
    n_units: int
    """That one worker needs for a leaf of its own."""
    down_bytes: int
    """For one unit: what is trained, what lies above it, and others' updates to score."""
    up_bytes: int
    watts: float

    def lines(self) -> list[tuple[str, str]]:
        """Heading and text of each line that a volunteer reads."""
        found = [("Your share", self._share()), ("Traffic", self._traffic())]
        found.append(("Energy", self._energy()))
        return found

    def _share(self) -> str:
        tree = f"of a tree of depth {self.depth}" if self.depth else "one adapter for all"
        what = f"a leaf {tree}" if self.max_leaves == 1 else f"a leaf or a subtree {tree}"
        what = what if self.depth else tree
        if not self.unit_s:
            return f"{what}; the time of a unit shows once the base is loaded"
        return f"{what}, about {span(self.unit_s)} per unit, about {span(self.unit_s * self.n_units)} for a whole leaf"

    def _traffic(self) -> str:
        once = f"about {amount(self.download_bytes)} once, then " if self.download_bytes else "no download, "
        if not self.unit_s:
            return f"{once}about {amount(self.down_bytes)} down, {amount(self.up_bytes)} up per unit"
        per_hour = 3600.0 / self.unit_s
        down, up = amount(self.down_bytes * per_hour), amount(self.up_bytes * per_hour)
        return f"{once}about {down}/h down, {up}/h up for a leaf"

    def _energy(self) -> str:
        if not self.watts:
            return "unknown: nothing here measures it"
        return f"about {self.watts / 1e3:.2f} kWh/h (measured under load, the GPU alone)"


def estimate(
    settings: RunSettings,
    facts: BaseFacts,
    *,
    download_bytes: int,
    tokens_per_s: float = 0.0,
    watts: float = 0.0,
    max_leaves: int = 0,
) -> Estimate:
    """What a leaf of this run costs; a subtree of k leaves costs about k times its traffic.

    Args:
        settings: The run's.
        facts: The run's base.
        download_bytes: Of the base; 0 where it is here.
        tokens_per_s: Of the real step; 0 where there was none yet.
        watts: Under load; 0 where nobody tells.
        max_leaves: Most that fit at once; 0: any.
    """
    adapter = BYTES_PER_NUMBER * n_adapter_parameters(facts, settings.spec)
    n_on_path = settings.depth + 1 if settings.where == "path" else 1
    n_up = n_on_path if settings.path_training == "joint" else 1
    tokens = settings.unit_steps * settings.unit_tokens
    return Estimate(
        depth=settings.depth,
        max_leaves=max_leaves,
        download_bytes=download_bytes,
        unit_s=tokens / tokens_per_s if tokens_per_s else 0.0,
        n_units=-(-settings.leaf_steps // settings.unit_steps),
        down_bytes=adapter * (n_on_path + settings.probes),
        up_bytes=adapter * n_up,
        watts=watts,
    )
