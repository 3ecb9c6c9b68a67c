"""The Merkle tree hash of RFC 6962, section 2.1, over a list of byte strings."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from itertools import islice

BLOCK = 1024
"""Leaves hashed at a time. A power of two, so that each block but the last is a full subtree."""


def root_and_size(entries: Iterable[bytes]) -> tuple[bytes, int]:
    """Return the 32-byte tree hash of `entries`, and their number. Without entries, the hash is the
    SHA-256 of the empty string.

    Reads `entries` once and keeps one block and O(log n) hashes. The stack holds the roots of full
    subtrees, largest first, like the digits of a binary counter.
    """
    stack, waiting = list[tuple[int, bytes]](), iter(entries)
    while level := [sha256(b"\x00" + entry).digest() for entry in islice(waiting, BLOCK)]:
        size = len(level)
        while len(level) > 1:
            # An odd node at the end moves up unchanged: the RFC splits a list at the largest power
            # of two below its length.
            pairs, left_over = iter(level), level[len(level) & ~1 :]
            level = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs)]  # noqa: B905
            level += left_over
        digest = level[0]
        while stack and stack[-1][0] == size:
            digest = sha256(b"\x01" + stack.pop()[1] + digest).digest()
            size *= 2
        stack.append((size, digest))
    if not stack:
        return sha256(b"").digest(), 0
    count, (_, digest) = sum(size for size, _ in stack), stack.pop()
    while stack:
        digest = sha256(b"\x01" + stack.pop()[1] + digest).digest()
    return digest, count
