"""The Merkle tree hash of RFC 6962, section 2.1, over a list of byte strings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(entries: Iterable[bytes]) -> bytes:
    """The 32-byte tree hash of `entries`; of none, the SHA-256 of nothing.

    One pass, logarithmic memory: a stack holds the roots of full subtrees, largest first, as a
    binary counter does.
    """
    stack: list[tuple[int, bytes]] = []
    for entry in entries:
        size, digest = 1, leaf_hash(entry)
        while stack and stack[-1][0] == size:
            digest = _node_hash(stack.pop()[1], digest)
            size *= 2
        stack.append((size, digest))
    if not stack:
        return hashlib.sha256(b"").digest()
    digest = stack.pop()[1]
    while stack:
        digest = _node_hash(stack.pop()[1], digest)
    return digest
