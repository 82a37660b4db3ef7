"""Who made a bundle: signed by a run's key, the same bytes each time; wrong, stripped and other signatures are told."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.bundle.test_bundle import NOBODY, make, rewrite, written
from tests.helpers import tiny_base_dir, tiny_base_model
from tinylora import bundle as bundles
from tinylora.bundle import Signer, read_bundle, verify, write_bundle
from tinylora.cli import app
from tinylora.command_line import exit_code_of
from tinylora.errors import BundleError, SettingError

RUN = Signer.of(Ed25519PrivateKey.from_private_bytes(b"r" * 32))
OTHER = Signer.of(Ed25519PrivateKey.from_private_bytes(b"o" * 32))


def signed(tmp_path: Path, signer: Signer = RUN, **changes) -> Path:
    return written(tmp_path, make(**changes), sign=signer)


def test_a_signed_bundle_says_who_signed_it(tmp_path):
    file = signed(tmp_path)
    assert bundles.inspect(file)["signed_by"] == RUN.public_key
    assert f"signed by key {RUN.public_key}: compare it" in verify(file)[3]
    assert "the key that was asked for" in verify(file, key=RUN.public_key.upper())[3]
    assert read_bundle(file).run == "first"


def test_equal_bundles_by_one_key_are_equal_bytes(tmp_path):
    assert bundles.to_bytes(make(), sign=RUN) == signed(tmp_path).read_bytes()
    assert bundles.to_bytes(make(), sign=OTHER) != bundles.to_bytes(make(), sign=RUN)


def test_what_was_read_and_is_written_again_is_signed_by_nobody(tmp_path):
    file = tmp_path / "again.safetensors"
    write_bundle(read_bundle(signed(tmp_path)), file)
    assert bundles.inspect(file)["signed_by"] == ""
    assert "not signed" in verify(file)[3]


def strip(fields: dict) -> None:
    fields.update(signed_by="", signature="")


def sign_anew(file: Path) -> None:
    write_bundle(read_bundle(file), file, sign=OTHER)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda file: rewrite(file, strip), "unsigned"),
        (sign_anew, "other_key"),
        (lambda file: rewrite(file, lambda fields: fields.update(run="another")), "signature"),
        (lambda file: rewrite(file, lambda fields: fields.update(signature="00" * 64)), "signature"),
        (lambda file: rewrite(file, lambda fields: fields.update(signature="no hex")), "signature"),
        (lambda file: rewrite(file, lambda fields: fields.update(signed_by=OTHER.public_key)), "signature"),
        (lambda file: rewrite(file, lambda fields: fields.update(signed_by="00" * 32)), "signature"),
        (lambda file: rewrite(file, lambda fields: fields.update(signature="")), "half_signed"),
        (lambda file: rewrite(file, lambda fields: fields.pop("signature")), "half_signed"),
        (lambda file: rewrite(file, lambda fields: fields.update(signature=1)), "half_signed"),
        (lambda file: rewrite(file, lambda fields: fields.update(signed_by="")), "half_signed"),
        (lambda file: rewrite(file, lambda fields: fields.update(signed_by="me")), "description.signed_by"),
    ],
)
def test_whoever_knows_the_key_is_not_deceived(tmp_path, change, rule):
    file = signed(tmp_path)
    change(file)
    with pytest.raises(BundleError) as caught:
        verify(file, key=RUN.public_key)
    assert caught.value.rule == rule


def test_a_wrong_signature_is_refused_by_every_reader(tmp_path):
    file = signed(tmp_path)
    rewrite(file, lambda fields: fields.update(run="another"))
    for read in (read_bundle, bundles.inspect, lambda name: read_bundle(name, verify=False)):
        with pytest.raises(BundleError, match="the signature was not made by key"):
            read(file)


@pytest.mark.parametrize("key", ["", "abc", "z" * 64, "a" * 65])
def test_a_key_is_64_hex_digits(tmp_path, key):
    with pytest.raises(SettingError, match="64 hex digits"):
        verify(signed(tmp_path), key=key)


def call(*words: object) -> int:
    return exit_code_of(lambda: app([str(word) for word in words]))


def test_the_command_demands_a_key_and_a_base(tmp_path, capsys):
    facts = tiny_base_model().facts
    base = NOBODY.model_copy(update={"fingerprint": facts.fingerprint})
    fitting, strange = signed(tmp_path, base=base, projection=None), tmp_path / "strange.safetensors"
    write_bundle(make(), strange)
    assert call("verify", fitting, "--key", RUN.public_key, "--base", tiny_base_dir()) == 0
    assert capsys.readouterr().out.endswith(f"{tiny_base_dir()}: the base that it was made for\n")
    assert call("verify", fitting, "--key", OTHER.public_key) == 5
    assert "it is another run's bundle" in capsys.readouterr().err
    assert call("verify", fitting, "--key", "x") == 2
    assert call("verify", strange, "--base", tiny_base_dir()) == 4
    assert "is another one" in capsys.readouterr().err
