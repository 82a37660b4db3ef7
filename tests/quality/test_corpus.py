"""Ways of dealing text: who gets what, that nothing is lost, and that scored documents are nobody's."""

import numpy as np
import pytest

from tinylora.errors import SettingError
from tinylora.quality.corpus import Corpus, deal
from tinylora.shards import Document

DOMAINS = ("a", "b", "c", "d")


def documents(domain: str, n: int, start: int = 0) -> tuple[Document, ...]:
    rng = np.random.default_rng((ord(domain), n, start))
    return tuple(
        Document(f"{domain}{number}", rng.integers(0, 100, int(rng.integers(600, 1400))).astype(np.int32), 3000)
        for number in range(start, start + n)
    )


@pytest.fixture
def corpus() -> Corpus:
    return Corpus(
        train={d: documents(d, 40) for d in DOMAINS},
        local={d: documents(d, 4, 40) for d in DOMAINS},
        validation={d: documents(d, 3, 50) for d in DOMAINS},
        heldout={d: documents(d, 6, 60) for d in DOMAINS},
        tokenizer_fingerprint="0" * 64,
    )


def names(shards) -> list[str]:
    return sorted(document.name for shard in shards.values() for document in shard.train)


def everything(corpus: Corpus) -> list[str]:
    return sorted(document.name for some in corpus.train.values() for document in some)


@pytest.mark.parametrize(("how", "n_workers"), [("domain", 4), ("halves", 8), ("pooled", 1), ("iid", 5)])
def test_every_document_has_exactly_one_owner(corpus, how, n_workers):
    shards = deal(corpus, how, n_workers=n_workers, seed=0)
    assert len(shards) == n_workers
    assert names(shards) == everything(corpus)


def test_a_domain_split_gives_each_worker_one_kind_of_text(corpus):
    kinds = [{document.name[0] for document in shard.train} for shard in corpus.by_domain().values()]
    assert kinds == [{domain} for domain in DOMAINS]
    halves = [{document.name[0] for document in shard.train} for shard in corpus.halves().values()]
    assert halves == [{domain} for domain in DOMAINS for _ in (0, 1)]


def test_an_iid_split_gives_all_workers_the_same_mixture(corpus):
    for shard in deal(corpus, "iid", n_workers=4, seed=1).values():
        tokens = {domain: 0 for domain in DOMAINS}
        for document in shard.train:
            tokens[document.name[0]] += len(document.tokens)
        shares = np.array(list(tokens.values())) / shard.n_tokens
        assert np.abs(shares - 0.25).max() < 0.05


def test_a_smaller_alpha_puts_each_domain_into_fewer_hands(corpus):
    def concentration(alpha: float) -> float:
        found = []
        for seed in range(5):
            shards = deal(corpus, f"dirichlet:{alpha}", n_workers=4, seed=seed)
            for domain in DOMAINS:
                held = [sum(d.name[0] == domain for d in shard.train) for shard in shards.values()]
                found.append(max(held) / sum(held))
        return float(np.mean(found))

    assert concentration(0.01) > 0.9 > concentration(0.5) > concentration(100.0)


def test_the_same_seed_deals_alike_and_another_one_otherwise(corpus):
    one, again, other = (deal(corpus, "dirichlet:0.5", n_workers=4, seed=seed) for seed in (3, 3, 4))
    assert {n: s.version for n, s in one.items()} == {n: s.version for n, s in again.items()}
    assert {n: s.version for n, s in one.items()} != {n: s.version for n, s in other.items()}


def test_an_unknown_split_is_refused(corpus):
    with pytest.raises(SettingError, match="split 'fair': expected domain, halves"):
        deal(corpus, "fair", n_workers=4, seed=0)
