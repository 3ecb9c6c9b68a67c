"""The S3 in memory answers as a real store does: the same requests, sent to both."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from archiver.core import checksums
from archiver.core.errors import StoreError
from archiver.core.retry import Retry
from archiver.manifest import layout
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions
from tests.fakes.clock import HandClock
from tests.fakes.memory_s3 import MemoryS3, S3Uploads
from tests.fakes.memory_store import MemoryStore
from tests.fakes.store_rules import Violation

KEY = "recordings/dt=2024-01-15/vc_1/recording-0123456789abcdef.wav"
OTHER = KEY.replace("0123456789abcdef", "fedcba9876543210")
PART = 5 << 20
Answers = list[object]


def sha256(data: bytes) -> str:
    return checksums.hex_to_base64(checksums.sha256_hex(data))


def in_memory(clock: HandClock, **options: Any) -> Bucket:
    store = MemoryStore(clock, lock_mode="GOVERNANCE", rules=False)
    s3 = MemoryS3(store, S3Uploads(), clock.now)
    return Bucket(StoreOptions("b", **options), clock, Retry(clock), client=s3)


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


def test_the_same_requests_have_the_same_answers(open_bucket, clock):
    assert converse(in_memory(clock), clock) == converse(open_bucket(), clock)


def test_what_may_overwrite_is_no_archivers_business(clock):
    bucket = in_memory(clock)
    body = {"Body": io.BytesIO(b"x"), "ChecksumSHA256": sha256(b"x"), "ContentType": "text/plain"}
    with pytest.raises(Violation, match="may overwrite"):
        bucket.client.s3.put_object(**bucket.client.at("k"), **body)


def test_uploads_of_the_dead_are_listed_until_they_are_aborted(clock):
    bucket = in_memory(clock)
    bucket.begin(KEY, content_type="audio/wav", retain_until=None).part(b"x")
    assert bucket.abort_uploads(layout.RECORDINGS, clock.now()) == 0
    clock.forward(timedelta(days=1))
    assert bucket.abort_uploads(layout.RECORDINGS, clock.now()) == 1
    assert bucket.abort_uploads(layout.RECORDINGS, clock.now()) == 0
