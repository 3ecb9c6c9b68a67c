"""What a store returns about its objects, as plain values. Keys are relative to the archive."""

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
    """Hex; None if the store keeps no checksum of the whole object."""
    lock_mode: str | None
    lock_until: datetime | None
    held: bool = False
    """Whether it has a legal hold, as far as the store shows."""
    sse: str | None = None
    storage_class: str | None = None
    """None if the store names none, which means its standard class."""


@dataclass(frozen=True)
class ObjectLock:
    """The lock of an object after a request to lock it; `extended` if the request changed it."""

    mode: str | None
    until: datetime | None
    extended: bool = False


@dataclass(frozen=True)
class ListedObject:
    """One object in a listing."""

    key: str
    size: int
    modified: datetime | str | None = field(default=None, compare=False)
    """When it was written, by the store's clock, in the form that the store sent."""

    @property
    def modified_at(self) -> datetime | None:
        """As `modified`, parsed; None if the store sends none."""
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
    """An object that is durable and verified; `adopted` if it existed before.

    `lock_mode` is the mode of its lock, None if it was written without a lock date. The mode of an
    adopted object may be weaker than the one requested (`locks.py`).
    """

    key: str
    version_id: str | None
    size: int
    sha256: str
    adopted: bool = False
    lock_mode: str | None = None


@dataclass(frozen=True)
class CallObjects:
    """What the bucket has of a call: every version of every object below its two directories."""

    call_id: str
    held: frozenset[ObjectRef]
    """Objects with a legal hold, as far as the store shows."""
    loose: frozenset[ObjectRef]
    """Objects without one."""
    named: frozenset[ObjectRef] = frozenset()
    """Objects whose keys are those of files and records, so an event may name them."""
    gone: frozenset[str] = frozenset()
    """Keys that a delete marker hides, keys that a record names and that are missing, and keys of
    records that cannot be read; `verify` says which."""
    locked_until: datetime | None = None
    """The latest lock date among them."""
