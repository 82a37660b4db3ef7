"""The names of routing policies: how gates become weights, and how often. No torch, so that commands can check one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from tinylora.errors import SettingError

Decision: TypeAlias = Literal["soft", "top2", "hard", "elastic"]
Granularity: TypeAlias = Literal["token", "window", "sequence"]
DECISIONS: dict[str, Decision] = {name: name for name in get_args(Decision)}
GRANULARITIES: dict[str, Granularity] = {name: name for name in get_args(Granularity)}
DEFAULT_SIZE: dict[Granularity, int] = {"token": 0, "window": 64, "sequence": 32}
DEFAULT_THRESHOLD = 0.6
"""A wrong leaf costs twice what the right one gains, so that the base alone is better below; see docs/log.md."""
EVERY = ("soft", "top2", "hard", "elastic", "hard@sequence:32")
"""What "all" stands for."""
_FORMS = "soft, top2, hard, elastic or elastic:0.7, each alone or with @window:64 or @sequence:32"


@dataclass(frozen=True)
class Policy:
    """How the gates' scores become weights of nodes.

    | decision | weights | | granularity | decided |
    | --- | --- | --- | --- | --- |
    | soft | every leaf, by its posterior | | token | at every token |
    | top2 | the two likeliest leaves | | window:W | at each W-th token of a document, kept until the next one |
    | hard | one leaf, gate by gate | | sequence:P | once, at the document's P-th token |
    | elastic | down while the posterior is above the threshold | | | |

    Raises:
        SettingError: A word is unknown, or a number is out of range.
    """

    decision: Decision = "soft"
    granularity: Granularity = "token"
    size: int = 0
    """Tokens of a window, or of the prefix that a sequence is judged by; 0 for `token`."""
    threshold: float = DEFAULT_THRESHOLD
    """Of `elastic`: the posterior that a node must exceed to be entered."""

    def __post_init__(self) -> None:
        """Check every field."""
        if self.decision not in DECISIONS or self.granularity not in GRANULARITIES:
            raise SettingError(f"policy {self.decision}@{self.granularity}: expected {_FORMS}")
        if (self.size != 0) if self.granularity == "token" else (self.size < 1):
            wanted = "no size" if self.granularity == "token" else "a size of at least 1 token"
            raise SettingError(f"policy {self.decision}@{self.granularity}: expected {wanted}, got {self.size}")
        if self.decision != "elastic" and self.threshold != DEFAULT_THRESHOLD:
            raise SettingError(f"policy {self.decision}: only elastic has a threshold, got {self.threshold}")
        if not 0 <= self.threshold < 1:
            raise SettingError(f"policy {self.decision}: expected a threshold from 0 to below 1, got {self.threshold}")

    @classmethod
    def parse(cls, text: str) -> "Policy":
        """Read a policy such as `soft`, `elastic:0.7`, `hard@window:64`; `sequence` alone is `hard@sequence:32`.

        Raises:
            SettingError: The text names no policy.
        """
        head, at, tail = text.partition("@")
        if not at and head.partition(":")[0] in ("window", "sequence"):
            head, tail = "hard", head
        decision, colon, threshold = head.partition(":")
        granularity, _, size = (tail if tail or at else "token").partition(":")
        if decision not in DECISIONS or (colon and decision != "elastic") or granularity not in GRANULARITIES:
            raise SettingError(f"policy {text!r}: expected {_FORMS}")
        try:
            n_tokens = int(size) if ":" in tail else DEFAULT_SIZE[GRANULARITIES[granularity]]
            limit = float(threshold) if colon else DEFAULT_THRESHOLD
        except ValueError:
            raise SettingError(f"policy {text!r}: expected {_FORMS}") from None
        return cls(DECISIONS[decision], GRANULARITIES[granularity], n_tokens, limit)

    def __str__(self) -> str:
        """The shortest text that `parse` reads as this policy."""
        is_default = self.threshold == DEFAULT_THRESHOLD
        head = self.decision if is_default else f"{self.decision}:{self.threshold!r}"
        return head if self.granularity == "token" else f"{head}@{self.granularity}:{self.size}"


def named_policies(words: Iterable[str]) -> dict[str, Policy]:
    """Policies by what they were called, each once, in the order given; "all" stands for `EVERY`.

    Raises:
        SettingError: A word names no policy, or there is none.
    """
    names = [name for word in words for name in (EVERY if word == "all" else (word,))]
    if not names:
        raise SettingError(f"policy: none was given; expected {_FORMS}, or all")
    return {name: Policy.parse(name) for name in names}
