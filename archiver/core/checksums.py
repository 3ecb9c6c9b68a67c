"""Digests of a byte stream, computed while it passes."""

from __future__ import annotations

import base64
import hashlib

Buffer = bytes | bytearray | memoryview
"""Bytes in memory."""


class Digests:
    """The SHA-256 of a stream, and its MD5 if the source announced one."""

    def __init__(self, expected_md5: str | None = None) -> None:
        """`expected_md5`: a Content-MD5 value, base64 of 16 bytes."""
        self.bytes = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if expected_md5 else None
        self._expected_md5 = expected_md5

    def update(self, chunk: Buffer) -> None:
        self.bytes += len(chunk)
        self._sha256.update(chunk)
        if self._md5 is not None:
            self._md5.update(chunk)

    @property
    def sha256(self) -> str:
        """Lower-case hex."""
        return self._sha256.hexdigest()

    @property
    def md5_differs(self) -> bool:
        """Whether an MD5 was announced and the bytes have another one."""
        if self._md5 is None:
            return False
        return base64.b64encode(self._md5.digest()).decode() != self._expected_md5


def sha256_hex(data: Buffer) -> str:
    return hashlib.sha256(data).hexdigest()


def md5_base64(data: Buffer) -> str:
    """In the form of `Content-MD5`."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def hex_to_base64(digest: str) -> str:
    """A digest in the form of `x-amz-checksum-sha256`."""
    return base64.b64encode(bytes.fromhex(digest)).decode()


def base64_to_hex(value: str) -> str | None:
    """The reverse; None if the value is not a SHA-256."""
    try:
        raw = base64.b64decode(value, validate=True)
    except ValueError:
        return None
    return raw.hex() if len(raw) == 32 else None
