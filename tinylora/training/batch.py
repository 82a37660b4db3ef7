"""`Batch`: windows of tokens on a device, and its parts, each with the share that it has in the loss of the whole."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tinylora.shards import Rows


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of one optimiser step or of one evaluation, or a part of them."""

    ids: Int[Tensor, "window token"]
    documents: Int[Tensor, "window token"]
    """Number of the document that each token belongs to."""
    is_target: Bool[Tensor, "window token"] | None = None
    """Tokens that are to be predicted; None: all."""
    share_of_targets: float = 1.0
    """Of the predicted tokens of the whole batch: weight of this part's mean loss."""
    share_of_tokens: float = 1.0

    @classmethod
    def of(cls, rows: Rows, device: torch.device | str = "cpu") -> "Batch":
        """A whole batch on a device."""
        ids, documents = (torch.from_numpy(array).to(device) for array in (rows.ids, rows.documents))
        return cls(ids, documents, None if rows.is_target is None else torch.from_numpy(rows.is_target).to(device))

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        is_target = None if self.is_target is None else self.is_target.to(device)
        return replace(self, ids=self.ids.to(device), documents=self.documents.to(device), is_target=is_target)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        """Tokens whose loss is taken; the first of a window is predicted from nothing, and does not count."""
        if self.is_target is None:
            return len(self.ids) * (self.ids.shape[1] - 1)
        return int(self.is_target[:, 1:].sum())

    def parts(self, windows: int) -> Iterator["Batch"]:
        """Itself where it has no more than so many windows; otherwise its windows in groups, as even as they come.

        Weighted by their shares, the parts' means add up to the mean of the whole, whatever the targets.
        """
        if len(self) <= windows:
            yield self
            return
        n_targets, n_parts = max(1, self.n_targets), -(-len(self) // windows)
        edges = [round(number * len(self) / n_parts) for number in range(n_parts + 1)]
        for start, end in itertools.pairwise(edges):
            is_target = None if self.is_target is None else self.is_target[start:end]
            part = Batch(self.ids[start:end], self.documents[start:end], is_target)
            yield replace(part, share_of_targets=part.n_targets / n_targets, share_of_tokens=len(part) / len(self))
