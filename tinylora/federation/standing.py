"""What a worker's results say of it: probation, good standing, quarantine. Pure.

Every reason for which something is refused belongs to a class:

* *benign*: a slow or stuttering network causes it; held against nobody;
* *fault*: broken, perhaps by accident;
* *harm*: well formed, and bad for the run;
* *forgery*: somebody claims what is not so.

Three results of the classes fault and harm among the latest ten, or one forgery, and a worker gets no more units. Only
what is proven to come from a worker is held against it: by its signature, or by the transport where it has no key.
"""

from collections import Counter
from collections.abc import Mapping

from tinylora.federation.state import ResultClass, Worker

MAX_STRIKES = 3
"""Results of the classes fault and harm, among the latest, after which a worker gets no more units."""
WINDOW = 10
"""How many of a worker's latest results are looked at."""
PROBATION = 2
"""Train updates that must have counted before a worker is relied upon."""
BENIGN_CODES = frozenset({"duplicate", "lease_closed"})
"""Rejections that a slow or stuttering network causes; they are no strikes."""
FINAL_CODES = frozenset({"shard_too_small", "rank_too_low", "declined"})
"""Rejections after which asking the same worker again is of no use."""
_HARM = frozenset({"too_far", "worse_on_heldout", "routing_capture"})
_FORGERY = frozenset({"bad_signature", "foreign_unit", "wrong_nonce", "bad_hash"})
_FAULT = frozenset(
    {
        "too_large",
        "bad_document",
        "unknown_unit",
        "wrong_unit",
        "bad_payload",
        "bad_manifest",
        "not_finite",
        "bad_statistics",
        "bad_probe",
        *FINAL_CODES,
    }
)
CLASS_OF: Mapping[str, ResultClass] = {
    **dict.fromkeys(sorted(BENIGN_CODES), "benign"),
    **dict.fromkeys(sorted(_FAULT), "fault"),
    **dict.fromkeys(sorted(_HARM), "harm"),
    **dict.fromkeys(sorted(_FORGERY), "forgery"),
}
"""Every code by its class."""


def with_result(results: tuple[ResultClass, ...], result: ResultClass) -> tuple[ResultClass, ...]:
    """A worker's latest results after one more."""
    return (*results, result)[-WINDOW:]


def strikes(worker: Worker) -> int:
    """How many of its latest results are held against it."""
    counts = Counter(worker.results)
    return counts["fault"] + counts["harm"] + counts["forgery"]


def is_on_probation(worker: Worker) -> bool:
    """Whether too little of what it did was found good yet for it to be relied upon."""
    return worker.n_trained < PROBATION


def why_quarantine(worker: Worker) -> tuple[str, str] | None:
    """Code and sentence, if a worker in good standing must get no more units."""
    if worker.refusal:
        return None
    if "forgery" in worker.results:
        return "forgery", f"a message that it signed claims what is not so: {worker.last_fault}"
    n_strikes = strikes(worker)
    if n_strikes < MAX_STRIKES:
        return None
    n_results = len(worker.results)
    return "strikes", f"{n_strikes} of its latest {n_results} results were refused, the last one: {worker.last_fault}"


def voice(worker: Worker) -> str:
    """Those who came with one join token are one voice; whoever came without is its own."""
    return f"token {worker.token}" if worker.token else f"worker {worker.worker}"
