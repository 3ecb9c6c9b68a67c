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

from archiver.core import checksums, wav
from archiver.core.errors import CallError, FormatError, KeyTaken, Reach, StoreError
from archiver.manifest import layout
from archiver.observability import metrics
from archiver.source.recordings import BlobInfo, ResumableDownload
from archiver.store.bucket import GIVEN_UP_AFTER, Bucket
from archiver.store.types import Stored

log = structlog.get_logger()

WAV = "audio/wav"
PART_BYTES = 5 << 20
"""The smallest part that S3 accepts. Each worker keeps one buffer of this size."""
HASHED_BYTES = 256 << 10
"""How much is read before it is hashed: it fits into a core's cache."""
REMEMBERED_UPLOADS = 1024
"""Uploads of calls without a record that are remembered. If the store refuses the records of more
calls than this, their recordings are uploaded again at each try."""


@dataclass(frozen=True)
class StoredRecording:
    """A recording in the bucket: its key, its header, and its source."""

    stored: Stored
    header: wav.WavHeader
    info: BlobInfo

    def audio(self) -> tuple[dict[str, Any], set[str]]:
        """The `audio` field of its record, and the findings about the file."""
        header, length, findings = self.header, self.info.length, set[str]()
        if header.data_bytes is None:
            findings.add("header_length_unknown")
        if header.riff_bytes is not None and length > header.riff_bytes + 1:
            findings.add("trailing_bytes")
        audio = {
            "bits_per_sample": header.bits_per_sample,
            "channels": header.channels,
            "duration_seconds": header.duration_seconds(length),
            "encoding": header.encoding,
            "sample_rate_hz": header.sample_rate_hz,
        }
        return audio, findings


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
        self, recording: ResumableDownload, key: str, retain_until: datetime | None, held: bool
    ) -> StoredRecording:
        """Store a recording under `key` or its alternative key; `held` puts a legal hold on it.

        1. Reuse the upload of an earlier try, if it is of the same blob.
        2. Read the first part, or the whole of a short recording, and check that it is a WAV file.
        3. Write a short recording with one PUT, a longer one part by part, hashing on the way.
        4. Read it back and hash it, if a HEAD proves too little.

        Raises `CallError` if the blob is not as announced, `StoreError`, `Interrupted`.
        """
        info = recording.info
        # 1. An upload in parts has a new key each time, and nothing is deleted. Without reuse, a
        #    call whose record is always refused would leave a whole recording per try.
        in_parts = info.length > self._part_bytes
        done = self._uploaded_before(key, info, retain_until) if in_parts else None
        if done is None:
            # 2.
            view = self._buffer(min(self._part_bytes, info.length))
            digests = checksums.Digests(info.content_md5)
            _fill(view, recording, digests)
            try:
                header = _header(view, info)
            except CallError:
                # Damage on the way must not be recorded as a fault of the source's blob. The
                # announced digest tells them apart.
                while info.content_md5 and digests.bytes < info.length:
                    _fill(view, recording, digests)
                _check_announced(digests)
                raise
            # 3. A crash after this leaves a recording that no record names. The next try adopts a
            #    short one; a long one stays as an orphan.
            if in_parts:
                stored = self._upload(recording, view, digests, key, retain_until)
            else:
                _check_announced(digests)
                stored = put_or_beside(
                    self._store, key, view, WAV, retain_until, held, sha256=digests.sha256
                )
            done = StoredRecording(stored, header, info)
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
        retain_until: datetime | None,
    ) -> Stored:
        """Upload part by part through one buffer; `view` already has the first part. An upload that
        takes longer than `GIVEN_UP_AFTER` is given up: other processes would treat it as orphaned
        and abort it."""
        # Some stores ignore `If-None-Match` on CompleteMultipartUpload, so the key must be unique.
        key = layout.alternative_key(key, self._tag())
        end = self._monotonic() + GIVEN_UP_AFTER.total_seconds()
        upload = self._store.begin(key, content_type=WAV, retain_until=retain_until)
        try:
            upload.part(view, digests.sha256)  # so far the part is the whole
            while digests.bytes < recording.info.length:
                own = checksums.Digests()
                count = _fill(view, recording, digests, own)
                if self._monotonic() > end:
                    raise CallError("the upload takes too long", reason="too_slow")
                upload.part(view[:count], own.sha256)
            _check_announced(digests)
            # A crash before this leaves an orphaned upload, which a later start aborts.
            return upload.complete(digests.sha256)
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


def _header(first: memoryview, info: BlobInfo) -> wav.WavHeader:
    try:
        header = wav.parse_header(first[: wav.MAX_HEADER_BYTES], complete=True)
    except FormatError:
        raise CallError("the blob is no WAV file", reason="not_wav", status=200) from None
    assert header is not None  # noqa: S101  (complete=True)
    if header.missing_bytes(info.length):
        raise CallError("the header promises more", reason="truncated", status=200)
    return header


def _check_announced(digests: checksums.Digests) -> None:
    """Raise `CallError` if the bytes differ from the Content-MD5 that was announced, if any."""
    if digests.md5_differs:
        raise CallError("other bytes than announced", retryable=True, reason="digest_mismatch")
