"""The one place where the parts are put together: settings in, plain values and ports out.

- `reader`, `writer`: the bucket for commands that only read it, and for those that write it.
- `listing`: the source for commands that only list it.
- `open_holds`: sets legal holds; needs no source.
- `open_app`: the archiver itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from importlib import resources

import structlog

from archiver.audit.hold_ledger import ArchivedHolds
from archiver.core import liveness
from archiver.core.clock import Clock, SystemClock
from archiver.core.concurrency import ConcurrencyLimit, Workers
from archiver.core.errors import StoreError, UsageError
from archiver.core.http import make_client
from archiver.core.model import Retention
from archiver.core.network import root_bundle
from archiver.core.retry import Retry
from archiver.manifest import layout
from archiver.manifest.seal import check_window_length
from archiver.pipeline.backfill import Backfill
from archiver.pipeline.backfill_progress import BackfillProgress, NoProgress
from archiver.pipeline.bucket_state import SegmentIndex
from archiver.pipeline.call import CallArchiver
from archiver.pipeline.chain import Chain
from archiver.pipeline.health import ClockCheck
from archiver.pipeline.hold_acts import Holds
from archiver.pipeline.loop import Loop, Schedule, loop_start
from archiver.pipeline.window import WindowArchiver
from archiver.settings import Settings, SourceSettings, StoreSettings, WriterSettings
from archiver.source.api import Filter, SignedUrl, VoiceCallsClient
from archiver.source.json_api import (
    LONGEST_PAUSE_SECONDS,
    BearerAuth,
    Credentials,
    JsonApi,
    SignedKeyAuth,
)
from archiver.source.listing import Lister
from archiver.source.recordings import RecordingClient, UrlNotAllowed
from archiver.store.bucket import ORPHANED_AFTER, Bucket
from archiver.store.client import StoreOptions
from archiver.store.probe import Capabilities, probe, quick_probe, require_safe

log = structlog.get_logger()

# --- the bucket


def store_options(settings: StoreSettings) -> StoreOptions:
    return StoreOptions(
        bucket=settings.s3_bucket,
        prefix=settings.s3_prefix,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        addressing_style=None
        if settings.s3_addressing_style == "auto"
        else settings.s3_addressing_style,
        connections=settings.workers + 8,  # threads that process windows send requests too
        transport=settings.http_transport,
        signed_requests=settings.s3_requests == "signed",
    )


def reader(settings: StoreSettings, clock: Clock) -> Bucket:
    """The bucket for commands that only read it."""
    return Bucket(store_options(settings), clock, Retry(clock))


def writer(
    settings: WriterSettings, clock: SystemClock, concurrency_limit: ConcurrencyLimit | None = None
) -> Bucket:
    """The bucket with the arguments of each write: lock mode, encryption, storage class."""
    options = replace(
        store_options(settings),
        lock_mode=retention(settings).mode,
        sse=settings.sse,
        sse_kms_key_id=settings.sse_kms_key_id,
        storage_class=settings.storage_class,
    )
    return Bucket(options, clock, Retry(clock, concurrency_limit=concurrency_limit))


def retention(settings: WriterSettings) -> Retention:
    if settings.object_lock_mode == "none":
        return Retention()
    return Retention(settings.object_lock_mode, settings.retention_days or 0)


def apply_capabilities(
    found: Capabilities,
    bucket: Bucket,
    chain: Chain,
    *,
    single_writer: bool,
    verify_writes: str = "head",
) -> None:
    """Configure bucket and chain by what the store proved. Raises `StoreError` if it is unsafe."""
    require_safe(found, single_writer=single_writer)
    bucket.create_once = found.create_once
    bucket.conditional_writes = found.conditional_writes is not False
    bucket.conditional_completion = found.complete_create_once is not False
    chain.single_writer = not found.create_once
    auto = verify_writes == "auto"
    bucket.read_back = verify_writes == "full" or (auto and not found.checksums)
    bucket.trust_put_checksum = auto and found.whole_checksums


def probe_again(bucket: Bucket, chain: Chain) -> Capabilities:
    """What the store shows now, limited to what it proved when the archive was begun."""
    proved = chain.genesis().document.get("store")
    return quick_probe(bucket, proved if isinstance(proved, dict) else {})


# --- the source


def source(
    settings: SourceSettings,
    clock: Clock,
    concurrency_limit: ConcurrencyLimit | None = None,
    *,
    progress: BackfillProgress | None = None,
    longest_pause_seconds: float = LONGEST_PAUSE_SECONDS,
) -> VoiceCallsClient:
    """The client of the source's API. Raises `UsageError` if a secret's file cannot be read."""
    credentials: Credentials
    if settings.has("api_token"):
        is_file = settings.api_token_file is not None
        credentials = BearerAuth(settings.secret("api_token"), may_change=is_file)
    else:
        files = (settings.api_key_file, settings.api_hmac_secret_file)
        credentials = SignedKeyAuth(
            settings.secret("api_key"),
            settings.secret("api_hmac_secret"),
            clock,
            may_change=any(file is not None for file in files),
        )
    api = JsonApi(
        settings.api_base_url,
        credentials,
        clock,
        make_client(
            settings.http_transport, roots=root_bundle(), check=clock.check, over_httpx=True
        ),
        retry=Retry(clock, concurrency_limit=concurrency_limit),
        requests_per_second=settings.api_rate,
        # Credentials may be valid for this part of the listing only.
        narrowing=_filters(settings).narrowing,
        longest_pause_seconds=longest_pause_seconds,
        on_pause=(progress or NoProgress()).source_paused,
    )
    return VoiceCallsClient(api)


def recordings(settings: Settings, clock: SystemClock) -> RecordingClient:
    return RecordingClient(
        settings.recording_hosts,
        clock,
        make_client(settings.http_transport, roots=root_bundle(), check=clock.check),
        allow_http=settings.allow_http,
        max_bytes=settings.max_recording_bytes,
        min_bytes_per_second=settings.min_rate,
    )


def _filters(settings: SourceSettings) -> Filter:
    return Filter(settings.states, settings.campaign_id, settings.direction)


@contextmanager
def listing(settings: SourceSettings, clock: Clock) -> Iterator[Lister]:
    """A lister for commands that only list; closes the connections at the end."""
    with closing(source(settings, clock)) as api:
        yield Lister(api, _filters(settings), clock, settings.window)


def check_hosts(urls: Sequence[SignedUrl], blobs: RecordingClient) -> None:
    """Check the hosts of a few recording URLs before work begins.

    Raises `UsageError` if all are on the same host and it is not allowed: with one wrong setting,
    each call of an old range would be given up. If only some URLs are refused, or they are
    malformed, that concerns their calls only.
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
    if len(refused) < len(urls) or len(hosts) > 1 or None in hosts:
        reasons = sorted({str(error) for error in refused})
        log.warning("source.urls_not_allowed", count=len(refused), asked=len(urls), why=reasons)
        return
    host = hosts.pop()
    if any(error.names_other_host for error in refused):
        raise UsageError(
            f"ARCHIVER_RECORDING_HOSTS: the source's recordings lie on {host}, which is not in it"
        )
    raise UsageError(
        f"ARCHIVER_ALLOW_HTTP: the recording URLs on {host} are plain http, which is refused"
    )


# --- the archiver


@dataclass
class App:
    """All parts of the archiver, put together."""

    settings: Settings
    clock: SystemClock
    source: VoiceCallsClient
    recordings: RecordingClient
    bucket: Bucket
    chain: Chain
    segments: SegmentIndex
    windows: WindowArchiver

    def preflight(self) -> None:
        """Check the access to source and store before anything is written.

        Raises `SourceRefused`, `SourceError` or `StoreError`, each saying what to do.
        """
        check_hosts(self.source.check_access(), self.recordings)
        self.bucket.check_access()

    def ensure_archive(self, *, single_writer: bool = False) -> bool:
        """Open the archive, or begin one. Returns True if it was begun.

        1. Open it, or find that there is none. Refuse settings that do not fit.
        2. Probe the store: briefly, or completely before an archive is begun.
        3. Configure bucket and chain by what it proved.
        4. Begin the archive: public key, the pages for an auditor without our software, seal 0.
        """
        settings, is_there = self.settings, self.chain.open()  # 1
        if is_there:
            check_window_length(self.chain.genesis(), settings.window)
        elif settings.start is not None and settings.start > self.clock.now():
            raise UsageError("ARCHIVER_START lies in the future: the loop would do nothing")
        found = probe_again(self.bucket, self.chain) if is_there else probe(self.bucket)  # 2
        apply_capabilities(  # 3
            found,
            self.bucket,
            self.chain,
            single_writer=single_writer,
            verify_writes=settings.verify_writes,
        )
        if is_there:
            self._abort_orphaned_uploads()
            return False
        package = resources.files("archiver.audit")  # 4
        names = {layout.VERIFY_PAGE: "VERIFY.md", layout.VERIFY_SCRIPT: "verify.sh"}
        window_seconds = int(settings.window.total_seconds())
        return self.chain.begin(
            capabilities={**found.document(), "window_seconds": window_seconds},
            pages={key: package.joinpath(name).read_bytes() for key, name in names.items()},
            watermark=loop_start(settings.start, self.clock.now(), settings.window),
        )

    def _abort_orphaned_uploads(self) -> None:
        """Abort the uploads of processes that were killed: their parts take room and are billed.
        Only recordings and the probe are uploaded in parts; other uploads may belong to others."""
        before = self.clock.now() - ORPHANED_AFTER
        try:
            prefixes = (layout.RECORDINGS, layout.PROBE)
            count = sum(self.bucket.abort_uploads(prefix, before) for prefix in prefixes)
        except StoreError as error:
            if error.reason != "not_implemented":
                log.warning("uploads.list_failed", error=str(error))
            return
        if count:
            log.info("uploads.aborted", count=count)

    def is_alive(self) -> bool:
        """Whether this process makes progress, for `/healthz`. A failing round does not make it
        dead: a restart does not repair a source or a store that is down (`core/liveness.py`).

        No single wait lasts as long as the default limit of 5 minutes: a request ends after 30 s of
        silence at the source, 60 s at the store, 120 s in all; a pause checks in every 0.2 s.
        """
        return liveness.idle_seconds() < self.settings.liveness_timeout.total_seconds()

    def backfill(self, progress: BackfillProgress | None) -> Backfill:
        return Backfill(self.windows, self.chain, self.segments, progress)

    def loop(self) -> Loop:
        settings = self.settings
        schedule = Schedule(
            window=settings.window,
            settle=settings.settle,
            give_up=settings.give_up,
            poll_interval_seconds=settings.poll_interval.total_seconds(),
            relist=settings.relist,
        )
        return Loop(self.windows, self.chain, self.segments, self.clock, schedule)


@contextmanager
def open_app(
    settings: Settings,
    clock: SystemClock,
    progress: BackfillProgress | None = None,
    longest_pause_seconds: float = LONGEST_PAUSE_SECONDS,
) -> Iterator[App]:
    """Put the parts together; at the end, stop the workers and close the connections.
    `longest_pause_seconds`: a longer `Retry-After` of the source counts as an outage."""
    key, keep = settings.signing_key(), retention(settings)
    concurrency_limit = ConcurrencyLimit(settings.workers, clock)
    api = source(
        settings,
        clock,
        concurrency_limit,
        progress=progress,
        longest_pause_seconds=longest_pause_seconds,
    )
    blobs = recordings(settings, clock)
    bucket = writer(settings, clock, concurrency_limit)
    segments = SegmentIndex(bucket)
    workers = Workers(settings.workers, concurrency_limit)
    calls = CallArchiver(
        api,
        blobs,
        bucket,
        clock,
        retention=keep,
        give_up=settings.give_up,
        first_wait_seconds=settings.poll_interval.total_seconds(),
        concurrency_limit=concurrency_limit,
    )
    windows = WindowArchiver(
        Lister(api, _filters(settings), clock, settings.window),
        calls,
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
        yield App(settings, clock, api, blobs, bucket, chain, segments, windows)
    finally:
        workers.close()
        api.close()
        blobs.close()


# --- legal holds


@contextmanager
def open_holds(
    settings: WriterSettings, clock: SystemClock, *, single_writer: bool = False
) -> Iterator[Holds]:
    """Open what sets legal holds; it needs no source. Raises `UsageError` if there is no archive,
    `StoreError` if its bucket does not support holds."""
    key, keep = settings.signing_key(), retention(settings)
    bucket = writer(settings, clock)
    bucket.check_access()
    if not bucket.has_object_lock():
        raise StoreError(
            f"bucket {settings.s3_bucket} has no Object Lock, so it takes no legal holds; nothing "
            "was done"
        )
    chain = Chain(bucket, key, clock, keep)
    if not chain.open():
        raise UsageError(
            "there is no archive here: check ARCHIVER_S3_BUCKET and ARCHIVER_S3_PREFIX"
        )
    # Without a lock, or with a weaker one, an act's seal could be deleted from an archive whose
    # other seals are locked. The setting is easily forgotten when another person runs this command.
    # `Holds` takes care of the lock date.
    mode, newest = settings.object_lock_mode, bucket.head(layout.seal_key(chain.head.seq))
    locked_mode = newest.lock_mode if newest is not None else None
    is_unlocked = mode == "none" and not bucket.locks_by_itself()
    if locked_mode and (is_unlocked or (mode, locked_mode) == ("GOVERNANCE", "COMPLIANCE")):
        raise UsageError(
            "ARCHIVER_OBJECT_LOCK_MODE: the seals of this archive are locked "
            f"({locked_mode}), so set it, and ARCHIVER_RETENTION_DAYS, as the archiver has them"
        )
    apply_capabilities(probe_again(bucket, chain), bucket, chain, single_writer=single_writer)
    ledger = ArchivedHolds(bucket, settings.workers)
    with closing(Workers(settings.workers)) as workers:
        yield Holds(bucket, chain, ledger, workers, clock, keep)
