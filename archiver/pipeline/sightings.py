"""Listed calls that have no record yet, written down before they are worked at.

The source may hide a call at any time, and the process may end at any time. So the ids of a
listing go into the bucket first (`manifest/sighting.py`); whoever plans the window later reads them
and works at those that have no record, listed or not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime

import structlog

from archiver import hub
from archiver.clock import Clock
from archiver.errors import FormatError, KeyTaken, Reach, StoreError
from archiver.manifest import layout, sighting
from archiver.model import Window
from archiver.pipeline.download import random_tag
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import Store
from archiver.store.objects import Listed

log = structlog.get_logger()

REMEMBERED_WINDOWS = 1024
REMEMBERED_SECONDS = 3600.0
"""Of so many windows the sightings are kept in memory, for so long after somebody asked for them;
of others they are read again."""
TAGS = 3
"""How many keys are tried before a store that calls each of them taken is taken at its word."""


@dataclass
class _Known:
    """What this process knows of a window's sightings."""

    ids: frozenset[str] = frozenset()
    """Written down, by whomever."""
    unwritten: frozenset[str] = frozenset()
    """Seen by this process; the store has not taken them yet."""
    keys: set[str] = field(default_factory=set)
    """Objects that are among `ids`, or cannot be read."""
    loaded: bool = False
    """Whether the bucket was asked for what others wrote."""
    count: int = 0
    """How often this process has added to them."""
    closed_at: int = 0
    """What `count` was when this process last closed the window, or saw that another had."""
    asked_at: float = 0.0


@dataclass(frozen=True)
class Sighted:
    """The ids that were ever written down for a window, and the state that this was read in."""

    ids: frozenset[str]
    count: int


class Sightings:
    """Reads and writes sightings. Threads share it.

    A sighting that cannot be read is an error in the log and stops nothing; so is one that the
    store refuses, unless the store refuses everything: then its ids stay in memory, and are written
    with the window's next ones.
    """

    def __init__(
        self,
        store: Store,
        workers: Workers,
        clock: Clock,
        tag: Callable[[], str] = random_tag,
    ) -> None:
        self._store = store
        self._workers = workers
        self._clock = clock
        self._tag = tag
        self._known: OrderedDict[Window, _Known] = OrderedDict()
        self._unreadable: set[str] = set()
        self._lock = hub.Lock()
        self._writing = hub.Lock()

    def read(self, window: Window, *, afresh: bool = False) -> Sighted:
        """The ids ever written down for a window. `afresh` lists its objects again, for what other
        processes have added. Raises `StoreError` where the store is out."""
        with self._lock:
            known = self._known.get(window)
            count = known.count if known else 0
        found: dict[str, frozenset[str]] = {}
        if known is None or not known.loaded or afresh:
            found = self._load(window, known.keys if known else set())
        with self._lock:
            known = self._known.setdefault(window, known or _Known())
            known.keys |= found.keys()
            known.ids = known.ids.union(*found.values()) if found else known.ids
            known.loaded, known.asked_at = True, self._clock.monotonic()
            self._known.move_to_end(window)
            self._tidy()
            ids = known.ids | known.unwritten if known.unwritten else known.ids
            return Sighted(ids, count)

    def hold(self, window: Window, ids: Iterable[str]) -> None:
        """Keep these ids in memory until `write` has written them down. Never fails."""
        wanted = frozenset(ids)
        if not wanted:
            return
        with self._lock:
            known = self._known.setdefault(window, _Known(asked_at=self._clock.monotonic()))
            known.unwritten |= wanted - known.ids

    def write(self) -> None:
        """Write down what is held and not written down yet, one object a window. Raises
        `StoreError` where the store is out: then what is left stays in memory."""
        with self._writing:  # else two threads would write the same ids
            with self._lock:
                todo = [window for window, known in self._known.items() if known.unwritten]
            for window in todo:
                self._write(window)

    def add(self, window: Window, ids: Iterable[str]) -> None:
        """`hold` and `write`."""
        self.hold(window, ids)
        self.write()

    def closed(self, window: Window, sighted: Sighted, *, pending: bool) -> None:
        """The window's segments account for all that was sighted, though not for what was added
        meanwhile. Of a window without pending calls nothing is kept in memory."""
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
        """The windows that this process saw calls of and has not closed since."""
        with self._lock:
            return {
                window
                for window, known in self._known.items()
                if known.unwritten or known.count > known.closed_at
            }

    def of_day(self, day: date) -> dict[datetime, list[Listed]]:
        """The objects of a day, by the start of their windows: one LIST. Raises `StoreError`."""
        found: dict[datetime, list[Listed]] = {}
        for item in self._list(layout.sighting_prefix(day)):
            start = layout.parse_sighting_key(item.key)
            if start is not None:
                found.setdefault(start, []).append(item)
        return found

    def read_objects(self, keys: Iterable[str]) -> list[sighting.Sighting]:
        """These sightings; one that cannot be read is left out. Raises `StoreError`."""
        found = self._workers.map(self._read, keys)
        return [one for one in found if one is not None]

    # --- the objects

    def _load(self, window: Window, known: set[str]) -> dict[str, frozenset[str]]:
        """The ids of the window's objects that are not known yet, by key."""
        prefix = layout.sighting_prefix(window.start.date()) + f"{window.start:%H%M}-"
        listed = [item.key for item in self._list(prefix)]
        keys = [key for key in listed if layout.parse_sighting_key(key) and key not in known]
        found = self._workers.map(self._read, keys)
        return {k: one.ids if one else frozenset() for k, one in zip(keys, found, strict=True)}

    def _list(self, prefix: str) -> list[Listed]:
        try:
            return list(self._store.list(prefix))
        except StoreError as error:
            self._tell(prefix, error)
            return []

    def _read(self, key: str) -> sighting.Sighting | None:
        try:
            found = sighting.parse(self._store.read(key, max_bytes=sighting.MAX_BYTES) or b"")
            if found.window.start != layout.parse_sighting_key(key):
                raise FormatError("a sighting under the key of another window")
            return found
        except (FormatError, StoreError) as error:
            self._tell(key, error)
            return None

    def _tell(self, key: str, error: FormatError | StoreError) -> None:
        """Once for each object."""
        if error.reach not in (Reach.ITEM, Reach.WINDOW):
            raise error
        with self._lock:
            is_new = key not in self._unreadable
            self._unreadable.add(key)
        if is_new:
            log.error("sighting.unreadable", key=key, error=str(error))

    def _write(self, window: Window) -> None:
        """A crash before the object is there leaves nobody who knows of its ids, but nothing was
        done about them either."""
        self.read(window)
        with self._lock:
            known = self._known.setdefault(window, _Known())
            ids = known.unwritten = known.unwritten - known.ids
        if not ids:
            return
        data = sighting.build(window, self._clock.now(), ids)
        try:
            key = self._put(window, data)
        except StoreError as error:
            if error.reach not in (Reach.ITEM, Reach.WINDOW):
                raise
            log.error("sighting.refused", window=str(window), ids=len(ids), error=str(error))
            return
        with self._lock:
            known.keys.add(key)
            known.ids |= ids
            known.unwritten -= ids
            known.count += 1

    def _put(self, window: Window, data: bytes) -> str:
        for tried in range(1, TAGS + 1):
            key = layout.sighting_key(window.start, self._tag())
            try:
                self._store.put_once(key, data, look=False)
                return key
            except KeyTaken:
                if tried == TAGS:
                    raise
        raise AssertionError

    def _tidy(self) -> None:
        """Forget the windows that were not asked for longest; by who has the lock."""
        before = self._clock.monotonic() - REMEMBERED_SECONDS
        for window, known in list(self._known.items()):
            crowded = len(self._known) > REMEMBERED_WINDOWS
            if known.asked_at >= before and not crowded:
                return
            if not known.unwritten and (crowded or known.count == known.closed_at):
                del self._known[window]
