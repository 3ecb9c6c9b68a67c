"""What a store says of its objects, in plain values. Keys are relative to the archive's prefix."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from archiver.manifest.event import ObjectRef
from archiver.model import parse_time


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
class Lock:
    """How an object is locked after one asked for a lock; `extended` where that changed it."""

    mode: str | None
    until: datetime | None
    extended: bool = False


@dataclass(frozen=True)
class Listed:
    """One object of a listing."""

    key: str
    size: int
    modified: datetime | str | None = field(default=None, compare=False)
    """When it was written, by the store's clock, as the store said it."""

    @property
    def modified_at(self) -> datetime | None:
        """None where the store does not say."""
        told = self.modified
        return told if isinstance(told, datetime) else parse_time(told)


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
    """An object that is durable and was checked; `adopted` where it was there before.

    `lock_mode` is the one that it is locked in, None where it was written without a date. Of an
    adopted object it may be weaker than what is asked for: see `Protection`.
    """

    key: str
    version_id: str | None
    size: int
    sha256: str
    adopted: bool = False
    lock_mode: str | None = None


@dataclass(frozen=True)
class CallObjects:
    """What the bucket has of a call: every version of all that lies below its two directories. A
    legal hold is on the `held` ones, as far as the store tells."""

    call_id: str
    held: frozenset[ObjectRef]
    loose: frozenset[ObjectRef]
    named: frozenset[ObjectRef] = frozenset()
    """Those whose keys are those of files and records: what an event may name."""
    gone: frozenset[str] = frozenset()
    """Keys that a delete marker hides, or that a record names and are not there, or of records
    that cannot be read: `verify` says what is wrong."""
    locked_until: datetime | None = None
    """The latest date that one of them is locked until."""
