"""Reaching a coordinator: its address, by what it is recognised, and one question to it. No torch, no flwr.

A token says which CA to trust. It is fetched from the coordinator itself, over a connection that nothing secret goes
through, and compared with the token's hash; from then on only servers with a certificate of that CA, for the very host
that was asked for, are spoken to.
"""

import ipaddress
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tinylora.errors import NetworkError, RefusedError, SettingError
from tinylora.flower.join_token import SYSTEM, pin_of_der
from tinylora.flower.meter import Meter, count, unmetered

CA_PATH = "/ca.pem"
MAX_ANSWER_BYTES = 2**20

Verify: TypeAlias = ssl.SSLContext | bool


@dataclass(frozen=True)
class Address:
    """Where a coordinator is reached."""

    host_port: str
    is_plain: bool

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read `https://host[:port]`, `host:port` (which means https), or `http://host:port` of this machine alone.

        Raises:
            SettingError: No host, no usable port, another scheme, a path, or http to another machine.
        """
        parts = urlsplit(text if "://" in text else f"https://{text}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        is_odd = parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or is_odd:
            raise SettingError(f"{text!r}: expected the coordinator's address, such as https://tree.example.org:8443")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise SettingError(f"{text!r}: http would send the token in clear; use https, or http on this machine only")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(f"{host}:{port or (80 if parts.scheme == 'http' else 443)}", parts.scheme == "http")

    def url(self, path: str = "") -> str:
        """A full URL below this address."""
        return f"{'http' if self.is_plain else 'https'}://{self.host_port}{path}"


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@dataclass(frozen=True)
class Trust:
    """By what a coordinator is recognised."""

    pin: str = SYSTEM
    """As in its tokens: the hash of its CA, or `SYSTEM`."""
    ca_pem: bytes = b""
    """The CA itself; empty where the system's trust store decides, and on a plain connection within this machine."""

    @property
    def root_certificates(self) -> bytes | None:
        """The CA alone to trust, or None for the system's."""
        return self.ca_pem or None


def meet(address: Address, pin: str, *, timeout_s: float = 30.0, meter: Meter = unmetered) -> Trust:
    """Fetch the coordinator's CA, and check that it is the one that the token names. Nothing secret is sent.

    Raises:
        NetworkError: Nobody answers there, or somebody who is no coordinator.
        RefusedError: Whoever answers has another CA: not the coordinator of this token.
    """
    if address.is_plain or pin == SYSTEM:
        return Trust(pin)
    response = ask(address, "GET", CA_PATH, verify=_unverified(), timeout_s=timeout_s, meter=meter)
    if response.status_code != httpx.codes.OK:
        raise NetworkError(
            f"{address.url()}: answers, but has no CA of its own; check the address, or the token", rule="stranger"
        )
    try:
        (certificate,) = x509.load_pem_x509_certificates(response.content)
    except ValueError:
        raise NetworkError(f"{address.url(CA_PATH)}: not one certificate; check the address", rule="stranger") from None
    found = pin_of_der(certificate.public_bytes(serialization.Encoding.DER))
    if found != pin:
        raise RefusedError(
            f"{address.url()}: has another CA (sha256 {found[:16]}) than the token names ({pin[:16]}), so the token "
            "was not sent; check the address, and ask the operator for a new token if it is right",
            rule="ca",
        )
    return Trust(pin, certificate.public_bytes(serialization.Encoding.PEM))


def _unverified() -> ssl.SSLContext:
    """For the one question whose answer is checked by its hash."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def verify_by(address: Address, trust: Trust) -> Verify:
    """What decides whether a server is believed."""
    if address.is_plain:
        return False  # there is nothing to verify, and reading the system's certificates takes longer than an answer
    if not trust.ca_pem:
        if trust.pin != SYSTEM:
            raise RefusedError(f"{address.url()}: the CA of this run is not known here; join again with a token")
        return True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=trust.ca_pem.decode("ascii"))
    return context


def ask(
    address: Address,
    method: str,
    path: str,
    *,
    verify: Verify,
    timeout_s: float,
    content: str | bytes | None = None,
    headers: dict[str, str] | None = None,
    meter: Meter = unmetered,
) -> httpx.Response:
    """One request and its answer, whatever its status; no redirects, no proxy where the connection is plain.

    Raises:
        NetworkError: Nobody answers, the certificate is not the one expected, or the answer is too long.
    """
    all_headers = {"content-type": "application/json"} | (headers or {})
    try:
        with httpx.Client(verify=verify, timeout=timeout_s, trust_env=not address.is_plain) as client:
            count(client, meter)
            with client.stream(method, address.url(path), content=content, headers=all_headers) as response:
                found = bytearray()
                for part in response.iter_raw():
                    found += part
                    if len(found) > MAX_ANSWER_BYTES:
                        raise NetworkError(f"{address.url(path)}: answers without end; check the address")
                return httpx.Response(response.status_code, headers=_plain(response.headers), content=bytes(found))
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
        rule, why = _explain(error)
        raise NetworkError(f"{address.url()}: {why}", rule=rule) from None


def _plain(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that we read; we ask for no compression, so the length is all there is to know of the body."""
    return {name: value for name, value in headers.items() if name in ("content-type", "date", "retry-after")}


def _explain(error: Exception) -> tuple[str, str]:
    """One word for what is wrong, and the sentence."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or "not trusted"
        return "certificate", f"its certificate does not hold: {why}; check the address, or ask for a new token"
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text:
        return "no_tls", "speaks no TLS; check the address"
    return (
        "unreachable",
        f"no coordinator answers ({text or type(error).__name__}); check the address, and that "
        "`tinylora-coordinator serve` is running",
    )
