"""What a volunteer may not want to have trained on: secrets, e-mail addresses, phone numbers.

An adapter can repeat what it was trained on. So these are looked for before anything is trained, and refused unless the
owner allows them by kind. A find is told by its place and a masked sample, never as it stands. Rules are strict about
form (checksums, known beginnings, length), because documentation and code are full of numbers and of examples: what is
said in so many words to be one (`user@example.com`, 555 numbers, `password=changeme`) is none.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import log2
from typing import Any, Literal, TypeAlias, get_args

from tinylora.errors import DataError, SettingError

Allowance: TypeAlias = Literal["secrets", "emails", "phones"]
ALLOWANCES: tuple[Allowance, ...] = get_args(Allowance)
N_PLACES = 5
"""Places that are told of each kind."""
_MOST_LEFT = 65
"""Characters of an address before its @, and one."""


@dataclass(frozen=True)
class Find:
    """Something in a text, by what it is."""

    kind: str
    allowance: Allowance
    start: int
    end: int
    masked: str


@dataclass(frozen=True)
class _Rule:
    kind: str
    allowance: Allowance
    hints: tuple[str, ...]
    """One of these is in every text with such a find: a quick look before the slow one."""
    pattern: re.Pattern[str]
    is_real: Callable[[str], bool] = lambda found: True
    value: str | int = 0
    """The group that is the find."""
    left: re.Pattern[str] | None = None
    """What stands before it and belongs to it: looked for backwards, which is faster where the end is rarer."""

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where in a text the finds are."""
        for match in self.pattern.finditer(text):
            start, end = match.span(self.value)
            if self.left is not None:
                before = self.left.search(text, max(0, start - _MOST_LEFT), start)
                if before is None:
                    continue
                start = before.start("name")
            if self.is_real(text[start:end]):
                yield start, end


# --- checks of form --------------------------------------------------------------------------------------------------


def luhn(digits: str) -> bool:
    """Whether the last digit is the checksum of those before it.

    Source:
        ISO/IEC 7812-1, annex B.
    """
    total = 0
    for place, sign in enumerate(reversed(digits)):
        number = int(sign) * (1 + place % 2)
        total += number - 9 * (number > 9)
    return total % 10 == 0


def iban_is_right(text: str) -> bool:
    """Whether an IBAN's check digits fit.

    Source:
        ISO 13616-1; ISO/IEC 7064, MOD 97-10.
    """
    packed = text.replace(" ", "")
    if len(packed) != _IBAN_LENGTHS.get(packed[:2]):
        return False
    return int("".join(str(int(sign, 36)) for sign in packed[4:] + packed[:4])) % 97 == 1


def _is_card(found: str) -> bool:
    digits = re.sub(r"[ -]", "", found)
    is_known = re.match(r"4|5[1-5]|2[2-7]|3[47]|6(?:011|5)|35", digits) is not None and len(set(digits)) > 3
    return is_known and len(digits) == (15 if digits[:2] in ("34", "37") else 16) and luhn(digits)


def _is_dense(found: str) -> bool:
    """Whether characters are mixed as only a machine mixes them."""
    return _entropy(found) >= 3.5 and not _PLACEHOLDER.search(found)


def _is_password(value: str) -> bool:
    """A literal of some strength; not a word, a variable, a type or a call."""
    kinds = sum(re.search(kind, value) is not None for kind in (r"[a-z]", r"[A-Z]", r"\d", r"[^\w]"))
    is_code = re.search(r"[(){}<>\[\]$%;|\\*]|^/|::", value) is not None
    is_mixed = kinds >= 3 and re.search(r"\d", value) is not None and _entropy(value) >= 2.75
    return is_mixed and not is_code and not _PLACEHOLDER.search(value)


def _is_email(found: str) -> bool:
    name, _, domain = found.lower().rpartition("@")
    end = domain.rpartition(".")[2]
    is_example = re.search(r"(?:^|\.)(?:example|test|invalid|localhost|domain|foo|bar|xyz)(?:\.|$)", domain) is not None
    return not is_example and name not in _NO_PERSON and end not in _NO_ENDS and not domain.startswith("users.noreply")


def _is_phone(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    is_made_up = "555" in digits[-10:-4] or len(set(digits)) < 4 or digits in "012345678901234567890"
    is_made_up = is_made_up or digits.startswith(("2147483", "4294967", "1234567"))
    return 9 <= len(digits) <= 15 and not is_made_up


def _entropy(text: str) -> float:
    """Bits a character, by the frequencies in the text itself."""
    return -sum(n / len(text) * log2(n / len(text)) for n in (text.count(sign) for sign in set(text))) if text else 0.0


_PLACEHOLDER = re.compile(
    r"example|placeholder|changeme|your[_-]?|dummy|sample|redacted|xxxx|\*\*\*|\.\.\.|1234567|abcdef|secret|passw|test",
    re.I,
)
_NO_PERSON = frozenset({"git", "noreply", "no-reply", "user", "username", "name", "you", "your", "email", "foo"})
_NO_ENDS = frozenset(
    {
        "png",
        "jpg",
        "gif",
        "svg",
        "py",
        "js",
        "ts",
        "html",
        "css",
        "service",
        "target",
        "socket",
        "timer",
        "path",
        "local",
    }
)
_IBAN_LENGTHS = {
    **{"AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20, "ES": 24, "FI": 18},
    **{"FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IS": 26, "IT": 27, "LI": 21, "LT": 20, "LU": 20},
    **{"LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "SE": 24, "SI": 19, "SK": 24},
    **{"TR": 26, "SA": 24, "AE": 23, "IL": 23, "UA": 29, "RS": 22, "BR": 29},
}

# --- rules -----------------------------------------------------------------------------------------------------------


def _token(kind: str, hints: tuple[str, ...], pattern: str) -> _Rule:
    """A token that its maker begins with a known word."""
    return _Rule(
        kind, "secrets", hints, re.compile(rf"(?<![A-Za-z0-9_])(?P<value>{pattern})(?![A-Za-z0-9])"), _is_dense
    )


_RULES: tuple[_Rule, ...] = (
    _Rule(
        "private key",
        "secrets",
        ("PRIVATE KEY",),
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----\s*(?:[\w-]+:[^\n]*\n\s*)*[A-Za-z0-9+/=\\]{24,}"),
    ),
    _token("AWS key", ("AKIA", "ASIA"), r"(?:AKIA|ASIA)[A-Z2-7]{16}"),
    _token("GCP key", ("AIza",), r"AIza[A-Za-z0-9_-]{35}"),
    _token(
        "GitHub token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,}",
    ),
    _token("GitLab token", ("glpat-",), r"glpat-[A-Za-z0-9_-]{20,}"),
    _token("Slack token", ("xox",), r"xox[abeoprs]-[A-Za-z0-9-]{20,}"),
    _token("OpenAI-style key", ("sk-",), r"sk-(?:proj-|ant-|svcacct-)?[A-Za-z0-9_-]{32,}"),
    _token("Hugging Face token", ("hf_",), r"hf_[A-Za-z0-9]{30,}"),
    _token("Stripe key", ("k_live_",), r"[rs]k_live_[A-Za-z0-9]{20,}"),
    _token("JWT", ("eyJ",), r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{16,}"),
    _Rule(
        "secret in an assignment",
        "secrets",
        ("assw", "ASSW", "ecret", "ECRET", "api_key", "API_KEY", "apikey", "APIKEY", "oken", "OKEN"),
        re.compile(
            r"(?i:passw(?:or)?d|secret|api_?key|access_?key|auth_?token)[\w-]{0,12}[\"']?"
            r"[ \t]{0,3}[:=][ \t]{0,3}"
            r"(?P<quote>[\"']?)(?P<value>[^\s\"',]{8,100})(?P=quote)(?=[\s,;\"']|$)"
        ),
        _is_password,
        "value",
    ),
    _Rule(
        "card number",
        "secrets",
        (),
        re.compile(r"[2-6](?<![\w.+-][2-6])\d{3}(?:([ -]?)\d{4}\1\d{4}\1\d{4}|([ -]?)\d{6}\2\d{5})(?![\w-]|\.\d)"),
        _is_card,
    ),
    _Rule(
        "IBAN",
        "secrets",
        (),
        re.compile(r"[A-Z](?<![A-Za-z0-9][A-Z])[A-Z]\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"),
        iban_is_right,
    ),
    _Rule(
        "e-mail address",
        "emails",
        ("@",),
        re.compile(r"@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.)+[A-Za-z]{2,12}(?![\w@/-])"),
        _is_email,
        left=re.compile(r"(?<![\w.+/:@-])(?P<name>[A-Za-z0-9][\w.+-]{0,63})$"),
    ),
    _Rule(
        "phone number",
        "phones",
        (),
        re.compile(
            r"[+(2-9](?<![\w.,+/=:#(-].)(?:"
            r"(?<=\+)[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,5}(?:[ .-]\d{2,8}){1,4}"  # +49 30 1234567
            r"|(?<=\+)[1-9]\d{9,13}"  # +493012345678
            r"|(?<=\()[2-9]\d{2}\) ?[2-9]\d{2}[ .-]\d{4}"  # (212) 736-5000
            r"|(?<=[2-9])\d{2}([.-])[2-9]\d{2}\1\d{4}"  # 212-736-5000
            r")(?![\w-]|[.,/:=]\d)"
        ),
        _is_phone,
    ),
)
_DIGITS = re.compile(r"\d[\d .)-]{6}")


def find_in(text: str) -> Iterator[Find]:
    """What is found in one text, rule by rule."""
    has_digits = _DIGITS.search(text) is not None
    for rule in _RULES:
        if any(hint in text for hint in rule.hints) if rule.hints else has_digits:
            for start, end in rule.spans(text):
                yield Find(rule.kind, rule.allowance, start, end, mask(text[start:end]))


def mask(secret: str) -> str:
    """A secret that can be recognised by its owner and used by nobody: two characters, and how many there were."""
    first = secret.split()[0] if secret.startswith("-----BEGIN") else secret[:2]
    return f"{first}*** ({len(secret)} characters)"


# --- what was found in all -------------------------------------------------------------------------------------------


@dataclass
class Scan:
    """What was found in many texts: how many of each kind, and where the first of them are."""

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    allowances: dict[str, Allowance] = field(default_factory=dict)

    def look_at(self, where: str, text: str) -> None:
        """Look through one more text."""
        for found in find_in(text):
            self.counts[found.kind] = self.counts.get(found.kind, 0) + 1
            self.allowances[found.kind] = found.allowance
            places = self.places.setdefault(found.kind, [])
            if len(places) < N_PLACES:
                line = text.count("\n", 0, found.start) + 1
                places.append(f"{where}{f' (line {line} of it)' if line > 1 else ''}: {found.masked}")

    def refused(self, allow: Iterable[str]) -> list[Allowance]:
        """What would have to be allowed, besides what is."""
        found = {allowance for kind, allowance in self.allowances.items() if self.counts[kind]}
        return [allowance for allowance in ALLOWANCES if allowance in found - set(allow)]

    def check(self, allow: Sequence[str]) -> None:
        """Refuse what was found, unless it is allowed.

        Raises:
            DataError: With counts, the first places, and what to say.
            SettingError: Something unknown is allowed.
        """
        check_allowances(allow)
        refused = self.refused(allow)
        if not refused:
            return
        kinds = [kind for kind in self.counts if self.allowances[kind] in refused]
        counts = ", ".join(f"{self.counts[kind]} × {kind}" for kind in kinds)
        first = "; ".join(self.places[kind][0] for kind in kinds[:3])
        raise DataError(
            f"the data holds what a model should perhaps not learn: {counts}; first {first}; remove it, or say "
            + " ".join(f"--allow {allowance}" for allowance in refused)
            + " (all places: tinylora-worker data check)",
            rule="findings",
        )

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {"counts": self.counts, "places": self.places, "allowances": self.allowances}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Scan":
        """From a file of our own."""
        return cls(dict(stored["counts"]), dict(stored["places"]), dict(stored["allowances"]))


def check_allowances(allow: Iterable[str]) -> None:
    """Check what was allowed for words that mean nothing.

    Raises:
        SettingError: There is one.
    """
    unknown = sorted(set(allow) - set(ALLOWANCES))
    if unknown:
        raise SettingError(f"--allow {unknown[0]}: expected one of {', '.join(ALLOWANCES)}")
