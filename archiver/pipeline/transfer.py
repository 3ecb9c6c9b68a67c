"""One call: signed URL → stream → files → record, the record last.

A call is archived when its record is. Whatever happens before leaves files that no record names:
the next try adopts them where they hold the same bytes, and writes beside them where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import structlog

from archiver import metrics
from archiver.clock import Clock
from archiver.errors import CallError, FormatError, KeyTaken, Reach, StoreError
from archiver.manifest import record
from archiver.manifest.record import Record, Result
from archiver.model import Call, Retention, Window, parse_time
from archiver.pipeline.attempts import Attempts, Unarchived
from archiver.pipeline.download import PART_BYTES, Download, random_tag
from archiver.pipeline.heldcalls import HeldCalls
from archiver.pipeline.holding import refs_of
from archiver.pipeline.job import Job, Tools
from archiver.pipeline.ports import Recordings, Source, Store
from archiver.pipeline.promise import promise, promises_less
from archiver.pipeline.store_health import StoreHealth
from archiver.pressure import Pressure
from archiver.retry import Retry

log = structlog.get_logger()

WAS_THERE = {
    "bad_response",
    "digest_mismatch",
    "not_wav",
    "recording_changed",
    "recording_empty",
    "recording_missing",
    "too_large",
    "too_slow",
    "truncated",
    "url_refused",
}
"""Reasons of a failure that say that the source had a recording once."""
OUTAGES = ("source_unavailable", "store_refused")
"""Reasons of a failure that an outage may have caused: one such failure gives no call up."""
BEGINNINGS = 4
"""How often a recording is begun that changes, or proves damaged, on the way."""


class Transfer:
    """Archives single calls. Threads share it."""

    def __init__(
        self,
        source: Source,
        recordings: Recordings,
        store: Store,
        clock: Clock,
        *,
        retention: Retention,
        give_up: timedelta,
        first_rest_seconds: float = 60.0,
        part_bytes: int = PART_BYTES,
        pressure: Pressure | None = None,
        tag: Callable[[], str] = random_tag,
    ) -> None:
        self.store_health = StoreHealth(store.is_answering)
        self._tools = Tools(
            source,
            recordings,
            store,
            Download(store, part_bytes, tag, clock.monotonic),
            Retry(clock, attempts=BEGINNINGS),
            retention,
            clock,
            pressure,
        )
        self._store = store
        self._clock = clock
        self.held = HeldCalls(store, clock)
        self._give_up = give_up
        self.attempts = Attempts(clock, first_rest_seconds)

    def archive(
        self,
        call: Call,
        window: Window,
        *,
        settled: bool,
        listed_at: datetime | None = None,
        previous: Record | None = None,
        was_pending: bool = False,
        taken: int = 0,
    ) -> Record | Unarchived:
        """Bring one listed call into the archive, as revision 1 or as the one after `previous`,
        which says `no_recording` or `failed`. `previous` itself where there is nothing new.
        `was_pending` says that another process has tried before; `taken` is the highest revision
        whose key foreign bytes have. `listed_at` is when the listing of the window began; now,
        where the call is worked at without one.

        Until the window has settled, nothing but success is written down: what is missing may
        still come. After it, `no_recording` is a result, and what fails is pending until
        `give_up` after the window's end, then `failed`. What the store refuses to keep for this
        call alone is pending and given up in the same way.
        Raises `SourceRefused`, `SourceError` and `StoreError` where they reach beyond the call, and
        `Interrupted`.
        """
        with self._at_work(call) as attempt:
            # 1. Fetch and store everything, the record last.
            job = self._job(call, window, previous, attempt, listed_at, taken)
            try:
                found = self._commit(job, job.run(settled), previous)
            except CallError as error:
                unarchived = self._failed(call, error, attempt)
            except StoreError as error:
                unarchived = self._store_refused(call, error, attempt)
            else:
                self.store_health.succeeded()
                return self._look_again(call, window, job, found, listed_at)
            # 2. It did not work: the call waits, unless its time is over. One failure that an
            #    outage may have caused says nothing of the call: that takes two.
            first = attempt < 2 and not was_pending
            if (first and unarchived.reason in OUTAGES) or unarchived.undecided:
                return unarchived
            if not settled or not self._is_given_up(window, previous):
                return unarchived
            # 3. It is given up: a record says why, with what is known of it.
            try:
                result = job.failure(unarchived.reason, unarchived.status)
                found = self._commit(job, result, previous)
            except CallError as error:
                return self._failed(call, error, attempt)
            except StoreError as error:
                return self._store_refused(call, error, attempt)
            self.store_health.succeeded()
            return found

    def _look_again(
        self, call: Call, window: Window, job: Job, found: Record, listed_at: datetime | None
    ) -> Record:
        """Another writer's record, made before we asked the source, may be of an older call."""
        made = parse_time(found.document.get("archived_at"))
        if not job.was_beaten or found.outcome != "archived" or made is None or made >= job.began:
            return found
        again = self.refresh(call, window, found, listed_at)
        return (again.amended or found) if isinstance(again, Unarchived) else again

    def refresh(
        self, call: Call, window: Window, previous: Record, listed_at: datetime | None = None
    ) -> Record | Unarchived:
        """Look at an archived call again: the revision after `previous` where call or survey have
        changed, or one can be had that could not before; else `previous` itself. `Unarchived` where
        the source did not answer for a document; what it did answer is written down all the same.

        What `previous` says cannot be had, and still cannot for the same reason, is an answer.
        Raises as `archive` does.
        """
        with self._at_work(call) as attempt:
            job = self._job(call, window, previous, attempt, listed_at)
            try:
                found = self._commit(job, job.refresh(), previous)
            except StoreError as error:
                return self._store_refused(call, error, attempt)
            self.store_health.succeeded()
            if job.unanswered is None:
                return found
            amended = None if found is previous else found
            return self._failed(call, job.unanswered, attempt, amended)

    def _job(
        self,
        call: Call,
        window: Window,
        previous: Record | None,
        attempt: int,
        listed_at: datetime | None,
        taken: int = 0,
    ) -> Job:
        held, when = self.held.is_held(call.id), listed_at or self._clock.now()
        return Job(
            self._tools, call, window, previous, attempt, listed_at=when, held=held, taken=taken
        )

    @contextmanager
    def _at_work(self, call: Call) -> Iterator[int]:
        """Count a try, and the call in flight; which try it is."""
        with structlog.contextvars.bound_contextvars(call_id=call.id):
            self._clock.check()
            with metrics.IN_FLIGHT.track_inprogress():
                yield self.attempts.begin(call.id)

    def _failed(
        self, call: Call, error: CallError, attempt: int, amended: Record | None = None
    ) -> Unarchived:
        log.warning("call.unarchived", stage=error.stage, reason=error.reason, status=error.status)
        unarchived = Unarchived(call, error.reason, attempt, error.status, error.undecided, amended)
        self.attempts.failed(unarchived)
        return unarchived

    def _store_refused(self, call: Call, error: StoreError, attempt: int) -> Unarchived:
        """The call stays behind; raises `error` where it is about the store as a whole."""
        if self.store_health.is_outage(call.id, error):
            raise error
        own = error.reason if error.reason == "record_unreadable" else "store_refused"
        log.error("call.store_refused", stage=error.stage, status=error.status, error=str(error))
        unarchived = Unarchived(call, own, attempt, error.status)
        self.attempts.failed(unarchived)
        return unarchived

    def _is_given_up(self, window: Window, previous: Record | None) -> bool:
        """What the source said once of a missing recording is not taken back by a failure."""
        if previous is not None and previous.outcome != "failed":
            return False
        return self._clock.now() >= window.end + self._give_up

    def _commit(self, job: Job, result: Result, previous: Record | None) -> Record:
        """Write the record: the one place where exactly-once is decided.

        A crash before this line leaves files without a record; after it, the call is archived.
        """
        self.attempts.done(job.call.id)
        if previous is not None and _says_the_same(previous, result):
            return previous
        revision = max(previous.revision if previous else 0, job.taken) + 1
        until = job.retain_until
        if previous is not None:
            job.lock_modes |= self._keep(previous, result, until)
        held = job.held or (previous is not None and self._hold_as(previous, result))
        made = record.build(
            job.call,
            result,
            day=job.day,
            revision=revision,
            archived_at=self._clock.now(),
            retention=promise(self._tools.retention, until, job.lock_modes),
        )
        key = made.key
        with metrics.stage("record"):
            try:
                stored = self._store.put_once(
                    key, made.data, retain_until=until, held=held, look=False
                )
            except KeyTaken:
                job.was_beaten = True
                return self._adopt(key, held)
            if result.outcome == "archived":
                self._tools.download.forget(job.recording_key)
            if previous is not None and not held and self._hold_as(previous, result):
                # A hold was put on the call after we had looked, and may have missed this record.
                self._store.set_hold(key, stored.version_id, True)
            _count(result, previous)
        return made

    def _keep(self, previous: Record, result: Result, until: datetime | None) -> set[str]:
        """What stood before is kept for as long as the new record promises, where that is longer:
        the record, the files carried over, those that are replaced. The modes that the files
        carried over are locked in, as far as the store was asked."""
        if not promises_less(previous, self._tools.retention, until):
            return set()
        carried = {file.key for file in result.files}
        modes = set()
        for file in previous.document["files"]:
            mode = self._extend(file["key"], file["version_id"], until)
            if mode is not None and file["key"] in carried:
                modes.add(mode)
        self._extend(previous.key, None, until)
        return modes

    def _extend(self, key: str, version_id: str | None, until: datetime | None) -> str | None:
        """The mode that an object is locked in then; None of one that is gone, which `verify`
        tells: the call's other objects are not to wait for it."""
        try:
            return self._store.extend(key, version_id, until).mode
        except StoreError as error:
            if error.reason != "gone":
                raise
            log.error("call.object_gone", key=key)
            return None

    def _hold_as(self, previous: Record, result: Result) -> bool:
        """Whether the call is on legal hold, by its previous record; then its new files are too.
        It may be, though the ledger does not say so: somebody may just be putting it on hold."""
        head = self._store.head(previous.key)
        if head is None or not head.held:
            return False
        told = {file["key"] for file in previous.document["files"]}
        for file in result.files:
            if file.key not in told:
                self._store.set_hold(file.key, file.version_id, True)
        return True

    def _adopt(self, key: str, held: bool) -> Record:
        """Another writer committed the call first: its record is the record. It may not have known
        that the call is held."""
        try:
            found = record.parse(self._store.read(key) or b"")
        except FormatError as error:
            raise StoreError(
                f"{key} is taken by other bytes than a record ({error}): run archiver verify",
                reason="record_unreadable",
                reach=Reach.ITEM,
            ) from None
        log.info("record.adopted")
        for one in refs_of(found) if held else ():
            self._store.set_hold(one.key, one.version_id, True)
        return found


def _count(result: Result, previous: Record | None) -> None:
    """Say what was done: a later revision counts only the files that it brought."""
    told = {file["key"] for file in previous.document["files"]} if previous else set()
    new = [file for file in result.files if file.key not in told]
    if previous is None or previous.outcome != result.outcome:
        metrics.CALLS.labels(result.outcome).inc()
    for file in new:
        metrics.BYTES.labels(file.kind).inc(file.bytes)
    for code in set(result.findings) - set(previous.document["findings"] if previous else ()):
        metrics.FINDINGS.labels(code).inc()
    say = log.warning if result.outcome == "failed" else log.info
    size = sum(file.bytes for file in new)
    if previous is None:
        say(f"call.{result.outcome}", reason=result.reason, bytes=size)
    else:
        say("call.amended", outcome=result.outcome, reason=result.reason, bytes=size)


def _says_the_same(previous: Record, result: Result) -> bool:
    """Whether a new revision would tell nothing new: the same outcome, files and findings about
    documents, and of a failure the same reason. That a source has deleted a recording which could
    not be archived, or is out, does not take back that there was one."""
    told = previous.document
    weaker = result.outcome == "no_recording" or result.reason not in WAS_THERE
    if told["reason"] in WAS_THERE and result.outcome != "archived" and weaker:
        return True
    if previous.outcome != result.outcome:
        return False
    if result.outcome == "failed" and told["reason"] != result.reason:
        return False
    if previous.incomplete != record.INCOMPLETE.intersection(result.findings):
        return False
    files = {(file["kind"], file["sha256"]) for file in told["files"]}
    return files == {(file.kind, file.sha256) for file in result.files}
