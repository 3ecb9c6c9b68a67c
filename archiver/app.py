"""The one place where the parts are put together: settings in, plain values and ports out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from urllib.parse import urlsplit

from archiver.apiclient import lister, source
from archiver.clock import SystemClock
from archiver.errors import CallError, SourceError, StoreError, UsageError
from archiver.manifest import layout
from archiver.manifest.signing import SigningKey
from archiver.model import Retention
from archiver.pipeline.backfill import Backfill
from archiver.pipeline.genesis import found_archive
from archiver.pipeline.index import SegmentIndex
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import Progress
from archiver.pipeline.sealing import Chain
from archiver.pipeline.service import Heartbeat, Schedule, Service, loop_start
from archiver.pipeline.transfer import Transfer
from archiver.pipeline.window import Windows
from archiver.readonly import store_options
from archiver.retry import Retry
from archiver.settings import Settings
from archiver.source.client import SignedUrl, VoiceCallsClient
from archiver.source.recording import RecordingClient
from archiver.store.bucket import Bucket
from archiver.store.probe import probe, require_safe
from archiver.tls import client_context

MAX_SKEW_SECONDS = 60
"""A clock further off than this makes signatures and retention dates wrong."""


def writer(settings: Settings, clock: SystemClock) -> Bucket:
    """The bucket with all that is passed on each write."""
    mode = settings.object_lock_mode
    options = replace(
        store_options(settings),
        lock_mode=None if mode == "none" else mode,
        sse=settings.sse,
        sse_kms_key_id=settings.sse_kms_key_id,
        storage_class=settings.storage_class,
    )
    return Bucket(options, clock, Retry(clock))


def retention(settings: Settings) -> Retention:
    if settings.object_lock_mode == "none":
        return Retention()
    return Retention(settings.object_lock_mode, settings.retention_days or 0)


def recordings(settings: Settings, clock: SystemClock) -> RecordingClient:
    return RecordingClient(
        settings.recording_hosts,
        clock,
        tls=client_context(),
        allow_http=settings.allow_http,
        max_bytes=settings.max_recording_bytes,
        min_bytes_per_second=settings.min_rate,
        connections=settings.workers,
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
        _check_hosts(self.source.check_access(), self.recordings)
        self.bucket.check_access()

    def ensure_archive(self, *, single_writer: bool = False) -> bool:
        """Open the archive, or begin one; True where it was begun."""
        settings = self.settings
        opened = self.chain.open()
        if opened:
            self._check_window()
        elif settings.start is not None and settings.start > self.clock.now():
            raise UsageError("ARCHIVER_START lies in the future: the loop would do nothing")
        found = probe(self.bucket)
        require_safe(found.create_once, single_writer=single_writer)
        self.bucket.create_once = found.create_once
        self.bucket.read_back = {"full": True, "head": False, "auto": not found.checksums}[
            settings.verify_writes
        ]
        if opened:
            return False
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

    def _check_window(self) -> None:
        """Windows of two lengths in one archive would overlap: its first length is its length."""
        store = self.chain.genesis().document.get("store")
        told = store.get("window_seconds") if isinstance(store, dict) else None
        if isinstance(told, int) and told != self.settings.window.total_seconds():
            raise UsageError(
                f"ARCHIVER_WINDOW: this archive has windows of {told // 60}m, and keeps them: "
                f"set ARCHIVER_WINDOW={told // 60}m"
            )

    def backfill(self, progress: Progress | None) -> Backfill:
        return Backfill(self.windows, self.chain, self.segments, progress)

    def is_alive(self, heartbeat: Heartbeat) -> bool:
        """What `/healthz` says: a round or a window was done lately, or a call is on its way and
        its bytes go on coming. A loop whose rounds keep failing is not alive."""
        patience = max(300.0, 5 * self.settings.poll_interval.total_seconds())
        moving = self.transfer.in_flight > 0 and self.clock.idle_seconds < patience
        return moving or heartbeat.age_seconds < patience

    def service(self, heartbeat: Heartbeat) -> Service:
        settings = self.settings
        schedule = Schedule(
            window=settings.window,
            settle=settings.settle,
            give_up=settings.give_up,
            poll_interval_seconds=settings.poll_interval.total_seconds(),
            relist=settings.relist,
        )
        return Service(self.windows, self.chain, self.segments, self.clock, schedule, heartbeat)


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
    api = source(settings, clock)
    blobs = recordings(settings, clock)
    bucket = writer(settings, clock)
    keep = retention(settings)
    segments = SegmentIndex(bucket)
    workers = Workers(settings.workers)
    transfer = Transfer(
        api,
        blobs,
        bucket,
        clock,
        retention=keep,
        give_up=settings.give_up,
        first_rest_seconds=settings.poll_interval.total_seconds(),
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
        give_up=settings.give_up,
        progress=progress,
    )
    chain = Chain(bucket, key, clock, keep)
    try:
        yield App(settings, clock, key, api, blobs, bucket, chain, segments, windows, transfer)
    finally:
        workers.close()
        api.close()
        blobs.close()


def _check_hosts(signed: SignedUrl | None, blobs: RecordingClient) -> None:
    """Raises `UsageError` where a recording of the source's lies on a host that is not allowed:
    otherwise each call of an old range would be given up for one wrong setting."""
    if signed is None:
        return
    try:
        blobs.check_url(signed.url)
    except CallError:
        host = urlsplit(signed.url).netloc.rpartition("@")[2]
        shown = host if host.isascii() and host.isprintable() else "an odd host"
        raise UsageError(
            f"ARCHIVER_RECORDING_HOSTS: the source's recordings lie on {shown}, which is not in it"
            " (or their URLs are not https)"
        ) from None


@dataclass(frozen=True)
class CheckLine:
    """One line of `archiver check`; `exit_code` is 0 where it holds."""

    name: str
    detail: str
    exit_code: int = 0

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


def check(settings: Settings, clock: SystemClock) -> list[CheckLine]:
    """The preflight, line by line; a part that cannot be reached is one failed line."""
    key = settings.signing_key()
    lines = [
        CheckLine("settings", "complete"),
        CheckLine("signing key", f"Ed25519, key id {key.public.key_id}"),
    ]
    try:
        lines += _check_source(settings, clock)
    except (SourceError, UsageError) as error:
        lines.append(CheckLine("source", str(error), error.exit_code))
    try:
        # The store is tried out by writing: not before all else holds.
        lines += _check_store(settings, clock, try_out=all(line.ok for line in lines))
    except StoreError as error:
        lines.append(CheckLine("store", str(error), error.exit_code))
    return lines


def _check_source(settings: Settings, clock: SystemClock) -> list[CheckLine]:
    api, blobs = source(settings, clock), recordings(settings, clock)
    try:
        _check_hosts(api.check_access(), blobs)
        skew = api.clock_skew_seconds()
    finally:
        api.close()
        blobs.close()
    lines = [CheckLine("source", "reachable; scopes voice:read and audio:download")]
    if skew is not None:
        told = f"the source's is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} ours"
        late = abs(skew) > MAX_SKEW_SECONDS
        lines.append(CheckLine("clock", told, SourceError.exit_code if late else 0))
    return lines


def _check_store(settings: Settings, clock: SystemClock, *, try_out: bool) -> list[CheckLine]:
    bucket = writer(settings, clock)
    bucket.check_access()
    if not try_out:
        return [CheckLine("bucket", f"{settings.s3_bucket} can be listed; not tried out further")]
    found = probe(bucket)
    lock = f"{settings.object_lock_mode}, {settings.retention_days} days"
    once = CheckLine("create-once", "a second write of a key is refused")
    if not found.create_once:
        told = "the store overwrites: only one process, with --single-writer"
        once = CheckLine("create-once", told, StoreError.exit_code)
    checksums = "accepted: each recording will be read back"
    return [
        CheckLine("bucket", f"{settings.s3_bucket} can be listed and written"),
        once,
        CheckLine("checksums", f"a wrong one is {'refused' if found.checksums else checksums}"),
        CheckLine("versioning", {True: "on", False: "off", None: "unknown"}[found.versioning]),
        CheckLine("object lock", "not used" if settings.object_lock_mode == "none" else lock),
    ]
