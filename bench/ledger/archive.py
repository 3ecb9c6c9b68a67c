"""The archive in a real store: `material.py`'s windows, each with a seal of its own.

One seal a window is what the loop writes of an archive that it keeps up with; a backfill puts up
to 64 of them in one. There are no objects below `records/` and `recordings/`: at level `manifest`
an audit does not look there.
"""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from typing import Any

import boto3

from archiver.manifest import layout, seal
from archiver.manifest.seal import Seal, SegmentEntry
from archiver.manifest.signing import SigningKey
from bench.ledger import material

ARCHIVE = "6f1f7b0e-0000-4000-8000-000000000001"
UPLOADS = 8
"""Objects on their way at a time."""


def make(windows: int, calls: int) -> int:
    """Fill the bucket that the environment names with so many windows of so many calls each; how
    many bytes of segments and companions these are."""
    numbers = range(windows)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        made = pool.map(_window, numbers, [calls] * windows, chunksize=4)
        with ThreadPoolExecutor(UPLOADS) as uploads:
            chain = Chain(uploads)
            size = sum(chain.append(number, *one) for number, one in enumerate(made))
            chain.finish()
            return size


def _window(number: int, calls: int) -> tuple[SegmentEntry, int]:
    """Write a window's segment and companion: what its seal will say, and their bytes."""
    closed = material.close(number, calls)
    put(closed.name.jsonl, closed.data)
    put(closed.name.sha256, closed.checksum_list)
    entry = seal.segment_entry(closed.name.jsonl, io.BytesIO(closed.data))
    return entry, len(closed.data) + len(closed.checksum_list)


class Chain:
    """Seals in their order; their objects are written in any."""

    def __init__(self, uploads: ThreadPoolExecutor) -> None:
        self._key = SigningKey.generate()
        self._uploads = uploads
        self._running: list[Future[str | None]] = []
        public, start = self._key.public, material.START
        store = {"object_lock": True, "versioning": True, "window_seconds": 3600}
        put(layout.public_key_key(public.key_id), public.pem)
        self._head = self._seal(
            seal.genesis(ARCHIVE, public, store, sealed_at=start, watermark=start)
        )

    def append(self, number: int, entry: SegmentEntry, size: int) -> int:
        end = material.window(number).end
        data = seal.next_seal(
            self._head,
            [entry],
            key_id=self._key.public.key_id,
            sealed_at=end + timedelta(hours=2),
            watermark=end,
        )
        self._head = self._seal(data)
        self._put(layout.seal_pointer_key(entry.key), seal.seal_pointer(self._head.seq))
        return size

    def finish(self) -> None:
        """Wait until all of it is there."""
        for one in self._running:
            one.result()

    def _seal(self, data: bytes) -> Seal:
        sealed = seal.parse_seal(data)
        self._put(layout.seal_key(sealed.seq), data)
        self._put(layout.signature_key(sealed.seq), self._key.sign(data))
        return sealed

    def _put(self, key: str, data: bytes) -> None:
        self._running.append(self._uploads.submit(put, key, data))


def put(key: str, data: bytes) -> str | None:
    """Write an object; its version."""
    answer = client().put_object(Bucket=os.environ["ARCHIVER_S3_BUCKET"], Key=key, Body=data)
    version: str | None = answer.get("VersionId")
    return version


@cache
def client() -> Any:
    # A session of its own: boto3's default one keeps the first credentials that it finds.
    session = boto3.session.Session()
    return session.client("s3", endpoint_url=os.environ["ARCHIVER_S3_ENDPOINT_URL"])


def keys(prefix: str) -> Iterator[str]:
    pages = client().get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=os.environ["ARCHIVER_S3_BUCKET"], Prefix=prefix):
        yield from (item["Key"] for item in page.get("Contents", ()))
