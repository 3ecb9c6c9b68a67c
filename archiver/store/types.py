"""What a store says of its objects, in plain values. Keys are relative to the archive's prefix."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from archiver.core.model import parse_time
from archiver.manifest.event import ObjectRef


@dataclass(frozen=True)
class ObjectHead:
    """An object's metadata."""

    size: int
    version_id: str | None
    etag: str
    sha256: str | None
    """Hex; None where the store keeps no checksum of the whole object."""
    lock_mode: str | None
    lock_until: datetime | None
    held: bool = False
    """Whether a legal hold is on it, as far as the store shows."""
    sse: str | None = None
    storage_class: str | None = None
    """None where the store names none, which means its standard one."""


@dataclass(frozen=True)
class ObjectLock:
    """An object's lock after a request to lock it; `extended` where the request changed it."""

    mode: str | None
    until: datetime | None
    extended: bool = False


@dataclass(frozen=True)
class ListedObject:
    """One object of a listing."""

    key: str
    size: int
    modified: datetime | str | None = field(default=None, compare=False)
    """When it was written, by the store's clock, as the store gave it."""

    @property
    def modified_at(self) -> datetime | None:
        """None where the store does not say."""
        return self.modified if isinstance(self.modified, datetime) else parse_time(self.modified)


@dataclass(frozen=True)
class ObjectVersion:
    """One version, or delete marker, of a key."""

    key: str
    version_id: str
    is_latest: bool
    is_delete_marker: bool
    size: int


@dataclass(frozen=True)
class Stored:
    """An object that is durable and was verified; `adopted` where it was there before.

    `lock_mode` is the mode of its lock, None where it was written without a date. An adopted
    object's may be weaker than the one asked for: see `locks.py`.
    """

    key: str
    version_id: str | None
    size: int
    sha256: str
    adopted: bool = False
    lock_mode: str | None = None


@dataclass(frozen=True)
class CallObjects:
    """What the bucket has of a call: every version of all that lies below its two directories."""

    call_id: str
    held: frozenset[ObjectRef]
    """Those with a legal hold, as far as the store shows."""
    loose: frozenset[ObjectRef]
    """Those without one."""
    named: frozenset[ObjectRef] = frozenset()
    """Those whose keys are those of files and records: an event may name them."""
    gone: frozenset[str] = frozenset()
    """Keys that a delete marker hides, that a record names and are not there, or of records that
    cannot be read: `verify` says what is wrong."""
    locked_until: datetime | None = None
    """The latest date that one of them is locked until."""
