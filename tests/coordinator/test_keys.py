"""A run's keys: who may read them, what the certificate says, when it is made anew, and the operator's own."""

import json
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tinylora_coordinator.keys import (
    KeyFolder,
    OwnCertificate,
    admin_secret,
    check_host,
    host_to_name,
    make_keys,
    mend_permissions,
    pin_of,
    run_key,
    run_public,
    served_ca,
    server_identity,
)

from tinylora.errors import SettingError, StorageError
from tinylora.failpoints import armed
from tinylora.flower.join_token import SYSTEM

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    made = KeyFolder(tmp_path / "keys")
    make_keys(made, run="a run", hosts=["tree.example.org", "192.0.2.7"], now=NOW)
    return made


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificates(file.read_bytes())[0]


def contents(folder: KeyFolder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.root.iterdir()}


def identity(folder: KeyFolder, said: list[str], *hosts: str, now: datetime = NOW) -> None:
    server_identity(folder, hosts=hosts, now=now, say=said.append)


# --- what is made -----------------------------------------------------------------------------------------------------


def test_only_the_owner_reads_what_is_private(folder: KeyFolder) -> None:
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.root.iterdir()}
    private = {name: mode for name, mode in modes.items() if name.endswith(".key") or name == "admin"}
    assert set(private) == {"ca.key", "server.key", "run.key", "admin"} and set(private.values()) == {0o600}
    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700
    assert sorted(modes) == sorted([*private, "ca.pem", "server.pem"])  # and nothing half-written


def test_the_ca_signs_servers_alone_and_the_server_names_its_hosts(folder: KeyFolder) -> None:
    ca, server = certificate(folder.ca), certificate(folder.server)
    limits = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert limits.critical and limits.value.ca and limits.value.path_length == 0
    assert ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "a run"
    key = ca.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp384r1"
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "tree.example.org"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"127.0.0.1", "::1", "192.0.2.7"} <= {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}
    assert 729 * DAY < server.not_valid_after_utc - NOW <= 730 * DAY < 3650 * DAY < ca.not_valid_after_utc - NOW
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder.server, folder.server_key)


def test_making_twice_changes_nothing(folder: KeyFolder) -> None:
    before = contents(folder)
    make_keys(folder, run="a run", hosts=["other.example.org"], now=NOW + DAY)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["ca.key", "ca.pem", "server.key", "server.pem", "run.key", "admin"])
def test_a_disk_that_fails_at_any_file_leaves_nothing_half_made(tmp_path: Path, name: str) -> None:
    folder = KeyFolder(tmp_path / "keys")
    with armed(f"keys.{name}.flush.before:enospc"), pytest.raises(StorageError, match="No space left"):
        make_keys(folder, run="r", hosts=[], now=NOW)
    assert not any(file.name.startswith(".") or file.name == name for file in folder.root.iterdir())
    make_keys(folder, run="r", hosts=[], now=NOW)
    identity(folder, said := [], "localhost")
    assert said == [] and run_public(folder)


def test_the_run_key_is_the_same_each_time_and_another_for_each_run(folder: KeyFolder, tmp_path: Path) -> None:
    other = KeyFolder(tmp_path / "other")
    make_keys(other, run="a run", hosts=[], now=NOW)
    assert run_key(folder).public_key().public_bytes_raw().hex() == run_public(folder) != run_public(other)
    assert pin_of(folder) != pin_of(other) and len(pin_of(folder)) == 64
    assert len(admin_secret(folder)) >= 32 and admin_secret(folder) != admin_secret(other)


# --- what is made anew ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "now", "reason"),
    [
        (["new.example.org"], NOW, "did not name new.example.org"),
        (["2001:DB8::1"], NOW, "did not name 2001:db8::1"),
        (["localhost"], NOW + 701 * DAY, "expires on 2028-01-01"),
    ],
)
def test_a_certificate_that_will_not_do_is_made_anew_for_all_hosts(
    folder: KeyFolder, hosts: list[str], now: datetime, reason: str
) -> None:
    said: list[str] = []
    pin = pin_of(folder)
    identity(folder, said, *hosts, now=now)
    assert reason in said[0] and pin_of(folder) == pin
    names = certificate(folder.server).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "tree.example.org" in names.get_values_for_type(x509.DNSName)
    identity(folder, again := [], *hosts, now=now)
    assert again == []


@pytest.mark.parametrize("hosts", [["localhost"], ["0.0.0.0"], ["::"], ["TREE.example.org"], ["192.0.2.7"]])
def test_a_certificate_that_will_do_stays(folder: KeyFolder, hosts: list[str]) -> None:
    before = contents(folder)
    identity(folder, said := [], *hosts, now=NOW + 699 * DAY)
    assert said == [] and contents(folder) == before


def test_a_pair_that_a_crash_left_half_renewed_is_made_anew(folder: KeyFolder) -> None:
    folder.server_key.write_bytes(folder.ca_key.read_bytes())
    identity(folder, said := [], "localhost")
    assert "its key was another one's" in said[0]
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder.server, folder.server_key)


def test_an_expired_ca_is_the_end(folder: KeyFolder) -> None:
    with pytest.raises(SettingError, match="expired on 2036"):
        identity(folder, [], "localhost", now=NOW + 3700 * DAY)


# --- who may read -----------------------------------------------------------------------------------------------------


def test_rights_of_others_are_taken_away_with_a_sentence(folder: KeyFolder) -> None:
    folder.run_key.chmod(0o644)
    folder.root.chmod(0o755)
    mend_permissions(folder, (said := []).append)
    assert len(said) == 2 and "run.key: others could read it (mode 644); it is 600 again" in said[1]
    assert stat.S_IMODE(folder.run_key.stat().st_mode) == 0o600 and stat.S_IMODE(folder.root.stat().st_mode) == 0o700
    mend_permissions(folder, (again := []).append)
    assert again == []


@pytest.mark.parametrize("name", ["run.key", "ca.pem", "admin"])
def test_a_missing_key_is_named(folder: KeyFolder, name: str) -> None:
    (folder.root / name).unlink()
    read: dict[str, Callable[[KeyFolder], object]] = {"run.key": run_key, "ca.pem": pin_of, "admin": admin_secret}
    with pytest.raises(StorageError, match=name):
        read[name](folder)


@pytest.mark.parametrize(("name", "text"), [("run.key", b"no key"), ("ca.pem", b"no certificate")])
def test_a_spoiled_key_is_named(folder: KeyFolder, name: str, text: bytes) -> None:
    (folder.root / name).write_bytes(text)
    with pytest.raises(StorageError, match=f"{name}: not a "):
        run_key(folder)
        pin_of(folder)


def test_a_run_key_of_another_kind_is_refused(folder: KeyFolder) -> None:
    folder.run_key.write_bytes(folder.ca_key.read_bytes())
    with pytest.raises(StorageError, match="expected an Ed25519 key"):
        run_key(folder)


# --- the operator's certificate ---------------------------------------------------------------------------------------


def own_files(folder: Path) -> OwnCertificate:
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "own")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + 90 * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("own.example.org")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "fullchain.pem", folder / "privkey.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return OwnCertificate(chain, private)


def test_the_operators_certificate_is_used_where_it_lies(tmp_path: Path) -> None:
    own, folder = own_files(tmp_path / "own"), KeyFolder(tmp_path / "keys")
    make_keys(folder, run="r", hosts=[], now=NOW, own=own)
    found = server_identity(folder, hosts=["anything.example.org"], now=NOW + 300 * DAY, say=print)
    assert (found.certificate, found.private_key) == (own.certificate, own.private_key)
    assert (pin_of(folder), served_ca(folder), host_to_name(folder)) == (SYSTEM, None, "own.example.org")
    assert sorted(contents(folder)) == ["admin", "certificate.json", "run.key"]


def test_a_private_ca_of_the_operator_is_pinned(tmp_path: Path) -> None:
    own, folder = own_files(tmp_path / "own"), KeyFolder(tmp_path / "keys")
    make_keys(folder, run="r", hosts=[], now=NOW, own=OwnCertificate(own.certificate, own.private_key, own.certificate))
    assert pin_of(folder) == certificate(own.certificate).fingerprint(hashes.SHA256()).hex()
    assert served_ca(folder) == own.certificate


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"certificate": "missing.pem"}, "missing.pem: No such file"),
        ({"certificate": "privkey.pem"}, "not a certificate"),
        ({"private_key": "fullchain.pem"}, "not a private key"),
        ({"private_key": "other.pem"}, "not the key of"),
        ({"ca": "two.pem"}, "expected one CA certificate, got 2"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    own, other = own_files(tmp_path / "own"), own_files(tmp_path / "others")
    place = tmp_path / "own"
    (place / "other.pem").write_bytes(other.private_key.read_bytes())
    (place / "two.pem").write_bytes(own.certificate.read_bytes() * 2)
    wrong = OwnCertificate(**(vars(own) | {field: place / name for field, name in change.items()}))
    with pytest.raises(SettingError, match=reason):
        make_keys(KeyFolder(tmp_path / "keys"), run="r", hosts=[], now=NOW, own=wrong)
    assert not (tmp_path / "keys").exists()


def test_a_spoiled_note_of_it_is_named(folder: KeyFolder) -> None:
    for text in ("{", json.dumps({"certificate": 1}), json.dumps([])):
        folder.own.write_text(text)
        with pytest.raises(SettingError, match=r"certificate\.json: not readable"):
            pin_of(folder)


# --- hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Tree.Example.org", "tree.example.org"),
        ("[::1]", "::1"),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:DB8::0", "2001:db8::"),
    ],
)
def test_hosts_are_brought_to_one_form(text: str, host: str) -> None:
    assert check_host(text) == host


@pytest.mark.parametrize("text", ["", "a b", "http://a", "-a.org", "a..b", "a" * 254, "ä.org", "a:1"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="expected a host name or an address"):
        check_host(text)


def test_a_join_command_names_the_first_host_given(folder: KeyFolder) -> None:
    assert host_to_name(folder) == "tree.example.org"
