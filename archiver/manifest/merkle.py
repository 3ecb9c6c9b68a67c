"""The Merkle tree hash of RFC 6962, section 2.1, over a list of byte strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import islice

BLOCK = 1024
"""Leaves that are hashed at a time; a power of two, so that each block is a full subtree."""


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def root(entries: Iterable[bytes]) -> bytes:
    """The 32-byte tree hash of `entries`; of none, the SHA-256 of nothing."""
    return root_and_size(entries)[0]


def root_and_size(entries: Iterable[bytes]) -> tuple[bytes, int]:
    """The tree hash of `entries`, and how many they are.

    One pass, a block and logarithmic memory: a stack holds the roots of full subtrees, largest
    first, as a binary counter does. Only the last block may be smaller than the others.
    """
    stack: list[tuple[int, bytes]] = []
    for block in _blocks(iter(entries)):
        size, digest = block
        while stack and stack[-1][0] == size:
            digest = _node_hash(stack.pop()[1], digest)
            size *= 2
        stack.append((size, digest))
    if not stack:
        return sha256(b"").digest(), 0
    count = sum(size for size, _ in stack)
    digest = stack.pop()[1]
    while stack:
        digest = _node_hash(stack.pop()[1], digest)
    return digest, count


def _blocks(entries: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Size and root of each block of entries."""
    while level := [sha256(b"\x00" + entry).digest() for entry in islice(entries, BLOCK)]:
        size = len(level)
        while len(level) > 1:
            level = _level_above(level)
        yield size, level[0]


def _level_above(level: list[bytes]) -> list[bytes]:
    """A digest for each two; one that is left over at the end stands for itself, as the RFC's
    split at the largest power of two has it."""
    pairs = iter(level)
    above = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs)]  # noqa: B905
    return above if len(level) % 2 == 0 else [*above, level[-1]]
