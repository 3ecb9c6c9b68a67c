"""One window: list → archive its calls → close it into a segment.

What a window still needs is derived from the bucket each time: the segments that stand there tell
what was told, the records what was done. So the first try, a second writer and the one after a
crash all run this same code. Sealing is the caller's, in the order of the windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from archiver.clock import Clock
from archiver.errors import FormatError, KeyTaken, SourceError, StoreError, UsageError
from archiver.manifest import layout, record, segment
from archiver.manifest.record import Record
from archiver.manifest.segment import Balance, Segment
from archiver.model import Call, Retention, Window
from archiver.pipeline.index import RecordIndex, SegmentIndex
from archiver.pipeline.listing import Listed, Lister
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import NoProgress, Progress, Store
from archiver.pipeline.retention import lock_until
from archiver.pipeline.transfer import Transfer, Unarchived

log = structlog.get_logger()

RIVAL_ROUNDS = 5
"""How often another writer may be faster at the same window before that is an error."""
MAX_SEGMENT_BYTES = 1 << 30


@dataclass(frozen=True)
class Plan:
    """What a window's calls need: `done` have a record that stands, `todo` are to be tried."""

    listed: Listed
    done: Mapping[str, Record]
    todo: Sequence[tuple[Call, Record | None]]


@dataclass
class Outcome:
    """How a window stands after `process`. `segments` are durable and wait for their seal."""

    window: Window
    segments: list[Segment] = field(default_factory=list)
    committed: list[Record] = field(default_factory=list)
    """Records of this very run."""
    failed: int = 0
    """Calls that this run tried and that stand as failed."""
    unarchived: list[Unarchived] = field(default_factory=list)
    settled: bool = False
    """Whether the window had settled when it was listed: else it is rightly open yet."""
    closed: bool = False
    """Whether every listed call of the window stands in a segment, sealed or about to be."""


@dataclass(frozen=True)
class History:
    """What the segments of a window tell, taken together."""

    revision: int = 0
    records: Mapping[str, Record] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()
    vanished: frozenset[str] = frozenset()

    def after(self, later: Segment) -> History:
        records = {**self.records, **{record.call_id: record for record in later.records}}
        return History(later.revision, records, frozenset(later.pending), frozenset(later.vanished))


class Windows:
    """Processes windows. Threads share it, each at a window of its own."""

    def __init__(
        self,
        lister: Lister,
        transfer: Transfer,
        store: Store,
        workers: Workers,
        clock: Clock,
        *,
        segments: SegmentIndex,
        retention: Retention,
        settle: timedelta,
        progress: Progress | None = None,
    ) -> None:
        self._lister = lister
        self._transfer = transfer
        self._store = store
        self._workers = workers
        self._clock = clock
        self._records = RecordIndex(store)
        self._segments = segments
        self._retention = retention
        self._settle = settle
        self._progress = progress or NoProgress()
        self._seen: dict[Window, dict[str, Call]] = {}
        """Calls listed in windows that are open: each window is processed by one thread."""

    def process(self, window: Window, *, retry_failed: bool) -> Outcome:
        """Archive what the window lacks and, once it has settled, close it.

        Writes revision 1, or a later one where something changed since; nothing otherwise.
        A listing that is malformed leaves the window open, with an error in the log.
        Raises `SourceRefused`, `SourceError` (unreachable), `StoreError` and `Interrupted`.
        """
        outcome = Outcome(window)
        for _ in range(RIVAL_ROUNDS):
            try:
                if self._try(outcome, retry_failed):
                    return outcome
            except SourceError as error:
                if error.reason != "bad_document":
                    raise
                # One listing that cannot be read must not keep the other windows from sealing.
                log.error("window.unreadable", window=str(window), error=str(error))
                return outcome
            log.info("window.rival", window=str(window))
            self._segments.forget()
        raise StoreError(f"other writers keep changing the window {window}", reason="conflict")

    def plan(self, window: Window, *, retry_failed: bool) -> Plan:
        """What `process` would do; writes nothing."""
        history, _ = self._history(window)
        return self._plan(self._lister.list(window), history, retry_failed)

    def pending_of(self, window: Window) -> frozenset[str]:
        """The ids that the window's newest segment calls pending; empty where there is none."""
        return self._history(window)[0].pending

    def _try(self, outcome: Outcome, retry_failed: bool) -> bool:
        """One attempt; False where another writer closed the window meanwhile."""
        window = outcome.window
        history, outcome.segments = self._history(window)
        for unsealed in outcome.segments:
            self._write_companion(unsealed)
        # Judged before the listing: what settles while we list was not listed settled.
        outcome.settled = self._clock.now() >= window.end + self._settle
        plan = self._plan(self._lister.list(window), history, retry_failed)
        self._progress.window_listed(window, len(plan.todo))
        records = {**plan.done, **self._archive(plan, outcome)}
        if not outcome.settled or not plan.listed.stable:
            self._seen.setdefault(window, {}).update(plan.listed.calls)
            return True
        gone = self._gone(plan.listed, history)
        closing = self._close(plan.listed, records, gone, outcome.unarchived, history)
        if closing is not None:
            if not self._write(closing):
                return False
            outcome.segments.append(closing)
        outcome.closed = True
        self._seen.pop(window, None)
        return True

    # --- what is there

    def _history(self, window: Window) -> tuple[History, list[Segment]]:
        """What is told of the window, and those of its segments that no seal covers yet."""
        history, unsealed = History(), []
        for name, sealed in self._segments.of(window.start):
            data = self._store.read(name.jsonl, max_bytes=MAX_SEGMENT_BYTES)
            try:
                found = segment.parse_segment(data or b"")
            except FormatError as error:
                raise StoreError(
                    f"{name.jsonl} is damaged ({error}): run archiver verify"
                ) from None
            if found.window != window:
                raise UsageError(
                    f"the archive has a window {found.window} where ARCHIVER_WINDOW makes "
                    f"{window}: set ARCHIVER_WINDOW to the length that the archive has"
                )
            if not sealed:
                unsealed.append(found)
            history = history.after(found)
        return history, unsealed

    def _plan(self, listed: Listed, history: History, retry_failed: bool) -> Plan:
        calls = listed.calls.values()
        known = {**history.records, **self._recorded(calls, listed.window, history)}
        done, todo = {}, []
        for call in listed.calls.values():
            told = known.get(call.id)
            if told is not None and not (retry_failed and told.outcome == "failed"):
                done[call.id] = told
            else:
                todo.append((call, told))
        return Plan(listed, done, todo)

    def _recorded(
        self, calls: Iterable[Call], window: Window, history: History
    ) -> dict[str, Record]:
        """The records that stand in the bucket and that the window's segments do not tell."""
        keys = {}
        for call in calls:
            day = (call.own_time or window.start).date()
            revision = self._records.revision(day, call.id)
            told = history.records.get(call.id)
            if revision > (told.revision if told else 0):
                keys[call.id] = layout.record_key(day, call.id, revision)
        records = self._workers.map(self._read_record, keys.values())
        return dict(zip(keys, records, strict=True))

    def _gone(self, listed: Listed, history: History) -> dict[str, Record | None]:
        """The calls that this process saw listed while the window was open and that are not
        listed any more, with their records: they must not fall silent when it closes."""
        seen = self._seen.get(listed.window, {})
        calls = [call for call_id, call in seen.items() if call_id not in listed.calls]
        records = self._recorded(calls, listed.window, history)
        return {call.id: records.get(call.id) for call in calls}

    def _read_record(self, key: str) -> Record:
        data = self._store.read(key)
        try:
            return record.parse(data or b"")
        except FormatError as error:
            raise StoreError(f"{key} is damaged ({error}): run archiver verify") from None

    # --- archiving

    def _archive(self, plan: Plan, outcome: Outcome) -> dict[str, Record]:
        """Try the calls of the plan; what has a record afterwards, by call id."""

        def one(item: tuple[Call, Record | None]) -> Record | Unarchived:
            call, previous = item
            result = self._transfer.archive(
                call, outcome.window, settled=outcome.settled, previous=previous
            )
            self._note(result)
            return result

        records: dict[str, Record] = {}
        outcome.unarchived, outcome.failed = [], 0
        for (call, previous), result in zip(
            plan.todo, self._workers.map(one, plan.todo), strict=True
        ):
            if isinstance(result, Unarchived):
                outcome.unarchived.append(result)
                if previous is not None:
                    records[call.id] = previous
                continue
            records[call.id] = result
            outcome.failed += result.outcome == "failed"
            if result is not previous:
                outcome.committed.append(result)
        return records

    def _note(self, result: Record | Unarchived) -> None:
        if isinstance(result, Unarchived):
            self._progress.call_done("pending", 0)
            return
        self._records.add(result.key)
        size = sum(f["bytes"] for f in result.document["files"] if f["kind"] == "recording")
        self._progress.call_done(result.outcome, size)

    # --- closing

    def _close(
        self,
        listed: Listed,
        records: Mapping[str, Record],
        gone: Mapping[str, Record | None],
        unarchived: Sequence[Unarchived],
        history: History,
    ) -> Segment | None:
        """The next revision of the window; None where nothing changed since the last one."""
        told = {found.key for found in history.records.values()}
        standing = [*records.values(), *(found for found in gone.values() if found is not None)]
        changed = [found for found in standing if found.key not in told]
        known = history.records.keys() | history.pending | history.vanished | gone.keys()
        balance = Balance(
            outcomes={call_id: found.outcome for call_id, found in records.items()},
            pending=sorted({item.call.id for item in unarchived} - records.keys()),
            vanished=sorted(known - listed.calls.keys()),
        )
        same = (frozenset(balance.pending), frozenset(balance.vanished)) == (
            history.pending,
            history.vanished,
        )
        if history.revision and not changed and same:
            return None
        data = segment.build(listed.window, history.revision + 1, changed, balance, listed.listing)
        return segment.parse_segment(data)

    def _write(self, closing: Segment) -> bool:
        """Make a segment durable. False where another writer's stands under its key.

        A crash after this leaves a segment without a seal; the next writer seals it as it is.
        """
        try:
            self._store.put_once(
                closing.name.jsonl,
                closing.data,
                content_type="application/x-ndjson",
                retain_until=self._lock_until(closing),
            )
        except KeyTaken:
            return False
        self._segments.add(closing.name, sealed=False)
        self._write_companion(closing)
        return True

    def _write_companion(self, closing: Segment) -> None:
        self._store.put_once(
            closing.name.sha256,
            closing.sha256_file(),
            content_type="text/plain",
            retain_until=self._lock_until(closing),
        )

    def _lock_until(self, closing: Segment) -> datetime | None:
        """The latest date that the segment covers."""
        return lock_until(closing, self._retention)
