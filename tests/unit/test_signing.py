"""Keys and signatures, held against openssl."""

from __future__ import annotations

import hashlib
import shutil
import subprocess

import pytest

from archiver.core.errors import FormatError
from archiver.manifest.signing import PublicKey, SigningKey

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def openssl(*arguments: str, data: bytes | None = None) -> bytes:
    done = subprocess.run(
        ["openssl", *arguments], input=data, capture_output=True, timeout=30, check=True
    )
    return done.stdout


def test_openssl_verifies_what_we_sign(tmp_path):
    key, message = SigningKey.generate(), b"seal\n"
    files = {"key.pem": key.public.pem, "message": message, "sig": key.sign(message)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert len(files["sig"]) == 64
    told = openssl(
        "pkeyutl", "-verify", "-pubin", "-inkey", f"{tmp_path}/key.pem", "-rawin",
        "-in", f"{tmp_path}/message", "-sigfile", f"{tmp_path}/sig",
    )  # fmt: skip
    assert b"Verified Successfully" in told


def test_we_read_the_keys_that_openssl_makes(tmp_path):
    pem = openssl("genpkey", "-algorithm", "ed25519")
    (tmp_path / "private.pem").write_bytes(pem)
    (tmp_path / "message").write_bytes(b"words")
    key = SigningKey.from_pem(pem)
    public = openssl("pkey", "-in", f"{tmp_path}/private.pem", "-pubout")
    assert key.public.pem == public
    signature = openssl(
        "pkeyutl", "-sign", "-inkey", f"{tmp_path}/private.pem", "-rawin",
        "-in", f"{tmp_path}/message",
    )  # fmt: skip
    assert key.sign(b"words") == signature
    assert PublicKey.from_pem(public).verifies(b"words", signature)


def test_the_key_id_is_the_digest_of_the_public_key_as_der(tmp_path):
    key = SigningKey.generate()
    der = openssl("pkey", "-pubin", "-outform", "DER", data=key.public.pem)
    assert key.public.key_id == hashlib.sha256(der).hexdigest()[:16]


def test_the_private_key_reads_back_and_signs_the_same():
    key = SigningKey.generate()
    assert key.pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert SigningKey.from_pem(key.pem).sign(b"x") == key.sign(b"x") == key.sign(b"x")


def test_a_changed_byte_or_another_key_does_not_verify():
    key, other = SigningKey.generate(), SigningKey.generate()
    signature = key.sign(b"message")
    assert key.public.verifies(b"message", signature)
    assert not key.public.verifies(b"messagf", signature)
    assert not key.public.verifies(b"message", signature[:-1])
    assert not key.public.verifies(b"message", b"")
    assert not other.public.verifies(b"message", signature)


@pytest.mark.parametrize("kind", ["RSA", "X25519", "EC"])
def test_other_kinds_of_keys_are_refused(kind):
    more = {"RSA": ["rsa_keygen_bits:1024"], "EC": ["ec_paramgen_curve:P-256"]}.get(kind, [])
    options = [part for option in more for part in ("-pkeyopt", option)]
    pem = openssl("genpkey", "-algorithm", kind, *options)
    with pytest.raises(FormatError):
        SigningKey.from_pem(pem)
    with pytest.raises(FormatError):
        PublicKey.from_pem(openssl("pkey", "-pubout", data=pem))


def test_an_encrypted_key_is_refused():
    pem = openssl("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret")
    with pytest.raises(FormatError, match="unencrypted"):
        SigningKey.from_pem(pem)


@pytest.mark.parametrize("pem", [b"", b"\xff\xfe", b"-----BEGIN PRIVATE KEY-----\n", b"x" * 100])
def test_what_is_no_pem_is_a_format_error(pem):
    with pytest.raises(FormatError):
        SigningKey.from_pem(pem)
    with pytest.raises(FormatError):
        PublicKey.from_pem(pem)
