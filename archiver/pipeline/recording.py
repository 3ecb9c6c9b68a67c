"""One recording: a signed URL's checked bytes into the bucket, hashed on the way."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import structlog

from archiver.core import checksums, wav
from archiver.core.errors import CallError, FormatError, KeyTaken, Reach, StoreError
from archiver.manifest import layout
from archiver.observability import metrics
from archiver.pipeline.ports import Store
from archiver.source.recordings import BlobInfo, ResumableDownload
from archiver.store.bucket import GIVEN_UP_AFTER
from archiver.store.types import Stored

log = structlog.get_logger()

WAV = "audio/wav"
PART_BYTES = 5 << 20
"""The least that S3 takes as a part. Each worker needs so much memory, whatever it moves."""
HASHED_BYTES = 256 << 10
"""So much is read and then hashed, while a core's cache still has it."""
REMEMBERED_UPLOADS = 1024
"""Uploads remembered whose calls have no record yet. Up to so many calls at a time whose records
the store refuses are uploaded once; of more, the oldest ones again."""


@dataclass(frozen=True)
class StoredRecording:
    """A recording that is in the bucket: where, what its header says, and where it came from."""

    stored: Stored
    header: wav.WavHeader
    info: BlobInfo

    def audio(self) -> tuple[dict[str, Any], list[str]]:
        """The `audio` of its record, and what is odd about the file."""
        header, length, findings = self.header, self.info.length, []
        if header.data_bytes is None:
            findings.append("header_length_unknown")
        if header.riff_bytes is not None and length > header.riff_bytes + 1:
            findings.append("trailing_bytes")
        audio = {
            "bits_per_sample": header.bits_per_sample,
            "channels": header.channels,
            "duration_seconds": header.duration_seconds(length),
            "encoding": header.encoding,
            "sample_rate_hz": header.sample_rate_hz,
        }
        return audio, findings


def random_tag() -> str:
    """16 hex digits that no other writer has."""
    return secrets.token_hex(8)


class RecordingWriter:
    """Streams recordings into the bucket. Threads share it."""

    def __init__(
        self,
        store: Store,
        part_bytes: int = PART_BYTES,
        tag: Callable[[], str] = random_tag,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._part_bytes = part_bytes
        self._tag = tag
        self._monotonic = monotonic
        self._buffers: list[bytearray] = []
        self._uploads: OrderedDict[str, tuple[StoredRecording, datetime | None]] = OrderedDict()
        """What this process uploaded in parts and no record names yet, by the key that was asked
        for, and until when it is locked."""
        self._lock = threading.Lock()

    def write(
        self, recording: ResumableDownload, key: str, retain_until: datetime | None, held: bool
    ) -> StoredRecording:
        """Store a recording under `key`, or beside it; `held` puts a legal hold on it.

        An upload in parts has a new key each time, and nothing is deleted. So the one that an
        earlier try made, before something else of the call failed, is used again while the source
        has the same blob and the lock is to be the same: else a call whose record the store refuses
        for ever would leave a whole recording with each try. `forget` it once a record names it.

        Raises `CallError` where the blob is not what was announced, `StoreError`, `Interrupted`.
        """
        info = recording.info
        in_parts = info.length > self._part_bytes
        done = self._uploaded_before(key, info, retain_until) if in_parts else None
        if done is None:
            with self._buffer(min(self._part_bytes, info.length)) as view:
                done = self._transfer(view, recording, key, retain_until, held)
        if in_parts:
            with self._lock:
                self._uploads[key] = done, retain_until
                self._uploads.move_to_end(key)
                if len(self._uploads) > REMEMBERED_UPLOADS:
                    self._uploads.popitem(last=False)
            if held:
                self._store.set_hold(done.stored.key, done.stored.version_id, True)
        self._read_back(done.stored)
        return done

    def forget(self, key: str) -> None:
        """The call has its record."""
        with self._lock:
            self._uploads.pop(key, None)

    def _uploaded_before(
        self, key: str, info: BlobInfo, retain_until: datetime | None
    ) -> StoredRecording | None:
        """The upload of an earlier try, if it is of this very blob and the store still has it."""
        with self._lock:
            done, until = self._uploads.get(key, (None, None))
        # Which of its hosts the source names says nothing of the blob.
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

    @contextmanager
    def _buffer(self, size: int) -> Iterator[memoryview]:
        """A buffer that is used again: the pages of a new one would cost as much as hashing."""
        buffer = self._buffers.pop() if self._buffers else bytearray()
        if len(buffer) < size:
            del buffer  # first, else both would take memory
            buffer = bytearray(size)
        try:
            yield memoryview(buffer)[:size]
        finally:
            self._buffers.append(buffer)

    def _transfer(
        self,
        view: memoryview,
        recording: ResumableDownload,
        key: str,
        retain_until: datetime | None,
        held: bool,
    ) -> StoredRecording:
        info = recording.info
        digests = checksums.Digests(info.content_md5)
        _fill(view, recording, digests)
        try:
            header = _header(view, info)
        except CallError:
            # Damage on the way says nothing of the source's blob: the announced digest tells.
            while info.content_md5 and digests.bytes < info.length:
                _fill(view, recording, digests)
            _check_announced(digests)
            raise
        if info.length == len(view):
            _check_announced(digests)
            stored = put_or_beside(
                self._store, key, view, WAV, retain_until, held, sha256=digests.sha256
            )
        else:
            stored = self._multipart(recording, view, digests, key, retain_until)
        return StoredRecording(stored, header, info)

    def _multipart(
        self,
        recording: ResumableDownload,
        view: memoryview,
        digests: checksums.Digests,
        key: str,
        retain_until: datetime | None,
    ) -> Stored:
        """Upload part by part through one buffer; `view` holds the first part already. An upload
        that takes longer than `GIVEN_UP_AFTER` is given up: other processes would take it for a
        dead process's, and abort it."""
        key = layout.beside(key, self._tag())
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
            return upload.complete(digests.sha256)
        except BaseException:
            upload.abort()
            raise

    def _read_back(self, stored: Stored) -> None:
        """Hash what the store gives back, where a HEAD proves too little."""
        if not self._store.read_back or stored.adopted:
            return
        with metrics.stage("verify"):
            digests = checksums.Digests()
            for chunk in self._store.stream(stored.key, stored.version_id) or ():
                digests.update(chunk)
        if digests.sha256 != stored.sha256:
            raise StoreError(f"{stored.key} reads back as other bytes: the store is unsafe")


def put_or_beside(
    store: Store,
    key: str,
    data: checksums.Buffer,
    content_type: str,
    retain_until: datetime | None,
    held: bool,
    *,
    sha256: str | None = None,
    verify: bool = True,
) -> Stored:
    """Create an object once; where other bytes have the key, beside it. See `Store.put_once`.

    The key beside is named by the content, and not at random: whoever tries again after a crash
    finds what is there and adopts it. That is safe, because it lies in the call's own directory and
    the same bytes are the same file. Where its 64 bits collide, or somebody has put other bytes
    there, a random name does as well.
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
    for at in (key, layout.beside(key, sha256[:16])):
        with suppress(KeyTaken):
            return put(at, data)
    return put(layout.beside(key, random_tag()), data)


def _fill(view: memoryview, recording: ResumableDownload, *digests: checksums.Digests) -> int:
    """Read on, and hash what has come while it is in the cache; how many bytes."""
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
    """Against the Content-MD5 that the blob store announced, if it did."""
    if digests.md5_differs:
        raise CallError("other bytes than announced", retryable=True, reason="digest_mismatch")
