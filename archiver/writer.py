"""The bucket for those who write: apart from app.py, so that a legal hold loads no HTTP client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from archiver.clock import SystemClock
from archiver.errors import StoreError, UsageError
from archiver.manifest import layout
from archiver.model import Retention
from archiver.pipeline.pool import Workers
from archiver.pipeline.sealing import Chain
from archiver.pressure import Pressure
from archiver.readonly import store_options
from archiver.retry import Retry
from archiver.settings import WriterSettings
from archiver.store.bucket import Bucket
from archiver.store.probe import Capabilities, glance, require_safe

if TYPE_CHECKING:
    from archiver.pipeline.holds import Holds


def writer(
    settings: WriterSettings, clock: SystemClock, pressure: Pressure | None = None
) -> Bucket:
    """The bucket with all that is passed on each write."""
    mode = settings.object_lock_mode
    options = replace(
        store_options(settings),
        lock_mode=None if mode == "none" else mode,
        sse=settings.sse,
        sse_kms_key_id=settings.sse_kms_key_id,
        storage_class=settings.storage_class,
    )
    return Bucket(options, clock, Retry(clock, pressure=pressure))


def retention(settings: WriterSettings) -> Retention:
    if settings.object_lock_mode == "none":
        return Retention()
    return Retention(settings.object_lock_mode, settings.retention_days or 0)


def trust(bucket: Bucket, chain: Chain, *, single_writer: bool) -> Capabilities:
    """Rely on what the store shows now, and no more than it proved when the archive was begun."""
    told = chain.genesis().document.get("store")
    found = glance(bucket, told if isinstance(told, dict) else {})
    rely_on(found, bucket, chain, single_writer=single_writer)
    return found


def rely_on(found: Capabilities, bucket: Bucket, chain: Chain, *, single_writer: bool) -> None:
    """Raises `StoreError` where that would not be safe."""
    require_safe(found, single_writer=single_writer)
    bucket.create_once = found.create_once
    chain.single_writer = not found.create_once


@contextmanager
def open_holds(
    settings: WriterSettings, clock: SystemClock, *, single_writer: bool = False
) -> Iterator[Holds]:
    """What acts on legal holds: it needs no source. Raises `UsageError` where there is no archive,
    `StoreError` where its bucket takes no holds."""
    from archiver.audit.holds import Told
    from archiver.pipeline.holds import Holds

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
    _refuse_to_weaken(settings.object_lock_mode, bucket, chain)
    trust(bucket, chain, single_writer=single_writer)
    workers, told = Workers(settings.workers), Told(bucket, settings.workers)
    try:
        yield Holds(bucket, chain, told, workers, clock, keep)
    finally:
        workers.close()
        told.close()


def _refuse_to_weaken(mode: str, bucket: Bucket, chain: Chain) -> None:
    """Without a lock, or with a weaker one, an act's seal could be deleted from an archive that is
    locked otherwise: a setting that is easily forgotten where another person gives the commands.
    Of the date `Holds` takes care."""
    head = bucket.head(layout.seal_key(chain.head.seq))
    if head is None or head.lock_mode is None:
        return
    unlocked = mode == "none" and not bucket.locks_by_itself()
    if unlocked or (mode, head.lock_mode) == ("GOVERNANCE", "COMPLIANCE"):
        raise UsageError(
            "ARCHIVER_OBJECT_LOCK_MODE: the seals of this archive are locked "
            f"({head.lock_mode}), so set it, and ARCHIVER_RETENTION_DAYS, as the archiver has them"
        )
