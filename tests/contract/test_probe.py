"""What the probe finds on each store, and what it leaves there."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from archiver.core.errors import StoreError
from archiver.manifest import layout
from archiver.store.bucket import PROBE_BYTES, Bucket
from archiver.store.errors import translate
from archiver.store.probe import RACERS, Capabilities, probe, quick_probe, require_safe
from tests.contract.conftest import LOCKED, LOCKING, STORES, MakeBucket, Server
from tests.contract.stores import KNOWN, Known, told
from tests.fakes.clock import HandClock
from tests.fakes.proxy import FaultProxy, Harm

WEED = [name for name in STORES if name == "weed-locked"]
SSE = "encryption (ARCHIVER_SSE=AES256)"


@pytest.fixture(autouse=True)
def _real_time(clock: HandClock) -> None:
    """The real server judges lock dates by the real time."""
    clock.turn_to(datetime.now(UTC))


@pytest.fixture
def bucket(open_bucket: MakeBucket, known: Known) -> Bucket:
    return open_bucket(lock_mode="COMPLIANCE" if known.locked else None)


def steady(found: Capabilities, *, but: frozenset[str] = frozenset()) -> dict[str, Any]:
    """What was found, without what differs by chance."""
    document = found.document()
    return {name: value for name, value in document.items() if name not in but}


def left(bucket: Bucket) -> int:
    """How many versions the probe left; fails where it left anything else."""
    assert {item.key for item in bucket.list("")} == {layout.PROBE}
    assert bucket.read(layout.PROBE) == PROBE_BYTES
    uploads = bucket.client.s3.list_multipart_uploads(
        Bucket=bucket.options.bucket, Prefix=bucket.client.prefix
    )
    assert not uploads.get("Uploads")
    return len(list(bucket.versions("")))


# --- what it finds


def test_the_probe_finds_what_the_table_says(bucket: Bucket, known: Known) -> None:
    found = probe(bucket)
    assert steady(found, but=known.loose) == steady(known.proved, but=known.loose)
    assert found.clock_skew_seconds is not None
    assert abs(found.clock_skew_seconds) < 10
    assert left(bucket) <= (2 if known.locked else 1)


def test_a_probe_that_finds_another_s_object_finds_the_same(bucket: Bucket, known: Known) -> None:
    """The writers then race to overwrite it, and all must lose."""
    first, again = probe(bucket), probe(bucket)
    counts = frozenset({"create_once_racers", "create_once_race_winners"})
    assert steady(again, but=known.loose | counts) == steady(first, but=known.loose | counts)
    if first.create_once:
        assert (again.create_once_racers, again.create_once_race_winners) == (RACERS, 0)
    elif known.server != "moto":
        assert (again.create_once_racers, again.create_once_race_winners) == (0, None)
    assert left(bucket) <= (2 if known.locked else 1)


def test_a_probe_object_of_an_earlier_release_is_as_good(bucket: Bucket, known: Known) -> None:
    bucket.put_once(layout.PROBE, PROBE_BYTES, content_type="text/plain")
    found = probe(bucket)
    but = known.loose | {"create_once_racers", "create_once_race_winners"}
    assert steady(found, but=but) == steady(known.proved, but=but)
    assert left(bucket) <= (2 if known.locked else 1)


@pytest.mark.parametrize("store", LOCKED)
def test_without_locks_to_try_there_is_one_version(open_bucket: MakeBucket, known: Known) -> None:
    found = probe(open_bucket())
    assert found.object_lock
    assert (found.lock_holds, found.lock_at_multipart) == (None, None)
    assert found.legal_hold == known.proved.legal_hold
    assert left(open_bucket()) == 1


@pytest.mark.parametrize("store", LOCKED)
def test_governance_is_tried_too(open_bucket: MakeBucket, known: Known) -> None:
    found = probe(open_bucket(lock_mode="GOVERNANCE"))
    assert found.lock_holds == known.proved.lock_holds
    head = open_bucket().head(layout.PROBE)
    assert head is not None
    assert not head.held


def test_another_program_s_object_is_told(bucket: Bucket) -> None:
    bucket.put_once(layout.PROBE, b"what an uptime monitor wrote")
    with pytest.raises(StoreError, match="manifest/probe") as caught:
        probe(bucket)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("store", STORES[:1])
def test_a_clock_that_is_off_is_seen(open_bucket: MakeBucket, clock: HandClock) -> None:
    bucket, began = open_bucket(), time.monotonic()
    clock.forward(timedelta(hours=3))
    found = probe(bucket)
    took = time.monotonic() - began  # meanwhile our clock stood still
    assert found.clock_skew_seconds is not None
    assert -10_810 < found.clock_skew_seconds < -10_790 + took


@pytest.mark.parametrize("store", [name for name in STORES if told(SSE, name) == "dropped"])
def test_a_setting_that_the_store_drops_is_told_at_the_start(open_bucket: MakeBucket) -> None:
    with pytest.raises(StoreError, match="ARCHIVER_SSE") as caught:
        probe(open_bucket(sse="AES256"))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("store", [name for name in STORES if name == "moto"])
def test_a_store_that_is_not_atomic_is_found_out(
    open_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto looks whether there is an object, and then makes one: where the first to make one waits
    for a second, both win, though it refuses those who come later."""
    from moto.s3.models import S3Backend

    at_once = S3Backend.put_object
    at_work: list[None] = []
    two_at_work = threading.Event()

    def wait_for_a_second(*arguments: Any, **named: Any) -> Any:
        at_work.append(None)
        if len(at_work) > 1:
            two_at_work.set()
        two_at_work.wait(timeout=30)
        return at_once(*arguments, **named)

    monkeypatch.setattr(S3Backend, "put_object", wait_for_a_second)
    found = probe(open_bucket())
    assert not found.create_once
    assert found.create_once_race_winners is not None
    assert found.create_once_race_winners > 1
    with pytest.raises(StoreError, match="--single-writer"):
        require_safe(found, single_writer=False)


# --- who may do less


def deny(bucket: Bucket, *actions: str) -> None:
    """Have the bucket's policy deny actions to everybody."""
    resource = f"arn:aws:s3:::{bucket.options.bucket}"
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": [f"s3:{action}" for action in actions],
        "Resource": [resource, f"{resource}/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    bucket.client.s3.put_bucket_policy(Bucket=bucket.options.bucket, Policy=policy)


@pytest.fixture
def own_bucket(open_bucket: MakeBucket, server: Server, prefix: str) -> Bucket:
    """A bucket with Object Lock that no other test uses."""
    server.client.create_bucket(Bucket=f"own-{prefix}", ObjectLockEnabledForBucket=True)
    return open_bucket(f"own-{prefix}", lock_mode="COMPLIANCE")


@pytest.mark.parametrize("store", LOCKING)
def test_a_writer_of_few_permissions_is_enough(own_bucket: Bucket, known: Known) -> None:
    """What it may not ask is unknown, and nothing else suffers."""
    deny(
        own_bucket, "DeleteObject", "DeleteObjectVersion", "PutObjectLegalHold",
        "ListBucketVersions", "GetBucketVersioning", "BypassGovernanceRetention",
    )  # fmt: skip
    unknown = {"legal_hold": None, "versioning": None}
    first = probe(own_bucket)
    assert steady(first) == {**steady(known.proved), **unknown}
    require_safe(first, single_writer=not first.create_once)
    again = probe(own_bucket)
    assert again.lock_holds
    assert again.checksums == first.checksums
    assert again.create_once == first.create_once


@pytest.mark.parametrize("store", LOCKING)
def test_a_writer_who_may_not_lock_is_told_so(own_bucket: Bucket) -> None:
    deny(own_bucket, "PutObjectRetention")
    with pytest.raises(StoreError, match="s3:PutObjectRetention"):
        probe(own_bucket)


@pytest.mark.parametrize("store", WEED)
def test_a_policy_that_demands_create_once_is_no_obstacle(
    server: Server, open_bucket: MakeBucket, known: Known
) -> None:
    """AWS lets a bucket's policy deny every write that lacks `If-None-Match`."""
    with FaultProxy(server.endpoint_url) as proxy:
        bucket = open_bucket(endpoint_url=proxy.url, lock_mode="COMPLIANCE")
        with (
            proxy.harming("denied", r"^PUT \S*/probe$", 99),
            proxy.harming("denied", r"^POST \S*/probe\?uploadId=\S*$", 99),
        ):
            found = probe(bucket)
        assert left(bucket) == 1
    unknown = {"lock_at_multipart": None, "whole_checksums": False}
    assert steady(found) == {**steady(known.proved), **unknown}


@pytest.mark.parametrize("store", LOCKING)
def test_the_bucket_s_own_retention_is_left_alone(own_bucket: Bucket, server: Server) -> None:
    """Also one of another mode, which nobody may change without the bypass."""
    mode = "GOVERNANCE"
    server.client.put_object_lock_configuration(
        Bucket=own_bucket.options.bucket,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": mode, "Days": 1}},
        },
    )
    found = probe(own_bucket)
    assert found.lock_holds
    for version in own_bucket.versions(layout.PROBE):
        head = own_bucket.head(layout.PROBE, version.version_id)
        assert head is not None
        assert head.lock_mode in (mode, "COMPLIANCE")  # a part's lock is our own


# --- when the way to the store is bad


@pytest.mark.parametrize("store", WEED)
@pytest.mark.parametrize("harm", ["conflict", "swallow"])
def test_a_race_in_which_answers_are_lost_is_judged_fairly(
    server: Server, open_bucket: MakeBucket, harm: Harm
) -> None:
    """S3 itself answers 409 to some of the racers."""
    with FaultProxy(server.endpoint_url) as proxy:
        bucket = open_bucket(endpoint_url=proxy.url)
        # As many as one racer can take: the last of its six tries succeeds.
        with proxy.harming(harm, r"^PUT \S*/probe if-none-match$", 5):
            found = probe(bucket)
        assert left(bucket) == 1
    assert found.create_once
    assert found.create_once_racers == RACERS


@pytest.mark.parametrize("store", WEED)
def test_a_store_that_cannot_be_reached_is_told(open_bucket: MakeBucket) -> None:
    bucket = open_bucket(endpoint_url="http://127.0.0.1:1")
    for ask in (lambda: probe(bucket), lambda: quick_probe(bucket, {})):
        with pytest.raises(StoreError, match="unreachable"):
            ask()


@pytest.mark.parametrize(
    ("code", "status", "reason", "told"),
    [
        ("RequestTimeTooSkewed", 403, "clock", "set the clocks"),
        ("InvalidObjectState", 403, "cold", "ARCHIVER_STORAGE_CLASS"),
        ("BadDigest", 400, "damaged", "damaged on the way"),
        ("AccessDenied", 403, "denied", "s3:PutObject below the archive"),
        ("ConditionalRequestConflict", 409, "status_5xx", "ConditionalRequestConflict"),
        ("SomethingElse", 501, "not_implemented", "PutObject"),
        ("SomethingElse", 400, "refused", "SomethingElse"),
    ],
)
def test_what_a_store_says_in_our_words(code: str, status: int, reason: str, told: str) -> None:
    answer: Any = {
        "Error": {"Code": code, "Message": "Tell nobody"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error = translate(ClientError(answer, "PutObject"), "PutObject", "b")
    assert told in str(error)
    assert "nobody" not in str(error)
    assert "\n" not in str(error)
    assert (error.reason, error.status, error.exit_code) == (reason, status, 4)
    assert error.retryable == (reason in ("damaged", "status_5xx"))


# --- every other start


def test_a_glance_believes_no_more_than_was_proved(bucket: Bucket, known: Known) -> None:
    first = probe(bucket)
    versions = left(bucket)
    found = quick_probe(bucket, first.document())
    assert (found.checksums, found.create_once) == (first.checksums, first.create_once)
    assert found.whole_checksums == first.whole_checksums
    assert (found.lock_holds is False) == (first.lock_holds is False)
    assert left(bucket) == versions, "a glance leaves nothing new"
    doubted = {"checksums": False, "create_once": False, "lock_holds": False}
    found = quick_probe(bucket, doubted)
    assert (found.checksums, found.create_once, found.lock_holds) == (False, False, False)


def test_a_glance_sees_what_has_changed_for_the_worse(bucket: Bucket, known: Known) -> None:
    """The archive was begun on a better store than this, and its probe object is gone."""
    found = quick_probe(bucket, {"checksums": True, "create_once": True})
    assert found.checksums == known.proved.checksums
    assert not found.whole_checksums, "that was proved by nobody"
    assert found.create_once == known.proved.create_once
    if known.proved.conditional_writes:
        left(bucket)
    else:
        assert list(bucket.list("")) == [], "nothing could be written"


# --- what follows


def test_several_writers_need_create_once() -> None:
    best = KNOWN["weed-locked"].proved
    require_safe(best, single_writer=False)
    careless = replace(best, create_once=False)
    require_safe(careless, single_writer=True)
    with pytest.raises(StoreError, match="--single-writer") as caught:
        require_safe(careless, single_writer=False)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("single_writer", [True, False])
def test_a_promised_lock_must_hold(single_writer: bool) -> None:
    best = KNOWN["weed-locked"].proved
    require_safe(replace(best, lock_holds=None), single_writer=single_writer)
    with pytest.raises(StoreError, match="ARCHIVER_OBJECT_LOCK_MODE=none"):
        require_safe(replace(best, lock_holds=False), single_writer=single_writer)
    both = replace(best, lock_holds=False, create_once=False)
    with pytest.raises(StoreError, match="ARCHIVER_OBJECT_LOCK_MODE=none") as caught:
        require_safe(both, single_writer=single_writer)
    assert ("--single-writer" in str(caught.value)) is not single_writer


def test_seal_0_has_all_but_the_clock() -> None:
    document = replace(KNOWN["weed-locked"].proved, clock_skew_seconds=3.0).document()
    assert "clock_skew_seconds" not in document
    assert document["create_once_race_winners"] == 1
    json.dumps(document)
