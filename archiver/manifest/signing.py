"""Ed25519 keys in the forms that `openssl` reads: PKCS#8 and SPKI PEM, raw 64-byte signatures."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from archiver.core.errors import FormatError


class PublicKey:
    """A public key. `key_id` is the first 16 hex digits of the SHA-256 of its DER form (SPKI)."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        der = key.public_bytes(ser.Encoding.DER, ser.PublicFormat.SubjectPublicKeyInfo)
        self.key_id = hashlib.sha256(der).hexdigest()[:16]
        self.pem = key.public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def from_pem(cls, pem: bytes) -> PublicKey:
        """Load a public key. Raises `FormatError` unless `pem` is an Ed25519 public key."""
        try:
            key = ser.load_pem_public_key(pem)
        except Exception:  # the library raises several types for malformed input
            raise FormatError("not a PEM public key") from None
        if not isinstance(key, Ed25519PublicKey):
            raise FormatError("not an Ed25519 public key")
        return cls(key)

    def verifies(self, data: bytes, signature: bytes) -> bool:
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A private key. Ed25519 is deterministic: the same bytes always have the same signature."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Load a private key. Raises `FormatError` unless `pem` is an unencrypted Ed25519 private
        key."""
        try:
            key = ser.load_pem_private_key(pem, password=None)
        except Exception:
            raise FormatError("not an unencrypted PKCS#8 PEM private key") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise FormatError("not an Ed25519 private key")
        return cls(key)

    @property
    def pem(self) -> bytes:
        return self._key.private_bytes(
            ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()
        )

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)
