"""The way to the store is bad: answers lost, cut, forged. Exactly one version comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from archiver.core import checksums
from archiver.core.errors import KeyTaken, StoreError
from archiver.store.bucket import Bucket
from tests.fakes.audio import noise
from tests.fakes.clock import HandClock
from tests.fakes.proxy import FaultProxy, Harm

PART = 5 << 20
PASSING: list[Harm] = ["swallow", "reset", "reset-after", "unavailable"]


@pytest.fixture
def proxy(weed: Any) -> Iterator[FaultProxy]:
    with FaultProxy(weed.endpoint_url) as made:
        yield made


@pytest.fixture
def bucket(proxy: FaultProxy, open_bucket: Callable[..., Bucket]) -> Bucket:
    """Goes through the proxy."""
    return open_bucket(endpoint_url=proxy.url)


@pytest.fixture
def direct(open_bucket: Callable[..., Bucket]) -> Bucket:
    return open_bucket()


def one_version(direct: Bucket, key: str, data: bytes) -> None:
    [version] = direct.versions(key)
    assert not version.is_delete_marker
    assert b"".join(direct.stream(key, version.version_id) or ()) == data


@pytest.mark.parametrize("harm", [*PASSING, "html", "empty", "damaged", "crowded"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_put_whose_answer_is_lost_is_one_version(
    proxy: FaultProxy, bucket: Bucket, direct: Bucket, clock: HandClock, harm: Harm, times: int
) -> None:
    with proxy.harming(harm, "^PUT .*/k", times):
        stored = bucket.put_once("k", b"data")
    assert len(clock.sleeps) == times, "every try is ours, none is hidden in botocore"
    one_version(direct, "k", b"data")
    head = direct.head("k")
    assert head is not None
    assert stored.version_id == head.version_id


@pytest.mark.parametrize(
    ("harm", "told"),
    [("lies of the size", "not what was written"), ("lies of the bytes", "another checksum")],
)
def test_an_object_that_the_store_keeps_otherwise_is_not_taken_for_written(
    proxy: FaultProxy, bucket: Bucket, harm: Harm, told: str
) -> None:
    with proxy.harming(harm, "^HEAD .*/k"), pytest.raises(StoreError, match=told):
        bucket.put_once("k", b"data")


@pytest.mark.parametrize("harm", PASSING)
def test_a_lost_race_is_told_also_when_the_answer_was_lost(
    proxy: FaultProxy, bucket: Bucket, direct: Bucket, harm: Harm
) -> None:
    direct.put_once("k", b"theirs")
    with proxy.harming(harm, "^PUT .*/k"), pytest.raises(KeyTaken):
        bucket.put_once("k", b"ours")
    one_version(direct, "k", b"theirs")


@pytest.mark.parametrize("harm", [*PASSING, "truncate"])
def test_a_read_is_whole_or_tried_again(
    proxy: FaultProxy, bucket: Bucket, direct: Bucket, harm: Harm
) -> None:
    direct.put_once("k", noise(300_000))
    with proxy.harming(harm, "^GET .*/k", 2):
        assert bucket.read("k") == noise(300_000)


def test_a_stream_that_is_cut_says_so(proxy: FaultProxy, bucket: Bucket, direct: Bucket) -> None:
    direct.put_once("k", noise(300_000))
    with proxy.harming("truncate", "^GET .*/k"), pytest.raises(StoreError) as caught:
        b"".join(bucket.stream("k") or ())
    assert caught.value.retryable


@pytest.mark.parametrize("harm", PASSING)
def test_a_head_and_a_listing_are_tried_again(
    proxy: FaultProxy, bucket: Bucket, direct: Bucket, harm: Harm
) -> None:
    direct.put_once("k", b"x")
    with proxy.harming(harm, "^HEAD .*/k", 2):
        assert bucket.head("k") is not None
    with proxy.harming(harm, "^GET .*list-type=2", 2):
        assert [item.key for item in bucket.list("")] == ["k"]
    with proxy.harming(harm, "^GET .*versions", 2):
        assert len(list(bucket.versions(""))) == 1


@pytest.mark.parametrize("harm", ["html", "truncate"])
def test_a_listing_that_is_no_listing_is_an_error_and_not_empty(
    proxy: FaultProxy, bucket: Bucket, direct: Bucket, harm: Harm
) -> None:
    direct.put_once("k", b"x")
    with proxy.harming(harm, "^GET .*list-type=2", 99), pytest.raises(StoreError):
        list(bucket.list(""))


@pytest.mark.parametrize("harm", [*PASSING, "html", "empty"])
@pytest.mark.parametrize(
    "request_line",
    [r"^POST .*\?uploads", r"^PUT .*partNumber=1", r"^PUT .*partNumber=2", r"^POST .*uploadId"],
    ids=["begin", "part 1", "part 2", "complete"],
)
def test_a_multipart_upload_gets_through(
    proxy: FaultProxy, bucket: Bucket, direct: Bucket, harm: Harm, request_line: str
) -> None:
    data = noise(PART + 9)
    with proxy.harming(harm, request_line):
        upload = bucket.begin("big", content_type="audio/wav", retain_until=None)
        upload.part(data[:PART])
        upload.part(data[PART:])
        upload.complete(checksums.sha256_hex(data))
    one_version(direct, "big", data)


def test_what_does_not_pass_is_told_in_one_line(
    proxy: FaultProxy, bucket: Bucket, direct: Bucket, clock: HandClock
) -> None:
    for harm in ("reset", "unavailable", "html"):
        with proxy.harming(harm, "^PUT .*/k", 99), pytest.raises(StoreError) as caught:
            bucket.put_once("k", b"x")
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
        assert "Welcome" not in str(caught.value)
    assert len(clock.sleeps) == 12
    assert direct.head("k") is None
