import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.routing.helpers import DIM, VOCAB, a_feature, embeddings, token_rows
from tinylora.errors import ShapeMismatch
from tinylora.routing.features import (
    FeatureState,
    RoutingFeature,
    document_starts,
    feature_hash,
    possible_hashes,
    principal_projection,
    random_projection,
)


def plain_means(table: torch.Tensor, ids, documents=None, mask=None, total=None, count=0):
    """One token after the other: the definition, in float64."""
    total = torch.zeros(table.shape[1], dtype=torch.float64) if total is None else total.clone()
    present, means, counts = None, [], []
    for place, token in enumerate(ids.tolist()):
        if mask is None or mask[place]:
            document = None if documents is None else int(documents[place])
            if present is not None and document != present:
                total, count = torch.zeros_like(total), 0
            present = document
            total, count = total + table[token].double(), count + 1
        means.append(total / max(1, count))
        counts.append(count)
    return torch.stack(means), counts


def test_table_is_centred_scaled_and_as_wide_as_the_embeddings():
    rows = embeddings(VOCAB, DIM).double()
    centred = rows - rows.mean(dim=0)
    expected = centred / centred.square().mean().sqrt()
    feature = a_feature()
    assert feature.dim == DIM and feature.projection is None
    assert torch.allclose(feature.table.double(), expected, atol=1e-6)
    assert feature.table.dtype == torch.float32


@pytest.mark.parametrize("kind", ["random", "principal"])
def test_wide_embeddings_are_projected(kind):
    rows = embeddings(VOCAB, 12)
    feature = RoutingFeature.from_embeddings(rows, dim=5, projection=kind)
    assert feature.dim == 5 and feature.projection is not None and feature.projection.shape == (5, 12)
    plain = RoutingFeature.from_embeddings(rows)
    assert torch.allclose(feature.table, plain.table @ feature.projection.T, atol=1e-5)


def test_narrow_embeddings_are_filled_up_with_signs_of_the_tokens():
    """The same signs for every base of this vocabulary, so that workers' sums are sums of one feature."""
    filled, other = a_feature(dim=DIM + 64), a_feature(1, dim=DIM + 64)
    signs = filled.table[:, DIM:]
    assert filled.dim == filled.table.shape[1] == DIM + 64
    assert torch.equal(filled.table[:, :DIM], a_feature().table)
    assert signs.abs().eq(1).all() and torch.equal(signs, other.table[:, DIM:]) and len(signs.unique(dim=0)) == VOCAB
    assert abs(signs.mean().item()) < 5 / np.sqrt(signs.numel())


def test_a_gate_on_the_signs_is_a_token_table():
    """As many signs as tokens: any number for every token is within reach of w, and means of it are gates' scores."""
    feature = a_feature(dim=DIM + 2 * VOCAB)
    wanted = torch.randn(VOCAB, generator=torch.Generator().manual_seed(0)).double()
    w = torch.linalg.lstsq(feature.table.double(), wanted, driver="gelsd").solution
    ids = token_rows(1, 30)
    assert torch.allclose(feature(ids)[0][0, -1].double() @ w, wanted[ids[0]].mean(), atol=1e-5)


def test_a_large_table_is_the_same_in_chunks(monkeypatch):
    whole = a_feature().table
    monkeypatch.setattr("tinylora.routing.features._CHUNK_ROWS", 7)
    assert torch.allclose(a_feature().table, whole, atol=1e-6)


def test_half_precision_embeddings_are_summed_in_double():
    rows = embeddings(VOCAB, DIM).bfloat16()
    assert torch.equal(RoutingFeature.from_embeddings(rows).table, RoutingFeature.from_embeddings(rows.float()).table)


def test_equal_embeddings_have_a_feature_of_zeros():
    assert not RoutingFeature.from_embeddings(torch.ones(4, 3)).table.any()


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 20), st.booleans(), st.booleans())
def test_means_are_the_plain_ones(seed, n_rows, n_tokens, has_documents, has_mask):
    generator = torch.Generator().manual_seed(seed)
    ids = token_rows(n_rows, n_tokens, seed)
    documents = torch.randint(3, ids.shape, generator=generator).sort(dim=1).values if has_documents else None
    mask = torch.rand(ids.shape, generator=generator) < 0.7 if has_mask else None
    feature = a_feature()
    means, counts, after = feature(ids, documents=documents, mask=mask)
    for row in range(n_rows):
        expected, n = plain_means(
            feature.table,
            ids[row],
            None if documents is None else documents[row],
            None if mask is None else mask[row],
        )
        assert torch.allclose(means[row].double(), expected, atol=1e-6)
        assert counts[row].tolist() == n
        assert torch.allclose(after.total[row] / max(1, n[-1]), expected[-1], atol=1e-12)


@given(st.integers(0, 10_000), st.integers(2, 30), st.data())
def test_nothing_after_a_token_reaches_it(seed, n_tokens, data):
    ids = token_rows(2, n_tokens, seed)
    place = data.draw(st.integers(0, n_tokens - 2))
    changed = ids.clone()
    changed[:, place + 1 :] = (changed[:, place + 1 :] + 1) % VOCAB
    documents = torch.arange(n_tokens).div(5, rounding_mode="floor").expand_as(ids)
    feature = a_feature(dim=data.draw(st.sampled_from((None, DIM + 5))))
    for given_documents in (None, documents):
        means, _, _ = feature(ids, documents=given_documents)
        others, _, _ = feature(changed, documents=given_documents)
        assert torch.equal(means[:, : place + 1], others[:, : place + 1])


@given(st.integers(0, 10_000), st.integers(1, 30), st.data())
def test_a_carried_state_is_one_pass_bit_by_bit(seed, n_tokens, data):
    ids = token_rows(2, n_tokens, seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, n_tokens), max_size=4)))
    feature = a_feature(dim=data.draw(st.sampled_from((None, DIM + 5))))
    whole, counts, end = feature(ids)
    state: FeatureState | None = None
    parts, numbers = [], []
    for start, stop in zip([0, *cuts], [*cuts, n_tokens], strict=True):
        means, n, state = feature(ids[:, start:stop], state=state)
        parts.append(means)
        numbers.append(n)
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(torch.cat(numbers, dim=1), counts)
    assert state is not None and torch.equal(state.total, end.total) and torch.equal(state.count, end.count)


def test_a_packed_row_is_its_documents_one_by_one():
    feature, first, second = a_feature(), token_rows(1, 9, 1), token_rows(1, 7, 2)
    packed = torch.cat([first, second], dim=1)
    documents = torch.tensor([[4] * 9 + [2] * 7])
    means, counts, after = feature(packed, documents=documents)
    assert torch.equal(means[:, :9], feature(first)[0])
    assert torch.allclose(means[:, 9:], feature(second)[0], atol=1e-6)
    assert counts[0].tolist() == [*range(1, 10), *range(1, 8)]
    assert torch.allclose(after.total, feature(second)[2].total, atol=1e-12)


def test_the_first_token_goes_on_with_the_states_document():
    feature, ids = a_feature(), token_rows(1, 10)
    documents = torch.tensor([[0] * 7 + [1] * 3])
    whole = feature(ids, documents=documents)[0]
    _, _, state = feature(ids[:, :4], documents=documents[:, :4])
    assert torch.allclose(feature(ids[:, 4:], documents=documents[:, 4:], state=state)[0], whole[:, 4:], atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_skipped(side):
    feature, ids = a_feature(), token_rows(1, 6)
    filling, numbers = torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), -1)
    order = (lambda pad, real: [pad, real]) if side == "left" else (lambda pad, real: [real, pad])
    padded = torch.cat(order(filling, ids), dim=1)
    mask = torch.cat(order(torch.zeros(1, 3), torch.ones(1, 6)), dim=1).bool()
    documents = torch.cat(order(numbers, torch.zeros(1, 6, dtype=torch.long)), dim=1)
    expected, _, end = feature(ids)
    for given_documents in (None, documents):
        means, counts, after = feature(padded, mask=mask, documents=given_documents)
        real = slice(3, 9) if side == "left" else slice(0, 6)
        assert torch.equal(means[:, real], expected)
        assert torch.equal(after.total, end.total) and after.count.tolist() == [6]
        if side == "right":
            assert torch.equal(means[:, 6:], expected[:, -1:].expand(-1, 3, -1)) and counts[0, 6:].tolist() == [6] * 3


def test_a_long_text_keeps_its_precision():
    feature = RoutingFeature(torch.tensor([[1.0], [-1.0], [0.1], [-0.1]]))
    ids = torch.tensor([[0, 2]]).repeat(1, 20_000)
    means, _, _ = feature(ids)
    assert means[0, -1, 0].item() == pytest.approx(feature.table[[0, 2], 0].double().mean().item(), rel=1e-6)


def test_document_starts_ignore_padding():
    documents = torch.tensor([[-1, 3, 3, -1, 3, 5]])
    mask = torch.tensor([[False, True, True, False, True, True]])
    assert document_starts(documents, mask).tolist() == [[False] * 5 + [True]]


def test_zero_state():
    state = FeatureState.zero(3, 2)
    assert state.total.shape == (3, 2) and state.total.dtype == torch.float64 and state.count.tolist() == [0, 0, 0]


# --- projections and hashes ------------------------------------------------------------------------------------------


def test_random_projection_is_these_bits_on_every_machine():
    projection = random_projection(96, 32)
    assert projection.dtype == torch.float32
    assert set(projection.unique().tolist()) == {
        np.float32(-1 / np.sqrt(96)).item(),
        np.float32(1 / np.sqrt(96)).item(),
    }
    digest = hashlib.sha256(projection.numpy().tobytes()).hexdigest()
    assert digest == RANDOM_96_32
    assert not torch.equal(random_projection(96, 32, seed=1), projection)


RANDOM_96_32 = "1ee6f50ca154dfee94be837d91bccff2cb4d25ca3f1a37976366e537dd8a21b9"


def test_random_signs_are_balanced_and_nearly_orthogonal():
    projection = random_projection(2048, 64).double()
    gram = projection @ projection.T
    assert torch.allclose(gram.diagonal(), torch.ones(64, dtype=torch.float64), atol=1e-6)
    assert (gram - torch.diag(gram.diagonal())).abs().max() < 6 / np.sqrt(2048)


def test_principal_projection_is_that_of_the_covariance():
    rows = embeddings(VOCAB, 8).double() * torch.arange(1, 9)
    projection = principal_projection(rows, 3).double()
    covariance = torch.cov(rows.T)
    values = (projection @ covariance @ projection.T).diagonal()
    assert torch.allclose(projection @ projection.T, torch.eye(3, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(values, torch.linalg.eigvalsh(covariance).flip(0)[:3], rtol=1e-5)
    assert all(row[row.abs().argmax()] > 0 for row in projection)


def test_hash_tells_features_apart():
    signs, other = random_projection(8, 4), random_projection(8, 4, seed=1)
    hashes = [feature_hash(None, 8, 8), feature_hash(None, 4, 4), feature_hash(signs, 8, 4), feature_hash(other, 8, 4)]
    hashes += [feature_hash(None, 4, 8), feature_hash(None, 4, 9)]
    assert len(set(hashes)) == 6 and all(len(text) == 64 for text in hashes)
    assert possible_hashes(None, 8) == {hashes[0], hashes[4]} and possible_hashes(signs, 4) == {hashes[2]}
    assert a_feature(dim=DIM + 1).hash == feature_hash(None, DIM, DIM + 1)
    assert a_feature(0).hash == a_feature(1).hash == feature_hash(None, DIM, DIM)
    wide = [RoutingFeature.from_embeddings(embeddings(VOCAB, 8, seed), dim=4).hash for seed in (0, 1)]
    assert wide == [feature_hash(signs, 8, 4)] * 2


def test_a_projection_for_another_width_is_refused():
    with pytest.raises(ShapeMismatch, match="expected 8 columns as the base's embeddings have, got 5"):
        RoutingFeature(embeddings(VOCAB, 8), random_projection(5, 2))


def test_nothing_of_it_is_saved_or_trained():
    feature = RoutingFeature.from_embeddings(embeddings(VOCAB, 8), dim=4)
    assert not feature.state_dict() and not list(feature.parameters())
