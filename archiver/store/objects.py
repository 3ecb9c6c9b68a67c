"""What a store says of its objects, in plain values. Keys are relative to the archive's prefix."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Head:
    """An object's metadata. `sha256` (hex) only where the store keeps one of the whole object."""

    size: int
    version_id: str | None
    etag: str
    sha256: str | None
    lock_mode: str | None
    lock_until: datetime | None
    held: bool = False
    """Whether a legal hold is on it, as far as the store tells."""
    sse: str | None = None
    storage_class: str | None = None
    """None where the store does not say, which means its standard one."""


@dataclass(frozen=True)
class Listed:
    """One object of a listing."""

    key: str
    size: int


@dataclass(frozen=True)
class Version:
    """One version, or delete marker, of a key."""

    key: str
    version_id: str
    is_latest: bool
    is_delete_marker: bool
    size: int


@dataclass(frozen=True)
class Stored:
    """An object that is durable and was checked; `adopted` where it was there before."""

    key: str
    version_id: str | None
    size: int
    sha256: str
    adopted: bool = False
