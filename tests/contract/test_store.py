"""One suite for the store: what `Bucket` promises, on every store that the suite knows.

What a store does otherwise than promised stands in `stores.py`, and `test_matters.py` holds it to
that. Here nothing deviates: on a store that overwrites, `Bucket` looks before it writes.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from archiver.core import checksums
from archiver.core.clock import Interrupted
from archiver.core.errors import KeyTaken, StoreError
from archiver.core.retry import Retry
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions
from tests.contract.conftest import LOCKED, LOCKING, STORES, MakeBucket, Server
from tests.contract.stores import KNOWN, Known, told
from tests.fakes.audio import noise
from tests.fakes.clock import HandClock
from tests.fakes.proxy import FaultProxy
from tests.system.servers import REGION

PART = 5 << 20
ATOMIC = [name for name in STORES if KNOWN[name].proved.create_once and name != "moto"]
"""moto now and then has two winners."""
WEED = [name for name in STORES if name == "weed-locked"]


def versions_of(bucket: Bucket, key: str) -> int:
    return sum(version.key == key for version in bucket.versions(key))


# --- create-once


def test_what_is_put_is_read_back(bucket: Bucket, known: Known) -> None:
    stored = bucket.put_once("a/b.json", b"{}\n", content_type="application/json")
    assert (stored.key, stored.size, stored.adopted) == ("a/b.json", 3, False)
    assert stored.sha256 == checksums.sha256_hex(b"{}\n")
    assert (stored.version_id is None) == (not known.locked)
    assert bucket.read("a/b.json") == b"{}\n"
    assert bucket.read("a/b.json", stored.version_id) == b"{}\n"
    assert b"".join(bucket.stream("a/b.json") or ()) == b"{}\n"
    head = bucket.head("a/b.json")
    assert head is not None
    assert (head.size, head.version_id) == (3, stored.version_id)
    assert head.sha256 in (None, stored.sha256)
    raw = bucket.client.s3.head_object(**bucket.client.at("a/b.json"))
    assert raw["ContentType"] == "application/json"
    assert not raw.get("ContentEncoding"), "an aws-chunked trailer was stored as an encoding"


def test_the_same_bytes_are_adopted_as_one_version(bucket: Bucket) -> None:
    first = bucket.put_once("k", b"same")
    again = bucket.put_once("k", b"same")
    assert again.adopted
    assert again.version_id == first.version_id
    if first.version_id is not None:
        assert versions_of(bucket, "k") == 1


@pytest.mark.parametrize("other", [b"othr", b"longer than before", b"s"])
def test_other_bytes_find_the_key_taken(bucket: Bucket, other: bytes) -> None:
    bucket.put_once("k", b"same")
    with pytest.raises(KeyTaken) as caught:
        bucket.put_once("k", other)
    assert caught.value.exit_code == 4
    assert bucket.read("k") == b"same"


def test_what_is_not_there_is_none(bucket: Bucket) -> None:
    assert bucket.read("nothing") is None
    assert bucket.stream("nothing") is None
    assert bucket.head("nothing") is None
    assert list(bucket.list("nothing")) == []
    assert list(bucket.versions("nothing")) == []


def test_more_than_allowed_is_not_read(bucket: Bucket) -> None:
    bucket.put_once("k", b"x" * 100)
    with pytest.raises(StoreError, match="larger"):
        bucket.read("k", max_bytes=99)
    assert bucket.read("k", max_bytes=100) == b"x" * 100


def test_bytes_in_a_mapping_are_put_and_read_into_a_file(bucket: Bucket) -> None:
    data, target = noise(300_000), io.BytesIO(b"what was there before")
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            stored = bucket.put_once("k", view, content_type="audio/wav")
            assert (stored.size, stored.sha256) == (len(data), checksums.sha256_hex(data))
            assert bucket.put_once("k", view).adopted
    assert bucket.read_into("k", target, len(data))
    assert target.getvalue() == data
    assert not bucket.read_into("nothing", io.BytesIO(), 10)
    with pytest.raises(StoreError, match="larger"):
        bucket.read_into("k", io.BytesIO(), len(data) - 1)
    with pytest.raises(KeyTaken):
        bucket.put_once("k", data[:-5] + b"other")


def test_the_tail_of_an_object(bucket: Bucket) -> None:
    bucket.put_once("k", b"0123456789")
    assert bucket.tail("k", 3) == b"789"
    assert bucket.tail("k", 10) == b"0123456789"
    assert bucket.tail("nothing", 3) is None
    bucket.put_once("short", b"ab")
    assert bucket.tail("short", 3) == b"ab"


@pytest.mark.parametrize("key", ["a b", "ü/zß水🍌", "a+b=c", "dt=2024-01-15/id.ff/r1.json"])
def test_keys_come_back_as_they_were(bucket: Bucket, key: str) -> None:
    bucket.put_once(key, b"x")
    assert bucket.read(key) == b"x"
    assert [item.key for item in bucket.list("")] == [key]


def test_a_prefix_is_a_world_of_its_own(bucket: Bucket) -> None:
    other = Bucket(
        StoreOptions(bucket.options.bucket, prefix=f"/{bucket.options.prefix}-other/"),
        HandClock(), Retry(HandClock()), client=bucket.client.s3,
    )  # fmt: skip
    other.create_once, other.conditional_writes = bucket.create_once, bucket.conditional_writes
    bucket.put_once("k", b"here")
    assert other.read("k") is None
    other.put_once("k", b"there")
    assert bucket.read("k") == b"here"
    assert [item.key for item in other.list("")] == ["k"]


def race(bucket: Bucket, key: str, *, writers: int) -> list[int]:
    """All write at once to one key; who was told that it won."""
    winners: list[int] = []
    barrier = threading.Barrier(writers)

    def write(number: int) -> None:
        barrier.wait()
        with contextlib.suppress(KeyTaken):
            bucket.put_once(key, f"writer {number}".encode())
            winners.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


@pytest.mark.parametrize("store", ATOMIC)
def test_of_many_writers_one_wins(bucket: Bucket) -> None:
    [winner] = race(bucket, "k", writers=8)
    assert bucket.read("k") == f"writer {winner}".encode()


# --- listing


def fill(bucket: Bucket, count: int) -> list[str]:
    """So many objects below `many/`; their keys."""
    keys = [f"many/{number:05}" for number in range(count)]
    client = bucket.client

    def put(key: str) -> None:
        one = partial(client.s3.put_object, **client.at(key), Body=b"x")
        client.retrying(lambda: client.attempt("PutObject", one))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, keys))
    return keys


@contextlib.contextmanager
def short_pages(bucket: Bucket, count: int) -> Iterator[list[str]]:
    """Have the store answer with so many keys at a time; the listings that were asked for."""
    events, asked = bucket.client.s3.meta.events, []

    def shorten(params: dict[str, Any], model: Any, **_: Any) -> None:
        asked.append(model.name)
        params["MaxKeys"] = count

    class Short:
        """Asks for short pages past boto3."""

        credentials = bucket.client.signed.credentials

        def list_objects_v2(self, **arguments: Any) -> dict[str, Any]:
            asked.append("ListObjectsV2")
            return objects.list_objects_v2(**arguments, MaxKeys=count)

    name, objects = "provide-client-params.s3.ListObjectVersions", bucket.client.signed
    events.register(name, shorten)
    bucket.client.signed = Short()
    try:
        yield asked
    finally:
        events.unregister(name, shorten)
        bucket.client.signed = objects


def test_listings_go_on_beyond_a_page(bucket: Bucket, known: Known) -> None:
    keys = fill(bucket, 25)
    with short_pages(bucket, 10) as asked:
        listed = [item.key for item in bucket.list("many/")]
        assert sorted(listed) == keys
        assert len(asked) == 3, "the store kept to short pages"
        after = {item.key for item in bucket.list("many/", start_after="many/00009")}
        assert after == set(keys[10:])
        if known.locked:
            assert sorted(version.key for version in bucket.versions("many/")) == keys


def test_folders_are_told_from_keys_beyond_a_page(bucket: Bucket, known: Known) -> None:
    for number in range(12):
        bucket.put_once(f"many/d={number:02}/b/x", b"x")
    bucket.put_once("many/plain", b"x")
    folders = {f"d={number:02}" for number in range(12)}
    with short_pages(bucket, 5) as asked:
        assert bucket.folders("many/") == folders
        assert len(asked) >= 3, "the store kept to short pages"
        assert bucket.folders("many/d=01/") == {"b"}
        assert bucket.folders("many/none/") == set()
        if known.locked:
            client = bucket.client
            client.s3.delete_object(**client.at("many/d=03/b/x"))
            # Some stores show a folder whose objects are all hidden: it costs a LIST, and no more.
            assert folders - {"d=03"} <= bucket.folders("many/") <= folders
            assert bucket.folders("many/", hidden=True) == folders


def test_any_key_is_listed_as_boto3_lists_it(bucket: Bucket, known: Known) -> None:
    client = bucket.client
    for key in ("many/plain", "many/dt=1 +%20&<>\"'é", "many/%2F+a", "many/\u4e2d\U0001f44b"):
        client.s3.put_object(**client.at(key), Body=key.encode())
    whole = client.prefix + "many/"
    page = client.s3.list_objects_v2(Bucket=client.options.bucket, Prefix=whole)
    theirs = {(item["Key"], item["Size"]) for item in page["Contents"]}
    assert len(theirs) == 4
    assert {(client.prefix + one.key, one.size) for one in bucket.list("many/")} == theirs


@pytest.mark.parametrize("store", STORES[:1])
def test_listings_go_on_beyond_a_page_of_the_usual_length(bucket: Bucket) -> None:
    keys = fill(bucket, 1005)
    assert sorted(item.key for item in bucket.list("many/")) == keys
    assert sorted(version.key for version in bucket.versions("many/")) == keys


@pytest.mark.parametrize("store", LOCKED)
def test_versions_and_delete_markers_are_told(bucket: Bucket) -> None:
    stored = bucket.put_once("k", b"first")
    bucket.client.s3.put_object(**bucket.client.at("k"), Body=b"second!")
    bucket.client.s3.delete_object(**bucket.client.at("k"))
    versions = {version.version_id: version for version in bucket.versions("k")}
    assert len(versions) == 3
    assert sum(version.is_delete_marker for version in versions.values()) == 1
    [latest] = [version for version in versions.values() if version.is_latest]
    assert latest.is_delete_marker
    assert stored.version_id is not None
    assert versions[stored.version_id].size == 5
    assert bucket.read("k", stored.version_id) == b"first"
    assert bucket.read("k") is None


# --- multipart


def uploads(bucket: Bucket) -> int:
    answer = bucket.client.s3.list_multipart_uploads(
        Bucket=bucket.options.bucket, Prefix=bucket.client.prefix
    )
    return len(answer.get("Uploads", []))


def test_parts_make_one_object(bucket: Bucket) -> None:
    data = noise(2 * PART + 7)
    upload = bucket.begin("big.wav", content_type="audio/wav", retain_until=None)
    for start in range(0, len(data), PART):
        upload.part(data[start : start + PART])
    stored = upload.complete(checksums.sha256_hex(data))
    assert stored.size == len(data)
    assert b"".join(bucket.stream("big.wav", stored.version_id) or ()) == data
    head = bucket.head("big.wav")
    assert head is not None
    assert head.sha256 is None, "a composite checksum is no content hash"
    assert uploads(bucket) == 0


def test_an_aborted_upload_leaves_nothing(bucket: Bucket) -> None:
    upload = bucket.begin("big.wav", content_type="audio/wav", retain_until=None)
    upload.part(noise(PART))
    upload.abort()
    upload.abort()
    assert uploads(bucket) == 0
    assert bucket.head("big.wav") is None


@pytest.mark.parametrize(
    "store", [n for n in STORES if told("the time when an upload was begun", n) == "told"]
)
def test_an_upload_whose_process_is_gone_is_aborted_once_it_is_old(bucket: Bucket) -> None:
    upload = bucket.begin("a/big.wav", content_type="audio/wav", retain_until=None)
    upload.part(noise(PART))
    now = datetime.now(UTC)
    assert bucket.abort_uploads("a/", now - timedelta(days=1)) == 0
    assert bucket.abort_uploads("b/", now + timedelta(minutes=1)) == 0
    assert uploads(bucket) == 1
    assert bucket.abort_uploads("a/", now + timedelta(minutes=1)) == 1
    assert uploads(bucket) == 0
    with pytest.raises(StoreError):
        upload.part(noise(PART))


# --- retention


@pytest.fixture
def locking(locking: MakeBucket, clock: HandClock) -> MakeBucket:
    """Dates lie within a second, here."""
    clock.forward(timedelta(milliseconds=1))
    return locking


def assert_locked(
    bucket: Bucket, key: str, mode: str, until: datetime, version_id: str | None = None
) -> None:
    """Until a whole second, and never earlier than asked for."""
    head = bucket.head(key, version_id)
    assert head is not None
    assert head.lock_mode == mode
    assert head.lock_until is not None
    assert timedelta(0) <= head.lock_until - until < timedelta(seconds=1)


Put = Callable[[Bucket, str, datetime | None], str | None]
"""Writes an object; its version."""


def put_whole(bucket: Bucket, key: str, until: datetime | None) -> str | None:
    return bucket.put_once(key, b"x", retain_until=until).version_id


def put_in_parts(bucket: Bucket, key: str, until: datetime | None) -> str | None:
    upload = bucket.begin(key, content_type="audio/wav", retain_until=until)
    upload.part(noise(PART))
    upload.part(b"the end")
    return upload.complete(checksums.sha256_hex(noise(PART) + b"the end")).version_id


@pytest.mark.parametrize("store", LOCKING)
@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
@pytest.mark.parametrize("put", [put_whole, put_in_parts])
def test_an_object_is_locked_until_its_date(
    locking: MakeBucket, clock: HandClock, mode: str, put: Put
) -> None:
    """In parts too, also where the store drops a lock that is given when the upload begins."""
    bucket = locking(mode)
    # Of a real archive the store keeps it for years: this one is thrown away with its disk.
    until = clock.now() + timedelta(days=2)
    version = put(bucket, "k", until)
    assert_locked(bucket, "k", mode, until, version)
    assert versions_of(bucket, "k") == 1


@pytest.mark.parametrize("store", LOCKING)
def test_an_adopted_object_gets_the_lock_that_it_lacks(
    locking: MakeBucket, open_bucket: MakeBucket, clock: HandClock
) -> None:
    open_bucket().put_once("k", b"x")
    until = clock.now() + timedelta(days=2)
    assert locking().put_once("k", b"x", retain_until=until).adopted
    assert_locked(locking(), "k", "GOVERNANCE", until)


@pytest.mark.parametrize("store", LOCKING)
def test_a_longer_lock_is_never_shortened(locking: MakeBucket, clock: HandClock) -> None:
    bucket = locking()
    far = clock.now() + timedelta(days=9)
    stored = bucket.put_once("k", b"x", retain_until=far)
    bucket.put_once("k", b"x", retain_until=clock.now() + timedelta(days=1))
    bucket.extend("k", stored.version_id, clock.now() + timedelta(days=1))
    assert_locked(bucket, "k", "GOVERNANCE", far)


@pytest.mark.parametrize("store", LOCKING)
def test_a_lock_is_extended(locking: MakeBucket, clock: HandClock) -> None:
    bucket = locking()
    near, far = clock.now() + timedelta(days=1), clock.now() + timedelta(days=9)
    stored = bucket.put_once("k", b"x", retain_until=near)
    bucket.extend("k", stored.version_id, None)
    assert_locked(bucket, "k", "GOVERNANCE", near)
    bucket.extend("k", stored.version_id, far)
    assert_locked(bucket, "k", "GOVERNANCE", far, stored.version_id)
    bucket.put_once("bare", b"x")
    bucket.extend("bare", None, near)
    assert_locked(bucket, "bare", "GOVERNANCE", near)
    with pytest.raises(StoreError, match="archiver verify") as caught:
        bucket.extend("nothing", None, far)
    assert caught.value.reason == "gone"


@pytest.mark.parametrize("store", LOCKING)
def test_a_date_that_is_over_sets_no_lock(locking: MakeBucket, clock: HandClock) -> None:
    bucket = locking()
    bucket.put_once("k", b"x", retain_until=clock.now() - timedelta(days=1))
    head = bucket.head("k")
    assert head is not None
    assert head.lock_mode is None


def test_a_lock_in_a_bucket_without_object_lock_is_refused(
    open_bucket: MakeBucket, clock: HandClock
) -> None:
    bucket = open_bucket("plain", lock_mode="COMPLIANCE")
    with pytest.raises(StoreError, match="Object Lock") as caught:
        bucket.check_access()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("store", LOCKED)
def test_a_hold_is_put_on_shown_and_taken_off(bucket: Bucket) -> None:
    version = bucket.put_once("k", b"x").version_id
    bucket.put_once("other", b"x")
    for at, held in ((version, True), (version, True), (version, False), (None, True)):
        bucket.set_hold("k", at, held)
        heads = [bucket.head("k", version), bucket.head("other")]
        assert [head.held for head in heads if head] == [held, False]
    with pytest.raises(StoreError):
        bucket.set_hold("nothing", None, True)
    assert bucket.head("nothing") is None


@pytest.mark.parametrize("store", [name for name in STORES if name not in LOCKED])
def test_a_bucket_without_object_lock_takes_no_hold(bucket: Bucket) -> None:
    bucket.put_once("k", b"x")
    with pytest.raises(StoreError, match=r"legal hold.*Object Lock"):
        bucket.set_hold("k", None, True)


# --- access


def test_access(bucket: Bucket, known: Known) -> None:
    bucket.check_access()
    assert bucket.has_object_lock() == known.locked
    assert bucket.is_versioned() == known.locked


def test_an_unknown_bucket_names_the_setting(open_bucket: MakeBucket) -> None:
    bucket = open_bucket("no-such-bucket")
    for ask in (bucket.check_access, lambda: bucket.put_once("k", b"x"), lambda: bucket.read("k")):
        with pytest.raises(StoreError, match="ARCHIVER_S3_BUCKET") as caught:
            ask()
        assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": None}, "AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "AWS_SECRET_ACCESS_KEY"),
    ],
)
# Where a proxy refuses a condition, or signs without it, the real store is not asked who writes.
@pytest.mark.parametrize(
    "store", [n for n in STORES if n not in ("moto", "b2-like", "gcs-like", "oss-like")]
)
def test_wrong_credentials_name_the_variables(
    server: Server, monkeypatch: pytest.MonkeyPatch, clock: HandClock,
    environment: dict[str, str | None], told: str,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    options = StoreOptions("locked", endpoint_url=server.endpoint_url, region=REGION)
    bucket = Bucket(options, clock, Retry(clock))
    for ask in (bucket.check_access, lambda: bucket.put_once("k", b"x")):
        with pytest.raises(StoreError) as caught:
            ask()
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
    assert clock.sleeps == [], "trying again cannot help"


def test_an_unreachable_store_names_the_setting(clock: HandClock, server: Server) -> None:
    options = StoreOptions("b", endpoint_url="http://127.0.0.1:1", region=REGION)
    with pytest.raises(StoreError, match="ARCHIVER_S3_ENDPOINT_URL"):
        Bucket(options, clock, Retry(clock)).check_access()
    assert len(clock.sleeps) == 4


def test_an_odd_bucket_name_is_a_store_error(clock: HandClock, server: Server) -> None:
    options = StoreOptions("Not A Bucket!", endpoint_url=server.endpoint_url, region=REGION)
    with pytest.raises(StoreError, match="ARCHIVER_S3_BUCKET"):
        Bucket(options, clock, Retry(clock)).check_access()


def test_a_request_to_end_is_heard(bucket: Bucket) -> None:
    clock = HandClock()
    stopped = Bucket(bucket.options, clock, Retry(clock), client=bucket.client.s3)
    clock.stop()
    for ask in (lambda: stopped.put_once("k", b"x"), lambda: list(stopped.list(""))):
        with pytest.raises(Interrupted):
            ask()
    assert bucket.read("k") is None


# --- settings of each write


def test_options_reach_each_write(server: Server) -> None:
    """What is sent; what a store makes of it is among the matters."""
    clock = HandClock()
    with FaultProxy(server.endpoint_url) as proxy:
        options = StoreOptions(
            "locked", endpoint_url=proxy.url, region=REGION, sse="aws:kms",
            sse_kms_key_id="key-1", storage_class="STANDARD_IA",
        )  # fmt: skip
        bucket = Bucket(options, clock, Retry(clock, attempts=1))
        for write in (
            lambda: bucket.put_once("k", b"x"),
            lambda: bucket.begin("m", content_type="audio/wav", retain_until=None).abort(),
        ):
            with contextlib.suppress(
                StoreError
            ):  # this store may know no KMS: what was sent counts
                write()
    asked = list(zip(proxy.seen, proxy.headers, strict=True))
    put = next(sent for line, sent in asked if line.startswith("PUT"))
    begin = next(sent for line, sent in asked if line.startswith("POST"))
    for headers in (put, begin):
        assert headers["x-amz-server-side-encryption"] == "aws:kms"
        assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
        assert headers["x-amz-storage-class"] == "STANDARD_IA"
    assert put["if-none-match"] == "*"


class Careless:
    """A store's client whose store takes an argument of each write, and drops it."""

    def __init__(self, client: Any, *dropped: str) -> None:
        self._client = client
        self._dropped = dropped

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        if name not in ("put_object", "create_multipart_upload"):
            return call
        return lambda **arguments: call(
            **{key: value for key, value in arguments.items() if key not in self._dropped}
        )


DROPPED = {
    "ARCHIVER_SSE": ({"sse": "AES256"}, "ServerSideEncryption"),
    "ARCHIVER_STORAGE_CLASS": ({"storage_class": "STANDARD_IA"}, "StorageClass"),
}


@pytest.mark.parametrize("store", WEED)
@pytest.mark.parametrize("setting", DROPPED)
def test_a_setting_that_the_store_drops_is_found_out(
    open_bucket: MakeBucket, clock: HandClock, setting: str
) -> None:
    options, argument = DROPPED[setting]
    honest = open_bucket(**options)
    put_whole(honest, "kept", None)
    put_in_parts(honest, "kept in parts", None)
    client = Careless(honest.client.s3, argument)
    careless = Bucket(honest.options, clock, Retry(clock), client=client)
    for key, put in (("whole", put_whole), ("in parts", put_in_parts)):
        with pytest.raises(StoreError, match=setting) as caught:
            put(careless, key, None)
        assert caught.value.exit_code == 4
    # What is there already was written with the settings of its day.
    open_bucket().put_once("old", b"x")
    assert honest.put_once("old", b"x").adopted


@pytest.mark.parametrize("store", WEED)
def test_a_lock_that_the_store_drops_is_set_again(locking: MakeBucket, clock: HandClock) -> None:
    honest, until = locking(), clock.now() + timedelta(days=1)
    client = Careless(honest.client.s3, "ObjectLockMode", "ObjectLockRetainUntilDate")
    careless = Bucket(honest.options, clock, Retry(clock), client=client)
    for key, put in (("whole", put_whole), ("in parts", put_in_parts)):
        version = put(careless, key, until)
        assert_locked(honest, key, "GOVERNANCE", until, version)


class Forgetful(Careless):
    """A store that answers each lock with success, and keeps none."""

    def put_object_retention(self, **_: Any) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("store", WEED)
def test_a_lock_that_cannot_be_had_is_an_error(locking: MakeBucket, clock: HandClock) -> None:
    honest, until = locking(), clock.now() + timedelta(days=1)
    client = Forgetful(honest.client.s3, "ObjectLockMode", "ObjectLockRetainUntilDate")
    forgetful = Bucket(honest.options, clock, Retry(clock), client=client)
    with pytest.raises(StoreError, match="not locked as asked"):
        forgetful.put_once("k", b"x", retain_until=until)
