"""The unit under way in numbers. Pure: times are given."""

from collections import deque
from dataclasses import dataclass, field

N_LOSSES = 64
_WEIGHT = 0.2
"""Of the newest speed: the shown one moves by steps, not by whims."""


@dataclass
class Progress:
    """How far a unit is, from what its trainer tells after each step."""

    step: int = 0
    n_steps: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=N_LOSSES))
    tokens_per_s: float = 0.0
    """Smoothed exponentially."""
    step_s: float = 0.0
    """Seconds of one step, smoothed in the same way; 0: not known."""
    told_at_s: float = 0.0
    checkpoint_at_s: float = 0.0
    """0: there is none."""

    def note(
        self, *, step: int, n_steps: int, loss: float, tokens_per_s: float, checkpoint_age_s: float, now_s: float
    ) -> None:
        """One word of the trainer: so many steps are done now."""
        n_new = step - self.step
        if self.told_at_s and n_new > 0:
            self.step_s = _smooth(self.step_s, (now_s - self.told_at_s) / n_new)
        self.tokens_per_s = _smooth(self.tokens_per_s, tokens_per_s)
        self.step, self.n_steps, self.told_at_s = step, n_steps, now_s
        self.checkpoint_at_s = now_s - checkpoint_age_s
        self.losses.append(loss)

    def interrupted(self) -> None:
        """The trainer went; time passes now in which nothing is done."""
        self.told_at_s = 0.0

    @property
    def left_s(self) -> float:
        """Seconds of work that are left at this speed; 0: not known."""
        return self.step_s * max(self.n_steps - self.step, 0)

    @property
    def loss(self) -> float:
        """Of the last step; 0: none yet."""
        return self.losses[-1] if self.losses else 0.0


def _smooth(before: float, now: float) -> float:
    return now if before == 0.0 else before + _WEIGHT * (now - before)
