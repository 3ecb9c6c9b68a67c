"""One call: signed URL → stream → files → record, the record last.

A call is archived when its record is. Whatever happens before leaves files that no record names:
the next try adopts them where they hold the same bytes, and writes beside them where they do not.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import structlog

from archiver import fixity, metrics, wav
from archiver.clock import Clock
from archiver.errors import CallError, FormatError, KeyTaken, NoRecording, StoreError
from archiver.manifest import canonical, layout, record
from archiver.manifest.record import File, Record, Result
from archiver.model import Call, Retention, Window, format_time
from archiver.pipeline.ports import Recordings, Source, Store
from archiver.retry import Retry
from archiver.source.recording import BlobInfo, Expired, Recording
from archiver.store.objects import Stored

log = structlog.get_logger()

PART_BYTES = 8 << 20
FRESH_URLS = 3
"""How often a refused signed URL is replaced by a fresh one."""
MISMATCH_SECONDS = 2.0
MISMATCH_SHARE = 0.02

WAV, JSON = "audio/wav", "application/json"

Survey = dict[str, Any] | list[Any]


@dataclass(frozen=True)
class Unarchived:
    """A call without a record as yet, and why."""

    call: Call
    reason: str
    attempts: int
    status: int | None


def random_tag() -> str:
    """16 hex digits that no other writer has."""
    return secrets.token_hex(8)


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
        part_bytes: int = PART_BYTES,
        tag: Callable[[], str] = random_tag,
    ) -> None:
        self._source = source
        self._recordings = recordings
        self._store = store
        self._clock = clock
        self._retention = retention
        self._give_up = give_up
        self._part_bytes = part_bytes
        self._tag = tag
        self._attempts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._in_flight = 0
        self._retry = Retry(clock, attempts=1 + FRESH_URLS)

    def archive(
        self, call: Call, window: Window, *, settled: bool, previous: Record | None = None
    ) -> Record | Unarchived:
        """Bring one listed call into the archive, as revision 1 or as the one after `previous`.

        Until the window has settled, nothing but success is written down: what is missing may
        still come. After it, `no_recording` is a result, and what fails is pending until
        `give_up` after the window's end, then `failed`.
        Raises `SourceRefused`, `SourceError` (unreachable), `StoreError` and `Interrupted`.
        """
        with (
            structlog.contextvars.bound_contextvars(call_id=call.id),
            self._counted(),
        ):
            self._clock.check()
            attempts = self._attempts[call.id] = self._attempts.get(call.id, 0) + 1
            job = _Job(self, call, window, previous, attempts)
            try:
                result = job.run(settled)
            except CallError as error:
                log.warning(
                    "call.unarchived", stage=error.stage, reason=error.reason, status=error.status
                )
                unarchived = Unarchived(call, error.reason, attempts, error.status)
                if not settled or not self._is_given_up(unarchived, window):
                    return unarchived
                result = job.failure(unarchived)
            if previous is not None and _says_the_same(previous, result):
                return previous
            # Another window may have been at the same call: one without any time of its own.
            self._attempts.pop(call.id, None)
            return self._commit(job, result, previous)

    @property
    def in_flight(self) -> int:
        """Calls that a worker is at right now."""
        return self._in_flight

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._in_flight += 1
        try:
            with metrics.IN_FLIGHT.track_inprogress():
                yield
        finally:
            with self._lock:
                self._in_flight -= 1

    def _is_given_up(self, unarchived: Unarchived, window: Window) -> bool:
        """An outage says nothing of the call: it is never given up at the first try."""
        if unarchived.reason == "source_unavailable" and unarchived.attempts < 2:
            return False
        return self._clock.now() >= window.end + self._give_up

    def _commit(self, job: _Job, result: Result, previous: Record | None) -> Record:
        """Write the record: the one place where exactly-once is decided.

        A crash before this line leaves files without a record; after it, the call is archived.
        """
        revision = previous.revision + 1 if previous else 1
        until = job.retain_until
        data = record.build(
            job.call,
            result,
            day=job.day,
            revision=revision,
            archived_at=self._clock.now(),
            retention=_retention_document(self._retention, until),
        )
        key = layout.record_key(job.day, job.call.id, revision)
        with metrics.stage("record"):
            try:
                self._store.put_once(key, data, retain_until=until)
            except KeyTaken:
                return self._adopt(key)
            self._count(result)
        return record.parse(data)

    def _adopt(self, key: str) -> Record:
        """Another writer committed the call first: its record is the record."""
        data = self._store.read(key)
        if data is None:
            raise StoreError(f"{key} was taken and cannot be read: run archiver verify")
        log.info("record.adopted")
        return record.parse(data)

    def _count(self, result: Result) -> None:
        metrics.CALLS.labels(result.outcome).inc()
        for file in result.files:
            metrics.BYTES.labels(file.kind).inc(file.bytes)
        for code in result.findings:
            metrics.FINDINGS.labels(code).inc()
        say = log.warning if result.outcome == "failed" else log.info
        size = sum(file.bytes for file in result.files)
        say("call." + result.outcome, reason=result.reason, bytes=size)


class _Job:
    """One try to archive one call."""

    def __init__(
        self,
        transfer: Transfer,
        listed: Call,
        window: Window,
        previous: Record | None,
        attempts: int,
    ) -> None:
        self._transfer = transfer
        self._attempts = attempts
        self._store = transfer._store
        self._window = window
        self._home = layout.parse_record_key(previous.key) if previous else None
        self.call = listed
        self._files: list[File] = []
        self._findings: list[str] = []
        self._source: dict[str, Any] = {"api": transfer._source.base_url}

    @property
    def day(self) -> date:
        """The call's `dt`; a later revision stays where the first one is."""
        if self._home is not None:
            return self._home[0]
        return (self.call.own_time or self._window.start).date()

    @property
    def retain_until(self) -> datetime | None:
        ended = self.call.ended_at or self.call.own_time or self._window.end
        return self._transfer._retention.until(ended)

    def run(self, settled: bool) -> Result:
        """Fetch and store everything. Raises `CallError` where the call can't be archived now."""
        source = self._transfer._source
        listed = self.call
        self.call, self._source["request_id"] = source.call(listed.id)
        survey = _merged(source.survey(listed.id), self.call.document.get("epaResults"))
        try:
            audio = self._recording()
        except NoRecording as error:
            if not settled:
                raise
            self._sidecars(survey)
            return self._result("no_recording", reason=error.reason, status=error.status)
        self._sidecars(survey)
        return self._result("archived", audio=audio)

    def failure(self, unarchived: Unarchived) -> Result:
        """The result for a call that is given up: what is known of it is kept."""
        self._files, self._findings = [], []
        if self.call.document.get("transcript") is not None:
            survey = self.call.document.get("epaResults")
            self._sidecars(_merged(None, survey))
        return self._result("failed", reason=unarchived.reason, status=unarchived.status)

    def _result(self, outcome: record.Outcome, **fields: Any) -> Result:
        attempts = None if outcome == "archived" else self._attempts
        return Result(
            outcome,
            files=tuple(self._files),
            source=self._source,
            findings=tuple(self._findings),
            attempts=attempts,
            **fields,
        )

    # --- sidecars

    def _sidecars(self, survey: Survey | None) -> None:
        document = dict(self.call.document)
        if isinstance(document.get("epaResults"), dict | list | None):
            document.pop("epaResults", None)  # anything else is no survey, and would be lost
        self._sidecar("transcript", document)
        if survey is not None:
            self._sidecar("epa", survey)

    def _sidecar(self, kind: str, document: Survey) -> None:
        try:
            data = canonical.dump(document)
        except FormatError:
            raise CallError("not representable as JSON", reason="bad_document") from None
        stored = self._put(self._key(f"{kind}.json"), data, JSON)
        self._files.append(_file(kind, stored, JSON))

    def _put(self, key: str, data: bytes | bytearray, content_type: str) -> Stored:
        """Create-once; where other bytes without a record have the key, beside it."""
        until = self.retain_until
        try:
            return self._store.put_once(key, data, content_type=content_type, retain_until=until)
        except KeyTaken:
            key = layout.beside(key, fixity.sha256_hex(data)[:16])
            return self._store.put_once(key, data, content_type=content_type, retain_until=until)

    def _key(self, name: str) -> str:
        return layout.recording_dir(self.day, self.call.id) + name

    # --- the recording

    def _recording(self) -> dict[str, Any]:
        """Stream the recording into the store; a refused URL or a broken download starts over."""
        transfer = self._transfer

        def once() -> dict[str, Any]:
            signed = transfer._source.recording_url(self.call.id)
            self._source["request_id"] = signed.request_id or self._source["request_id"]
            with metrics.stage("transfer"), transfer._recordings.open(signed.url) as recording:
                return self._stream(recording)

        def renewing() -> dict[str, Any]:
            try:
                return once()
            except Expired as error:
                metrics.SAS_RENEWALS.inc()
                raise CallError(
                    str(error), retryable=True, reason=error.reason, status=error.status
                ) from None

        return transfer._retry.call("transfer", renewing)

    def _stream(self, recording: Recording) -> dict[str, Any]:
        info = recording.info
        digests = fixity.Digests(info.content_md5)
        buffer = bytearray(min(self._transfer._part_bytes, info.length))
        view = memoryview(buffer)
        digests.update(view[: recording.readinto(view)])
        header = self._header(buffer, info)
        if info.length == len(buffer):
            _check_digests(digests)
            stored = self._put(self._key("recording.wav"), buffer, WAV)
        else:
            stored = self._multipart(recording, buffer, digests)
        self._read_back(stored)
        self._files.insert(0, _file("recording", stored, WAV))
        self._source |= {
            "content_md5": info.content_md5,
            "etag": info.etag,
            "last_modified": info.last_modified,
            "recording_host": info.host,
        }
        return self._audio(header, info.length)

    def _multipart(
        self, recording: Recording, buffer: bytearray, digests: fixity.Digests
    ) -> Stored:
        """Part by part through one buffer; `buffer` holds the first part already."""
        key = layout.beside(self._key("recording.wav"), self._transfer._tag())
        upload = self._store.begin(key, content_type=WAV, retain_until=self.retain_until)
        view = memoryview(buffer)
        try:
            upload.part(buffer)
            while digests.bytes < recording.info.length:
                count = recording.readinto(view)
                digests.update(view[:count])
                upload.part(buffer if count == len(buffer) else bytes(view[:count]))
            _check_digests(digests)
            return upload.complete(digests.sha256)
        except BaseException:
            upload.abort()
            raise

    def _header(self, first: bytearray, info: BlobInfo) -> wav.WavHeader:
        try:
            header = wav.parse_header(bytes(first[: wav.MAX_HEADER_BYTES]), complete=True)
        except FormatError:
            raise CallError("the blob is no WAV file", reason="not_wav", status=200) from None
        assert header is not None  # noqa: S101  (complete=True)
        if header.missing_bytes(info.length):
            raise CallError("the header promises more", reason="truncated", status=200)
        return header

    def _audio(self, header: wav.WavHeader, length: int) -> dict[str, Any]:
        seconds = header.duration_seconds(length)
        told = self.call.duration_seconds
        if header.data_bytes is None:
            self._findings.append("header_length_unknown")
        if header.riff_bytes is not None and length > header.riff_bytes + 1:
            self._findings.append("trailing_bytes")
        if told is not None and abs(seconds - told) > max(MISMATCH_SECONDS, MISMATCH_SHARE * told):
            self._findings.append("duration_mismatch")
        return {
            "bits_per_sample": header.bits_per_sample,
            "channels": header.channels,
            "duration_seconds": seconds,
            "encoding": header.encoding,
            "sample_rate_hz": header.sample_rate_hz,
        }

    def _read_back(self, stored: Stored) -> None:
        """Hash what the store gives back, where a HEAD proves too little."""
        if not self._store.read_back or stored.adopted:
            return
        with metrics.stage("verify"):
            digests = fixity.Digests()
            for chunk in self._store.stream(stored.key, stored.version_id) or ():
                digests.update(chunk)
        if digests.sha256 != stored.sha256:
            raise StoreError(f"{stored.key} reads back as other bytes: the store is unsafe")


def _check_digests(digests: fixity.Digests) -> None:
    if digests.md5_differs:
        raise CallError("other bytes than announced", retryable=True, reason="digest_mismatch")


def _file(kind: str, stored: Stored, content_type: str) -> File:
    return File(kind, stored.key, stored.size, stored.sha256, content_type, stored.version_id)


def _merged(survey: Survey | None, inline: object) -> Survey | None:
    """The survey of its own endpoint, and what only the call's inline copy has: nothing is lost."""
    if not isinstance(inline, dict | list) or not inline:
        return survey
    if isinstance(inline, dict) and isinstance(survey, dict):
        return {**inline, **survey}
    return inline if survey is None else survey


def _says_the_same(previous: Record, result: Result) -> bool:
    """Whether a new revision would tell nothing new: the same outcome, reason and files."""
    told = previous.document
    files = {(file["kind"], file["sha256"]) for file in told["files"]}
    return (previous.outcome, told["reason"], files) == (
        result.outcome,
        result.reason,
        {(file.kind, file.sha256) for file in result.files},
    )


def _retention_document(retention: Retention, until: datetime | None) -> dict[str, Any] | None:
    if until is None:
        return None
    return {"mode": retention.mode, "until": format_time(until)}
