"""A recording read to its end, over as many connections as it takes.

A download that breaks goes on where it was: the same blob (`If-Match` on its ETag) from the next
byte on, with a fresh signed URL where the old one was refused, or has less life left than the rest
will take. Where that cannot be (the blob changed, or has no strong ETag), the `CallError` is
retryable: start over. Any other is final, for its own tries are behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from archiver.clock import Clock
from archiver.errors import CallError, NoRecording
from archiver.metrics import RETRIES, SAS_RENEWALS
from archiver.pressure import Pressure
from archiver.retry import Retry
from archiver.source.recording import READ_BYTES, BlobInfo, Expired, StartOver
from archiver.source.signed import SignedUrl

TRIES = 4
"""Connections in a row that bring next to nothing before a recording is given up for now."""


class Stream(Protocol):
    """One connection to a blob: `at` is the next byte."""

    info: BlobInfo
    at: int

    def readinto(self, buffer: memoryview) -> int: ...

    def close(self) -> None: ...


class Blobs(Protocol):
    """Who opens connections, and says how long a recording may take."""

    def connect(self, url: str, known: BlobInfo | None = ..., at: int = ...) -> Stream: ...

    def deadline_seconds(self, length: int) -> float: ...


class Resumed:
    """A recording as one stream. One thread uses it, and closes it."""

    def __init__(
        self,
        blobs: Blobs,
        renew: Callable[[], SignedUrl],
        clock: Clock,
        pressure: Pressure | None = None,
    ) -> None:
        """Open the recording, with a URL that `renew` gives.

        Raises what `renew` raises, `CallError`, and `Interrupted`.
        """
        self._blobs = blobs
        self._renew = renew
        self._clock = clock
        self._retry = Retry(clock, attempts=TRIES, pressure=pressure)
        self._signed: SignedUrl | None = None
        self._had_one = False
        self._broke = "truncated"
        self._known: BlobInfo | None = None
        self._stream: Stream | None = None
        self._at = 0
        self._opened_at = 0
        self._seconds = 0.0
        self._step(self._open)

    @property
    def info(self) -> BlobInfo:
        assert self._known is not None  # noqa: S101  (set by __init__)
        return self._known

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as the recording goes; fewer bytes only at its end.

        Raises as `__init__`.
        """
        start, wanted = self._at, min(len(buffer), self.info.length - self._at)
        while self._at - start < wanted:
            self._step(lambda: self._fill(buffer[self._at - start : wanted]))
        return wanted

    def _step(self, step: Callable[[], object]) -> None:
        """Take a step, and again while that may help. Time counts only while we wait for the
        source: what the store takes is not its fault."""
        began = self._clock.monotonic()
        try:
            self._retry.call("transfer", step)
        except CallError as error:
            error.retryable = isinstance(error, StartOver)
            raise
        finally:
            self._seconds += self._clock.monotonic() - began

    def _fill(self, view: memoryview) -> None:
        """Read on until `view` is full or the connection breaks. That it broke is an error only
        where it brought next to nothing: a recording may take any number of connections."""
        stream = self._open()
        try:
            stream.readinto(view)
        except CallError as error:
            self._at, self._broke = stream.at, error.reason
            self.close()
            if not error.retryable or self._at - self._opened_at < READ_BYTES:
                raise
            RETRIES.labels("transfer", error.reason).inc()
        self._at = stream.at

    def _open(self) -> Stream:
        """The connection that is open, or a new one that goes on where the last one ended."""
        if self._stream is None:
            self._check_it_can_go_on()
            self._signed = self._usable() or self._fresh()
            try:
                self._stream = self._blobs.connect(self._signed.url, self._known, self._at)
            except Expired:
                self._signed = None
                raise
            self._known = self._known or self._stream.info
            self._opened_at = self._at
        return self._stream

    def _check_it_can_go_on(self) -> None:
        if self._known is None or not self._at:
            return
        if not self._known.can_be_resumed:
            raise StartOver("no ETag says how to go on", reason=self._broke)
        if self._seconds > self._blobs.deadline_seconds(self._known.length):
            raise CallError(
                "the download takes longer than ARCHIVER_MIN_RATE allows", reason="too_slow"
            )

    def _usable(self) -> SignedUrl | None:
        """The URL at hand, if it lives as long as the rest takes at the pace so far."""
        if self._signed is None or self._signed.expires_at is None:
            return self._signed
        left = (self._signed.expires_at - self._clock.now()).total_seconds()
        rest = (self.info.length - self._at) * self._seconds / self._at if self._at else 0.0
        return self._signed if left > rest else None

    def _fresh(self) -> SignedUrl:
        if self._had_one:
            SAS_RENEWALS.inc()
        try:
            signed = self._renew()
        except NoRecording as error:
            if not self._at:
                raise
            raise CallError(
                "the source has lost it meanwhile", reason="recording_missing", status=error.status
            ) from None
        self._had_one = True
        return signed
