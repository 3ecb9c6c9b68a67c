"""The one place where the parts are put together: settings in, plain values and ports out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources

import structlog

from archiver import liveness
from archiver.apiclient import lister, source
from archiver.clock import SystemClock
from archiver.errors import StoreError, UsageError
from archiver.manifest import layout
from archiver.manifest.seal import check_window_length
from archiver.manifest.signing import SigningKey
from archiver.pipeline.backfill import Backfill
from archiver.pipeline.clock_check import ClockCheck
from archiver.pipeline.genesis import found_archive
from archiver.pipeline.index import SegmentIndex
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import Progress
from archiver.pipeline.sealing import Chain
from archiver.pipeline.service import Schedule, Service, loop_start
from archiver.pipeline.transfer import Transfer
from archiver.pipeline.window import Windows
from archiver.pressure import Pressure
from archiver.settings import Settings
from archiver.source.client import VoiceCallsClient
from archiver.source.recording import RecordingClient, UrlNotAllowed
from archiver.source.signed import SignedUrl
from archiver.store.bucket import Bucket
from archiver.store.probe import Capabilities, probe
from archiver.store.upload import ORPHANED_AFTER
from archiver.tls import client_context
from archiver.wire import Wire
from archiver.writer import rely_on, retention, trust, writer

log = structlog.get_logger()


def recordings(settings: Settings, clock: SystemClock) -> RecordingClient:
    return RecordingClient(
        settings.recording_hosts,
        clock,
        Wire(client_context(), check=clock.check),
        allow_http=settings.allow_http,
        max_bytes=settings.max_recording_bytes,
        min_bytes_per_second=settings.min_rate,
    )


@dataclass
class App:
    """Everything that writes, wired."""

    settings: Settings
    clock: SystemClock
    key: SigningKey
    source: VoiceCallsClient
    recordings: RecordingClient
    bucket: Bucket
    chain: Chain
    segments: SegmentIndex
    windows: Windows
    transfer: Transfer

    def preflight(self) -> None:
        """Ask source and store for access, before anything is written.

        Raises `SourceRefused`, `SourceError` or `StoreError`, each saying what to do.
        """
        check_hosts(self.source.check_access(), self.recordings)
        self.bucket.check_access()

    def ensure_archive(self, *, single_writer: bool = False) -> bool:
        """Open the archive, or begin one; True where it was begun."""
        settings = self.settings
        if self.chain.open():
            check_window_length(self.chain.genesis(), settings.window)
            found = trust(self.bucket, self.chain, single_writer=single_writer)
            self._read_back(found)
            self._abort_orphans()
            return False
        if settings.start is not None and settings.start > self.clock.now():
            raise UsageError("ARCHIVER_START lies in the future: the loop would do nothing")
        found = probe(self.bucket)
        rely_on(found, self.bucket, self.chain, single_writer=single_writer)
        self._read_back(found)
        seconds = int(settings.window.total_seconds())
        return found_archive(
            self.chain,
            self.bucket,
            self.key.public,
            self.clock,
            capabilities={**found.document(), "window_seconds": seconds},
            pages=_verifier_pages(),
            watermark=loop_start(settings.start, self.clock.now(), settings.window),
            retention=retention(settings),
        )

    def _read_back(self, found: Capabilities) -> None:
        wanted = {"full": True, "head": False, "auto": not found.checksums}
        self.bucket.read_back = wanted[self.settings.verify_writes]
        self.bucket.believed = self.settings.verify_writes == "auto" and found.whole_checksums

    def _abort_orphans(self) -> None:
        """Uploads of a process that was killed take room, and are paid for, until they are."""
        before = self.clock.now() - ORPHANED_AFTER
        try:
            # Nothing else is uploaded in parts; others may use the bucket too.
            prefixes = (layout.RECORDINGS, layout.PROBE)
            count = sum(self.bucket.abort_uploads(prefix, before) for prefix in prefixes)
        except StoreError as error:
            if error.reason != "not_implemented":
                log.warning("uploads.unknown", error=str(error))
            return
        if count:
            log.info("uploads.aborted", count=count)

    def backfill(self, progress: Progress | None) -> Backfill:
        return Backfill(self.windows, self.chain, self.segments, progress)

    def is_alive(self) -> bool:
        """What `/healthz` says: this process comes on. Whether rounds succeed is no part of it: a
        source or a store that is out is not mended by a restart (`liveness.py`).

        No wait of ours is longer than the default limit of 5 minutes without a note in between:
        a request over `wire.py` looks each second (and gives up after 30 s of silence at the
        source, 60 s at the store, 120 s in all); a connection is tried for 10 s for each address
        of the host; botocore asks its own way with 10 s and 60 s; a pause naps for 0.2 s.
        """
        return liveness.idle_seconds() < self.settings.liveness_timeout.total_seconds()

    def service(self) -> Service:
        settings = self.settings
        schedule = Schedule(
            window=settings.window,
            settle=settings.settle,
            give_up=settings.give_up,
            poll_interval_seconds=settings.poll_interval.total_seconds(),
            relist=settings.relist,
        )
        return Service(self.windows, self.chain, self.segments, self.clock, schedule)


def _verifier_pages() -> dict[str, bytes]:
    """What an auditor without our software needs, by key."""
    package = resources.files("archiver.audit")
    names = {layout.VERIFY_PAGE: "VERIFY.md", layout.VERIFY_SCRIPT: "verify.sh"}
    return {key: package.joinpath(name).read_bytes() for key, name in names.items()}


@contextmanager
def open_app(
    settings: Settings, clock: SystemClock, progress: Progress | None = None
) -> Iterator[App]:
    """Put the parts together; on leaving, workers end and connections close."""
    key = settings.signing_key()
    pressure = Pressure(settings.workers, clock)
    api = source(settings, clock, pressure)
    blobs = recordings(settings, clock)
    bucket = writer(settings, clock, pressure)
    keep = retention(settings)
    segments = SegmentIndex(bucket)
    workers = Workers(settings.workers, pressure)
    transfer = Transfer(
        api,
        blobs,
        bucket,
        clock,
        retention=keep,
        give_up=settings.give_up,
        first_rest_seconds=settings.poll_interval.total_seconds(),
        pressure=pressure,
    )
    windows = Windows(
        lister(settings, api, clock),
        transfer,
        bucket,
        workers,
        clock,
        segments=segments,
        retention=keep,
        settle=settings.settle,
        relist=settings.relist,
        progress=progress,
        clock_check=ClockCheck(api.latest_clock_skew_seconds, bucket.latest_clock_skew_seconds),
    )
    chain = Chain(bucket, key, clock, keep)
    try:
        yield App(settings, clock, key, api, blobs, bucket, chain, segments, windows, transfer)
    finally:
        workers.close()
        api.close()
        blobs.close()


def check_hosts(urls: Sequence[SignedUrl], blobs: RecordingClient) -> None:
    """Look at the hosts of a few recordings of the source's, before work begins.

    Raises `UsageError` where all lie on the same host that is not allowed: otherwise each call of
    an old range would be given up for one wrong setting. Where only some URLs are refused, or they
    are malformed, that is the matter of their calls.
    """
    refused = []
    for signed in urls:
        try:
            blobs.check_url(signed.url)
        except UrlNotAllowed as error:
            refused.append(error)
    if not refused:
        return
    hosts = {error.host for error in refused}
    host = hosts.pop() if len(hosts) == 1 else None
    if len(refused) < len(urls) or host is None:
        reasons = sorted({str(error) for error in refused})
        log.warning("source.urls_not_allowed", count=len(refused), asked=len(urls), why=reasons)
        return
    if any(error.names_other_host for error in refused):
        raise UsageError(
            f"ARCHIVER_RECORDING_HOSTS: the source's recordings lie on {host}, which is not in it"
        )
    raise UsageError(
        f"ARCHIVER_ALLOW_HTTP: the recording URLs on {host} are plain http, which is refused"
    )
