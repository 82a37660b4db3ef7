"""Document scores become table rows: means over domains, standard errors over documents, regret.

The unit of chance is the document. Within a domain, nll is a ratio (nats over tokens), so its variance comes from the
linearised residuals of a ratio estimator; domains are strata, each counts once, and their variances add. A comparison
is paired: the residuals are those of the two systems' difference on the same documents.

Source:
    Cochran, Sampling Techniques, 3rd edition, sections 5.4 (strata) and 6.4 (variance of a ratio).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from tinylora.errors import DataError

LATE_TOKENS = 32
"""`nll_after_32` leaves out what is predicted from fewer tokens than this: no router can know much there."""


@runtime_checkable
class DocumentScore(Protocol):
    """What is read of one scored document; `evaluation.DocumentScore` is one. A report needs no torch for that."""

    @property
    def domain(self) -> str:
        """The kind of text it belongs to."""
        ...

    @property
    def name(self) -> str:
        """Unique within its domain."""
        ...

    @property
    def nll_sum(self) -> float:
        """Nats over all predicted tokens."""
        ...

    @property
    def n_tokens(self) -> int:
        """Predicted tokens."""
        ...

    @property
    def n_bytes(self) -> int:
        """Bytes of the text that was predicted."""
        ...

    @property
    def nll_sum_late(self) -> float:
        """Nats over the tokens predicted from at least `LATE_TOKENS` others."""
        ...

    @property
    def n_tokens_late(self) -> int:
        """How many those are."""
        ...


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error over documents; None where a domain has a single document."""

    value: float
    stderr: float | None


def by_domain(scores: Sequence[DocumentScore]) -> dict[str, list[DocumentScore]]:
    """Scored documents by domain, both sorted by name; documents without a prediction are left out.

    Raises:
        DataError: A domain has no document with a prediction.
    """
    domains: dict[str, list[DocumentScore]] = {name: [] for name in sorted({score.domain for score in scores})}
    for score in sorted(scores, key=lambda score: (score.domain, score.name)):
        if score.n_tokens:
            domains[score.domain].append(score)
    empty = next((name for name, members in domains.items() if not members), None)
    if empty is not None or not domains:
        where = f"domain {empty}" if empty is not None else "evaluation"
        raise DataError(f"{where}: no held-out document with at least two tokens; give it more text")
    return domains


def mean_nll(scores: Sequence[DocumentScore]) -> Estimate:
    """Mean over domains of nats per token, with its standard error over documents."""
    strata = [
        ([score.nll_sum for score in members], [float(score.n_tokens) for score in members])
        for members in by_domain(scores).values()
    ]
    return _mean_of_ratios(strata)


def paired_difference(left: Sequence[DocumentScore], right: Sequence[DocumentScore]) -> Estimate:
    """Mean nll of `left` minus that of `right` on the same documents; negative: `left` is better.

    Raises:
        DataError: The two systems were not scored on the same documents and tokens.
    """
    if [_identity(score) for score in _sorted(left)] != [_identity(score) for score in _sorted(right)]:
        raise DataError("comparison: the two systems were scored on different documents; score both on the same ones")
    strata = [
        ([a.nll_sum - b.nll_sum for a, b in zip(ours, theirs, strict=True)], [float(score.n_tokens) for score in ours])
        for ours, theirs in zip(by_domain(left).values(), by_domain(right).values(), strict=True)
    ]
    return _mean_of_ratios(strata)


def bits_per_byte(scores: Sequence[DocumentScore]) -> float | None:
    """Mean over domains of bits per byte of text, which does not depend on the tokenizer; None without byte counts."""
    domains = by_domain(scores).values()
    sizes = [sum(score.n_bytes for score in members) for members in domains]
    if not all(sizes):
        return None
    bits = [sum(score.nll_sum for score in members) / math.log(2) for members in domains]
    return math.fsum(bit / size for bit, size in zip(bits, sizes, strict=True)) / len(sizes)


def late_nll(scores: Sequence[DocumentScore]) -> float | None:
    """Mean over domains of nats per token behind the first `LATE_TOKENS`; None where no document is that long."""
    ratios = []
    for members in by_domain(scores).values():
        n_tokens = sum(score.n_tokens_late for score in members)
        if n_tokens:
            ratios.append(math.fsum(score.nll_sum_late for score in members) / n_tokens)
    return math.fsum(ratios) / len(ratios) if ratios else None


def system_row(scores: Sequence[DocumentScore], *, active_rank: int) -> dict[str, Any]:
    """One system's entry in `report.json`.

    `ppl_mean` is the exponential of `nll_mean`: the geometric mean of the domains' perplexities.
    """
    domains = by_domain(scores)
    nll = {name: mean_nll(members).value for name, members in domains.items()}
    overall = mean_nll(scores)
    return {
        "nll_mean": overall.value,
        "ppl_mean": math.exp(overall.value),
        "nll": nll,
        "stderr": overall.stderr,
        "worst_domain": max(nll, key=lambda name: nll[name]),
        "nll_after_32": late_nll(scores),
        "bits_per_byte": bits_per_byte(scores),
        "active_rank": active_rank,
        "n_documents": sum(len(members) for members in domains.values()),
        "n_tokens": sum(score.n_tokens for score in scores),
    }


def comparison(left: Sequence[DocumentScore], right: Sequence[DocumentScore]) -> dict[str, Any]:
    """`left` against `right`: `diff` in nats, `ratio` = diff / stderr; `is_lower` where that is below -2."""
    difference = paired_difference(left, right)
    ratio = None if not difference.stderr else difference.value / difference.stderr
    return {
        "diff": difference.value,
        "stderr": difference.stderr,
        "ratio": ratio,
        "ppl_ratio": math.exp(difference.value),
        "is_lower": ratio is not None and ratio < -2,
    }


def active_rank(system: str, *, rank: int, n_leaves: int) -> int:
    """Rank of the adapters that touch one token: the cost beside every quality figure."""
    if system == "base":
        return 0
    decision = system.removeprefix("routed:").split(":")[0].split("@")[0] if system.startswith("routed:") else ""
    return rank * {"soft": n_leaves, "top2": min(2, n_leaves)}.get(decision, 1)


def regrets(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """(routed - oracle) / (base - oracle) per policy: 0 is as good as knowing the domain, 1 as bad as the base.

    None where the oracle does not beat the base: there is nothing to lose by routing.
    """
    if not {"base", "oracle"} <= rows.keys():
        return {}
    base, oracle = rows["base"]["nll_mean"], rows["oracle"]["nll_mean"]
    routed = {name.removeprefix("routed:"): row["nll_mean"] for name, row in rows.items() if name.startswith("routed:")}
    return {policy: (nll - oracle) / (base - oracle) if base > oracle else None for policy, nll in routed.items()}


def _mean_of_ratios(strata: Sequence[tuple[list[float], list[float]]]) -> Estimate:
    """Mean over strata of sum(y) / sum(n); the variances of the ratios add, divided by the squared number of strata."""
    ratios = [math.fsum(y) / math.fsum(n) for y, n in strata]
    variances = [_ratio_variance(y, n) for y, n in strata]
    known = [variance for variance in variances if variance is not None]
    stderr = math.sqrt(math.fsum(known)) / len(strata) if len(known) == len(strata) else None
    return Estimate(math.fsum(ratios) / len(ratios), stderr)


def _ratio_variance(y: list[float], n: list[float]) -> float | None:
    if len(y) < 2:
        return None
    ratio = math.fsum(y) / math.fsum(n)
    squares = math.fsum((a - ratio * b) ** 2 for a, b in zip(y, n, strict=True))
    return len(y) / (len(y) - 1) * squares / math.fsum(n) ** 2


def _sorted(scores: Sequence[DocumentScore]) -> list[DocumentScore]:
    return sorted((score for score in scores if score.n_tokens), key=lambda score: (score.domain, score.name))


def _identity(score: DocumentScore) -> tuple[str, str, int]:
    return score.domain, score.name, score.n_tokens
