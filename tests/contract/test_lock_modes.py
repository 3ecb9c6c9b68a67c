"""What becomes of a lock when the mode that is asked for changes: on every store whose locks hold.

A store refuses to change the mode of a lock that holds, whichever way, unless the bypass is used,
which a writer must not have. So the mode stays, and the date is extended in it.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial

import pytest

from archiver.core.errors import StoreError
from archiver.store.bucket import Bucket
from tests.contract.conftest import LOCKING, MakeBucket
from tests.contract.stores import told
from tests.fakes.clock import HandClock

DAY = timedelta(days=1)
pytestmark = pytest.mark.parametrize("store", LOCKING)


def lock_of(bucket: Bucket, key: str) -> tuple[str | None, datetime | None]:
    head = bucket.head(key)
    assert head is not None
    return head.lock_mode, head.lock_until


def test_a_mode_that_the_store_does_not_change_stays_and_is_extended(
    locking: MakeBucket, clock: HandClock, store: str
) -> None:
    assert told("strengthening GOVERNANCE to COMPLIANCE", store).startswith("refused")
    lax, strict, until = locking("GOVERNANCE"), locking("COMPLIANCE"), clock.now() + DAY
    version = lax.put_once("k", b"x", retain_until=until).version_id
    lax.put_once("other", b"x", retain_until=until)
    kept = strict.extend("k", version, until)
    assert (kept.mode, kept.until, kept.extended) == ("GOVERNANCE", until, False)
    again = strict.put_once("k", b"x", retain_until=until + DAY)
    assert (again.adopted, again.lock_mode) == (True, "GOVERNANCE")
    assert lock_of(strict, "k") == ("GOVERNANCE", until + DAY)
    longer = strict.extend("other", None, until + DAY)
    assert (longer.mode, longer.until, longer.extended) == ("GOVERNANCE", until + DAY, True)
    fresh = strict.put_once("fresh", b"x", retain_until=until)
    assert fresh.lock_mode == "COMPLIANCE"
    assert lock_of(strict, "fresh") == ("COMPLIANCE", until)


def test_a_lock_in_compliance_is_extended_where_less_is_asked_for(
    locking: MakeBucket, clock: HandClock
) -> None:
    strict, lax, until = locking("COMPLIANCE"), locking("GOVERNANCE"), clock.now() + DAY
    version = strict.put_once("k", b"x", retain_until=until).version_id
    assert lax.put_once("k", b"x", retain_until=until).adopted
    longer = lax.extend("k", version, until + DAY)
    assert (longer.mode, longer.extended) == ("COMPLIANCE", True)
    assert lock_of(lax, "k") == ("COMPLIANCE", until + DAY)
    assert not lax.extend("k", version, until).extended
    assert lock_of(lax, "k") == ("COMPLIANCE", until + DAY)


def test_of_two_who_extend_at_once_the_longer_wins(locking: MakeBucket, clock: HandClock) -> None:
    """Two windows of one seal: the store refuses the shorter date, which is no reason to stop."""
    first, second, until = locking("GOVERNANCE"), locking("GOVERNANCE"), clock.now() + DAY
    first.put_once("k", b"x", retain_until=until)
    rivals = [until + 3 * DAY, until + 2 * DAY]
    events = first.client.s3.meta.events

    def interfere(**_: object) -> None:
        if rivals:
            second.extend("k", None, rivals.pop())

    events.register("before-call.s3.PutObjectRetention", interfere)
    try:
        found = first.extend("k", None, until + DAY)
    finally:
        events.unregister("before-call.s3.PutObjectRetention", interfere)
    assert not found.extended
    assert lock_of(first, "k") == ("GOVERNANCE", found.until) == ("GOVERNANCE", until + 3 * DAY)


def test_threads_that_extend_one_object_lose_no_date(locking: MakeBucket, clock: HandClock) -> None:
    """Windows of one seal, each with a date of its own: no store is to be trusted with that."""
    bucket, first = locking("GOVERNANCE"), clock.now() + DAY
    for number in range(8):
        bucket.put_once(f"k{number}", b"x", retain_until=first)
        dates = [first + count * DAY for count in (3, 8, 1, 6, 2, 7, 5, 4)]
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(partial(bucket.extend, f"k{number}", None), dates))
        for wanted, lock in zip(dates, found, strict=True):
            assert lock.until is not None
            assert lock.until >= wanted
        assert lock_of(bucket, f"k{number}") == ("GOVERNANCE", max(dates))


def test_threads_set_one_objects_lock_one_after_the_other(
    locking: MakeBucket, clock: HandClock
) -> None:
    bucket, until = locking("GOVERNANCE"), clock.now() + DAY
    bucket.put_once("k", b"x", retain_until=until)
    together, met = threading.Barrier(2), []

    def meet(**_: object) -> None:
        with suppress(threading.BrokenBarrierError):
            met.append(together.wait(0.5))

    bucket.client.s3.meta.events.register("before-call.s3.PutObjectRetention", meet)
    try:
        dates = [until + count * DAY for count in (1, 2, 3, 4)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(partial(bucket.extend, "k", None), dates))
    finally:
        bucket.client.s3.meta.events.unregister("before-call.s3.PutObjectRetention", meet)
    assert met == []


@pytest.mark.parametrize("rivals", [3, 99])
def test_a_shorter_date_that_another_process_wrote_over_ours_is_extended_again(
    locking: MakeBucket, clock: HandClock, rivals: int
) -> None:
    """As a store does whose check and write are not one. Where it goes on, that is an error, and
    none that asks for the bucket's Object Lock, which it has."""
    bucket, until = locking("GOVERNANCE"), clock.now() + DAY
    bucket.put_once("k", b"x", retain_until=until)
    left = list(range(rivals))
    shorten = bucket.client.s3.put_object_retention
    lock = {"Mode": "GOVERNANCE", "RetainUntilDate": until}

    def interfere(**_: object) -> None:
        if left:
            left.pop()
            events.unregister("after-call.s3.PutObjectRetention", interfere)
            at = bucket.client.at("k")
            shorten(**at, Retention=lock, BypassGovernanceRetention=True)
            events.register("after-call.s3.PutObjectRetention", interfere)

    events = bucket.client.s3.meta.events
    events.register("after-call.s3.PutObjectRetention", interfere)
    try:
        if rivals == 3:
            assert bucket.extend("k", None, until + 2 * DAY).extended
            assert lock_of(bucket, "k") == ("GOVERNANCE", until + 2 * DAY)
        else:
            with pytest.raises(StoreError, match="k is not locked as asked: the store") as caught:
                bucket.extend("k", None, until + 2 * DAY)
            assert "ARCHIVER_OBJECT_LOCK_MODE" not in str(caught.value)
    finally:
        events.unregister("after-call.s3.PutObjectRetention", interfere)


@pytest.mark.parametrize("mode", ["COMPLIANCE", None])
def test_an_object_is_born_with_its_hold(
    locking: MakeBucket, clock: HandClock, mode: str | None
) -> None:
    bucket = locking(mode)
    bucket.put_once("held", b"x", retain_until=clock.now() + DAY, held=True)
    bucket.put_once("free", b"x", retain_until=clock.now() + DAY)
    assert [bucket.head(key).held for key in ("held", "free")] == [True, False]  # type: ignore[union-attr]
    assert bucket.put_once("free", b"x", held=True).adopted
    assert bucket.head("free").held  # type: ignore[union-attr]
