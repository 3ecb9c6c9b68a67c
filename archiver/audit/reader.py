"""The port that the auditor reads an archive through. `store/bucket.py` satisfies it.

Contract:
- Keys are relative to the archive's prefix, in both directions.
- Many threads call at once. Nothing is written, ever.
- `read`, `stream` and `head` answer None where there is no such object, version or key; without a
  `version_id` they mean the newest version. Any other refusal raises `StoreError`.
- `read` holds at most `max_bytes`; a larger object raises `StoreError` with reason `too_large`.
- `stream` yields chunks of bounded size, and raises `StoreError` when the body ends early. A
  `retryable` error may be tried again with a new stream.
- `list` and `versions` yield everything below a prefix in any order. `versions` yields nothing
  where the store keeps none, or one version `null` a key.
- `folders` are the names right below a prefix that a slash ends; with `hidden` also those where all
  that lies below is hidden by delete markers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from archiver.store.objects import Head, Listed, Version

__all__ = ["Head", "Listed", "Reader", "Version"]


class Reader(Protocol):
    """An archive, read only."""

    def read(
        self, key: str, version_id: str | None = ..., max_bytes: int = ...
    ) -> bytes | None: ...

    def stream(self, key: str, version_id: str | None = ...) -> Iterator[bytes] | None: ...

    def head(self, key: str, version_id: str | None = ...) -> Head | None: ...

    def list(self, prefix: str) -> Iterator[Listed]: ...

    def folders(self, prefix: str, *, hidden: bool = ...) -> set[str]: ...

    def versions(self, prefix: str) -> Iterator[Version]: ...
