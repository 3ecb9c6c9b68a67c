"""What a store may do otherwise than S3, request by request, before a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from archiver.core import checksums
from archiver.core.errors import KeyTaken, StoreError
from archiver.manifest import layout
from archiver.store.bucket import PROBE_BYTES, Bucket
from archiver.store.probe import probe, quick_probe, require_safe
from tests.fakes import unlike_s3
from tests.fakes.clock import HandClock
from tests.fakes.unlike_s3 import Habits, Refusal, UnlikeS3

Open = Callable[..., tuple[Bucket, UnlikeS3]]
CONDITION = unlike_s3.CONDITION


@pytest.fixture
def behind(weed: Any, open_bucket: Callable[..., Bucket]) -> Iterator[Open]:
    opened: list[UnlikeS3] = []

    def make(habits: Habits, name: str = "plain", **options: Any) -> tuple[Bucket, UnlikeS3]:
        store = UnlikeS3(weed.endpoint_url, habits, weed.environment)
        opened.append(store.__enter__())
        return open_bucket(name, endpoint_url=store.url, **options), store

    yield make
    for store in opened:
        store.__exit__()


def refusing(query: str, status: int, code: str = "Whatever") -> Habits:
    return Habits((Refusal(rf"^GET [^ ]*[?&]{query}", status, code),))


STATUSES = [400, 404, 405, 501]


@pytest.mark.parametrize("status", STATUSES)
def test_a_setting_that_the_store_does_not_know_is_off(behind, status):
    bucket, _ = behind(refusing("object-lock", status))
    assert not bucket.has_object_lock()
    assert not bucket.locks_by_itself()
    bucket, _ = behind(refusing("versioning", status), "locked")
    assert not bucket.is_versioned()


@pytest.mark.parametrize("status", STATUSES)
def test_a_lock_mode_is_refused_where_locks_are_not_known(behind, status):
    bucket, _ = behind(refusing("object-lock", status), lock_mode="COMPLIANCE")
    with pytest.raises(StoreError, match="has no Object Lock") as caught:
        bucket.check_access()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AccessDenied"), (400, "ExpiredToken"), (404, "NoSuchBucket"), (503, "SlowDown")],
)
def test_what_says_nothing_of_the_setting_is_no_answer(behind, status, code):
    bucket, _ = behind(refusing("object-lock", status, code))
    with pytest.raises(StoreError):
        bucket.has_object_lock()


def conditional(*methods: str, status: int = 501, code: str = "NotImplemented") -> Habits:
    """Refuses the condition of PUT, of POST, or of both."""
    return Habits(tuple(Refusal(rf"^{m} [^ ]*{CONDITION}", status, code) for m in methods))


@pytest.mark.parametrize("name", ["plain", "locked"])
@pytest.mark.parametrize(
    ("status", "code"),
    [(501, "NotImplemented"), (400, "InvalidArgument"), (405, "MethodNotAllowed")],
)
def test_a_store_that_refuses_the_condition_is_found_out(behind, name, status, code):
    """Of an empty prefix, and of one that was tried before."""
    habits = conditional("PUT", "POST", status=status, code=code)
    bucket, _ = behind(habits, name)
    for _ in range(2):
        found = probe(bucket)
        assert (found.create_once, found.conditional_writes) == (False, False)
        assert (found.create_once_race_winners, found.complete_create_once) == (None, False)
    assert bucket.read(layout.PROBE) == PROBE_BYTES
    require_safe(found, single_writer=True)
    with pytest.raises(StoreError, match="If-None-Match"):
        require_safe(found, single_writer=False)
    again = quick_probe(bucket, found.document())
    assert (again.create_once, again.conditional_writes) == (False, False)
    assert again.complete_create_once is False


def test_what_another_program_wrote_is_not_overwritten(behind):
    bucket, _ = behind(unlike_s3.B2)
    bucket.client.call_once("put_object", layout.PROBE, Body=b"theirs")
    with pytest.raises(StoreError, match="holds other bytes"):
        probe(bucket)
    assert bucket.read(layout.PROBE) == b"theirs"


def test_a_write_that_is_refused_either_way_is_told_as_that(behind):
    """The condition is not what the store dislikes."""
    bucket, _ = behind(Habits((Refusal(r"^PUT ", 400, "InvalidStorageClass"),)))
    with pytest.raises(StoreError, match="InvalidStorageClass"):
        probe(bucket)


def test_one_writer_writes_without_the_condition(behind):
    bucket, store = behind(unlike_s3.B2)
    bucket.create_once = bucket.conditional_writes = bucket.conditional_completion = False
    stored = bucket.put_once("k", b"x")
    assert bucket.put_once("k", b"x") == type(stored)(**{**vars(stored), "adopted": True})
    with pytest.raises(KeyTaken):
        bucket.put_once("k", b"y")
    assert bucket.read("k") == b"x"
    assert bucket.is_answering()
    upload = bucket.begin("big", content_type="a/b", retain_until=None)
    upload.part(b"the end")
    assert upload.complete(checksums.sha256_hex(b"the end")).size == 7
    assert not any("if-none-match" in line for line in store.seen)


def test_a_probe_knows_an_upload_s_end_from_a_put(behind):
    bucket, _ = behind(unlike_s3.MINIO)
    found = probe(bucket)
    assert (found.create_once, found.conditional_writes) == (True, True)
    assert found.complete_create_once is False
    require_safe(found, single_writer=False)


@pytest.mark.parametrize("signed", [True, False])
def test_the_size_of_an_object_comes_from_elsewhere_if_a_head_tells_none(behind, signed):
    bucket, _ = behind(Habits(tells_length=False), "locked", signed_requests=signed)
    first = bucket.put_once("k", b"12345")
    bucket.client.call_once("put_object", "k", Body=b"1234567")
    head, older = bucket.head("k"), bucket.head("k", first.version_id)
    assert head is not None
    assert older is not None
    assert (head.size, older.size) == (7, 5)
    assert bucket.head("nothing") is None


def test_a_lock_and_a_hold_carry_content_md5(behind, clock: HandClock):
    bucket, store = behind(unlike_s3.MINIO, "locked", lock_mode="GOVERNANCE")
    clock.turn_to(datetime.now(UTC))
    stored = bucket.put_once("k", b"x")
    until = clock.now() + timedelta(minutes=1)
    assert bucket.extend("k", stored.version_id, until).mode == "GOVERNANCE"
    for held in (True, False):
        bucket.set_hold("k", stored.version_id, held)
    calls = [line for line in store.seen if "?legal-hold" in line or "?retention" in line]
    assert len([line for line in calls if line.startswith("PUT")]) == 3
