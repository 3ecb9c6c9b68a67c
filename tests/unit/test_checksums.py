"""Digests."""

from __future__ import annotations

import base64
import hashlib

from hypothesis import given
from hypothesis import strategies as st

from archiver.core import checksums


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


@given(st.lists(st.binary(max_size=50), max_size=6))
def test_chunks_make_the_digest_of_the_whole(chunks):
    whole = b"".join(chunks)
    digests = checksums.Digests(md5(whole))
    for part in chunks:
        digests.update(memoryview(part))
    assert digests.sha256 == hashlib.sha256(whole).hexdigest() == checksums.sha256_hex(whole)
    assert digests.bytes == len(whole)
    assert not digests.md5_differs


def test_an_announced_md5_is_held_against_the_bytes():
    digests = checksums.Digests(md5(b"announced"))
    digests.update(b"sent")
    assert digests.md5_differs
    assert not checksums.Digests(None).md5_differs


@given(st.binary(min_size=32, max_size=32))
def test_hex_and_base64_are_the_same_digest(raw):
    assert checksums.base64_to_hex(checksums.hex_to_base64(raw.hex())) == raw.hex()


def test_what_is_no_sha256_is_none():
    for value in ("", "x", "AAAA", "====", "é", base64.b64encode(bytes(31)).decode()):
        assert checksums.base64_to_hex(value) is None
