"""The routing feature: the mean of the input embeddings of what was read so far, and of random signs of the tokens.

    φ_t = mean over the document's tokens up to t of [ P (E[x] - Ē) / std | s[x] ]

E is the base's table of input embeddings, Ē its mean row, std the root mean square of E - Ē. Embeddings wider than the
feature are projected by P. Narrower ones are filled up with s, random signs of each token: means of them are a sketch
of the token counts (Weinberger et al. 2009, Feature hashing for large scale multitask learning, arXiv:0902.2206), so a
gate w on them is a token table, one number w · s[x] for every entry of the vocabulary, that is solved from the same
sums as the rest. No forward pass is needed, so a token's leaf is known before layer 0; and nothing after t enters φ_t.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from tinylora.errors import ShapeMismatch

Projection: TypeAlias = Literal["random", "principal"]
_TOKEN_SEED = 1
_CHUNK_ROWS = 8192  # of the table that are in float64 at once
_MAX_PRINCIPAL_ROWS = 32_768  # evenly spaced rows show the directions of a larger table as well


@dataclass(frozen=True)
class FeatureState:
    """Where the running means of some rows stand: sum and number of tokens of the document that each is in."""

    total: Float64[Tensor, "batch feature"]
    count: Int[Tensor, " batch"]

    @classmethod
    def zero(cls, batch: int, dim: int, device: torch.device | None = None) -> "FeatureState":
        """Before the first token."""
        return cls(
            torch.zeros(batch, dim, dtype=torch.float64, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )


class RunningMean(nn.Module):
    """Mean of a table's rows over the tokens of a document that were read so far.

    Args:
        table: A row for every entry of the vocabulary.
    """

    table: Float[Tensor, "vocab feature"]

    def __init__(self, table: Float[Tensor, "vocab feature"]) -> None:
        super().__init__()
        self.dim = table.shape[1]
        self.register_buffer("table", table, persistent=False)  # what it was made of says all of it

    def through(self, w: Float[Tensor, "score feature"]) -> "RunningMean":
        """The running mean of w · row, in float64: what gates make of this one, at a few numbers per token."""
        chunks = self.table.split(_CHUNK_ROWS)
        return RunningMean(torch.cat([chunk.double() @ w.detach().double().T for chunk in chunks]))

    def forward(
        self,
        input_ids: Int[Tensor, "batch token"],
        *,
        documents: Int[Tensor, "batch token"] | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        state: FeatureState | None = None,
    ) -> tuple[Float[Tensor, "batch token feature"], Int[Tensor, "batch token"], FeatureState]:
        """Running mean at every token, that token included.

        Args:
            input_ids: Tokens.
            documents: Number of the document that each token of a packed row belongs to: the mean restarts where it
                changes. A row's first token goes on with the document of `state`.
            mask: False on padding, which is skipped: the mean stays as it is.
            state: Where the rows stand; None is before the first token.

        Returns:
            The means (accumulated in float64, returned in the table's dtype; zeros before a row's first token), the
            number of tokens that each is taken over, and the state after the last token.
        """
        if state is None:
            state = FeatureState.zero(len(input_ids), self.dim, self.table.device)
        rows = self.table[input_ids].double()
        ones = torch.ones_like(input_ids, dtype=torch.int64) if mask is None else mask.long()
        if mask is not None:
            rows = rows * mask.unsqueeze(-1)
        # Sequential sums from the state on: cut anywhere, the same additions happen in the same order.
        totals = torch.cat([state.total.unsqueeze(1), rows], dim=1).cumsum(dim=1)
        counts = torch.cat([state.count.unsqueeze(1), ones], dim=1).cumsum(dim=1)
        total, count = totals[:, 1:], counts[:, 1:]
        if documents is not None:
            start, is_continued = _last_starts(document_starts(documents, mask))
            before = totals.gather(1, start.unsqueeze(-1).expand_as(total))
            total = total - before.masked_fill(is_continued.unsqueeze(-1), 0)
            count = count - counts.gather(1, start).masked_fill(is_continued, 0)
        after = FeatureState(total[:, -1], count[:, -1]) if input_ids.shape[1] else state
        return (total / count.clamp(min=1).unsqueeze(-1)).to(self.table.dtype), count, after


class RoutingFeature(RunningMean):
    """Running mean of centred, scaled, projected input embeddings, and of signs of the tokens.

    Args:
        embeddings: The base's table of input embeddings.
        projection: P; None leaves the embeddings as wide as they are.
        n_signs: Numbers of the feature that are random signs of the token.

    Raises:
        ShapeMismatch: P is for embeddings of another width.
    """

    projection: Float[Tensor, "projected embed"] | None

    def __init__(
        self,
        embeddings: Float[Tensor, "vocab embed"],
        projection: Float[Tensor, "projected width"] | None = None,
        *,
        n_signs: int = 0,
    ) -> None:
        embed_dim = embeddings.shape[1]
        if projection is not None and projection.shape[1] != embed_dim:
            raise ShapeMismatch(
                f"projection of the routing feature: expected {embed_dim} columns as the base's embeddings have, "
                f"got {projection.shape[1]}; it was made for another base"
            )
        signs = token_signs(len(embeddings), n_signs).to(embeddings.device)
        super().__init__(torch.cat([_make_table(embeddings, projection), signs], dim=1))
        self.hash = feature_hash(projection, embed_dim, self.dim)
        self.register_buffer("projection", projection, persistent=False)

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Float[Tensor, "vocab embed"],
        *,
        dim: int | None = None,
        seed: int = 0,
        projection: Projection = "random",
    ) -> "RoutingFeature":
        """A feature of `dim` numbers.

        Random signs project by default although principal directions route a little better: eigenvectors differ in
        their last bits from machine to machine (and altogether with the dtype that the base is loaded in), so sums of
        different workers would not be sums of the same feature. Signs are the same bits everywhere.

        Args:
            embeddings: The base's table of input embeddings.
            dim: Wider embeddings are projected to this width, narrower ones filled up with signs of the tokens; None is
                the embeddings' own width.
            seed: Of the random projection.
            projection: "random" signs, or "principal" directions of the table.
        """
        embed_dim = embeddings.shape[1]
        if dim is None or dim >= embed_dim:
            return cls(embeddings, n_signs=0 if dim is None else dim - embed_dim)
        if projection == "principal":
            return cls(embeddings, principal_projection(embeddings, dim))
        return cls(embeddings, random_projection(embed_dim, dim, seed=seed).to(embeddings.device))


def document_starts(
    documents: Int[Tensor, "batch token"], mask: Bool[Tensor, "batch token"] | None = None
) -> Bool[Tensor, "batch token"]:
    """True where a row goes over to another document, never at its first token; padding belongs to what is before."""
    if mask is not None:
        documents = documents.gather(1, _last_real(mask))
    is_start = torch.zeros_like(documents, dtype=torch.bool)
    is_start[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return is_start


def _last_real(mask: Bool[Tensor, "batch token"]) -> Int[Tensor, "batch token"]:
    """Index of the last real token up to each place; of the row's first one where there was none yet."""
    first = mask.long().argmax(dim=1, keepdim=True)
    index = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    return torch.where(mask, index, first).cummax(dim=1).values


def _last_starts(
    is_start: Bool[Tensor, "batch token"],
) -> tuple[Int[Tensor, "batch token"], Bool[Tensor, "batch token"]]:
    """Where the document of each token began, and whether it is still the one that the row began with."""
    index = torch.arange(is_start.shape[1], device=is_start.device).expand_as(is_start)
    start = torch.where(is_start, index, 0).cummax(dim=1).values if is_start.shape[1] else index
    return start, start == 0


# --- the table and its projection ------------------------------------------------------------------------------------


def feature_hash(projection: Float[Tensor, "feature embed"] | None, embed_dim: int, feature_dim: int) -> str:
    """sha256 of what turns tokens into features besides the base: the widths, and the bytes of P where there is one."""
    widths = f"{embed_dim} to {feature_dim}" if embed_dim >= feature_dim else f"filled up with signs to {feature_dim}"
    digest = hashlib.sha256(f"tinylora routing feature 1: {widths}\n".encode())
    if projection is not None:
        digest.update(np.ascontiguousarray(projection.detach().float().cpu().numpy(), dtype="<f4").tobytes())
    return digest.hexdigest()


def possible_hashes(projection: Float[Tensor, "feature embed"] | None, feature_dim: int) -> set[str]:
    """Hashes that a feature of this width and projection can have, whatever the base's embeddings."""
    if projection is not None:
        return {feature_hash(projection, projection.shape[1], feature_dim)}
    return {feature_hash(None, embed_dim, feature_dim) for embed_dim in (0, feature_dim)}


def random_projection(embed_dim: int, feature_dim: int, *, seed: int = 0) -> Float[Tensor, "feature embed"]:
    """Random signs over sqrt(embed_dim): the same bits on every machine, and a feature's numbers keep their scale.

    Source:
        Achlioptas 2003, Database-friendly random projections, JCSS 66(4).
    """
    signs = _random_signs(feature_dim, embed_dim, seed)
    return torch.from_numpy((signs / np.sqrt(embed_dim)).astype(np.float32))


def token_signs(vocab_size: int, n_signs: int) -> Float[Tensor, "vocab sign"]:
    """Random signs of every token: the same bits on every machine, and others than those of a projection."""
    return torch.from_numpy(_random_signs(vocab_size, n_signs, _TOKEN_SEED))


def _random_signs(n_rows: int, n_columns: int, seed: int) -> np.ndarray:
    words = np.random.Philox(seed).random_raw(-(-n_rows * n_columns // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[: n_rows * n_columns]
    return 2 * bits.reshape(n_rows, n_columns).astype(np.float32) - 1


def principal_projection(embeddings: Float[Tensor, "vocab embed"], feature_dim: int) -> Float[Tensor, "feature embed"]:
    """Directions along which the embeddings vary most, the first one first; the largest part of each is positive."""
    step = -(-len(embeddings) // _MAX_PRINCIPAL_ROWS)
    rows = embeddings.detach()[::step].double().cpu()
    rows = rows - rows.mean(dim=0)
    vectors = torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)[:, :feature_dim].T
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return (vectors * largest.sign()).float().to(embeddings.device)


def _make_table(
    embeddings: Float[Tensor, "vocab embed"], projection: Float[Tensor, "feature embed"] | None
) -> Float[Tensor, "vocab feature"]:
    """((E - Ē) / std) Pᵀ in float32, computed in float64 a few thousand rows at a time."""
    mean, scale = table_moments(embeddings)
    centred = ((chunk.double() - mean) * scale for chunk in embeddings.detach().split(_CHUNK_ROWS))
    return torch.cat([(rows if projection is None else rows @ projection.double().T).float() for rows in centred])


def table_moments(
    embeddings: Float[Tensor, "vocab embed"],
) -> tuple[Float64[Tensor, " embed"], Float64[Tensor, ""]]:
    """Mean row Ē of a table and 1 / std of what is around it (1 where there is nothing), summed in float64."""
    chunks = embeddings.detach().split(_CHUNK_ROWS)
    mean = torch.stack([chunk.double().sum(dim=0) for chunk in chunks]).sum(dim=0) / len(embeddings)
    squares = torch.stack([(chunk.double() - mean).square().sum() for chunk in chunks]).sum()
    std = (squares / embeddings.numel()).sqrt()
    return mean, torch.where(std > 0, 1 / std, torch.ones_like(std))
