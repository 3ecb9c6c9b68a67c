"""When the answer to a write does for a look at what was written, and when it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from archiver.core import checksums
from archiver.core.errors import KeyTaken
from archiver.core.retry import Retry
from archiver.store.bucket import Bucket, proves_write
from archiver.wiring import apply_capabilities
from tests.contract.stores import KNOWN
from tests.fakes.proxy import FaultProxy

TOLD = {"ChecksumSHA256": "abc=", "ETag": '"e"'}


@pytest.fixture
def proxy(weed: Any) -> Iterator[FaultProxy]:
    with FaultProxy(weed.endpoint_url) as made:
        yield made


@pytest.fixture
def bucket(proxy: FaultProxy, open_bucket: Callable[..., Bucket]) -> Bucket:
    """On a store that names the checksums it computed; it has proved that it does."""
    made = open_bucket(endpoint_url=proxy.url)
    made.trust_put_checksum = True
    return made


def heads(proxy: FaultProxy) -> int:
    return sum(line.startswith("HEAD ") for line in proxy.seen)


def test_a_small_write_is_believed(bucket, proxy):
    stored = bucket.put_once("k", b"data", verify=False)
    assert heads(proxy) == 0
    head = bucket.head("k")
    assert head is not None
    assert (stored.version_id, stored.size, stored.sha256) == (head.version_id, 4, head.sha256)


TOMORROW = datetime.now(UTC) + timedelta(days=1)


@pytest.mark.parametrize(
    ("lock_mode", "is_proved", "options"),
    [
        pytest.param(None, True, {}, id="a recording"),
        pytest.param(None, False, {"verify": False}, id="before the store proved anything"),
        pytest.param("GOVERNANCE", True, {"retain_until": TOMORROW, "verify": False}, id="a lock"),
        pytest.param(None, True, {"held": True, "verify": False}, id="a hold"),
    ],
)
def test_what_is_looked_at(proxy, open_bucket, lock_mode, is_proved, options):
    bucket = open_bucket(endpoint_url=proxy.url, lock_mode=lock_mode)
    bucket.trust_put_checksum = is_proved
    bucket.put_once("k", b"data", **options)
    assert heads(proxy) == 1


def test_what_was_there_is_looked_at(bucket, proxy):
    bucket.put_once("k", b"data", verify=False)
    assert bucket.put_once("k", b"data", verify=False).adopted
    assert heads(proxy) >= 1


def test_an_answer_that_tells_nothing_is_asked_again(bucket, proxy):
    with proxy.harming("empty", "^PUT .*/k"):
        assert bucket.put_once("k", b"data", verify=False).adopted
    assert heads(proxy) >= 1


@pytest.mark.parametrize(
    ("asked", "answer", "told"),
    [
        ({}, TOLD, True),
        ({}, {"ETag": '"e"'}, False),
        ({}, {**TOLD, "ChecksumSHA256": "other"}, False),
        ({}, {}, False),
        ({"ServerSideEncryption": "AES256"}, TOLD, False),
        ({"SSEKMSKeyId": "k"}, TOLD, False),
        ({"StorageClass": "STANDARD_IA"}, TOLD, False),
        ({"ObjectLockMode": "COMPLIANCE"}, TOLD, False),
        ({"ObjectLockLegalHoldStatus": "ON"}, TOLD, False),
        ({"ContentType": "application/json", "IfNoneMatch": "*"}, TOLD, True),
    ],
)
def test_what_an_answer_must_say(asked, answer, told):
    assert proves_write(answer, {"ChecksumSHA256": "abc=", **asked}) is told


@pytest.mark.parametrize(
    ("setting", "checksums", "believed"),
    [("auto", True, True), ("auto", False, False), ("head", True, False), ("full", True, False)],
)
def test_only_a_proved_store_is_believed(setting, checksums, believed):
    found = replace(KNOWN["weed-locked"].proved, whole_checksums=checksums)
    bucket, chain = SimpleNamespace(), SimpleNamespace()
    apply_capabilities(found, bucket, chain, single_writer=False, verify_writes=setting)  # type: ignore[arg-type]
    assert bucket.trust_put_checksum is believed
    assert bucket.read_back is (setting == "full")


class Forgetful:
    """A store's client whose store does not know `If-None-Match`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_object(self, **arguments: Any) -> Any:
        arguments.pop("IfNoneMatch", None)
        return self._client.put_object(**arguments)


def test_one_writer_on_a_store_that_overwrites_looks_before_it_writes(open_bucket, clock):
    bucket = open_bucket()
    careless = Bucket(bucket.options, clock, Retry(clock), client=Forgetful(bucket.client.s3))
    careless.create_once = False
    first = careless.put_once("records/x", b"first")
    assert careless.put_once("records/x", b"first").adopted
    with pytest.raises(KeyTaken):
        careless.put_once("records/x", b"other")
    assert checksums.sha256_hex(bucket.read("records/x") or b"") == first.sha256
