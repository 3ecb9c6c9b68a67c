"""The Merkle tree hash of RFC 6962, section 2.1, over a list of byte strings."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from itertools import islice

BLOCK = 1024
"""Leaves that are hashed at a time; a power of two, so that each block is a full subtree."""


def root_and_size(entries: Iterable[bytes]) -> tuple[bytes, int]:
    """The 32-byte tree hash of `entries`, and how many they are; of none, the SHA-256 of nothing.

    One pass, a block and logarithmic memory: a stack holds the roots of full subtrees, largest
    first, as a binary counter does. Only the last block may be smaller than the others.
    """
    stack, waiting = list[tuple[int, bytes]](), iter(entries)
    while level := [sha256(b"\x00" + entry).digest() for entry in islice(waiting, BLOCK)]:
        size = len(level)
        while len(level) > 1:
            # One that is left over at the end stands for itself, as the RFC's split at the largest
            # power of two has it.
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
