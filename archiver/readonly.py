"""The bucket for those who only read: apart from app.py, so that an audit loads no HTTP client."""

from __future__ import annotations

from archiver.clock import Clock
from archiver.retry import Retry
from archiver.settings import StoreSettings
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions


def store_options(settings: StoreSettings) -> StoreOptions:
    return StoreOptions(
        bucket=settings.s3_bucket,
        prefix=settings.s3_prefix,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        connections=settings.workers + 8,
    )


def reader(settings: StoreSettings, clock: Clock) -> Bucket:
    return Bucket(store_options(settings), clock, Retry(clock))
