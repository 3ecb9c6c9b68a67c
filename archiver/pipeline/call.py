"""Archives one call: puts its documents and its recording into the bucket, then its record.

`CallArchiver.archive` is the whole sequence. A call is archived once its record is in the bucket.
The recording and the documents (`core.model.DOCUMENTS`) are fetched independently: one that cannot
be fetched does not stop the others.

`Backoff` decides how long a call waits after a failed try.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

import structlog

from archiver.core import checksums
from archiver.core.clock import Clock
from archiver.core.concurrency import ConcurrencyLimit
from archiver.core.errors import CallError, FormatError, KeyTaken, NoRecording, Reach, StoreError
from archiver.core.model import (
    DOCUMENTS,
    OTHER_DOCUMENTS,
    Call,
    Retention,
    Window,
    lock_start,
    parse_time,
    placing_time,
)
from archiver.core.retry import Retry
from archiver.manifest import canonical, layout, record
from archiver.manifest.record import FILE_KINDS, File, Record
from archiver.observability import metrics
from archiver.pipeline.health import StoreHealth
from archiver.pipeline.hold_enforcement import HeldCalls, refs_of
from archiver.pipeline.recording import PART_BYTES, RecordingWriter, put_or_beside, random_tag
from archiver.pipeline.retention import promise, promises_less
from archiver.source.api import SignedUrl, VoiceCallsClient
from archiver.source.content_encoding import Undecodable
from archiver.source.recordings import RecordingClient, ResumableDownload
from archiver.store.bucket import Bucket
from archiver.store.types import Stored

log = structlog.get_logger()

HAD_RECORDING = {
    "bad_response", "digest_mismatch", "not_wav", "recording_changed", "recording_empty",
    "recording_missing", "too_large", "too_slow", "truncated", "url_refused",
}  # fmt: skip
"""Failure reasons which show that the source once had a recording."""
OUTAGES = ("source_unavailable", "store_refused")
"""Failure reasons that an outage may have caused: no call is given up after one such try."""
SOURCE_SILENT = ("source_unavailable", "call_refused")
"""Failure reasons that say nothing about the call: the source did not answer for it."""
DOWNLOADS = 4
"""How often a recording is downloaded that changes or proves damaged on the way."""
MISMATCH_SECONDS = 2.0
MISMATCH_SHARE = 0.02
"""The recording's length may differ from the source's by the larger of the two; else a finding."""
MAX_SIDECAR_BYTES = 64 << 20
LONGEST_WAIT_SECONDS = 900.0
FORGOTTEN_AFTER_SECONDS = 86_400.0
"""A call that was not tried for so long after its backoff was archived by another writer, or its
window was closed without it."""
SWEEP_SECONDS = 3_600.0

Document = dict[str, Any] | list[Any]

_SIDECARS = {*DOCUMENTS, *record.MALFORMED.values()}
_REFRESHED_FINDINGS = {"duration_mismatch", "time_implausible", *record.INCOMPLETE}
_RECORD_FIELDS = {
    "campaignId": "campaign_id",
    "direction": "direction",
    "durationSeconds": "duration_seconds",
    "endTime": "ended_at",
    "startTime": "started_at",
    "state": "state",
}
"""Fields of a call → fields of its record."""


@dataclass(frozen=True)
class FailedTry:
    """The outcome of a try that failed: a call without a record, or an archived call for one of
    whose documents the source did not answer."""

    call: Call
    reason: str
    attempts: int
    status: int | None
    undecided: bool = False
    """Whether it is not known yet if the source refuses the call or the credentials."""
    amended: Record | None = None
    """The new record of an archived call, made from what the source did answer."""


class CallArchiver:
    """Archives single calls. Thread-safe."""

    def __init__(
        self,
        source: VoiceCallsClient,
        recordings: RecordingClient,
        store: Bucket,
        clock: Clock,
        *,
        retention: Retention,
        give_up: timedelta,
        first_wait_seconds: float = 60.0,
        part_bytes: int = PART_BYTES,
        concurrency_limit: ConcurrencyLimit | None = None,
        tag: Callable[[], str] = random_tag,
    ) -> None:
        self._source = source
        self._recordings = recordings
        self._store = store
        self._clock = clock
        self._retention = retention
        self._give_up = give_up
        self._concurrency_limit = concurrency_limit
        self._writer = RecordingWriter(store, part_bytes, tag, clock.monotonic)
        self._retry = Retry(clock, attempts=DOWNLOADS)
        self.store_health = StoreHealth(store.is_answering)
        self.held = HeldCalls(store, clock)
        self.backoff = Backoff(clock, first_wait_seconds)

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
    ) -> Record | FailedTry:
        """Archive one listed call: as revision 1, or as the revision after `previous`.

        1. Fetch the call's own document and the others, such as the survey.
        2. Stream the recording into the bucket. An archived call keeps its recording.
        3. Store the documents.
        4. Lock and hold what the previous revision names as the new one will be.
        5. Write the record: from here on the call is archived.
        6. Hold the record if somebody has put a hold on the call meanwhile.
        7. If one of these fails, the call stays pending.
        8. After `give_up`, write a record that says `failed` (steps 3 to 6).

        Returns the new record; `previous` itself if nothing changed; `FailedTry` if the call stays
        pending. For an archived call `FailedTry` means that the source did not answer for a
        document; the answers that came are written all the same. A document that is unavailable for
        the same reason as in `previous` counts as answered.

        Until the window has settled, only success is written, because what is missing may still
        come. After that, `no_recording` is a result, and a call that fails stays pending until
        `give_up` after the window's end; then it is recorded as `failed`. The same holds if the
        store refuses an object of this call only.

        `was_pending`: an earlier process has tried this call. `taken`: the highest revision whose
        key has foreign bytes. `listed_at`: when the listing of the window began; now, if there was
        no listing. Raises `SourceRefused`, `SourceError` and `StoreError` if they reach beyond the
        call, and `Interrupted`.
        """
        self._clock.check()
        is_archived = previous is not None and previous.outcome == "archived"
        with (
            structlog.contextvars.bound_contextvars(call_id=call.id),
            metrics.IN_FLIGHT.track_inprogress(),
        ):
            number, now = self.backoff.begin(call.id), self._clock.now()
            attempt = Attempt(
                listed=call,
                window=window,
                listed_at=listed_at or now,
                previous=previous,
                taken=taken,
                number=number,
                began=now,
                held=self.held.is_held(call.id),
                retention=self._retention,
                source={"api": self._source.base_url},
            )
            try:
                # 1. A document that cannot be fetched is a finding of the record. Until the window
                #    has settled, the call waits for it, and its recording is not downloaded.
                self._fetch_documents(attempt)
                # 2. A crash from here to 5 leaves files that no record names. The next try adopts
                #    those with the same bytes, and writes beside those with other bytes.
                if is_archived:
                    attempt.keep_recording()
                else:
                    for error in attempt.errors.values() if not settled else ():
                        raise error
                    self._store_recording(attempt, settled)
                # 3. to 6.
                found = self._commit(attempt)
            except (CallError, StoreError) as failure:
                unarchived = self._wait(attempt, failure)  # 7.
            else:
                self.backoff.succeeded(call.id)
                self.store_health.succeeded()
                if is_archived and (silent := attempt.unanswered) is not None:
                    return self._wait(attempt, silent, None if found is previous else found)
                return found if is_archived else self._refresh_if_older(attempt, found)
            # 8. A failure that an outage may have caused counts only after two tries.
            first = number < 2 and not was_pending
            if (first and unarchived.reason in OUTAGES) or unarchived.undecided:
                return unarchived
            if not settled or not self._is_given_up(window, previous):
                return unarchived
            attempt.fail(unarchived)
            try:
                found = self._commit(attempt)
            except StoreError as failure:
                return self._wait(attempt, failure)
            self.backoff.succeeded(call.id)
            self.store_health.succeeded()
            return found

    # --- 1. the documents

    def _fetch_documents(self, attempt: Attempt) -> None:
        """Fetch the call's own document, then the others. Without the first, the listing is all
        that is known of the call."""
        call_id = attempt.listed.id
        try:
            attempt.call, attempt.source["request_id"] = self._source.call(call_id)
            attempt.add_document("transcript", _without_survey(attempt.call))
        except CallError as error:
            attempt.note_unavailable("transcript", error)
            if attempt.listed.document.get("transcript") is not None:
                attempt.add_document("transcript", _without_survey(attempt.listed))
        if "transcript" in attempt.errors:
            attempt.call = attempt.as_known()
        for kind in OTHER_DOCUMENTS:
            document = None
            try:
                document = self._source.document(call_id, kind)
            except CallError as error:
                attempt.note_unavailable(kind, error)
            if kind == "epa":
                document = self._with_inline_survey(attempt, document)
            if document is not None:
                attempt.add_document(kind, document)

    def _with_inline_survey(self, attempt: Attempt, survey: Document | None) -> Document | None:
        """Add what only the survey inside the call has. If one of the two copies is missing today,
        the fields stay that only that copy had."""
        inline = attempt.call.document.get("epaResults")
        if survey is not None and inline is None and "transcript" in attempt.errors:
            inline = self._read_json(attempt.previous_file("epa"))
        if survey is None and inline and "epa" not in attempt.errors:
            survey = inline if isinstance(inline, dict | list) else None
            inline = self._read_json(attempt.previous_file("epa"))
        return _merged(survey, inline)

    def _read_json(self, file: File | None) -> object:
        """Return a stored file as JSON; None if it is missing or cannot be parsed."""
        if file is None:
            return None
        try:
            data = self._store.read(file.key, file.version_id, MAX_SIDECAR_BYTES)
            return canonical.load(data or b"")
        except FormatError:
            return None

    # --- 2. the recording

    def _store_recording(self, attempt: Attempt, settled: bool) -> None:
        """Stream the recording into the bucket. If it changes on the way, start again."""

        def signed_url() -> SignedUrl:
            signed = self._source.recording_url(attempt.call.id)
            attempt.source["request_id"] = signed.request_id or attempt.source.get("request_id")
            return signed

        earlier = set[str]()
        undecodable = 0

        def once() -> None:
            nonlocal undecodable
            # Damage on the way does not come about twice. What cannot be decoded then is kept as
            # it comes.
            decodes = undecodable < 2
            try:
                with (
                    metrics.stage("transfer"),
                    closing(
                        ResumableDownload(
                            self._recordings,
                            signed_url,
                            self._clock,
                            self._concurrency_limit,
                            decodes=decodes,
                        )
                    ) as download,
                ):
                    done = self._writer.write(
                        download,
                        attempt.recording_key,
                        attempt.retain_until,
                        attempt.held,
                        earlier,
                        is_settled=settled,
                    )
            except Undecodable:
                undecodable += 1
                raise
            attempt.recording = attempt.file_of(
                "recording", done.stored, done.file.type.content_type
            )
            attempt.outcome = "archived"
            attempt.audio, attempt.recording_findings = done.audio()
            attempt.source |= done.source()

        try:
            self._retry.call("transfer", once)
        except NoRecording as error:
            if not settled:
                raise
            own = attempt.errors.get("transcript")
            if own is not None and own.reason == "call_missing":
                raise own from None  # the source does not know the call: no proof of absence
            attempt.outcome, attempt.reason, attempt.status = (
                "no_recording",
                error.reason,
                error.status,
            )

    # --- 3. to 6. documents and record

    def _commit(self, attempt: Attempt) -> Record:
        """Store the documents and write the record. The write of the record is the commit point."""
        previous, until, held = attempt.previous, attempt.retain_until, attempt.held
        # 3.
        self._store_documents(attempt)
        if previous is not None and _says_the_same(previous, attempt):
            return previous
        # 4. A crash after this leaves longer locks and more holds than promised: harmless.
        if previous is not None:
            if promises_less(previous, self._retention, until):
                self._extend_previous(attempt, previous)
            held = held or self._hold_as_previous(previous, attempt)
        made = record.build(
            attempt.call,
            outcome=attempt.outcome,
            files=attempt.files,
            source=attempt.source,
            audio=attempt.audio,
            findings=attempt.all_findings,
            reason=attempt.reason,
            attempts=None if attempt.outcome == "archived" else attempt.number,
            status=attempt.status,
            unavailable={
                kind: {"reason": error.reason, "status": error.status}
                for kind, error in attempt.errors.items()
                if DOCUMENTS[kind].unavailable in attempt.findings
            },
            day=attempt.day,
            revision=max(previous.revision if previous else 0, attempt.taken) + 1,
            archived_at=self._clock.now(),
            retention=promise(self._retention, until, attempt.lock_modes),
        )
        # 5. A crash before this write leaves no record: the next try archives the call again. After
        #    it, only a segment that names the record is missing. The first writer's record counts.
        with metrics.stage("record"):
            try:
                stored = self._store.put_once(
                    made.key, made.data, retain_until=until, held=held, verify=False
                )
            except KeyTaken:
                attempt.lost_to_concurrent_writer = True
                return self._adopt(made.key, held)
        if attempt.outcome == "archived":
            self._writer.forget(attempt.recording_key)
        # 6. A crash before this leaves a record without its hold: `hold_enforcement` puts it on.
        if previous is not None and not held and self._hold_as_previous(previous, attempt):
            self._store.set_hold(made.key, stored.version_id, True)
        _count(made, previous)
        return made

    def _store_documents(self, attempt: Attempt) -> None:
        """Store the documents, and note which are unavailable. A complete file of the previous
        record stays, whatever the source answers today."""
        # Keep the previous files of kinds that only a newer release knows.
        fetched = {"recording", *_SIDECARS}
        attempt.files = [file for file in attempt.previous_files() if file.kind not in fetched]
        if attempt.recording is not None:
            attempt.files.append(attempt.recording)
        for kind, row in DOCUMENTS.items():
            error, document = attempt.errors.get(kind), attempt.documents.get(kind)
            before = attempt.previous_file(kind)
            if error is not None and attempt.has_document(kind):
                document = None
            elif error is not None:
                attempt.findings.add(row.unavailable)
                self._store_malformed(attempt, kind, error.body)
            if document is not None and not (before and self._still_stands(before, document)):
                self._store_sidecar(attempt, kind, document)
            elif before is not None:
                attempt.files.append(before)  # kept even if the source has lost it
        # Kinds of a newer release come last.
        order = {kind: place for place, kind in enumerate(FILE_KINDS)}
        attempt.files.sort(key=lambda file: order.get(file.kind, len(order)))

    def _store_malformed(self, attempt: Attempt, kind: str, body: bytes | None) -> None:
        """Keep the bytes that came in place of a document, else the previous record's."""
        malformed = record.MALFORMED[kind]
        before = attempt.previous_file(malformed)
        if body and (before is None or before.sha256 != checksums.sha256_hex(body)):
            self._store_sidecar(attempt, malformed, body)
        elif before is not None:
            attempt.files.append(before)
        else:
            return
        attempt.findings.add("document_malformed")

    def _store_sidecar(self, attempt: Attempt, kind: str, data: bytes) -> None:
        row = FILE_KINDS[kind]
        key = layout.recording_dir(attempt.day, attempt.call.id) + row.name
        stored = put_or_beside(
            self._store,
            key,
            data,
            row.content_type,
            attempt.retain_until,
            attempt.held,
            verify=False,
        )
        attempt.files.append(attempt.file_of(kind, stored))

    def _still_stands(self, before: File, document: bytes) -> bool:
        """Whether the previous sidecar is still the one to name: it has the same bytes, or it has a
        transcript and the source's document has none any more."""
        if before.sha256 == checksums.sha256_hex(document):
            return True
        if before.kind != "transcript" or _has_transcript(canonical.load(document)):
            return False
        if not _has_transcript(self._read_json(before)):
            return False
        log.warning("call.transcript_withdrawn")
        return True

    def _extend_previous(self, attempt: Attempt, previous: Record) -> None:
        """Extend the locks of the previous record and of all its files, carried over or replaced,
        to the date of the new record."""
        carried = {file.key for file in attempt.files}
        for file in [*previous.files, {"key": previous.key, "version_id": None}]:
            try:
                mode = self._store.extend(
                    file["key"], file["version_id"], attempt.retain_until
                ).mode
            except StoreError as error:
                if error.reason != "gone":
                    raise
                # `verify` reports it. The call's other objects must be locked all the same.
                log.error("call.object_gone", key=file["key"])
                continue
            if mode is not None and file["key"] in carried:
                attempt.lock_modes.add(mode)

    def _hold_as_previous(self, previous: Record, attempt: Attempt) -> bool:
        """Whether the call's previous record is on legal hold; if so, put one on its new files.
        Checks the object, because the ledger may not have the hold yet."""
        head = self._store.head(previous.key)
        if head is None or not head.held:
            return False
        known = {file["key"] for file in previous.files}
        for file in attempt.files:
            if file.key not in known:
                self._store.set_hold(file.key, file.version_id, True)
        return True

    def _adopt(self, key: str, held: bool) -> Record:
        """Return the record of a concurrent writer, after holding its objects if the call is held:
        that writer may not have known."""
        try:
            found = record.parse(self._store.read(key) or b"")
        except FormatError as error:
            raise StoreError(
                f"{key} is taken by other bytes than a record ({error}): run archiver verify",
                reason="record_unreadable",
                reach=Reach.ITEM,
            ) from None
        log.info("record.adopted")
        for ref in refs_of(found) if held else ():
            self._store.set_hold(ref.key, ref.version_id, True)
        return found

    def _refresh_if_older(self, attempt: Attempt, found: Record) -> Record:
        """Archive again if a concurrent writer's record was written before this try began: the
        source may have changed the call since."""
        made_at = parse_time(found.document.get("archived_at"))
        if not attempt.lost_to_concurrent_writer or found.outcome != "archived":
            return found
        if made_at is None or made_at >= attempt.began:
            return found
        call, window, listed_at = attempt.listed, attempt.window, attempt.listed_at
        again = self.archive(call, window, settled=True, listed_at=listed_at, previous=found)
        return (again.amended or found) if isinstance(again, FailedTry) else again

    # --- 7. and 8. failures

    def _wait(
        self, attempt: Attempt, error: CallError | StoreError, amended: Record | None = None
    ) -> FailedTry:
        """Leave the call pending, in backoff. Raises `error` if it is about the whole store."""
        reason, stage, undecided = error.reason, error.stage, False
        if isinstance(error, CallError):
            undecided = error.undecided
            log.warning("call.pending", stage=stage, reason=reason, status=error.status)
        else:
            if self.store_health.is_outage(attempt.listed.id, error):
                raise error
            reason = reason if reason == "record_unreadable" else "store_refused"
            log.error("call.store_refused", stage=stage, status=error.status, error=str(error))
        unarchived = FailedTry(
            attempt.listed, reason, attempt.number, error.status, undecided, amended
        )
        self.backoff.failed(unarchived)
        return unarchived

    def _is_given_up(self, window: Window, previous: Record | None) -> bool:
        """Whether the call's time is up. Never for a call that is archived, or of which the source
        once said that it has no recording: a failure does not revoke that."""
        if previous is not None and previous.outcome != "failed":
            return False
        return self._clock.now() >= window.end + self._give_up


@dataclass
class Attempt:
    """One try at archiving one call: what is known so far, and what its record will say."""

    listed: Call
    window: Window
    listed_at: datetime
    previous: Record | None
    taken: int
    number: int
    began: datetime
    held: bool
    retention: Retention
    source: dict[str, Any]
    call: Call = field(init=False)
    documents: dict[str, bytes] = field(default_factory=dict)
    """File kind → the document in the archive's form; absent if the source has none."""
    errors: dict[str, CallError] = field(default_factory=dict)
    """File kind → why the document could not be fetched."""
    outcome: record.Outcome = "failed"
    reason: str | None = None
    status: int | None = None
    recording: File | None = None
    audio: Mapping[str, Any] | None = None
    recording_findings: Iterable[str] = ()
    files: list[File] = field(default_factory=list)
    findings: set[str] = field(default_factory=set)
    """Findings about documents."""
    lock_modes: set[str] = field(default_factory=set)
    """The modes in which the files of this try are locked."""
    lost_to_concurrent_writer: bool = False
    """Whether a concurrent writer has written the record first."""

    def __post_init__(self) -> None:
        self.call = self.listed

    @property
    def day(self) -> date:
        """The `dt` of the call's keys. A later revision keeps that of the first one."""
        home = layout.parse_record_key(self.previous.key) if self.previous else None
        return home[0] if home else placing_time(self.call, self.window, self.listed_at).date()

    @property
    def recording_key(self) -> str:
        """The preferred key of the recording, if it is a WAV file; another kind has its own
        extension. An upload in parts, and a recording whose key has other bytes, is stored under an
        alternative key."""
        return layout.recording_dir(self.day, self.call.id) + "recording.wav"

    @property
    def retain_until(self) -> datetime | None:
        return self.retention.until(lock_start(self.call, self.window, self.listed_at)[0])

    @property
    def unanswered(self) -> CallError | None:
        """Why the source did not answer for a document; None if it answered for all. An error of
        the document itself, or one that the previous record states, is an answer."""
        for kind, error in self.errors.items():
            known = self.previous.why_unavailable(kind) if self.previous else None
            if error.undecided or (error.reason in SOURCE_SILENT and error.reason != known):
                return error
        return None

    # --- documents

    def add_document(self, kind: str, document: Document) -> None:
        """Keep a document in the archive's form, or note that it has none (`bad_document`)."""
        try:
            self.documents[kind] = canonical.dump(document)
        except FormatError:
            error = CallError("not representable as JSON", reason="bad_document")
            self.note_unavailable(kind, error)

    def note_unavailable(self, kind: str, error: CallError) -> None:
        self.errors.setdefault(kind, error)
        reason, status = error.reason, error.status
        log.warning("call.document_unavailable", kind=kind, reason=reason, status=status)

    def as_known(self) -> Call:
        """The call as listed; fields that the listing lacks come from the previous record."""
        before: Mapping[str, Any] = self.previous.document if self.previous else {}
        known = {name: before.get(recorded) for name, recorded in _RECORD_FIELDS.items()}
        listed = {name: v for name, v in self.listed.document.items() if v is not None}
        return Call(self.listed.id, {**known, **listed})

    def has_document(self, kind: str) -> bool:
        """Whether the previous record has the complete document, or states that there is none."""
        if self.previous is None or (
            DOCUMENTS[kind].unavailable in self.previous.document["findings"]
        ):
            return False
        return self.previous.outcome == "archived" or self.previous_file(kind) is not None

    # --- files

    def previous_files(self) -> Iterator[File]:
        """The files that the previous record names."""
        names = ("kind", "key", "bytes", "sha256", "content_type", "version_id")
        for file in self.previous.files if self.previous else ():
            yield File(**{name: file[name] for name in names})

    def previous_file(self, kind: str) -> File | None:
        return next((file for file in self.previous_files() if file.kind == kind), None)

    def file_of(self, kind: str, stored: Stored, content_type: str | None = None) -> File:
        """The entry of a stored file in the record; the content type is that of its kind, if no
        other is given."""
        if stored.lock_mode:
            self.lock_modes.add(stored.lock_mode)
        content_type = content_type or FILE_KINDS[kind].content_type
        return File(kind, stored.key, stored.size, stored.sha256, content_type, stored.version_id)

    # --- the outcome

    def keep_recording(self) -> None:
        """Keep the recording of an archived call, and what the previous record says about it."""
        assert self.previous is not None  # noqa: S101
        before = self.previous.document
        self.outcome, self.audio = "archived", before["audio"]
        self.recording = self.previous_file("recording")
        self.recording_findings = set(before["findings"]) - _REFRESHED_FINDINGS
        self.source = {**before["source"], **self.source}

    def fail(self, why: FailedTry) -> None:
        """Set the outcome `failed`, keeping what is known of the call."""
        self.outcome, self.reason, self.status = "failed", why.reason, why.status
        self.recording, self.audio, self.recording_findings = None, None, ()

    @property
    def all_findings(self) -> set[str]:
        """The findings about documents, recording, length and times."""
        codes = {*self.recording_findings, *self.findings}
        length, heard = self.call.duration_seconds, (self.audio or {}).get("duration_seconds")
        if heard is not None and length is not None:
            allowed = max(MISMATCH_SECONDS, MISMATCH_SHARE * length)
            if abs(heard - length) > allowed:
                codes.add("duration_mismatch")
        if not lock_start(self.call, self.window, self.listed_at)[1]:
            codes.add("time_implausible")
        return codes


@dataclass
class _Tries:
    count: int = 0
    last: FailedTry | None = None
    waits_until: float = 0.0


class Backoff:
    """Counts the failed tries of each call, and how long the call waits before the next one.

    Kept in memory only: after a restart a call is tried at once, and the count starts at 1. Calls
    that are archived or given up are dropped. Thread-safe.
    """

    def __init__(self, clock: Clock, first_wait_seconds: float = 60.0) -> None:
        """The first wait is `first_wait_seconds`. Each is twice the one before, up to 15 min."""
        self._clock = clock
        self._first_wait_seconds = first_wait_seconds
        self._tries: dict[str, _Tries] = {}
        self._mutex = threading.Lock()
        self._swept_at = clock.monotonic()

    def begin(self, call_id: str) -> int:
        """Count a try; returns its number, from 1."""
        now = self._clock.monotonic()
        with self._mutex:
            if now >= self._swept_at + SWEEP_SECONDS:
                oldest = now - FORGOTTEN_AFTER_SECONDS
                self._tries = {i: t for i, t in self._tries.items() if t.waits_until >= oldest}
                self._swept_at = now
            tries = self._tries.setdefault(call_id, _Tries())
            tries.count += 1
            tries.waits_until = max(tries.waits_until, now)
            return tries.count

    def failed(self, unarchived: FailedTry) -> None:
        """Start the wait after a failed try."""
        # The exponent is bounded, because a float overflows beyond 2**1023.
        growth = 2.0 ** min(unarchived.attempts - 1, 20)
        wait = min(LONGEST_WAIT_SECONDS, self._first_wait_seconds * growth)
        with self._mutex:
            tries = self._tries.setdefault(unarchived.call.id, _Tries(unarchived.attempts))
            tries.last = unarchived
            tries.waits_until = self._clock.monotonic() + wait

    def succeeded(self, call_id: str) -> None:
        with self._mutex:
            self._tries.pop(call_id, None)

    def waiting(self, call_id: str) -> FailedTry | None:
        """How the last try ended, while the call waits; None if it may be tried."""
        with self._mutex:
            tries = self._tries.get(call_id)
            if tries is None or self._clock.monotonic() >= tries.waits_until:
                return None
            return tries.last

    def all_waiting(self, call_ids: Iterable[str]) -> bool:
        return all(self.waiting(call_id) for call_id in call_ids)


def _count(made: Record, previous: Record | None) -> None:
    """Update metrics and log. A later revision counts only the files that it added."""
    known = {file["key"] for file in previous.files} if previous else set()
    new = [file for file in made.files if file["key"] not in known]
    if previous is None or previous.outcome != made.outcome:
        metrics.CALLS.labels(made.outcome).inc()
    for file in new:
        metrics.BYTES.labels(file["kind"]).inc(file["bytes"])
    findings = set(made.document["findings"])
    for code in findings - set(previous.document["findings"] if previous else ()):
        metrics.FINDINGS.labels(code).inc()
    say = log.warning if made.outcome == "failed" else log.info
    reason, size = made.document["reason"], sum(file["bytes"] for file in new)
    if previous is None:
        say(f"call.{made.outcome}", reason=reason, bytes=size)
    else:
        say("call.amended", outcome=made.outcome, reason=reason, bytes=size)


def _says_the_same(previous: Record, attempt: Attempt) -> bool:
    """Whether a new revision would repeat the previous one: the same outcome, files and findings
    about documents, and the same reason of a failure. A deletion or an outage at the source does
    not revoke that there was a recording."""
    before = previous.document
    is_weaker = attempt.outcome == "no_recording" or attempt.reason not in HAD_RECORDING
    if before["reason"] in HAD_RECORDING and attempt.outcome != "archived" and is_weaker:
        return True
    if previous.outcome != attempt.outcome:
        return False
    if attempt.outcome == "failed" and before["reason"] != attempt.reason:
        return False
    if previous.incomplete != record.INCOMPLETE.intersection(attempt.all_findings):
        return False
    files = {(file["kind"], file["sha256"]) for file in previous.files}
    return files == {(file.kind, file.sha256) for file in attempt.files}


def _without_survey(call: Call) -> dict[str, Any]:
    """The call as `transcript.json` stores it."""
    document = dict(call.document)
    if isinstance(document.get("epaResults"), dict | list | None):
        document.pop("epaResults", None)  # any other value is not a survey: keep it here
    return document


def _has_transcript(document: object) -> bool:
    return isinstance(document, dict) and bool(document.get("transcript"))


def _merged(survey: Document | None, inline: object) -> Document | None:
    """Add to the endpoint's survey the fields that only the call's inline copy has. If one of the
    two is an array, the inline copy counts only if the endpoint has no survey."""
    if not isinstance(inline, dict | list) or not inline:
        return survey
    if isinstance(inline, dict) and isinstance(survey, dict):
        return {**inline, **survey}
    return inline if survey is None else survey
