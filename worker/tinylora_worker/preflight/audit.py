"""What the canary audit found, in words. Pure.

Source: Carlini et al. 2019, "The Secret Sharer", arXiv:1802.08232: exposure is log2 of the number of candidates less
log2 of a canary's rank among them.
"""

from collections.abc import Sequence

LOW_BITS, HIGH_BITS = 3.0, 10.0


def audit_lines(exposures_bits: Sequence[float], most_bits: float, n_extracted: int) -> list[tuple[str, str]]:
    """Heading and text of each line.

    Args:
        exposures_bits: Of each planted string.
        most_bits: Highest that could be measured: every other candidate was less likely.
        n_extracted: Strings that could be read out again, given their beginning.
    """
    n_planted = len(exposures_bits)
    mean = sum(exposures_bits) / n_planted if n_planted else 0.0
    most = max(exposures_bits, default=0.0)
    numbers = f"{mean:.1f} bits on average, {most:.1f} at most, of {most_bits:.1f} that could be measured"
    return [
        ("Planted", f"{n_planted} made-up strings in a copy of your text, trained on as this run would"),
        ("Exposure", f"{numbers}: {_verdict(mean, most_bits)}"),
        ("Read out", f"{n_extracted} of {n_planted} from their beginning alone"),
        ("", "evidence, not a proof: strings that stand in your text more often are exposed more"),
    ]


def _verdict(mean: float, most_bits: float) -> str:
    if most_bits and mean >= 0.9 * most_bits:
        return "whoever has the adapter can tell that such a string was there"
    if mean >= HIGH_BITS:
        return "high: an attacker who knows the pattern would find such strings soon"
    if mean >= LOW_BITS:
        return "some: guessing becomes easier, and remains guessing"
    return "low: hardly more than chance, which gives about 1.4 bits"
