"""The stores in memory answer as a real one does: the same requests, sent to both."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from archiver.core import checksums
from archiver.core.clock import Interrupted
from archiver.core.errors import StoreError
from archiver.core.retry import Retry
from archiver.manifest import layout
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions
from archiver.store.types import ObjectHead, Stored
from tests.fakes.clock import HandClock
from tests.fakes.memory_s3 import MemoryS3, S3Uploads
from tests.fakes.memory_store import MemoryStore
from tests.fakes.rig import store_requests
from tests.fakes.store_rules import Violation
from tests.system.servers import Weed

KEY = "recordings/dt=2024-01-15/vc_1/recording-0123456789abcdef.wav"
OTHER = KEY.replace("0123456789abcdef", "fedcba9876543210")
PART = 5 << 20
Answers = list[object]


def sha256(data: bytes) -> str:
    return checksums.hex_to_base64(checksums.sha256_hex(data))


@pytest.fixture
def memory(clock: HandClock) -> MemoryStore:
    return MemoryStore(clock, lock_mode="GOVERNANCE", rules=False)


@pytest.fixture
def in_memory(memory: MemoryStore, clock: HandClock) -> Bucket:
    """The real `Bucket` on the S3 in memory."""
    s3 = MemoryS3(memory, S3Uploads(), clock.now)
    return Bucket(StoreOptions("b"), clock, Retry(clock), client=s3)


@pytest.fixture
def real(weed: Weed, prefix: str, clock: HandClock) -> Bucket:
    clock.turn_to(datetime.now(UTC).replace(microsecond=0))
    where = {"prefix": prefix, "endpoint_url": weed.endpoint_url, "region": "us-east-1"}
    options = StoreOptions("locked", lock_mode="GOVERNANCE", **where)
    client = store_requests("locked", weed.endpoint_url)
    return Bucket(options, clock, Retry(clock), client=client)


# --- the S3 in memory, below `Bucket`


def asked(answers: Answers, bucket: Bucket, request: Callable[[], Any]) -> Any:
    """Note what comes of a request: what it answers, or how it is refused."""
    try:
        answer = bucket.client.attempt("Request", request)
    except StoreError as error:
        answers.append((type(error).__name__, error.status, error.reason))
        return {}
    answers.append("done")
    return answer


def converse(bucket: Bucket, clock: HandClock) -> Answers:
    """One request after the other, each with what a store may find wrong with it."""
    s3, at, answers = bucket.client.s3, bucket.client.at, Answers()
    until = clock.now().replace(year=2090)
    retention = {"Mode": "GOVERNANCE", "RetainUntilDate": until}

    def ask(method: str, key: str, **arguments: Any) -> Any:
        return asked(answers, bucket, lambda: getattr(s3, method)(**at(key), **arguments))

    put = {"ContentType": "text/plain", "IfNoneMatch": "*"}
    ask("put_object", "k", Body=b"0123456789", ChecksumSHA256=sha256(b"0123456789"), **put)
    ask("put_object", "k", Body=b"0123456789", ChecksumSHA256=sha256(b"0123456789"), **put)
    ask("put_object", "wrong", Body=b"abc", ChecksumSHA256=sha256(b"other"), **put)
    for method in ("get_object", "head_object"):
        ask(method, "nothing")
    tail = ask("get_object", "k", Range="bytes=-3")
    answers.append(b"".join(tail["Body"].iter_chunks(100)))
    head = ask("head_object", "k", ChecksumMode="ENABLED")
    answers += [head["ContentLength"], head["ContentType"], head["ChecksumSHA256"]]
    ask("put_object_retention", "k", Retention=retention)
    sooner = {**retention, "RetainUntilDate": until - timedelta(days=9)}
    ask("put_object_retention", "k", Retention=sooner)
    ask("put_object_legal_hold", "k", LegalHold={"Status": "ON"})
    head = ask("head_object", "k")
    answers += [head["ObjectLockMode"], head["ObjectLockLegalHoldStatus"]]

    begin = {"ContentType": "audio/wav", "ChecksumAlgorithm": "SHA256"}
    first, second = bytes(PART), b"the end"
    for key in (KEY, OTHER):
        at_upload = {"UploadId": ask("create_multipart_upload", key, **begin)["UploadId"]}
        ask("upload_part", key, **at_upload, PartNumber=1, Body=b"x", ChecksumSHA256=sha256(b"y"))
        parts = []
        for number, data in ((1, b"not this one"), (1, first), (2, second)):
            told = {"PartNumber": number, "ChecksumSHA256": sha256(data)}
            answer = ask("upload_part", key, **at_upload, Body=data, **told)
            parts.append({**told, "ETag": answer["ETag"]})
        whole = {"MultipartUpload": {"Parts": parts[1:]}, "IfNoneMatch": "*"}
        if key == OTHER:
            ask("abort_multipart_upload", key, **at_upload)
        ask("complete_multipart_upload", key, **at_upload, **whole)
        ask("complete_multipart_upload", key, **at_upload, **whole)
        ask("head_object", key)
    found = bucket.head(KEY)
    assert found is not None
    answers += [found.size, found.sha256, [item.key for item in bucket.list("")]]
    answers += [sum(1 for _ in bucket.versions("")), bucket.read("k")]
    return answers


def test_the_same_requests_have_the_same_answers(
    in_memory: Bucket, real: Bucket, clock: HandClock
) -> None:
    assert converse(in_memory, clock) == converse(real, clock)


def test_what_may_overwrite_is_no_archivers_business(in_memory: Bucket) -> None:
    bucket = in_memory
    body = {"Body": io.BytesIO(b"x"), "ChecksumSHA256": sha256(b"x"), "ContentType": "text/plain"}
    with pytest.raises(Violation, match="may overwrite"):
        bucket.client.s3.put_object(**bucket.client.at("k"), **body)


def test_uploads_of_the_dead_are_listed_until_they_are_aborted(
    in_memory: Bucket, clock: HandClock
) -> None:
    bucket = in_memory
    bucket.begin(KEY, content_type="audio/wav", retain_until=None).part(b"x")
    assert bucket.abort_uploads(layout.RECORDINGS, clock.now()) == 0
    clock.forward(timedelta(days=1))
    assert bucket.abort_uploads(layout.RECORDINGS, clock.now()) == 1
    assert bucket.abort_uploads(layout.RECORDINGS, clock.now()) == 0


# --- the store in memory, in the place of `Bucket`


def use(store: Any, clock: HandClock) -> Answers:
    """What each method of the port answers, or how it refuses."""
    near, far = (clock.now() + timedelta(days=days) for days in (1, 9))

    def ask(method: str, *arguments: Any, **named: Any) -> None:
        try:
            answer = getattr(store, method)(*arguments, **named)
        except StoreError as error:
            answers.append((method, type(error).__name__, error.reason))
            return
        if isinstance(answer, Stored):
            versions[answer.key] = answer.version_id
            answer = replace(answer, version_id=str(answer.version_id is not None))
        elif isinstance(answer, ObjectHead):
            answer = replace(answer, version_id=None, etag="", storage_class=None)
        elif isinstance(answer, Iterator):
            answer = b"".join(answer) if method == "stream" else sorted(one.key for one in answer)
        answers.append((method, answer))

    answers, versions = Answers(), dict[str, Any]()
    with memoryview(b"a view") as view:
        ask("put_once", "view", view, content_type="text/plain")
        ask("put_once", "view", view)
    ask("put_once", "k", b"0123456789", retain_until=near, held=True)
    ask("put_once", "k", bytearray(b"0123456789"), retain_until=far)
    ask("put_once", "k", b"0123456789", retain_until=near)
    ask("put_once", "k", b"other")
    ask("put_once", "over", b"x", retain_until=clock.now() - timedelta(days=1))
    ask("put_once", "b/1", b"x")
    ask("put_once", "b/10/c", b"x")
    for key in ("k", "nothing", "over"):
        for method in ("read", "stream", "head"):
            ask(method, key)
        for count in (3, 30):
            ask("tail", key, count)
    ask("read", "k", versions["k"])
    ask("read", "k", max_bytes=9)
    ask("set_hold", "k", versions["k"], False)
    ask("extend", "over", versions["over"], far)
    ask("extend", "over", None, near)
    ask("extend", "nothing", None, near)
    for key in ("k", "over"):
        ask("head", key)
    ask("folders", "b/")
    for prefix, after in (("", ""), ("b/", ""), ("b/", "b/1"), ("b/", "c")):
        ask("list", prefix, after)
    upload = store.begin(KEY, content_type="audio/wav", retain_until=near)
    upload.part(bytes(PART))
    upload.part(b"the end")
    ask("head", KEY)
    answers.append(upload.complete(checksums.sha256_hex(bytes(PART) + b"the end")).size)
    ask("head", KEY)
    aborted = store.begin(OTHER, content_type="audio/wav", retain_until=None)
    aborted.abort()
    aborted.abort()
    ask("head", OTHER)
    clock.stop()
    for method in ("read", "put_once"):
        with pytest.raises(Interrupted):
            getattr(store, method)("k", *[b"x"] * (method == "put_once"))
    clock.go_on()
    return answers


def test_the_store_in_memory_keeps_the_contract(
    memory: MemoryStore, real: Bucket, clock: HandClock
) -> None:
    assert use(memory, clock) == use(real, clock)
