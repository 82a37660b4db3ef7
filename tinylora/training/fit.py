"""`Fit`: what one optimiser step is cut into so that a machine can hold it. No torch."""

from dataclasses import dataclass, replace

from tinylora.errors import SettingError


@dataclass(frozen=True)
class Fit:
    """How a worker's machine trains: how much at once, what is computed twice, and how much of a tree it takes.

    The default is what a machine does that holds everything. None of it changes what is minimised.
    """

    micro_windows: int = 0
    """Windows of one forward and backward pass; 0 is the unit's whole batch."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of the base's blocks, and run each block again on the way back."""
    quantise: str = ""
    """"int8" or "nf4" where the base must be held in so few bits; it is chosen when the base is loaded."""
    max_rank: int = 0
    """Highest rank that can be trained; 0 is any. Of nested adapters the worker gets a prefix."""
    max_leaves: int = 0
    """Leaves that can be trained together; 0 is any, 1 takes no subtree."""

    def __post_init__(self) -> None:
        for name in ("micro_windows", "max_rank", "max_leaves"):
            if getattr(self, name) < 0:
                raise SettingError(f"fit: {name}: expected 0 or more, got {getattr(self, name)}")

    def windows_at_once(self, batch_windows: int) -> int:
        """Windows of one pass when a step has `batch_windows` of them."""
        return min(self.micro_windows or batch_windows, batch_windows)

    def step_down(self, batch_windows: int) -> "Fit | None":
        """The next smaller one: half the windows at once, at one window gradient checkpointing, then None."""
        at_once = self.windows_at_once(batch_windows)
        if at_once > 1:
            return replace(self, micro_windows=(at_once + 1) // 2)
        return None if self.gradient_checkpointing else replace(self, micro_windows=1, gradient_checkpointing=True)

    def smaller(self, other: "Fit") -> "Fit":
        """As little at once as either of the two says; what is chosen before a unit begins stays this one's."""
        limits = [limit for limit in (self.micro_windows, other.micro_windows) if limit]
        return replace(
            self,
            micro_windows=min(limits, default=0),
            gradient_checkpointing=self.gradient_checkpointing or other.gradient_checkpointing,
        )

    def __str__(self) -> str:
        windows = "the whole batch" if not self.micro_windows else f"{self.micro_windows} windows"
        return f"{windows} at once{', gradient checkpointing' if self.gradient_checkpointing else ''}"
