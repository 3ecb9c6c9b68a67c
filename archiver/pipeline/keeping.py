"""Keeping longer what is there: a later, longer policy takes hold when a window is worked at again.

What is touched: a window that the loop closes or lists again, or that a backfill works at. Where
its records promise less than today's policy gives, their locks are extended in place, and those of
all that they name; then the seals that cover the window, and its segments, to the latest date that
the window has. Nothing is shortened, and nothing is written: a record goes on promising what it
did, and its objects are kept for longer than that.

- The segments come last. So once they are locked for long enough all else is, and the next touch
  costs no more than a look at them; a crash leaves them short, and the next touch does it again.
- Where all records promise what the policy gives, nothing is asked of the store at all. A window
  without calls promises nothing: there its segments are looked at.
- Seals of windows that nobody touches stay as they are: they are locked for as long as what they
  cover. What the archive as a whole needs (seal 0, the public key, the verifier's page and script)
  is extended daily, counted from now, so that the key outlives the seals that it checks.
- So are the acts that tell of legal holds, and the seals that cover them: counted from now while
  one of their calls is held, because that outlasts any retention, and else from when it was done.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial

import structlog

from archiver.clock import Clock
from archiver.errors import Reach, StoreError
from archiver.manifest import layout, seal
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Record
from archiver.model import DAY, Retention, Window
from archiver.pipeline.extending import Done, Extender
from archiver.pipeline.heldcalls import Evidence, HeldCalls
from archiver.pipeline.history import History, Standing, max_date
from archiver.pipeline.index import SegmentIndex
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import Store
from archiver.pipeline.promise import covered_date, is_behind, policy_date
from archiver.store.objects import Head

log = structlog.get_logger()


class Keeper:
    """Extends locks. Threads share it, each at a window of its own."""

    def __init__(
        self,
        store: Store,
        segments: SegmentIndex,
        workers: Workers,
        retention: Retention,
        clock: Clock,
        held: HeldCalls,
    ) -> None:
        self._store = store
        self._segments = segments
        self._workers = workers
        self._retention = retention
        self._extender = Extender(store, retention)
        self._clock = clock
        self._held = held
        self._looked_at: float | None = None

    def keep(self, window: Window, history: History, new: Iterable[Standing]) -> datetime | None:
        """Extend what a window has, where it is locked for less than today's policy gives: what its
        segments tell, and what they do not tell yet (`new`). Done before that is told.

        The latest date of all of it, None without a lock. What is gone is left to `verify`, with an
        error in the log. Raises `StoreError` where the store refuses.
        """
        until = max_date(self._retention.until(window.end), history.keep_until)
        if until is None:
            return None
        late = []
        for one in new:
            found = one.record()
            until = max_date(until, covered_date(found, window, self._retention))
            if is_behind(found, window, self._retention):
                late.append(one)
        self._extend_all(window, history, late)
        return until

    def _extend_all(self, window: Window, history: History, late: list[Standing]) -> None:
        done, names = Done(), self._short(window, history)
        told = history.records.values() if names and history.behind else ()
        self._workers.map(partial(self._keep_call, window, done), [*told, *late])
        for name in names:
            self._keep_segment(name, history.keep_until, window, done)
        if done.extended or done.weaker:
            log.info(
                "window.kept_longer",
                window=str(window),
                objects=done.extended,
                mode_stays=done.weaker,
            )
        if done.gone:
            log.error("window.objects_gone", window=str(window), objects=done.gone)

    def keep_archive(self, key_id: str) -> None:
        """Extend what the archive as a whole needs, where that is locked for noticeably less than
        today's policy gives from now, and what tells of legal holds: at the first call, and daily.
        Raises `StoreError`."""
        now = self._clock.monotonic()
        recently = self._looked_at is not None and now < self._looked_at + DAY.total_seconds()
        until = self._retention.until(self._clock.now())
        if until is None or recently:
            return
        keys = [
            layout.seal_key(0),
            layout.signature_key(0),
            layout.public_key_key(key_id),
            layout.VERIFY_PAGE,
            layout.VERIFY_SCRIPT,
        ]
        for key in keys:
            head = self._head(key)
            if head is not None and self._extender.is_short(head, until - DAY):
                self._extender.extend(key, head.version_id, until, Done())
        self._keep_events()
        self._looked_at = now

    def _keep_events(self) -> None:
        """Extend what tells of legal holds: of one that stands, counted from now; of any other act,
        from when it was done. The segment comes last, as a window's does."""
        done = Done()
        self._workers.map(partial(self._keep_event, done), self._held.evidence())
        if done.extended:
            log.info("holds.kept_longer", objects=done.extended)
        if done.gone:
            log.error("holds.objects_gone", objects=done.gone)

    def _keep_event(self, done: Done, one: Evidence) -> None:
        now = self._clock.now()
        until = self._retention.until(now if one.holds else one.at)
        if until is None or until <= now:
            return
        head = self._head(one.key)
        if head is None:
            done.add(gone=True)
        elif self._extender.is_short(head, until - DAY if one.holds else until):
            self._extender.extend_seal(one.seal, until, timedelta(0), done)
            for key in (layout.pointer_key(one.key), layout.companion_key(one.key), one.key):
                self._extender.extend(key, None, until, done)

    def _head(self, key: str) -> Head | None:
        """What the store says of an object; None, with an error in the log, where it refuses."""
        try:
            return self._store.head(key)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            log.error("lock.unknown", key=key, error=str(error))
            return None

    # --- a window's records and files

    def _keep_call(self, window: Window, done: Done, standing: Standing) -> None:
        """Extend all revisions of a call, the newest first."""
        for found in standing.revisions(self._store):
            if found is None:
                done.add(gone=True)
            else:
                self._keep_record(found, window, done)

    def _keep_record(self, found: Record, window: Window, done: Done) -> None:
        if not is_behind(found, window, self._retention):
            return
        until = policy_date(found, window, self._retention)
        for file in found.document["files"]:
            self._extender.extend(file["key"], file["version_id"], until, done)
        self._extender.extend(found.key, None, until, done)

    # --- its segments, and the seals that cover them

    def _short(self, window: Window, history: History) -> list[SegmentName]:
        """The window's segments, where one of them is locked for less than the window's latest
        date; none where its records say already that this is not so."""
        until = history.keep_until
        if not history.revision or until is None or until <= self._clock.now():
            return []
        if history.records and not history.behind:
            return []
        names = [name for name, _ in self._segments.of(window.start)]
        heads = (self._head(name.jsonl) for name in names)
        return names if any(head and self._extender.is_short(head, until) for head in heads) else []

    def _keep_segment(
        self, name: SegmentName, until: datetime | None, window: Window, done: Done
    ) -> None:
        try:
            data = self._store.read(name.seal, max_bytes=seal.POINTER_BYTES)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            data = b""  # the store refuses it: as good as a damaged one
        if data is not None:  # else it is not sealed yet: what it gets then has today's date
            number = seal.parse_pointer(data)
            if number is not None:
                self._extender.extend_seal(number, until, window.end - window.start, done)
                self._extender.extend(name.seal, None, until, done)
            else:
                done.add(gone=True)
        for key in (name.sha256, name.jsonl):
            self._extender.extend(key, None, until, done)
