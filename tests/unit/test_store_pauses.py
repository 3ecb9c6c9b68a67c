"""The pause that a store asks for (`Retry-After`) is kept, whoever sends the request."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from email.utils import format_datetime
from hashlib import md5
from typing import Any

import pytest

from archiver.core.concurrency import ConcurrencyLimit
from archiver.core.errors import StoreError
from archiver.core.http import Transport
from archiver.core.retry import Retry
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions, connect
from tests.fakes.clock import HandClock
from tests.fakes.http_server import BendableServer, Reply, Request
from tests.fakes.rig import aws_session

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please wait.</Message></Error>"
LISTING = b"<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>"


class BusyStore:
    """A store with one object for each key that was put. It refuses as often as `refusals` says
    before it answers."""

    def __init__(self) -> None:
        self.refusals: list[Reply] = []
        self.objects: dict[str, bytes] = {}
        self.server = BendableServer("blob", ("127.0.0.1", 0), self._respond)

    def _respond(self, request: Request) -> Reply:
        if self.refusals:
            return self.refusals.pop(0)
        if request.method == "PUT":
            assert request.headers["If-None-Match"] == "*"
            self.objects[request.path] = request.body
        if "versioning" in request.query:
            return Reply(200, {}, b"<VersioningConfiguration/>")
        if request.path in ("/b", "/b/"):
            return Reply(200, {}, LISTING)
        data = self.objects.get(request.path)
        if data is None:
            return Reply(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
        etag = {"ETag": f'"{md5(data, usedforsecurity=False).hexdigest()}"'}
        return Reply(200, etag, b"" if request.method == "PUT" else data)


@pytest.fixture
def store() -> Iterator[BusyStore]:
    made = BusyStore()
    made.server.start()
    yield made
    made.server.stop()


@pytest.fixture
def limit(clock: HandClock) -> ConcurrencyLimit:
    return ConcurrencyLimit(8, clock)


@pytest.fixture(params=["signed", "boto3"])
def bucket(
    request: pytest.FixtureRequest,
    store: BusyStore,
    clock: HandClock,
    limit: ConcurrencyLimit,
    transport: Transport,
    aws_keys: None,
) -> Bucket:
    options = StoreOptions(
        "b",
        endpoint_url=f"http://127.0.0.1:{store.server.server_port}",
        region="us-east-1",
        transport=transport,
        signed_requests=request.param == "signed",
    )
    client = connect(options, clock.check, aws_session())
    return Bucket(options, clock, Retry(clock, concurrency_limit=limit), client=client)


OPERATIONS: dict[str, Any] = {
    "put": lambda bucket: bucket.put_once("new", b"data").size,
    "read": lambda bucket: bucket.read("k"),
    "head": lambda bucket: bucket.head("k").size,
    "list": lambda bucket: list(bucket.list("")),
    "versioning": lambda bucket: bucket.is_versioned(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_pause_that_a_store_asks_for(
    store: BusyStore,
    bucket: Bucket,
    clock: HandClock,
    limit: ConcurrencyLimit,
    operation: str,
) -> None:
    bucket.put_once("k", b"data")
    whole = OPERATIONS[operation](bucket)
    store.objects.pop("/b/new", None)
    store.refusals = [Reply(503, {"Retry-After": "9"}, SLOW_DOWN)] * 2
    assert OPERATIONS[operation](bucket) == whole
    assert [int(slept) for slept in clock.sleeps] == [9, 9]
    assert limit.limit < 8, "all workers hear of it"


def test_a_longer_pause_is_kept_in_part(
    store: BusyStore, bucket: Bucket, clock: HandClock, limit: ConcurrencyLimit
) -> None:
    """The store is asked again as often as without it, and all workers hear of it."""
    bucket.put_once("k", b"data")
    store.refusals = [Reply(503, {"Retry-After": "120"}, SLOW_DOWN)] * 4
    assert bucket.read("k") == b"data"
    assert clock.sleeps == [60.5] * 4
    assert limit.limit < 8


@pytest.mark.parametrize("status", [429, 500, 503])
def test_any_refusal_that_may_pass_can_ask(
    store: BusyStore, bucket: Bucket, clock: HandClock, status: int
) -> None:
    """Also with a code that nobody knows, and as a date."""
    bucket.put_once("k", b"data")
    headers = {
        "Date": format_datetime(clock.now(), usegmt=True),
        "Retry-After": format_datetime(clock.now() + timedelta(seconds=12), usegmt=True),
    }
    store.refusals = [Reply(status, headers, b"<Error><Code>Busy</Code></Error>")]
    assert bucket.read("k") == b"data"
    assert [int(slept) for slept in clock.sleeps] == [12]


def test_a_refusal_for_good_is_not_waited_for(
    store: BusyStore, bucket: Bucket, clock: HandClock
) -> None:
    denied = Reply(403, {"Retry-After": "9"}, b"<Error><Code>AccessDenied</Code></Error>")
    store.refusals = [denied]
    with pytest.raises(StoreError) as caught:
        bucket.read("k")
    assert caught.value.retry_after_seconds is None
    assert clock.sleeps == []
