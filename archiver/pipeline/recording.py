"""Streams one recording from its signed URL into the bucket, and hashes it on the way."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import structlog

from archiver.core import checksums
from archiver.core.audio import AudioFile, is_error_page, recognise
from archiver.core.errors import CallError, KeyTaken, Reach, StoreError
from archiver.manifest import layout
from archiver.observability import metrics
from archiver.source.recordings import BlobInfo, ResumableDownload
from archiver.store.bucket import GIVEN_UP_AFTER, Bucket
from archiver.store.types import Stored

log = structlog.get_logger()

PART_BYTES = 5 << 20
"""The smallest part that S3 accepts. Each worker keeps one buffer of this size."""
HASHED_BYTES = 256 << 10
"""How much is read before it is hashed: it fits into a core's cache."""
REMEMBERED_UPLOADS = 1024
"""Uploads of calls without a record that are remembered. If the store refuses the records of more
calls than this, their recordings are uploaded again at each try."""

_OF_NO_END = {"duration_uncertain", "not_wav"}
"""The findings about a WAV file which do not tell against its end as its header says it."""
_PERHAPS_UNFINISHED = {"audio_empty", "audio_unreadable", "header_length_mismatch"}
"""Findings that a recording has also while the platform is still writing it."""


@dataclass(frozen=True)
class StoredRecording:
    """A recording in the bucket: its key, what it is, and its source."""

    stored: Stored
    file: AudioFile
    info: BlobInfo
    encoded: dict[str, Any] | None = None
    """What came, if it was decoded: `content_encoding`, `bytes`, `sha256`."""
    transfer_findings: frozenset[str] = frozenset()
    """Findings about how it came."""

    def audio(self) -> tuple[dict[str, Any], set[str]]:
        """The `audio` field of its record, and the findings about the recording."""
        audio, findings = self.file.describe(self.stored.size)
        return audio, findings | self.transfer_findings

    def source(self) -> dict[str, Any]:
        """Its part of the `source` field of its record."""
        found: dict[str, Any] = {
            "content_md5": self.info.content_md5,
            "etag": self.info.etag,
            "last_modified": self.info.last_modified,
            "recording_host": self.info.host,
        }
        return found if self.encoded is None else {**found, "encoded": self.encoded}


def random_tag() -> str:
    """16 random hex digits, unique among writers."""
    return secrets.token_hex(8)


class RecordingWriter:
    """Streams recordings into the bucket. Thread-safe."""

    def __init__(
        self,
        store: Bucket,
        part_bytes: int = PART_BYTES,
        tag: Callable[[], str] = random_tag,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._part_bytes = part_bytes
        self._tag = tag
        self._monotonic = monotonic
        self._local = threading.local()
        self._uploads: OrderedDict[str, tuple[StoredRecording, datetime | None]] = OrderedDict()
        """Multipart uploads of this process that no record names yet: requested key → the
        recording, and its lock date."""
        self._mutex = threading.Lock()

    def write(
        self,
        recording: ResumableDownload,
        key: str,
        retain_until: datetime | None,
        held: bool,
        earlier: set[str],
        *,
        is_settled: bool,
    ) -> StoredRecording:
        """Store a recording under `key` or its alternative key, with the extension of what it is;
        `held` puts a legal hold on it.

        1. Reuse the upload of an earlier try, if it is of the same blob.
        2. Read the first part, or the whole of a short recording, and tell by it what it is. Only
           an error page is refused; whatever else has come whole is kept. Until the window
           `is_settled`, what may not be finished yet is refused too.
        3. Write a short recording with one PUT, a longer one part by part, hashing on the way.
        4. Read it back and hash it, if a HEAD proves too little.

        Raises `CallError` if the blob is not as announced, `StoreError`, `Interrupted`. `earlier`
        has the digests of the downloads before this one, and gets that of this one: what comes
        twice with the same bytes was not damaged on the way.
        """
        info = recording.info
        # 1. An upload in parts has a new key each time, and nothing is deleted. Without reuse, a
        #    call whose record is always refused would leave a whole recording per try.
        in_parts = info.size is None or info.size > self._part_bytes
        done = self._uploaded_before(key, info, retain_until) if in_parts else None
        if done is None:
            # 2.
            view = self._buffer(min(self._part_bytes, info.size or self._part_bytes))
            digests = checksums.Digests(None if recording.received else info.content_md5)
            view = view[: _fill(view, recording, digests)]
            in_parts = in_parts and len(view) == self._part_bytes
            file = recognise(view)
            check = partial(_check_end, recording, digests, file, earlier, is_settled=is_settled)
            if is_error_page(view, is_whole=not in_parts):
                # Damage on the way must not be recorded as a fault of the source's blob. The
                # announced digest tells them apart.
                while info.content_md5 and _fill(
                    self._buffer(self._part_bytes), recording, digests
                ):
                    pass
                check(is_settled=True)
                raise CallError("the blob is an error page", reason="not_wav", status=200)
            if info.size is not None and not is_settled:
                _check_is_finished(file, info.size)  # before the rest is downloaded
            own_key = layout.with_extension(key, file.type.extension)
            content_type = file.type.content_type
            # 3. A crash after this leaves a recording that no record names. The next try adopts a
            #    short one; a long one stays as an orphan.
            if in_parts:
                stored, findings = self._upload(
                    recording, view, digests, own_key, content_type, retain_until, check
                )
            else:
                findings = check()
                stored = put_or_beside(
                    self._store,
                    own_key,
                    view,
                    content_type,
                    retain_until,
                    held,
                    sha256=digests.sha256,
                )
            done = StoredRecording(stored, file, info, _encoded(recording), findings)
        if in_parts:
            with self._mutex:
                self._uploads[key] = done, retain_until
                self._uploads.move_to_end(key)
                if len(self._uploads) > REMEMBERED_UPLOADS:
                    self._uploads.popitem(last=False)
            if held:
                self._store.set_hold(done.stored.key, done.stored.version_id, True)
        # 4.
        if self._store.read_back and not done.stored.adopted:
            self._read_back(done.stored)
        return done

    def forget(self, key: str) -> None:
        """Do not reuse the upload for this key: a record names it now."""
        with self._mutex:
            self._uploads.pop(key, None)

    def _uploaded_before(
        self, key: str, info: BlobInfo, retain_until: datetime | None
    ) -> StoredRecording | None:
        """The upload of an earlier try, if blob and lock date are the same and the store still has
        it."""
        with self._mutex:
            done, until = self._uploads.get(key, (None, None))
        # The source may name another of its hosts for the same blob.
        if done is None or until != retain_until or replace(done.info, host=info.host) != info:
            return None
        if info.size is None and info.etag is None:
            return None  # nothing tells two blobs apart
        try:
            head = self._store.head(done.stored.key, done.stored.version_id)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            return None
        if head is None or head.size != done.stored.size:
            return None
        log.info("recording.upload_reused", key=done.stored.key)
        return done

    def _buffer(self, size: int) -> memoryview:
        """This thread's buffer. Page faults of a new one take as long as hashing."""
        if len(getattr(self._local, "buffer", b"")) < size:
            self._local.buffer = None  # free the old one before allocating the new one
            self._local.buffer = bytearray(size)
        return memoryview(self._local.buffer)[:size]

    def _upload(
        self,
        recording: ResumableDownload,
        view: memoryview,
        digests: checksums.Digests,
        key: str,
        content_type: str,
        retain_until: datetime | None,
        check: Callable[[], frozenset[str]],
    ) -> tuple[Stored, frozenset[str]]:
        """Upload part by part through one buffer; `view` already has the first part. Returns what
        `check` finds before the upload is completed. An upload that takes longer than
        `GIVEN_UP_AFTER` is given up: other processes would treat it as orphaned and abort it."""
        # Some stores ignore `If-None-Match` on CompleteMultipartUpload, so the key must be unique.
        key = layout.alternative_key(key, self._tag())
        end = self._monotonic() + GIVEN_UP_AFTER.total_seconds()
        upload = self._store.begin(key, content_type=content_type, retain_until=retain_until)
        try:
            upload.part(view, digests.sha256)  # so far the part is the whole
            own = checksums.Digests()
            while count := _fill(view, recording, digests, own):
                if self._monotonic() > end:
                    raise CallError("the upload takes too long", reason="too_slow")
                upload.part(view[:count], own.sha256)
                own = checksums.Digests()
            findings = check()
            # A crash before this leaves an orphaned upload, which a later start aborts.
            return upload.complete(digests.sha256), findings
        except BaseException:
            upload.abort()
            raise

    def _read_back(self, stored: Stored) -> None:
        """Raise `StoreError` if the store returns other bytes."""
        with metrics.stage("verify"):
            digests = checksums.Digests()
            for chunk in self._store.stream(stored.key, stored.version_id) or ():
                digests.update(chunk)
        if digests.sha256 != stored.sha256:
            raise StoreError(f"{stored.key} reads back as other bytes: the store is unsafe")


def put_or_beside(
    store: Bucket,
    key: str,
    data: checksums.Buffer,
    content_type: str,
    retain_until: datetime | None,
    held: bool,
    *,
    sha256: str | None = None,
    verify: bool = True,
) -> Stored:
    """Create an object once; if its key has other bytes, use an alternative key. See
    `Bucket.put_once`.

    The alternative key is derived from the content, so a retry after a crash finds the object and
    adopts it. That is safe: the key lies in the call's own directory, and the same bytes are the
    same file. If that key has other bytes too (a collision of 64 bits, or somebody's doing), the
    name is random.
    """
    sha256 = sha256 or checksums.sha256_hex(data)
    put = partial(
        store.put_once,
        content_type=content_type,
        retain_until=retain_until,
        held=held,
        sha256=sha256,
        verify=verify,
    )
    for at in (key, layout.alternative_key(key, sha256[:16])):
        with suppress(KeyTaken):
            return put(at, data)
    return put(layout.alternative_key(key, random_tag()), data)


def _fill(view: memoryview, recording: ResumableDownload, *digests: checksums.Digests) -> int:
    """Read until `view` is full or the recording ends, and hash each piece while it is in the
    cache. Returns the number of bytes."""
    filled = 0
    while filled < len(view):
        count = recording.readinto(view[filled : filled + HASHED_BYTES])
        if not count:
            break
        for each in digests:
            each.update(view[filled : filled + count])
        filled += count
    return filled


def _check_end(
    recording: ResumableDownload,
    digests: checksums.Digests,
    file: AudioFile,
    earlier: set[str],
    *,
    is_settled: bool,
) -> frozenset[str]:
    """Return the findings about how a recording came, once it has come. `digests` are those of its
    bytes; `earlier` and `is_settled` are as in `RecordingWriter.write`.

    1. Its end is certain by its Content-Length, its coding, its Content-MD5, or its header.
    2. If not, it must have come in chunks, because a body that only the connection's end delimits
       looks whole wherever it breaks off.
    3. A wrong Content-MD5, or a header that announces more than came in chunks, may be damage on
       the way. The same bytes again are the blob's own.
    4. What is empty, or may not be finished yet, is refused.

    Raises `CallError`.
    """
    info, received = recording.info, recording.received or digests
    _, about_file = file.describe(digests.bytes)
    # A gzip file cut between two members ends as its coding says.
    by_coding = (
        recording.coding is not None
        and received.bytes > 0
        and "header_length_mismatch" not in about_file
    )
    by_header = file.header is not None and not about_file - _OF_NO_END
    has_md5 = info.content_md5 is not None and not received.md5_differs
    is_whole = info.length is not None or by_coding or by_header or has_md5  # 1
    if not (is_whole or info.is_chunked):  # 2
        text = "nothing says whether this is the whole blob"
        raise CallError(text, retryable=True, reason="bad_response", status=200)
    is_known = received.sha256 in earlier
    earlier.add(received.sha256)
    if received.md5_differs and not is_known:  # 3
        raise CallError("other bytes than announced", retryable=True, reason="digest_mismatch")
    if not is_whole and not is_known and "header_length_mismatch" in about_file:
        text = "the sizes in the header do not agree with what came in chunks"
        raise CallError(text, retryable=True, reason="truncated", status=200)
    if not digests.bytes:  # 4
        raise CallError("the blob is empty", reason="recording_empty", status=200)
    if not is_settled:
        _check_is_finished(file, digests.bytes)
    findings = {
        "length_unconfirmed": not is_whole,
        "md5_mismatch": received.md5_differs,
        "undecodable": recording.is_undecodable,
    }
    return frozenset(code for code, is_found in findings.items() if is_found)


def _check_is_finished(file: AudioFile, file_bytes: int) -> None:
    """Raise `CallError` if the platform may not have finished this recording yet."""
    if found := _PERHAPS_UNFINISHED & file.describe(file_bytes)[1]:
        text = f"the recording may not be finished yet ({min(found)})"
        raise CallError(text, reason="truncated", status=200)


def _encoded(recording: ResumableDownload) -> dict[str, Any] | None:
    """What came, if it was decoded."""
    received = recording.received
    if received is None or recording.coding is None:
        return None
    return {
        "bytes": received.bytes,
        "content_encoding": recording.coding,
        "sha256": received.sha256,
    }
