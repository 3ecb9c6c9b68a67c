"""The archiver's parts wired as the front door wires them, on a hand-turned clock."""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, cached_property
from typing import Any

import botocore.loaders
import botocore.session

from archiver.core.concurrency import Workers
from archiver.core.http import Transport, make_client
from archiver.core.model import Retention, Window, window_of, windows_between
from archiver.core.retry import Retry
from archiver.manifest import layout, seal
from archiver.manifest.signing import SigningKey
from archiver.pipeline.backfill import Backfill
from archiver.pipeline.bucket_state import SegmentIndex
from archiver.pipeline.call import CallArchiver
from archiver.pipeline.chain import Chain
from archiver.pipeline.loop import Loop, Schedule
from archiver.pipeline.window import Totals, WindowArchiver
from archiver.source.api import Filter, VoiceCallsClient
from archiver.source.json_api import BearerAuth, JsonApi
from archiver.source.listing import Lister
from archiver.source.recordings import RecordingClient
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions, connect
from archiver.store.signed_requests import SignedRequests
from tests.fakes.clock import HandClock
from tests.fakes.platform import Platform
from tests.fakes.population import TEN
from tests.fakes.segments import Segment, parse_segment

HOUR = timedelta(hours=1)
WINDOW = Window(TEN, TEN + HOUR)
TRANSPORT: Transport = "standard" if os.environ.get("HTTP_TRANSPORT") == "standard" else "fast"
SIGNED = os.environ.get("S3_REQUESTS") != "boto3"
"""Which HTTP client the tests use, and whether boto3 sends the frequent requests to the store:
`HTTP_TRANSPORT=standard` and `S3_REQUESTS=boto3` in the environment choose the other ones."""


_AWS_DATA = botocore.loaders.create_loader()


@cache
def store_requests(bucket: str, endpoint_url: str) -> SignedRequests:
    """What sends the tests' requests to a store: one for all tests, because making one takes long.
    `AWS_…` in the environment is the store's own."""
    options = StoreOptions(
        bucket,
        endpoint_url=endpoint_url,
        region="us-east-1",
        transport=TRANSPORT,
        signed_requests=SIGNED,
    )
    return connect(options, lambda: None, aws_session())


def aws_session() -> botocore.session.Session:
    """With the credentials of the environment. All share what describes AWS's services: reading
    that takes most of the time in which a client is made."""
    session = botocore.session.Session()
    session.register_component("data_loader", _AWS_DATA)
    return session


def api_client(platform: Platform, clock: HandClock, **options: Any) -> VoiceCallsClient:
    auth = options.pop("auth", None) or BearerAuth(lambda: platform.token)
    base_url = options.pop("base_url", platform.api_url)
    http = make_client(TRANSPORT, check=clock.check, over_httpx=True)
    return VoiceCallsClient(
        JsonApi(base_url, auth, clock, http, **{"retry": Retry(clock), **options})
    )


def blob_client(platform: Platform, clock: HandClock, **options: Any) -> RecordingClient:
    hosts = options.pop("hosts", [platform.blob_host])
    return RecordingClient(hosts, clock, make_client(TRANSPORT), **{"allow_http": True, **options})


@dataclass
class Rig:
    """One writer. Two rigs on one bucket are two writers that know nothing of each other."""

    clock: HandClock
    bucket: Bucket
    key: SigningKey
    chain: Chain
    segments: SegmentIndex
    windows: WindowArchiver
    schedule: Schedule
    retention: Retention
    transfer: CallArchiver

    def found(self, watermark: datetime = TEN) -> None:
        """Open the archive, or begin it."""
        if not self.chain.open():
            self.chain.begin(
                capabilities={"create_once": True},
                pages={layout.VERIFY_PAGE: b"how to verify\n"},
                watermark=watermark,
            )

    def backfill(self, start: datetime = TEN, hours: int = 1, **options: Any) -> Totals:
        self.found()
        todo = windows_between(start, start + timedelta(hours=hours), HOUR)
        return Backfill(self.windows, self.chain, self.segments).run(todo, **options)

    def loop(self) -> Loop:
        return Loop(self.windows, self.chain, self.segments, self.clock, self.schedule)


@contextmanager
def wired(
    platform: Platform,
    bucket: Bucket,
    clock: HandClock,
    key: SigningKey,
    *,
    retention: Retention | None = None,
    settle: timedelta = timedelta(hours=2),
    give_up: timedelta = timedelta(days=1),
    relist: tuple[timedelta, ...] = (timedelta(days=1), timedelta(days=7)),
    filters: Filter | None = None,
    recordings: RecordingClient | None = None,
    **transfer_options: Any,
) -> Iterator[Rig]:
    """A writer, and its end."""
    keep = retention or Retention()
    segments, workers = SegmentIndex(bucket), Workers(4)
    api = api_client(platform, clock)
    blobs = recordings or blob_client(platform, clock)
    lister = Lister(api, filters or Filter(("Completed",)), clock, HOUR)
    transfer = CallArchiver(
        api, blobs, bucket, clock, retention=keep, give_up=give_up, **transfer_options
    )
    windows = WindowArchiver(
        lister, transfer, bucket, workers, clock,
        segments=segments, retention=keep, settle=settle, relist=relist,
    )  # fmt: skip
    schedule = Schedule(HOUR, settle, give_up, 60.0, relist)
    chain = Chain(bucket, key, clock, keep)
    try:
        yield Rig(clock, bucket, key, chain, segments, windows, schedule, keep, transfer)
    finally:
        workers.close()
        api.close()
        blobs.close()


class Archive:
    """What lies in a bucket, read by the test itself and held against the rules on the way."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.keys = sorted(item.key for item in bucket.list(""))

    def read(self, key: str) -> bytes:
        data = self._bucket.read(key)
        assert data is not None, f"{key} is missing"
        return data

    def json(self, key: str) -> Any:
        return json.loads(self.read(key))

    def below(self, prefix: str, suffix: str = "") -> list[str]:
        return [key for key in self.keys if key.startswith(prefix) and key.endswith(suffix)]

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """call id → its newest record."""
        found: dict[str, dict[str, Any]] = {}
        for key in self.below("records/"):
            document = self.json(key)
            old = found.get(document["call_id"], {"revision": 0})
            found[document["call_id"]] = max(document, old, key=lambda d: d["revision"])
        return found

    @cached_property
    def segments(self) -> dict[str, Segment]:
        names = self.below(layout.SEGMENTS, ".jsonl")
        return {key: parse_segment(self.read(key)) for key in names}

    def line(self, start: datetime = TEN, revision: int = 1) -> dict[str, Any]:
        """The window line of a segment."""
        name = layout.SegmentName(window_of(start, HOUR).start, revision)
        return dict(self.segments[name.jsonl].line)

    @cached_property
    def seals(self) -> list[seal.Seal]:
        keys = [key for key in self.below(layout.SEALS) if key.endswith(".json")]
        return [seal.parse_seal(self.read(key)) for key in keys]

    def check(self, key: SigningKey) -> None:
        """The chain is whole, signed, and each segment stands in one seal, with its pointer."""
        seals = self.seals
        assert [one.seq for one in seals] == list(range(len(seals)))
        covered: dict[str, int] = {}
        for before, one in zip([None, *seals], seals, strict=False):
            signature = self.read(layout.signature_key(one.seq))
            assert key.public.verifies(one.data, signature), f"seal {one.seq}: signature"
            assert one.prev == (before.sha256 if before else "0" * 64)
            assert before is None or one.watermark >= before.watermark
            for entry in one.segments:
                assert entry.key not in covered, f"{entry.key} stands in two seals"
                covered[entry.key] = one.seq
                assert entry == seal.segment_entry(entry.key, io.BytesIO(self.read(entry.key)))
        assert covered.keys() == self.segments.keys(), "segments without a seal"
        for name, number in covered.items():
            stem = name.removesuffix(".jsonl")
            assert self.read(stem + ".seal") == f"{number}\n".encode()
            assert self.read(stem + ".sha256") == self.segments[name].sha256_file()
        self._check_records(covered)

    def _check_records(self, covered: dict[str, int]) -> None:
        told = {one.key: one.data for name in covered for one in self.segments[name].records}
        newest = {document["record"] for document in self.records.values()}
        assert told.keys() <= set(self.below("records/"))
        assert newest <= told.keys(), "records outside sealed segments"
        for name, data in told.items():
            assert self.read(name) == data
        for document in self.records.values():
            for file in document["files"]:
                content = self._bucket.read(file["key"], file["version_id"])
                assert content is not None
                assert len(content) == file["bytes"]


def new_key() -> SigningKey:
    return SigningKey.generate()


def unique(stem: str = "vc") -> str:
    return f"{stem}_{secrets.token_hex(4)}"
