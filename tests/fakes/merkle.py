"""The Merkle tree hash of RFC 6962, section 2.1, as it is written there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    halves = merkle_root(leaves[:split]) + merkle_root(leaves[split:])
    return hashlib.sha256(b"\1" + halves).digest()
