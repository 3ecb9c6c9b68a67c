"""Requests past boto3 where boto3 knows better, and what they are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from archiver.errors import StoreError
from archiver.store.bucket import Bucket
from tests.fakes.proxy import FaultProxy

DIGEST = hashlib.sha256(b"data").hexdigest()


def test_a_bucket_of_another_region_is_left_to_boto3(
    weed: Any, open_bucket: Callable[..., Bucket]
) -> None:
    with FaultProxy(weed.endpoint_url) as proxy:
        bucket = open_bucket(endpoint_url=proxy.url)
        with proxy.harming("elsewhere", "^PUT .*/k"):
            stored = bucket.put_once("k", b"data")
        puts = [line for line in proxy.seen if line.startswith("PUT ")]
        assert len(puts) == 2, "ours, and boto3's"
        with proxy.harming("elsewhere", "^HEAD .*/k"):
            head = bucket.head("k", stored.version_id)
    assert head is not None
    assert (head.size, head.sha256) == (4, DIGEST)


def test_behind_a_proxy_boto3_asks(
    open_bucket: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch, weed: Any
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    bucket = open_bucket(endpoint_url=weed.endpoint_url)
    with pytest.raises(StoreError, match="ProxyConnectionError"):
        bucket.head("k")


def test_without_tls_the_announced_digest_is_what_signs_the_body(
    weed: Any, open_bucket: Callable[..., Bucket]
) -> None:
    with FaultProxy(weed.endpoint_url) as proxy:
        open_bucket(endpoint_url=proxy.url).put_once("k", b"data")
        [sent] = [h for line, h in zip(proxy.seen, proxy.headers, strict=True) if line[:3] == "PUT"]
    assert sent["x-amz-content-sha256"] == DIGEST
    assert sent["if-none-match"] == "*"
    assert sent["user-agent"].startswith("call-archiver/")


def test_memory_that_is_used_again_may_be_sent(bucket: Bucket) -> None:
    buffer = bytearray(b"..data..")
    stored = bucket.put_once("k", memoryview(buffer)[2:6])
    assert (stored.size, stored.sha256) == (4, DIGEST)
    assert bucket.read("k") == b"data"


def test_without_credentials_it_says_so(
    weed: Any, open_bucket: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="no S3 credentials"):
        open_bucket(endpoint_url=weed.endpoint_url).head("k")
