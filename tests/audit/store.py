"""A bucket in memory: strict, versioned or not, and damageable in the ways real ones are.

`put` and `delete` do what S3 does; `rot`, `lose` and `refuse` do what must never happen. The
checksum that `head` tells is that of the upload, as a store keeps it: rotten bytes keep it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from archiver.core.errors import StoreError
from archiver.store.types import ListedObject, ObjectHead, ObjectVersion


@dataclass
class Entry:
    """One version of a key; `data` None is a delete marker."""

    version_id: str
    data: bytes | None
    sha256: str = ""
    lock_mode: str | None = None
    lock_until: datetime | None = None
    held: bool = False


class MemoryStore:
    """Satisfies `archiver.audit.safe_reader.Reader`."""

    order: ClassVar[Callable[[list[str]], list[str]]] = staticmethod(list)
    """How it sorts the keys of a listing: stores differ in it."""

    def __init__(self, *, versioned: bool = True, checksums: bool = True) -> None:
        self.versioned = versioned
        self.checksums = checksums
        self.refuse: dict[str, StoreError] = {}
        """By key or prefix: each request for it is refused, for ever."""
        self.refuse_all: dict[str, StoreError] = {}
        """By operation (`read`, `stream`, `head`, `list`, `versions`): each is refused."""
        self.meanwhile: dict[str, Callable[[], object]] = {}
        """By the beginning of a request (`list manifest/`): what somebody does at the first one."""
        self.requests: list[str] = []
        self._entries: dict[str, list[Entry]] = {}
        self._ids = itertools.count(1)
        self._lock = threading.Lock()

    # --- what S3 does

    def put(
        self,
        key: str,
        data: bytes,
        *,
        lock_mode: str | None = None,
        lock_until: datetime | None = None,
    ) -> str | None:
        """Write, over what is there if need be; the version id, None in an unversioned bucket."""
        version_id = f"v{next(self._ids)}" if self.versioned else "null"
        sha256 = hashlib.sha256(data).hexdigest()
        entry = Entry(version_id, data, sha256, lock_mode, lock_until)
        kept = self._entries.get(key, []) if self.versioned else []
        self._entries[key] = [*kept, entry]
        return version_id if self.versioned else None

    def delete(self, key: str) -> None:
        """As S3 does it: a marker in a versioned bucket."""
        if self.versioned:
            self._entries[key].append(Entry(f"v{next(self._ids)}", None))
        else:
            del self._entries[key]

    # --- what must never happen

    def rot(self, key: str, change: Callable[[bytes], bytes]) -> None:
        """Change the newest version's bytes behind the store's back."""
        entry = self._entries[key][-1]
        assert entry.data is not None
        changed = change(entry.data)
        assert changed != entry.data
        entry.data = changed

    def lose(self, key: str) -> None:
        """All versions are gone."""
        del self._entries[key]

    def swap(self, one: str, other: str) -> None:
        self._entries[one], self._entries[other] = self._entries[other], self._entries[one]

    # --- what tests ask

    def replace(self, other: MemoryStore) -> None:
        """Take over a copy of what another store holds."""
        self._entries = {
            key: [dataclasses.replace(entry) for entry in entries]
            for key, entries in other._entries.items()
        }
        self._ids = itertools.count(1_000_000)

    def all_keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self._entries if key.startswith(prefix))

    def data(self, key: str) -> bytes:
        data = self._entries[key][-1].data
        assert data is not None
        return data

    def entry(self, key: str) -> Entry:
        return self._entries[key][-1]

    def save(self, folder: Path) -> None:
        """The newest versions as plain files: what an auditor downloads."""
        for key, (*_, newest) in self._entries.items():
            if newest.data is not None:
                path = folder / key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(newest.data)

    # --- the port

    def read(
        self, key: str, version_id: str | None = None, max_bytes: int = 64 << 20
    ) -> bytes | None:
        entry = self._find("read", key, version_id)
        if entry is None:
            return None
        assert entry.data is not None
        if len(entry.data) > max_bytes:
            raise StoreError(f"{key} is larger than {max_bytes} bytes", reason="too_large")
        return entry.data

    def stream(self, key: str, version_id: str | None = None) -> Iterator[bytes] | None:
        entry = self._find("stream", key, version_id)
        if entry is None:
            return None
        data = entry.data or b""
        return (data[i : i + 1000] for i in range(0, len(data), 1000))

    def head(self, key: str, version_id: str | None = None) -> ObjectHead | None:
        entry = self._find("head", key, version_id)
        if entry is None:
            return None
        return ObjectHead(
            size=len(entry.data or b""),
            version_id=entry.version_id if self.versioned else None,
            etag='"x"',
            sha256=entry.sha256 if self.checksums else None,
            lock_mode=entry.lock_mode,
            lock_until=entry.lock_until,
            held=entry.held,
        )

    def list(self, prefix: str) -> Iterator[ListedObject]:
        self._note("list", prefix)
        for key in MemoryStore.order(self.all_keys(prefix)):
            data = self._entries[key][-1].data
            if data is not None:
                yield ListedObject(key, len(data))

    def folders(self, prefix: str, *, hidden: bool = False) -> set[str]:
        self._note("folders", prefix)
        keys = [k for k in self.all_keys(prefix) if hidden or self._entries[k][-1].data is not None]
        rests = (key.removeprefix(prefix).partition("/") for key in keys)
        return {name for name, slash, _ in rests if slash}

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        self._note("versions", prefix)
        for key in MemoryStore.order(self.all_keys(prefix)):
            *_, last = entries = self._entries[key]
            for entry in entries:
                size = len(entry.data or b"")
                yield ObjectVersion(key, entry.version_id, entry is last, entry.data is None, size)

    def _find(self, operation: str, key: str, version_id: str | None) -> Entry | None:
        self._note(operation, key)
        entries = self._entries.get(key, [])
        if version_id is not None:
            assert version_id, "an empty version id"
            entries = [entry for entry in entries if entry.version_id == version_id]
        return entries[-1] if entries and entries[-1].data is not None else None

    def _note(self, operation: str, key: str) -> None:
        request = f"{operation} {key}"
        with self._lock:
            self.requests.append(request)
            due = [self.meanwhile.pop(one) for one in [*self.meanwhile] if request.startswith(one)]
        for act in due:
            act()
        if operation in self.refuse_all:
            raise self.refuse_all[operation]
        if key in self.refuse:
            raise self.refuse[key]
