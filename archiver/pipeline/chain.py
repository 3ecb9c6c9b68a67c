"""The chain of seals: begins it, finds its head, appends to it, completes what a crash left.

- The chain cannot fork: a seal's number is its key, and a key is created once.
- No two seals name one segment. A seal is completed (signature, then seal pointers) before the next
  one is appended, so only the newest seal can lack pointers. A writer whose number is taken reads
  the concurrent writer's seals, drops the segments that they name, and tries the next number.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import structlog

from archiver.core import checksums
from archiver.core.clock import Clock
from archiver.core.errors import FormatError, KeyTaken, NewerFormat, Reach, StoreError, UsageError
from archiver.core.model import Retention
from archiver.manifest import layout, seal
from archiver.manifest.seal import Seal
from archiver.manifest.signing import SigningKey
from archiver.observability import metrics
from archiver.pipeline.bucket_state import UnsealedSegment
from archiver.pipeline.retention import latest_date
from archiver.store.bucket import Bucket

log = structlog.get_logger()

REMEMBERED_SEGMENTS = 10_000
REMEMBERED_SEALS = 256
"""Older seals that were read to look for a segment, kept in memory."""
CLOCKS_DIFFER = timedelta(minutes=10)
"""How far the clocks of two writers may differ: each may be off by 5 minutes (`health.py`)."""


class Chain:
    """The chain of seals as one writer sees it. Thread-safe; appends run one at a time."""

    def __init__(
        self,
        store: Bucket,
        key: SigningKey,
        clock: Clock,
        retention: Retention,
        remembered: int = REMEMBERED_SEGMENTS,
    ) -> None:
        """`remembered`: how many of the segments sealed last are kept in memory. For older ones the
        bucket is asked whether they have a seal pointer."""
        self._store = store
        self._key = key
        self._clock = clock
        self._retention = retention
        self.single_writer = False
        """Whether each seal states that it relies on there being one writer."""
        self._lock = threading.RLock()
        self._head: Seal | None = None
        self._remembered = remembered
        self._newly_sealed: dict[str, None] = {}
        """The segments that were sealed last, oldest first."""
        self._has_forgotten = False
        self._read_back = lru_cache(REMEMBERED_SEALS)(self._segments_of)

    @property
    def head(self) -> Seal:
        if self._head is None:
            raise StoreError("the chain was not opened")
        return self._head

    # --- begin and open

    def begin(
        self,
        *,
        capabilities: Mapping[str, Any],
        pages: Mapping[str, bytes],
        watermark: datetime,
    ) -> bool:
        """Begin an archive and open its chain. Returns False if another writer was first.

        1. Write the public key.
        2. Write the verifier's `pages`, by key.
        3. Write seal 0: it has the key, the hashes of the pages, and what the store proved
           (`capabilities`).

        A crash in between leaves objects that the next try adopts.
        """
        until = self._lock_until([])
        # 1.
        public = self._key.public
        self._store.put_once(
            layout.public_key_key(public.key_id),
            public.pem,
            content_type="application/x-pem-file",
            retain_until=until,
        )
        # 2. A page that another version has written under the key is used as it is.
        digests = {}
        for key, page in pages.items():
            try:
                self._store.put_once(key, page, content_type="text/plain", retain_until=until)
                digests[key] = checksums.sha256_hex(page)
            except KeyTaken:
                digests[key] = checksums.sha256_hex(self._store.read(key) or b"")
        # 3.
        data = seal.genesis(
            str(uuid.uuid4()),
            public,
            {**capabilities, "pages": digests},
            sealed_at=self._clock.now(),
            watermark=watermark,
        )
        is_ours = True
        with self._lock:
            try:
                self._store.put_once(layout.seal_key(0), data, retain_until=until)
            except KeyTaken:
                is_ours = False
            self.open()
        return is_ours

    def open(self) -> bool:
        """Find the head and complete it. Returns False if the archive is empty.

        1. Find the newest number.
        2. If there is none, check that nothing else is there. An archive whose seal 0 is gone or
           hidden must not be begun again, because the true seal 0 could never be restored.
        3. Check that no seal lies beyond the first missing number. Such a seal shows that one was
           lost.
        4. Make the newest seal our head.

        Raises `UsageError` if the archive is signed with another key than ours, `StoreError` if a
        seal is missing or cannot be read.
        """

        def exists(number: int) -> bool:
            return self._store.head(layout.seal_key(number)) is not None

        with self._lock:
            # 1.
            number = last_number(exists)
            # 2.
            if number is None:
                prefixes = (layout.SEALS, layout.SEGMENTS, layout.RECORDS)
                if not any(True for prefix in prefixes for _ in self._store.list(prefix)):
                    return False
                number = last_number(exists)  # another writer may have begun the archive meanwhile
            if number is None:
                raise StoreError(
                    "seal 0 is missing, but an archive is there: run archiver verify, and bring "
                    "the lost seal back before anything is archived"
                )
            # 3. `start_after` only saves pages. A seal that is listed counts, in any order.
            after = layout.signature_key(number)
            listed = (
                layout.parse_seal_key(one.key)
                for one in self._store.list(layout.SEALS, start_after=after)
            )
            is_beyond = any(one is not None and one[0] > number + 1 for one in listed)
            # If another writer has appended meanwhile, the next number exists by now.
            if is_beyond and not exists(number + 1):
                raise StoreError(
                    f"seal {number + 1} is missing, but later ones are there: run archiver verify, "
                    "and bring the lost seal back before anything is archived"
                )
            # 4.
            head = self._read(number)
            if head is None:
                raise StoreError(f"seal {number} cannot be read: run archiver verify")
            self._adopt(head)
            return True

    def genesis(self) -> Seal:
        """Return seal 0. Raises `StoreError` if it is gone."""
        if (found := self._read(0)) is None:
            raise StoreError("seal 0 is gone: run archiver verify")
        return found

    # --- read on and append

    def refresh(self) -> Seal:
        """Read from the known head to the newest seal, and complete each seal on the way."""
        with self._lock:
            while (following := self._read(self.head.seq + 1)) is not None:
                if following.prev != self.head.sha256 or following.archive != self.head.archive:
                    raise StoreError(
                        f"seal {following.seq} does not follow seal {self.head.seq}: "
                        "run archiver verify"
                    )
                self._adopt(following)
            return self.head

    def append(
        self,
        segments: Sequence[UnsealedSegment],
        watermark: datetime | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Append a seal for segments that are durable with their checksum lists; skips sealed ones.

        `watermark` is the loop's new watermark; None keeps the present one. `check` is called
        before each try, after reading the newest seal. If it raises, nothing is sealed.

        1. Read the chain up to its newest seal.
        2. Drop the segments that are sealed by now.
        3. Create the next number. If it is taken, start again.
        4. Complete the seal: signature, then seal pointers.
        """
        with self._lock, metrics.stage("seal"):
            while True:
                # 1.
                head = self.refresh()
                # 2.
                todo = [segment for segment in segments if not self._is_sealed(segment)]
                if not todo:
                    return
                if check is not None:
                    check()
                data = seal.next_seal(
                    head,
                    [segment.entry for segment in todo],
                    key_id=self._key.public.key_id,
                    # Times in the chain never go back, even if the writers' clocks differ.
                    sealed_at=max(self._clock.now(), head.sealed_at),
                    watermark=watermark or head.watermark,
                    single_writer=self.single_writer,
                )
                until = self._lock_until(todo)
                # 3. A crash before this write leaves segments that the next writer seals. After it
                #    the seal counts, and any process with the signing key can do 4.
                try:
                    self._store.put_once(layout.seal_key(head.seq + 1), data, retain_until=until)
                except KeyTaken:
                    continue
                # 4. A crash here leaves a seal that the next process that reads it completes.
                sealed = seal.parse_seal(data)
                self._complete(sealed, until)
                self._advance(sealed)
                log.info("seal.appended", seq=sealed.seq, segments=len(todo))
                return

    def _read(self, number: int) -> Seal | None:
        data = self._store.read(layout.seal_key(number))
        if data is None:
            return None
        try:
            parsed = seal.parse_seal(data)
        except NewerFormat as error:
            raise StoreError(f"seal {number} was {error}") from None
        except FormatError as error:
            raise StoreError(f"seal {number} is damaged ({error}): run archiver verify") from None
        if parsed.seq != number:
            raise StoreError(f"seal {number} has another number in it: run archiver verify")
        return parsed

    def _adopt(self, sealed: Seal) -> None:
        """Make a seal from the bucket our head, and complete it if its writer did not."""
        if sealed.key_id != self._key.public.key_id:
            raise UsageError(
                f"ARCHIVER_SIGNING_KEY_FILE holds key {self._key.public.key_id}, but this archive "
                f"is signed with {sealed.key_id}: use that key"
            )
        keys = [layout.seal_pointer_key(entry.key) for entry in sealed.segments]
        keys.append(layout.signature_key(sealed.seq))
        if not all(self._store.head(key) is not None for key in keys):
            self._complete(sealed, self._lock_until([]))
        self._advance(sealed)

    def _complete(self, sealed: Seal, until: datetime | None) -> None:
        """Write the signature, then the seal pointers. Ed25519 is deterministic, so all writers
        write the same bytes.

        An object that the store refuses, or whose key has other bytes, is logged as an error, and
        `verify` reports it. The chain goes on without it.
        """
        signature = layout.signature_key(sealed.seq)
        objects = [(signature, self._key.sign(sealed.data), "application/octet-stream")]
        for entry in sealed.segments:
            pointer = layout.seal_pointer_key(entry.key)
            objects.append((pointer, seal.seal_pointer(sealed.seq), "text/plain"))
        for key, data, content_type in objects:
            try:
                self._store.put_once(key, data, content_type=content_type, retain_until=until)
            except StoreError as error:
                if error.reach is not Reach.ITEM:
                    raise
                log.error("seal.incomplete", seq=sealed.seq, key=key, error=str(error))

    def _is_sealed(self, segment: UnsealedSegment) -> bool:
        """Whether a segment has been sealed since it was found unsealed.

        This process remembers what it sealed last. An older seal may lack a pointer that the store
        refused, so a segment that was found without a pointer is looked up in the seals themselves.
        """
        key = segment.entry.key
        if key in self._newly_sealed:
            return True
        if self._has_forgotten and self._store.head(layout.seal_pointer_key(key)) is not None:
            return True
        if segment.found_since is None:
            return False
        for number in range(self.head.seq, 0, -1):
            sealed_at, keys = self._read_back(number)
            if key in keys:
                return True
            if sealed_at < segment.found_since - CLOCKS_DIFFER:
                break
        return False

    def _segments_of(self, number: int) -> tuple[datetime, frozenset[str]]:
        """When a seal was made, and the keys of its segments."""
        found = self.head if number == self.head.seq else self._read(number)
        if found is None:
            raise StoreError(f"seal {number} is missing: run archiver verify")
        return found.sealed_at, frozenset(entry.key for entry in found.segments)

    def _advance(self, sealed: Seal) -> None:
        self._head = sealed
        self._newly_sealed |= dict.fromkeys(entry.key for entry in sealed.segments)
        for key in list(self._newly_sealed)[: -max(self._remembered, len(sealed.segments))]:
            del self._newly_sealed[key]
            self._has_forgotten = True
        metrics.SEAL_SEQUENCE.set(sealed.seq)
        metrics.LAST_SEAL.set(sealed.sealed_at.timestamp())
        metrics.WATERMARK.set(sealed.watermark.timestamp())

    def _lock_until(self, segments: Sequence[UnsealedSegment]) -> datetime | None:
        """The latest lock date of the segments, and at least the retention counted from now."""
        ours = self._retention.until(self._clock.now())
        return latest_date(ours, *(segment.retain_until for segment in segments))


def last_number(exists: Callable[[int], bool]) -> int | None:
    """The largest number that exists, if all smaller ones do; None if 0 does not. Doubles, then
    bisects, so a chain of n seals costs about 2·log2(n) requests."""
    if not exists(0):
        return None
    low, high = 0, 1
    while exists(high):
        if 2 * high > layout.MAX_SEQUENCE:
            raise StoreError("the store says of every key that it is there: it is unsafe")
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if exists(middle) else (low, middle)
    return low
