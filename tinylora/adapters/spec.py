"""`AdapterSpec`: which kind of adapter a run trains, at which ranks. No torch.

| text               | kind   | what it is                                                             |
| ------------------ | ------ | ---------------------------------------------------------------------- |
| `lora`             | lora   | a pair A, B per linear                                                 |
| `nested`           | nested | the same tensors, trained so that every prefix of the rank is usable   |
| `nested:frozen`    | nested | the same, and a step moves only the last row and column of its prefix  |
| `tied:A,B,uv` etc. | tied   | A and B shared by all layers, u and v per layer; named by what is trained |
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tinylora.errors import SettingError

Kind: TypeAlias = Literal["lora", "nested", "tied"]
TIED = (("A",), ("A", "uv"), ("B",), ("uv",), ("A", "B"), ("A", "B", "uv"))
"""What may be trained in a tied adapter: the six configurations of Tied-LoRA (arXiv:2311.09578)."""
TEXTS = ("lora", "nested", "nested:frozen", *(f"tied:{','.join(trained)}" for trained in TIED))


@dataclass(frozen=True)
class AdapterSpec:
    """Kind and ranks of every adapter of a run.

    Raises:
        SettingError: A rank is out of range, or what is trained is none of the known choices.
    """

    kind: Kind
    rank: int
    """The reference: scale = alpha / rank for all adapters, whatever prefix of them is used."""
    ranks: Mapping[str, int] = field(default_factory=dict, hash=False)
    """By projection, at most `rank`; the others have `rank`."""
    trained: tuple[str, ...] = ()
    """Of a tied adapter: which of A, B and uv."""
    is_lower_frozen: bool = False
    """Of a nested adapter: a step at rank b trains row b of A and column b of B alone."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SettingError(f"rank {self.rank}: expected at least 1")
        for projection, rank in self.ranks.items():
            if not 1 <= rank <= self.rank:
                raise SettingError(f"ranks: {projection} = {rank}: expected 1 to {self.rank}, the rank of the adapter")
        if str(self) not in TEXTS:
            raise SettingError(_unknown(str(self)))

    @classmethod
    def parse(cls, text: str, rank: int, ranks: Mapping[str, int] | None = None) -> "AdapterSpec":
        """Read a kind as it stands in settings, such as "nested:frozen".

        Raises:
            SettingError: No such kind, or a rank is out of range.
        """
        if text not in TEXTS:
            raise SettingError(_unknown(text))
        kind, _, rest = text.partition(":")
        trained = tuple(rest.split(",")) if kind == "tied" else ()
        return cls(kind, rank, dict(ranks or {}), trained, rest == "frozen")  # pyright: ignore[reportArgumentType]

    def __str__(self) -> str:
        if self.kind == "tied":
            return f"tied:{','.join(self.trained)}"
        return f"{self.kind}:frozen" if self.is_lower_frozen else self.kind

    def rank_of(self, projection: str) -> int:
        """Rank of the adapter on one projection."""
        return self.ranks.get(projection, self.rank)


def parse_ranks(text: str) -> dict[str, int]:
    """Read ranks by projection, such as "self_attn.q_proj=4,mlp.up_proj=2"; an empty text is none.

    Raises:
        SettingError: A part is no name with a whole number.
    """
    ranks = {}
    for part in filter(None, text.split(",")):
        projection, _, rank = (piece.strip() for piece in part.partition("="))
        if not projection or not (rank.isascii() and rank.isdigit()):
            raise SettingError(f"ranks: {part}: expected projection=rank, such as mlp.up_proj=4")
        ranks[projection] = int(rank)
    return ranks


def _unknown(text: str) -> str:
    return f"adapter {text!r}: expected one of {', '.join(TEXTS)}"
