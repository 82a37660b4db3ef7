"""What is found in texts and what is not; no find is ever told as it stands."""

import pytest

from tinylora.errors import DataError, SettingError
from tinylora.reading.scan import Scan, find_in, iban_is_right, luhn

# Put together here, so that no scanner of repositories takes this file for a leak.
HEX, MIXED = "9f8c1b7e4d2a6035" * 2, "q7Zt2LmX9vKd4RbW8sYc1NfH5gJp3TaE6uQo"
REAL = {
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEowIBAAKCAQEAq7Zt2LmX9vKd4RbW8sYc1NfH5gJp3TaE\n",
    "AWS key": "AKIA" + "Q7ZT2LMX5VKD4RBW",
    "GCP key": "AIza" + MIXED[:35],
    "GitHub token": "ghp_" + MIXED,
    "GitLab token": "glpat-" + MIXED[:20],
    "Slack token": "xoxb-" + "123498760-" + MIXED[:24],
    "OpenAI-style key": "sk-" + MIXED + MIXED[:12],
    "Hugging Face token": "hf_" + MIXED[:34],
    "Stripe key": "sk_live_" + MIXED[:24],
    "JWT": "eyJ" + "hbGciOiJIUzI1NiJ9." + "eyJ" + "zdWIiOiI0MjM5MDg3In0." + MIXED,
    "secret in an assignment": 'DB_PASSWORD = "tr0ub4dor&3Xk"',
    "card number": "card 4539 1488 0343 6467 until 12/27",
    "IBAN": "pay to DE89 3704 0044 0532 0130 00 please",
    "e-mail address": "write to ada.lovelace@analytical-engine.org today",
    "phone number": "call +49 30 901820 or not",
}
MADE_UP = [
    "user@example.com, you@test.example.org, git@github.com:owner/name.git, noreply@github.com",
    "@dataclass, a@b, x @ y, icon@2x.png, foo@bar.service",
    "password = changeme; password: str = os.environ['PASSWORD']; PASSWORD=$(cat file); token = get_token()",
    'api_key = "your-api-key-here"; secret: "xxxxxxxxxxxx"; passwd: hunter',
    "AKIAIOSFODNN7EXAMPLE and sk-... and hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "4111 1111 1111 1111, 1234567812345678, 4539 1488 0343 6468, order 4539148803436467123",
    "DE00 3704 0044 0532 0130 00, AB12 3456 7890 1234, GB82WEST12345698765431",
    "+1 555 0100 200, (555) 123-4567, 2024-01-31 12:30:45, 192.168.100.200, 3.141592653589793, +2147483647",
    "12345678, 2147483647, 0x7fffffff, 1,234,567,890, 978-3-16-148410-0, v1.2.3-4567, +1234567890",
    "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA\n",
    "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
    "https://user:pw@host.org/path?mail=a, see RFC 5322, sha256 " + HEX + HEX,
]


@pytest.mark.parametrize("kind", REAL)
def test_each_kind_is_found_alone_and_masked(kind):
    text = REAL[kind]
    (found,) = find_in(f"before\n{text}\nafter")
    assert found.kind == kind
    assert len(found.masked) < 45 and "***" in found.masked
    hidden = text.replace("-----BEGIN RSA PRIVATE KEY-----", "")
    assert not any(hidden[start : start + 8] in found.masked for start in range(len(hidden) - 8))


@pytest.mark.parametrize("text", MADE_UP)
def test_examples_and_code_are_passed_over(text):
    assert list(find_in(text)) == []


def test_national_ways_to_write_numbers():
    for text in (
        "(212) 736-5000",
        "212-736-5000",
        "212.736.5000",
        "+493090182000",
        "+1 (212) 736-5000",
        "+44 20 7946 0018",
    ):
        assert [found.kind for found in find_in(f"Tel. {text}.")] == ["phone number"], text


def naive_luhn(digits: str) -> bool:
    doubled = [int(sign) if place % 2 == 0 else int(sign) * 2 for place, sign in enumerate(digits[::-1])]
    return sum(number // 10 + number % 10 for number in doubled) % 10 == 0


def test_checksums():
    for number in range(0, 10**6, 997):
        assert luhn(f"{number:016d}") == naive_luhn(f"{number:016d}")
    assert iban_is_right("GB82 WEST 1234 5698 7654 32") and iban_is_right("FR1420041010050500013M02606")
    assert not iban_is_right("GB82 WEST 1234 5698 7654 3") and not iban_is_right("ZZ82WEST12345698765432")


def test_counts_places_and_what_to_say():
    scan = Scan()
    for line in range(1, 8):
        scan.look_at(f"a.jsonl, line {line}", "\n\n" + REAL["e-mail address"])
    scan.look_at("b.txt", REAL["AWS key"])
    assert scan.counts == {"e-mail address": 7, "AWS key": 1}
    assert len(scan.places["e-mail address"]) == 5
    assert scan.places["e-mail address"][0] == "a.jsonl, line 1 (line 3 of it): ad*** (34 characters)"
    assert scan.refused([]) == ["secrets", "emails"]
    with pytest.raises(
        DataError, match=r"7 × e-mail address, 1 × AWS key; .* --allow secrets --allow emails"
    ) as caught:
        scan.check([])
    assert "lovelace" not in str(caught.value) and "Q7ZT" not in str(caught.value)
    with pytest.raises(DataError, match=r"1 × AWS key; .* --allow secrets "):
        scan.check(["emails", "phones"])
    scan.check(["emails", "secrets"])
    assert Scan.from_json(scan.to_json()) == scan


def test_what_cannot_be_allowed():
    with pytest.raises(SettingError, match="--allow everything: expected one of secrets, emails, phones"):
        Scan().check(["everything"])


def test_a_long_text_takes_no_long_time_whatever_it_is_made_of():
    """Patterns that go back over what they have read would take hours here."""
    for text in ("a" * 10**5, "1 " * 10**5, "a@" * 10**5, "a.b-" * 10**5, "A1 " * 10**5, "password: a: b: " * 10**4):
        assert list(find_in(text + "-----BEGIN PRIVATE KEY-----" + "a: b " * 10**4)) is not None
