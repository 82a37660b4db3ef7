"""Errors and refusals, each with cause and cure: the texts stand beside the codes, here they become sections."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tinylora_coordinator import joining
from tinylora_coordinator.http_errors import HTTP_ERRORS
from tinylora_worker.preflight.codes import CODES

from tests.docs.reference.markdown import anchor, code, page, prose, table
from tests.docs.reference.source import http_errors
from tinylora import errors
from tinylora.bundle.rules import BUNDLE_RULES, FILE_RULES, NUMBER_RULES
from tinylora.command_line import EXIT_CODES
from tinylora.errors import Explanation
from tinylora.federation.refusals import QUARANTINES, REFUSALS
from tinylora.federation.standing import CLASS_OF
from tinylora.flower.enrolment import JOIN_REFUSALS
from tinylora.flower.receipts import NO_RECEIPT
from tinylora.protocol.standstill import REASONS, Reason

CLASSES = {
    "benign": "held against nobody",
    "fault": "a strike: broken, perhaps by accident",
    "harm": "a strike: well formed, and bad for the run",
    "forgery": "quarantine at once, if it is proven to come from the worker's own key",
}


class Section(NamedTuple):
    """One code of the page."""

    heading: str
    told: Explanation
    note: str = ""
    """A line in front: of which class, with which status."""

    def text(self) -> str:
        """As Markdown."""
        return "\n\n".join(
            part
            for part in (
                f"### {self.heading}",
                self.note,
                f"Cause: {_sentence(self.told.cause)}",
                f"Cure: {_sentence(self.told.cure)}",
            )
            if part
        )


def _sentence(text: str) -> str:
    return prose(text) if text.rstrip().endswith((".", ":")) else f"{prose(text)}."


def errors_page() -> str:
    """The page of all of them."""
    return page(
        "Errors",
        "Everything that a program of ours refuses or ends with, by its code. The codes are for programs and keep "
        "their meaning; the sentences that come with them name the file, the number or the field at hand.",
        "## Exit codes",
        "A command that fails prints one sentence after `error:` and ends with one of these. A traceback is a bug.",
        _listed(exit_codes()),
        "## Checks of a worker",
        "`tinylora-worker doctor`, `join` and `run` print such a code beside a check that warns or fails; "
        "`tinylora-worker doctor --explain CODE` prints what stands here, wherever you are.",
        _overview(checks()),
        _listed(checks()),
        "## Why a worker is not working",
        "`tinylora-worker status` and the run's pages say one of these words.",
        _listed(reasons()),
        "## Joining refused",
        "The answer of `POST /tinylora/join`: `error` is one of these, `reason` a sentence. A worker ends with "
        "[exit code 7](#exit-7), for another base with [4](#exit-4).",
        _listed(joins()),
        "## Updates refused",
        "In the log, on the pages and in place of a receipt. Behind a dot may stand a rule: `bad_payload.overlap`; "
        "those of payloads and statistics are the [rules of bundles](#bundle-rules), the others name a field or a "
        "part. A code has a class, and three results of the classes *fault* and *harm* within a worker's latest ten, "
        "or one *forgery*, end its work for this run.",
        table(("class", "what it means for the worker"), ((name, told) for name, told in CLASSES.items())),
        _listed(updates()),
        "## Workers put out",
        "Why a worker gets no more units although nobody revoked it.",
        _listed(quarantines()),
        "## No receipt",
        "The answer of `POST /tinylora/receipts` says of each unit that has no receipt and will get none why; besides "
        "the codes of [refused updates](#updates-refused):",
        _listed(receipts()),
        "## HTTP errors",
        'Every other answer of the coordinator that is no success has the body `{"error": ..., "reason": ...}`.',
        _listed(http()),
        "## Bundle rules",
        "`BundleError.rule` in Python, and what stands behind the dot of a refused update. A file that breaks one is "
        "not read at all; the command ends with [exit code 5](#exit-5). `description.FIELD` means that a field of the "
        "[metadata](bundle-format.md#metadata) is wrong.",
        _listed(rules()),
    )


def _listed(sections: Iterator[Section]) -> str:
    return "\n\n".join(section.text() for section in sections)


def _overview(sections: Iterator[Section]) -> str:
    """A table of what follows."""
    split = (section.heading.partition(": ") for section in sections)
    return table(
        ("code", "what is the matter"), ((f"[{at}](#{anchor(f'{at}: {it}')})", prose(it)) for at, _, it in split)
    )


def all_sections() -> list[Section]:
    """Every code that the page has."""
    kinds = (exit_codes, checks, reasons, joins, updates, quarantines, receipts, http, rules)
    return [section for kind in kinds for section in kind()]


def exit_codes() -> Iterator[Section]:
    """By number; with the classes of errors that end so."""
    for number, told in EXIT_CODES.items():
        classes = [f"`{name}`" for name, kind in error_classes().items() if kind.exit_code == number]
        yield Section(f"Exit {number}", told, f"In Python: {', '.join(classes)}." if classes else "")


def error_classes() -> Mapping[str, type[errors.TinyLoraError]]:
    """Every class of our errors."""
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.TinyLoraError)
    }


def checks() -> Iterator[Section]:
    """TL-codes, in the order of the checks."""
    for name, told in CODES.items():
        ends = f"ends with [exit code {told.exit_code}](#exit-{told.exit_code})" if told.exit_code else "only warns"
        note = f"Check {code(told.check)}; it {ends}."
        yield Section(f"{name}: {told.title}", Explanation(told.cause, told.cure), note)


def reasons() -> Iterator[Section]:
    """Words of a worker's status."""
    for reason, told in REASONS.items():
        note = "It holds still, and its device's memory is free." if Reason(reason).is_pause else "It waits."
        yield Section(f"Not working: {reason.value}", told, note)


def joins() -> Iterator[Section]:
    """Refused joins."""
    for name, told in JOIN_REFUSALS.items():
        yield Section(f"Join: {name}", told, f"HTTP status {joining._STATUS.get(name, 403)}.")


def updates() -> Iterator[Section]:
    """Refused updates."""
    for name, told in REFUSALS.items():
        yield Section(f"Update: {name.value}", told, f"Class *{CLASS_OF[name.value]}*.")


def quarantines() -> Iterator[Section]:
    """Workers without further units."""
    for name, told in QUARANTINES.items():
        yield Section(f"Quarantine: {name}", told)


def receipts() -> Iterator[Section]:
    """Units without a receipt."""
    for name, told in NO_RECEIPT.items():
        yield Section(f"No receipt: {name}", told)


def http() -> Iterator[Section]:
    """Answers of the coordinator that are no success."""
    statuses = http_errors()
    for name, told in HTTP_ERRORS.items():
        found = sorted(statuses.get(name, ()))
        yield Section(f"HTTP: {name}", told, f"Status {' or '.join(map(str, found))}." if found else "Any status.")


def rules() -> Iterator[Section]:
    """What a file or numbers can break."""
    for name, told in {**FILE_RULES, **BUNDLE_RULES, **NUMBER_RULES}.items():
        yield Section(f"Rule: {name}", told)
