"""Writes the ids of listed calls that have no record yet, before these calls are archived.

The source may hide a call at any time, and the process may end at any time. So the ids of a listing
go into the bucket first (`manifest/sighting.py`). A process that plans the window later reads them,
and tries the calls that have no record, whether they are still listed or not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime

import structlog

from archiver.core.clock import Clock
from archiver.core.concurrency import Workers
from archiver.core.errors import FormatError, KeyTaken, Reach, StoreError
from archiver.core.model import Call, Window, placing_time, window_of
from archiver.manifest import layout, sighting
from archiver.pipeline.bucket_state import RecordIndex
from archiver.pipeline.recording import random_tag
from archiver.source.listing import WindowListing
from archiver.store.bucket import Bucket
from archiver.store.types import ListedObject

log = structlog.get_logger()

REMEMBERED_WINDOWS = 1024
"""How many windows' sightings are kept in memory; those of other windows are read again."""
TAGS = 3
"""How many random keys are tried if the store reports each as taken."""


@dataclass
class _Known:
    """What this process knows of a window's sightings."""

    ids: frozenset[str] = frozenset()
    """Ids in the bucket, written by this process or another."""
    unwritten: frozenset[str] = frozenset()
    """Ids that this process has seen and the store has not accepted yet."""
    keys: set[str] = field(default_factory=set)
    """Keys of sightings that were read, or that cannot be read."""
    loaded: bool = False
    """Whether the sightings of other processes were read."""
    count: int = 0
    """How often this process has added sightings."""
    closed_at: int = 0
    """The value of `count` when this process last closed the window, or saw it closed."""


@dataclass(frozen=True)
class Sighted:
    """All ids sighted for a window, and `_Known.count` when they were read."""

    ids: frozenset[str]
    count: int


@dataclass(eq=False, repr=False)
class Sightings:
    """Reads and writes sightings. Thread-safe.

    A sighting that cannot be read is logged as an error and stops nothing. So is one that the store
    refuses, unless the store is out: its ids stay in memory until the window's next write.
    """

    store: Bucket
    records: RecordIndex
    workers: Workers
    clock: Clock
    tag: Callable[[], str] = random_tag
    first_window_start: datetime | None = field(default=None, init=False)
    """The archive's first window. Calls of earlier windows that other listings show are not
    written. None: there is no such limit."""
    _known: OrderedDict[Window, _Known] = field(default_factory=OrderedDict, init=False)
    _unreadable: set[str] = field(default_factory=set, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)
    _writing: threading.RLock = field(default_factory=threading.RLock, init=False)
    """Held while ids are written, else two threads would write the same ones."""

    def is_ours(self, window: Window) -> bool:
        return self.first_window_start is None or window.start >= self.first_window_start

    # --- writing sightings

    def note(self, listed: WindowListing, named: Collection[str], *, reload: bool) -> Sighted:
        """Write the calls of a listing that have no record: the window's own, and those of other
        windows.

        After this call a process that ends leaves no listed call unknown. `named`: calls with a
        record in a segment. `reload`: first read what other processes wrote. Returns all ids
        sighted for the window. Raises `StoreError` if the store is out.
        """
        own = [*listed.calls.values(), *listed.seen_once.values()]
        others = {w: i.values() for w, i in listed.other_windows.items() if self.is_ours(w)}
        shown = {listed.window: own, **others}
        self.add(listed.window, shown, listed.listing.listed_at, named, reload=reload)
        return self.read(listed.window)

    def note_cut_short(
        self,
        window: Window,
        calls: Iterable[Call],
        beside: Iterable[Call],
        listed_at: datetime,
        named: Collection[str] = (),
    ) -> None:
        """As `note`, for a listing that began at `listed_at` and failed on the way.

        Such a listing did not show whether calls of other windows are listed there, so `calls`
        count as this window's until a later listing. The calls in `beside` came from the listings
        of other windows and are written for the windows of their own times. Never raises
        `StoreError`.
        """
        shown: dict[Window, list[Call]] = {window: []}
        for call, is_listed_here in [*((c, True) for c in calls), *((c, False) for c in beside)]:
            home = window_of(placing_time(call, window, listed_at), window.end - window.start)
            if home == window or self.is_ours(home):
                shown.setdefault(window if is_listed_here else home, []).append(call)
        try:
            self.add(window, shown, listed_at, named)
        except StoreError as error:
            log.warning("sighting.unwritten", window=str(window), error=str(error))

    def add(
        self,
        at: Window,
        shown: Mapping[Window, Collection[Call]],
        listed_at: datetime,
        named: Collection[str] = (),
        *,
        reload: bool = False,
    ) -> None:
        """Write those of these calls, by window, that have no record; `at` is the window being
        processed. If the bucket does not show which calls have one, all of them stay in memory.
        Raises `StoreError`."""
        revision = self.records.tolerant(at)
        missing = {window: [call.id for call in calls] for window, calls in shown.items()}
        try:
            if reload:
                self.read(at, reload=True)
            for window, calls in shown.items():
                missing[window] = [
                    call.id
                    for call in calls
                    if call.id not in named
                    and not revision(placing_time(call, window, listed_at).date(), call.id)
                ]
        finally:
            for window, ids in missing.items():
                self.keep(window, ids)
        self.write()

    def keep(self, window: Window, call_ids: Iterable[str]) -> None:
        """Keep these ids in memory until `write` has written them. Never fails."""
        if wanted := frozenset(call_ids):
            with self._lock:
                known = self._known.setdefault(window, _Known())
                known.unwritten |= wanted - known.ids

    def write(self) -> None:
        """Write the ids that are kept in memory, one object per window. Raises `StoreError` if the
        store is out; the rest then stays in memory.

        A crash before an object is written leaves its ids unknown, but nothing was done about them.
        """
        with self._writing:
            with self._lock:
                todo = [window for window, known in self._known.items() if known.unwritten]
            for window in todo:
                self.read(window)
                with self._lock:
                    known = self._known.setdefault(window, _Known())
                    ids = known.unwritten = known.unwritten - known.ids
                key = self._put(window, ids) if ids else None
                if key is not None:
                    with self._lock:
                        known.keys.add(key)
                        known.ids |= ids
                        known.unwritten -= ids
                        known.count += 1

    # --- the sightings of a window

    def read(self, window: Window, *, reload: bool = False) -> Sighted:
        """Return all ids sighted for a window. `reload` lists its objects again to find those of
        other processes. Raises `StoreError` if the store is out."""
        with self._lock:
            known = self._known.get(window) or _Known()
            # The count before the LIST: `closed` must not cover ids added during it.
            count, loaded = known.count, set(known.keys)
        added: dict[str, frozenset[str]] = {}
        if not known.loaded or reload:
            prefix = layout.sighting_prefix(window.start.date()) + f"{window.start:%H%M}-"
            listed = [item.key for item in self._list(prefix)]
            keys = [key for key in listed if layout.parse_sighting_key(key) and key not in loaded]
            found = self.workers.map(self._read, keys)
            added = {k: one.ids if one else frozenset() for k, one in zip(keys, found, strict=True)}
        with self._lock:
            known = self._known.setdefault(window, known)
            known.keys |= added.keys()
            known.ids = known.ids.union(*added.values()) if added else known.ids
            known.loaded = True
            self._known.move_to_end(window)
            excess = len(self._known) - REMEMBERED_WINDOWS
            for other, one in list(self._known.items())[: max(0, excess)]:
                if not one.unwritten:
                    del self._known[other]
            return Sighted(known.ids | known.unwritten if known.unwritten else known.ids, count)

    def closed(self, window: Window, sighted: Sighted, *, pending: bool) -> None:
        """Note that the window's segments account for all ids in `sighted`, and not for later ones.
        Without pending calls the window is dropped from memory."""
        with self._lock:
            known = self._known.get(window)
            if known is None:
                return
            known.closed_at = sighted.count
            known.unwritten -= sighted.ids
            if known.count == sighted.count and not pending and not known.unwritten:
                del self._known[window]

    @property
    def unaccounted(self) -> set[Window]:
        """The windows of which this process has sighted calls since it last closed them."""
        with self._lock:
            return {
                window
                for window, known in self._known.items()
                if known.unwritten or known.count > known.closed_at
            }

    def of_day(self, day: date) -> dict[datetime, list[ListedObject]]:
        """The objects of a day by the start of their windows, by one LIST. Raises `StoreError`."""
        found: dict[datetime, list[ListedObject]] = {}
        for item in self._list(layout.sighting_prefix(day)):
            start = layout.parse_sighting_key(item.key)
            if start is not None:
                found.setdefault(start, []).append(item)
        return found

    def read_objects(self, keys: Iterable[str]) -> list[sighting.Sighting]:
        """Read these sightings; skips unreadable ones. Raises `StoreError` if the store is out."""
        return [one for one in self.workers.map(self._read, keys) if one is not None]

    # --- the objects

    def _list(self, prefix: str) -> list[ListedObject]:
        try:
            return list(self.store.list(prefix))
        except StoreError as error:
            self._pass_over(prefix, error)
            return []

    def _read(self, key: str) -> sighting.Sighting | None:
        try:
            found = sighting.parse(self.store.read(key, max_bytes=sighting.MAX_BYTES) or b"")
            if found.window.start != layout.parse_sighting_key(key):
                raise FormatError("a sighting under the key of another window")
            return found
        except (FormatError, StoreError) as error:
            self._pass_over(key, error)
            return None

    def _pass_over(self, key: str, error: FormatError | StoreError) -> None:
        """Log the error once per object. Raises `error` if it reaches further than a window."""
        if error.reach not in (Reach.ITEM, Reach.WINDOW):
            raise error
        with self._lock:
            is_new = key not in self._unreadable
            self._unreadable.add(key)
        if is_new:
            log.error("sighting.unreadable", key=key, error=str(error))

    def _put(self, window: Window, ids: frozenset[str]) -> str | None:
        """Write a sighting. Returns its key; None if the store refuses it."""
        data = sighting.build(window, self.clock.now(), ids)
        for tried in range(1, TAGS + 1):
            key = layout.sighting_key(window.start, self.tag())
            try:
                self.store.put_once(key, data, verify=False)
                return key
            except StoreError as error:
                if isinstance(error, KeyTaken) and tried < TAGS:
                    continue
                if error.reach not in (Reach.ITEM, Reach.WINDOW):
                    raise
                log.error("sighting.refused", window=str(window), ids=len(ids), error=str(error))
                return None
        return None
