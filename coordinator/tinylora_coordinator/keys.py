"""The keys of a run: its own CA and server certificate, the key that signs receipts and bundles, the admin secret.

    keys/ca.pem      ca.key       who vouches for the server: EC P-384, ten years. Tokens carry its hash
    keys/server.pem  server.key   what the public port shows: two years, made anew when it gets old or a name is missing
    keys/run.key                  Ed25519, PEM: receipts and bundles; workers pin its public half when they join
    keys/admin                    secret of the operator's own programs
    keys/certificate.json         instead of the first four: where the operator's own certificate lies
    keys/public.json              where the run is reached, and what a proxy shows there (`public_address.py`)

The folder is 0700 and private files are 0600, always; what is found wider is mended with a sentence. Each file is
flushed, renamed and its folder flushed, so that a key is there whole or not at all.
"""

import ipaddress
import json
import os
import re
import secrets
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tinylora import durable
from tinylora.errors import SettingError, StorageError
from tinylora.flower.join_token import SYSTEM, pin_of_der
from tinylora_coordinator.public_address import PublicAddress, public_to_json, read_public_file

CA_DAYS, SERVER_DAYS, RENEW_DAYS = 3652, 730, 30
ALWAYS_HOSTS = ("localhost", "127.0.0.1", "::1")
_PRIVATE = ("ca.key", "server.key", "run.key", "admin")
_PUBLIC = ("ca.pem", "server.pem", "certificate.json", "public.json")
for _file in (*_PRIVATE, *_PUBLIC):
    durable.register_file(f"keys.{_file}")
_AHEAD = timedelta(hours=1)  # a certificate is valid for workers whose clocks are a little behind
_NAME = re.compile(
    r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class KeyFolder:
    """Where a run's keys are."""

    root: Path

    @property
    def ca(self) -> Path:
        """Certificate of the run's own CA."""
        return self.root / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """Its private key."""
        return self.root / "ca.key"

    @property
    def server(self) -> Path:
        """The server's certificate, with the CA's behind it."""
        return self.root / "server.pem"

    @property
    def server_key(self) -> Path:
        """Its private key."""
        return self.root / "server.key"

    @property
    def run_key(self) -> Path:
        """What receipts and bundles are signed with."""
        return self.root / "run.key"

    @property
    def admin(self) -> Path:
        """Secret of the operator's own programs."""
        return self.root / "admin"

    @property
    def own(self) -> Path:
        """Where the operator's own certificate lies, if one is used."""
        return self.root / "certificate.json"

    @property
    def public(self) -> Path:
        """Where the run is reached, if that is not where it listens."""
        return self.root / "public.json"


@dataclass(frozen=True)
class OwnCertificate:
    """A certificate that the operator got elsewhere. The files stay where they are, so that whoever renews them can."""

    certificate: Path
    """Full chain, PEM."""
    private_key: Path
    ca: Path | None = None
    """The CA at the chain's end where the system's trust store does not know it."""


@dataclass(frozen=True)
class ServerIdentity:
    """What the public port shows."""

    certificate: Path
    """Full chain, PEM."""
    private_key: Path


# --- making ---------------------------------------------------------------------------------------------------------


def make_keys(
    folder: KeyFolder, *, run: str, hosts: Sequence[str], now: datetime, own: OwnCertificate | None = None
) -> None:
    """Make whatever is not there yet: CA and server certificate (or a note of the operator's), run key, admin secret.

    Args:
        folder: Made with mode 0700.
        run: The run's name, as the CA's.
        hosts: Names and addresses that workers will use, beside this machine's own.
        now: Time, with zone; certificates count from here.
        own: The operator's certificate, used instead of one of ours.

    Raises:
        SettingError: A host is neither a name nor an address, or `own` is no certificate with its key.
        StorageError: The folder cannot be written.
    """
    names = [*ALWAYS_HOSTS, *_this_host(), *(check_host(host) for host in hosts)]
    if own is not None:
        check_own(own)
    with _told(folder.root):
        folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.name != "nt":
            folder.root.chmod(0o700)
        if not folder.run_key.exists():
            _write(folder.run_key, _private_pem(ed25519.Ed25519PrivateKey.generate()))
        if not folder.admin.exists():
            _write(folder.admin, secrets.token_urlsafe(32).encode() + b"\n")
        if own is not None:
            write_own(folder, own)
        elif not folder.ca.exists():
            _make_ca(folder, run, now)
        if own is None and not folder.server.exists():
            _make_server(folder, names, now)


def write_own(folder: KeyFolder, own: OwnCertificate) -> None:
    """Note that this certificate is used from now on; tokens carry another pin afterwards.

    Raises:
        SettingError: It is no certificate with its key.
        StorageError: The folder cannot be written.
    """
    check_own(own)
    fields = {"certificate": own.certificate, "private_key": own.private_key, "ca": own.ca}
    text = json.dumps({name: None if file is None else str(file.resolve()) for name, file in fields.items()}, indent=1)
    with _told(folder.root):
        _write(folder.own, text.encode() + b"\n")


def write_public(folder: KeyFolder, public: PublicAddress | None) -> None:
    """Note where the run is reached from now on, or forget it; tokens may carry another pin afterwards.

    Raises:
        SettingError: The proxy's CA is not one certificate.
        StorageError: The folder cannot be written.
    """
    if public is not None and public.ca is not None:
        _check_ca(public.ca)
    with _told(folder.root):
        if public is None:
            folder.public.unlink(missing_ok=True)
        else:
            _write(folder.public, public_to_json(public))


def read_public(folder: KeyFolder) -> PublicAddress | None:
    """Where the run is reached, if that was said.

    Raises:
        SettingError: The note of it is not readable.
    """
    return read_public_file(folder.public)


def _make_ca(folder: KeyFolder, run: str, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, run[:64])])
    certificate = (
        _builder(name, name, key, now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_ca=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    # The key first: a certificate without its key would never be replaced.
    _write(folder.ca_key, _private_pem(key))
    _write(folder.ca, certificate.public_bytes(serialization.Encoding.PEM))


def _make_server(folder: KeyFolder, hosts: Sequence[str], now: datetime) -> None:
    """A fresh key and certificate for these hosts, signed by the run's CA."""
    ca, ca_key = _read_certificates(folder.ca)[0], _read_private(folder.ca_key)
    if ca.not_valid_after_utc <= now:
        raise SettingError(f"{folder.ca}: expired on {ca.not_valid_after_utc:%Y-%m-%d}; begin a new run with `init`")
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey) or ca_key.public_key() != ca.public_key():
        raise StorageError(f"{folder.ca_key}: not the key of {folder.ca}; restore both from a backup")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tinylora coordinator")])
    days = min(SERVER_DAYS, (ca.not_valid_after_utc - now).days)
    certificate = (
        _builder(name, ca.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in _unique(hosts)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + ca.public_bytes(serialization.Encoding.PEM)
    # Between the two writes the pair does not fit: `server_identity` sees that, and makes both anew.
    _write(folder.server_key, _private_pem(key))
    _write(folder.server, pem)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _AHEAD)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# --- using ----------------------------------------------------------------------------------------------------------


def server_identity(folder: KeyFolder, *, hosts: Sequence[str], now: datetime, say: Say) -> ServerIdentity:
    """What to show at the public port; our own certificate is made anew where it is old or lacks one of `hosts`.

    Raises:
        SettingError: A host is neither a name nor an address; the operator's certificate is not readable.
        StorageError: A key is missing, altered or readable by others and cannot be mended.
    """
    mend_permissions(folder, say)
    if (own := read_own(folder)) is not None:
        check_own(own)
        return ServerIdentity(own.certificate, own.private_key)
    wanted = [check_host(host) for host in hosts if not _is_everywhere(host)]
    with _told(folder.root):
        if reason := _why_renew(folder, wanted, now):
            _make_server(folder, [*_old_hosts(folder), *ALWAYS_HOSTS, *_this_host(), *wanted], now)
            say(f"{folder.server}: made anew, because {reason}")
    return ServerIdentity(folder.server, folder.server_key)


def _why_renew(folder: KeyFolder, wanted: Sequence[str], now: datetime) -> str:
    """Why our server certificate will not do, or nothing."""
    if not folder.server.exists() or not folder.server_key.exists():
        return "it was missing"
    certificate = _read_certificates(folder.server)[0]
    key = _read_private(folder.server_key)
    if key.public_key() != certificate.public_key():
        return "its key was another one's"
    if certificate.not_valid_after_utc - now < timedelta(days=RENEW_DAYS):
        return f"it expires on {certificate.not_valid_after_utc:%Y-%m-%d}"
    missing = [host for host in wanted if host not in _hosts_of(certificate)]
    return f"it did not name {missing[0]}" if missing else ""


def _old_hosts(folder: KeyFolder) -> list[str]:
    return _hosts_of(_read_certificates(folder.server)[0]) if folder.server.exists() else []


def _hosts_of(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def served_ca(folder: KeyFolder) -> Path | None:
    """The CA that workers pin, served at /ca.pem; none where the system's trust store vouches for the certificate.

    Raises:
        SettingError: The note of the operator's certificate, or of the public address, is not readable.
    """
    public = read_public(folder)
    if public is not None and public.by_proxy:
        return public.ca
    own = read_own(folder)
    return folder.ca if own is None else own.ca


def pin_of(folder: KeyFolder) -> str:
    """What the run's tokens carry: the hash of that CA, or `SYSTEM`.

    Raises:
        SettingError: The note of the operator's certificate is not readable.
        StorageError: There is no CA, or it is not readable.
    """
    ca = served_ca(folder)
    if ca is None:
        return SYSTEM
    return pin_of_der(_read_certificates(ca)[0].public_bytes(serialization.Encoding.DER))


def read_own(folder: KeyFolder) -> OwnCertificate | None:
    """The operator's certificate, if one was given.

    Raises:
        SettingError: The note of it is not readable.
    """
    if not folder.own.exists():
        return None
    try:
        found = json.loads(folder.own.read_text(encoding="utf-8"))
        ca = None if found["ca"] is None else Path(found["ca"])
        return OwnCertificate(Path(found["certificate"]), Path(found["private_key"]), ca)
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingError(
            f"{folder.own}: not readable; delete it to use the run's own certificate, or serve with --certificate"
        ) from None


def check_own(own: OwnCertificate) -> None:
    """Check that certificate and key fit, and that the CA, where there is one, is one certificate.

    Raises:
        SettingError: A file is missing, unreadable, or does not fit the others.
    """
    try:
        certificate, key = _read_certificates(own.certificate)[0], _read_private(own.private_key)
    except StorageError as error:
        raise SettingError(str(error)) from None
    if key.public_key() != certificate.public_key():
        raise SettingError(f"{own.private_key}: not the key of {own.certificate}; give the two that belong together")
    if own.ca is not None:
        _check_ca(own.ca)


def _check_ca(file: Path) -> None:
    try:
        cas = _read_certificates(file)
    except StorageError as error:
        raise SettingError(str(error)) from None
    if len(cas) > 1:
        raise SettingError(f"{file}: expected one CA certificate, got {len(cas)}; give the root alone")


def run_key(folder: KeyFolder) -> ed25519.Ed25519PrivateKey:
    """What receipts and bundles are signed with.

    Raises:
        StorageError: It is missing or no Ed25519 key.
    """
    key = _read_private(folder.run_key)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise StorageError(f"{folder.run_key}: expected an Ed25519 key; restore it from a backup")
    return key


def run_public(folder: KeyFolder) -> str:
    """Its public half, 64 hex digits.

    Raises:
        StorageError: The key is missing or no Ed25519 key.
    """
    return run_key(folder).public_key().public_bytes_raw().hex()


def admin_secret(folder: KeyFolder) -> str:
    """What the operator's own programs show.

    Raises:
        StorageError: The file is missing.
    """
    with _told(folder.root):
        return folder.admin.read_text(encoding="utf-8").strip()


def mend_permissions(folder: KeyFolder, say: Say) -> None:
    """Take rights of others away from folder and private files, and say so.

    Raises:
        StorageError: They cannot be taken away, or a file belongs to somebody else.
    """
    if os.name == "nt":
        return
    _mend(folder.root, 0o700, say)
    for name in _PRIVATE:
        if (folder.root / name).exists():
            _mend(folder.root / name, 0o600, say)


def _mend(file: Path, mode: int, say: Say) -> None:
    with _told(file):
        found = file.stat()
        if found.st_uid not in (os.geteuid(), 0):
            raise StorageError(f"{file}: belongs to another user; copy the run's folder, and serve the copy")
        if stat.S_IMODE(found.st_mode) & 0o077:
            file.chmod(mode)
            say(f"{file}: others could read it (mode {stat.S_IMODE(found.st_mode):o}); it is {mode:o} again")


# --- hosts ----------------------------------------------------------------------------------------------------------


def check_host(host: str) -> str:
    """A host as certificates name it: an address in its usual form, or a name in lower case.

    Raises:
        SettingError: It is neither.
    """
    text = host.strip().strip("[]")
    with suppress(ValueError):
        return str(ipaddress.ip_address(text))
    if len(text) > 253 or not _NAME.fullmatch(text):
        raise SettingError(f"{host!r}: expected a host name or an address, such as tree.example.org or 192.0.2.7")
    return text.lower()


def join_url(folder: KeyFolder, port: int) -> str:
    """The address to name in a join command: the public one if it was said, else by `host_to_name`.

    Raises:
        SettingError: The note of the public address is not readable.
        StorageError: The certificate is not readable.
    """
    public = read_public(folder)
    return f"https://{host_to_name(folder)}:{port}" if public is None else public.url


def host_to_name(folder: KeyFolder) -> str:
    """The host to name where no public address was said: the first one given to `init`, else this machine's name."""
    own = read_own(folder)
    file = folder.server if own is None else own.certificate
    known = [host for host in _hosts_of(_read_certificates(file)[0]) if host not in ALWAYS_HOSTS and "*" not in host]
    given = [host for host in known if host not in _this_host()] or known or ["localhost"]
    return f"[{given[0]}]" if ":" in given[0] else given[0]


def _general_name(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


def _is_everywhere(host: str) -> bool:
    """Whether it is an address to listen on that no worker can use."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_unspecified
    return False


def _this_host() -> list[str]:
    with suppress(SettingError):  # some machines have names that no certificate can hold
        return [check_host(socket.gethostname())]
    return []


def _unique(hosts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(hosts))


# --- files ----------------------------------------------------------------------------------------------------------


def _write(file: Path, data: bytes) -> None:
    """The file holds these bytes, on disk; if it is a private one, nobody else ever reads it."""
    mode = 0o600 if file.name in _PRIVATE else 0o644
    durable.replace_file(file, data, name=f"keys.{file.name}", mode=mode)


def _private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read_private(file: Path) -> PrivateKeyTypes:
    with _told(file):
        data = file.read_bytes()
    try:
        return serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        raise StorageError(f"{file}: not a private key without a password in PEM form; restore it") from None


def _read_certificates(file: Path) -> list[x509.Certificate]:
    with _told(file):
        data = file.read_bytes()
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise StorageError(f"{file}: not a certificate in PEM form; restore it") from None


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Turn what the system says into one sentence."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or file}: {error.strerror or error}; check the folder and its permissions"
        ) from None
