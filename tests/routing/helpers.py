"""Small routing parts: a feature over random embeddings, topologies even and uneven, random gates."""

import numpy as np
import torch
from hypothesis import strategies as st

from tinylora.routing.features import RoutingFeature
from tinylora.routing.gates import Gate, Gates
from tinylora.tree import Topology

VOCAB = 40
DIM = 6
UNEVEN = Topology(("0", "10", "110", "111"))
TOPOLOGIES = (Topology(("",)), Topology.perfect(1), Topology.perfect(2), Topology.perfect(3), UNEVEN)
LEANING = Topology(("00", "010", "011", "1"))


def a_feature(seed: int = 0, *, dim: int | None = None) -> RoutingFeature:
    return RoutingFeature.from_embeddings(embeddings(VOCAB, DIM, seed), dim=dim)


def embeddings(n_rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_rows, dim, generator=torch.Generator().manual_seed(seed)) * 0.02 + 0.1


def random_gates(topology: Topology, *, dim: int = DIM, seed: int = 0, tau: float = 1.0) -> Gates:
    generator = np.random.default_rng(seed)
    return Gates({node: Gate(generator.normal(size=dim), generator.normal() / 4, tau) for node in topology.inner}, dim)


def token_rows(n_rows: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Any full binary tree of up to seven leaves: splits of a random leaf, again and again."""
    topology = Topology(("",))
    for _ in range(draw(st.integers(0, 6))):
        topology = topology.split(draw(st.sampled_from(topology.leaves)))
    return topology
