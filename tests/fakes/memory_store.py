"""The archive's bucket in memory: what `store/bucket.py` promises, and strict about its callers.

`MemoryStore` satisfies the `Store` port, the auditor's `Reader` too. Create-once is atomic; nothing
can be overwritten or deleted. `store_rules.py` says what no writer may do: that raises `Violation`
where it is done, and is remembered, so that `finish` finds it where somebody caught it.

One bucket has many writers: `store.by("second")` is the same bucket in another writer's hands, with
hooks of its own. A hook hears of each request before it has an effect and after, and may raise: a
`StoreError` before is a refusal, after is a lost answer; anything else is the death of the process.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import IO, ClassVar, Literal

from archiver.core.checksums import Buffer
from archiver.core.clock import Clock, RemoteClock
from archiver.core.errors import KeyTaken, Reach, StoreError
from archiver.store.types import ListedObject, ObjectHead, ObjectLock, ObjectVersion, Stored
from tests.fakes import store_rules
from tests.fakes.store_rules import Violation, sha256_hex

CHUNK_BYTES = 256 << 10
MAX_OBJECT_BYTES = 64 << 20


@dataclass(frozen=True)
class Object:
    """What lies under a key. `writer` made it as the `number`-th thing that happened."""

    key: str
    data: bytes
    sha256: str
    version_id: str | None
    content_type: str
    writer: str
    number: int
    lock_mode: str | None = None
    lock_until: datetime | None = None
    held: bool = False
    made_at: datetime | None = None


@dataclass(frozen=True)
class Request:
    """One request to the store: its operation, its key (or prefix), and whether it is done."""

    operation: Literal[
        "put", "begin", "part", "complete", "abort", "extend", "hold", "get", "head", "list"
    ]
    key: str
    moment: Literal["before", "after"]
    writer: str

    @property
    def writes(self) -> bool:
        return self.operation not in ("get", "head", "list")


Hook = Callable[[Request], None]


@dataclass
class _Shelf:
    """What all writers of one bucket share."""

    ticks: Callable[[], int]
    lock: threading.RLock = field(default_factory=threading.RLock)
    objects: dict[str, Object] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    uploads: list[MemoryUpload] = field(default_factory=list)
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    violations: list[str] = field(default_factory=list)
    now: Callable[[], datetime] | None = None
    """The store's own clock, as the `Date` of its answers has it; None where they have none."""


Order = Callable[[list[str]], list[str]]


class MemoryStore:
    """One writer's hands on a bucket. Threads share it.

    `rules=False` takes any key and any bytes: for what is no archive. `ticks` numbers what happens,
    across the fakes that share it. `create_once` and `read_back` are the archiver's to set.
    """

    order: ClassVar[Order] = staticmethod(list)
    """How it sorts the keys of a listing: stores differ in it."""

    def __init__(
        self,
        clock: Clock,
        *,
        writer: str = "writer",
        versioned: bool = True,
        lock_mode: str | None = None,
        rules: bool = True,
        ticks: Callable[[], int] | None = None,
        shelf: _Shelf | None = None,
    ) -> None:
        self.create_once = True
        self.read_back = False
        self.writer = writer
        self.hooks: list[Hook] = []
        self._clock = clock
        self._versioned = versioned
        self._lock_mode = lock_mode
        self._rules = rules
        self._shelf = shelf or _Shelf(ticks or itertools.count(1).__next__, now=clock.now)
        self._remote = RemoteClock(clock)

    def by(self, writer: str, clock: Clock | None = None) -> MemoryStore:
        """The same bucket in another writer's hands, whose clock may be another one."""
        return MemoryStore(
            clock or self._clock, writer=writer, versioned=self._versioned,
            lock_mode=self._lock_mode, rules=self._rules, shelf=self._shelf,
        )  # fmt: skip

    def copied(self, clock: Clock) -> MemoryStore:
        """A bucket of its own with the same objects in it. No upload is open there."""
        shelf = self._shelf
        ticks = itertools.count(shelf.ticks()).__next__
        made = _Shelf(ticks, objects=dict(shelf.objects), keys=list(shelf.keys), now=clock.now)
        made.versions = itertools.count(10_000 + len(made.keys))
        return MemoryStore(
            clock, writer=self.writer, versioned=self._versioned, lock_mode=self._lock_mode,
            rules=self._rules, shelf=made,
        )  # fmt: skip

    def is_answering(self) -> bool:
        """This store is never out."""
        return True

    def refuse(self, operation: str, part_of_key: str, status: int = 400) -> Hook:
        """From now on it refuses this writer such requests; for ever, unless the hook is removed
        again."""

        def hook(request: Request) -> None:
            hit = request.operation == operation and part_of_key in request.key
            if hit and request.moment == "before":
                raise StoreError(
                    f"the store answered {operation} with {status}",
                    reason="refused", status=status, reach=Reach.ITEM,
                )  # fmt: skip

        self.hooks.append(hook)
        return hook

    # --- reading

    def read(
        self, key: str, version_id: str | None = None, max_bytes: int = MAX_OBJECT_BYTES
    ) -> bytes | None:
        found = self._get("get", key, version_id)
        if found is not None and len(found.data) > max_bytes:
            raise StoreError(f"{key} is larger than {max_bytes} bytes", reason="too_large")
        return None if found is None else found.data

    def read_into(self, key: str, file: IO[bytes], max_bytes: int) -> bool:
        data = self.read(key, max_bytes=max_bytes)
        file.write(data or b"")
        return data is not None

    def tail(self, key: str, max_bytes: int) -> bytes | None:
        """The last `max_bytes` bytes of an object (all, where it has fewer), or None."""
        found = self._get("get", key)
        return None if found is None else found.data[-max_bytes:]

    def stream(self, key: str, version_id: str | None = None) -> Iterator[bytes] | None:
        found = self._get("get", key, version_id)
        if found is None:
            return None
        data = found.data
        return (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))

    def head(self, key: str, version_id: str | None = None) -> ObjectHead | None:
        found = self._get("head", key, version_id)
        if found is None:
            return None
        whole = None if found.version_id in self._in_parts() else found.sha256
        return ObjectHead(
            size=len(found.data),
            version_id=found.version_id,
            etag=f'"{found.sha256[:32]}"',
            sha256=whole,
            lock_mode=found.lock_mode,
            lock_until=found.lock_until,
            held=found.held,
        )

    def folders(self, prefix: str, *, hidden: bool = False) -> set[str]:
        rests = (item.key.removeprefix(prefix).partition("/") for item in self.list(prefix))
        return {name for name, slash, _ in rests if slash}

    def list(self, prefix: str, start_after: str = "") -> Iterator[ListedObject]:
        """In the store's `order`; what is written meanwhile is not in it."""
        self._say("list", prefix, "before")
        with self._shelf.lock:
            keys = self._shelf.keys
            first = max(bisect.bisect_left(keys, prefix), bisect.bisect_right(keys, start_after))
            rest = itertools.islice(keys, first, None)
            below = list(itertools.takewhile(lambda key: key.startswith(prefix), rest))
            objects = [self._shelf.objects[key] for key in MemoryStore.order(below)]
        found = [ListedObject(one.key, len(one.data), one.made_at) for one in objects]
        self._say("list", prefix, "after")
        yield from found

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        for item in self.list(prefix) if self._versioned else ():
            version_id = self.object(item.key).version_id or ""
            yield ObjectVersion(item.key, version_id, True, False, item.size)

    def _get(
        self, operation: Literal["get", "head"], key: str, version_id: str | None = None
    ) -> Object | None:
        self._say(operation, key, "before")
        with self._shelf.lock:
            found = self._shelf.objects.get(key)
        self._say(operation, key, "after")
        return found if found is None or version_id in (None, found.version_id) else None

    # --- writing

    def put_once(
        self,
        key: str,
        data: Buffer,
        *,
        content_type: str = "application/json",
        retain_until: datetime | None = None,
        held: bool = False,
        sha256: str | None = None,
        verify: bool = True,
    ) -> Stored:
        """Create an object, or adopt the same bytes already there; `KeyTaken` for other bytes."""
        self._say("put", key, "before")
        body = bytes(data)
        assert sha256 in (None, hashlib.sha256(body).hexdigest())
        with self._shelf.lock:
            stored = self._put(key, body, content_type, retain_until)
            made = self._shelf.objects[key]
            self._shelf.objects[key] = replace(made, held=made.held or held)
        self._say("put", key, "after")
        return replace(stored, lock_mode=made.lock_mode)

    def _put(
        self, key: str, data: bytes, content_type: str, retain_until: datetime | None
    ) -> Stored:
        there = self._shelf.objects.get(key)
        if there is None:
            made = self._create(key, data, content_type, retain_until)
            return Stored(key, made.version_id, len(data), made.sha256)
        if there.data != data:
            raise KeyTaken(f"{key} holds other bytes", reason="taken")
        self._lock(there, retain_until)
        return Stored(key, there.version_id, len(data), there.sha256, adopted=True)

    def _create(
        self, key: str, data: bytes, content_type: str, retain_until: datetime | None
    ) -> Object:
        if self._rules:
            self._judge(key, lambda: store_rules.check(key, data, self._shelf.objects.get))
        locks = self._locks(retain_until)
        made = Object(
            key, data, sha256_hex(data),
            f"v{next(self._shelf.versions)}" if self._versioned else None,
            content_type, self.writer, self._shelf.ticks(),
            self._lock_mode if locks else None,
            _second(retain_until) if locks else None,
            made_at=self._clock.now(),
        )  # fmt: skip
        self._shelf.objects[key] = made
        bisect.insort(self._shelf.keys, key)
        return made

    def extend(self, key: str, version_id: str | None, retain_until: datetime | None) -> ObjectLock:
        """Lock an object until then, unless it is locked for longer already."""
        if not self._locks(retain_until):
            return ObjectLock(None, None)
        self._say("extend", key, "before")
        with self._shelf.lock:
            extended = self._lock(self._there(key, version_id), retain_until)
            found = self._shelf.objects[key]
        self._say("extend", key, "after")
        return ObjectLock(found.lock_mode, found.lock_until, extended)

    def set_hold(self, key: str, version_id: str | None, held: bool) -> None:
        self._say("hold", key, "before")
        with self._shelf.lock:
            self._shelf.objects[key] = replace(self._there(key, version_id), held=held)
        self._say("hold", key, "after")

    def _there(self, key: str, version_id: str | None) -> Object:
        found = self._shelf.objects.get(key)
        if found is None or version_id not in (None, found.version_id):
            raise StoreError(f"{key} is gone", reason="gone")
        return found

    def _lock(self, found: Object, until: datetime | None) -> bool:
        """A lock that holds keeps its mode; nothing ever shortens. Whether that changed it."""
        if not self._locks(until) or (found.lock_until or _NEVER) >= _second(until):
            return False
        holds = (found.lock_until or _NEVER) > self._clock.now()
        mode = found.lock_mode if holds else self._lock_mode
        self._shelf.objects[found.key] = replace(found, lock_mode=mode, lock_until=_second(until))
        return True

    def begin(self, key: str, *, content_type: str, retain_until: datetime | None) -> MemoryUpload:
        """Start an upload in parts; nothing is to be seen of it before it is complete."""
        self._say("begin", key, "before")
        if self._rules:
            self._judge(key, lambda: store_rules.check_parts(key))
        upload = MemoryUpload(self, key, content_type, retain_until)
        with self._shelf.lock:
            self._shelf.uploads.append(upload)
        self._say("begin", key, "after")
        return upload

    def _locks(self, retain_until: datetime | None) -> bool:
        if self._lock_mode is None or retain_until is None:
            return False
        return retain_until - self._clock.now() > timedelta(seconds=1)

    def _in_parts(self) -> set[str | None]:
        with self._shelf.lock:
            return {one.version_id for one in self._shelf.uploads if one.version_id}

    def show_date(self, now: Callable[[], datetime] | None) -> None:
        """Let the store's clock be another one; without any, its answers have no `Date`."""
        self._shelf.now = now

    def latest_clock_skew_seconds(self) -> float | None:
        return self._remote.skew_seconds()

    # --- who watches

    def _say(self, operation: str, key: str, moment: Literal["before", "after"]) -> None:
        if moment == "before":
            self._clock.check()
        elif self._shelf.now is not None:
            self._remote.note_date(format_datetime(self._shelf.now(), usegmt=True))
        for hook in tuple(self.hooks):
            hook(Request(operation, key, moment, self.writer))  # type: ignore[arg-type]

    def _judge(self, key: str, rule: Callable[[], None]) -> None:
        try:
            rule()
        except Violation as violation:
            self._shelf.violations.append(f"{self.writer}: {key}: {violation}")
            raise

    # --- what tests ask; none of it counts as a request

    @property
    def violations(self) -> list[str]:
        return list(self._shelf.violations)

    @property
    def keys(self) -> list[str]:
        with self._shelf.lock:
            return list(self._shelf.keys)

    @property
    def uploads(self) -> list[MemoryUpload]:
        """Every upload in parts that was ever begun."""
        with self._shelf.lock:
            return list(self._shelf.uploads)

    @property
    def objects(self) -> list[Object]:
        """All objects, in the order in which they were made."""
        with self._shelf.lock:
            return list(self._shelf.objects.values())

    def object(self, key: str) -> Object:
        with self._shelf.lock:
            return self._shelf.objects[key]

    def finish(self, killed: frozenset[str] = frozenset()) -> None:
        """Nothing forbidden was done, and no upload is open but those of `killed` writers."""
        assert self.violations == []
        left = [one.key for one in self.uploads if one.is_open and one.writer not in killed]
        assert left == [], "uploads left open"


class MemoryUpload:
    """An upload in parts. Used by one thread; ends by `complete` or `abort`."""

    def __init__(
        self, store: MemoryStore, key: str, content_type: str, retain_until: datetime | None
    ) -> None:
        self.key = key
        self.writer = store.writer
        self.state: Literal["open", "complete", "aborted"] = "open"
        self.version_id: str | None = None
        self._store = store
        self._content_type = content_type
        self._retain_until = retain_until
        self._parts: list[bytes] = []

    @property
    def is_open(self) -> bool:
        return self.state == "open"

    def part(self, data: Buffer, sha256: str | None = None) -> None:
        self._store._say("part", self.key, "before")
        assert sha256 in (None, sha256_hex(data))
        self._require(self.is_open, f"a part after the upload was {self.state}")
        self._require(len(data) > 0, "an empty part")
        self._parts.append(bytes(data))
        self._store._say("part", self.key, "after")

    def complete(self, sha256: str) -> Stored:
        """Put the parts together; `sha256` is that of the whole."""
        store, data = self._store, b"".join(self._parts)
        store._say("complete", self.key, "before")
        self._require(self.is_open, f"completed after the upload was {self.state}")
        self._require(sha256 == sha256_hex(data), "completed with the digest of other bytes")
        with store._shelf.lock:
            self._require(self.key not in store._shelf.objects, "an upload over another object")
            made = store._create(self.key, data, self._content_type, self._retain_until)
            self.state, self.version_id = "complete", made.version_id
        store._say("complete", self.key, "after")
        return Stored(self.key, made.version_id, len(data), made.sha256)

    def abort(self) -> None:
        """Give the parts back; after the upload's end it does nothing."""
        self._store._say("abort", self.key, "before")
        if self.is_open:
            self.state = "aborted"
            self._parts.clear()
        self._store._say("abort", self.key, "after")

    def _require(self, holds: bool, otherwise: str) -> None:
        def rule() -> None:
            if not holds:
                raise Violation(otherwise)

        self._store._judge(self.key, rule)


_NEVER = datetime.min.replace(tzinfo=UTC)


def _second(moment: datetime | None) -> datetime:
    """Lock dates are whole seconds, never earlier than asked."""
    assert moment is not None
    whole = moment.replace(microsecond=0)
    return whole if whole == moment else whole + timedelta(seconds=1)
