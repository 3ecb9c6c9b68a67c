"""The auditor on a real store, through the real adapter: versions, markers, order of lists."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from archiver.audit.query import Query
from archiver.audit.verify import Options, verify
from archiver.manifest import layout
from archiver.manifest.signing import SigningKey
from archiver.store.bucket import Bucket
from tests.audit.builder import DAY, HOUR
from tests.conftest import LOCKED, PLAIN
from tests.fakes.clock import HandClock
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call
from tests.fakes.rig import wired

pytestmark = pytest.mark.weed


def codes(bucket: Bucket) -> set[str]:
    return set(verify(bucket, Options(level="bytes"), pause=lambda _: None).totals)


@pytest.mark.parametrize("name", [LOCKED, PLAIN])
def test_questions_are_answered(
    name: str, open_bucket: Callable[..., Bucket], clock: HandClock, key: SigningKey
) -> None:
    bucket, query = open_bucket(name), Query(open_bucket(name))
    clock.turn_to(TEN + timedelta(days=3))
    early = TEN - timedelta(days=400)
    with Platform(clock=clock.now) as platform, wired(platform, bucket, clock, key) as rig:
        platform.add(a_call("vc_b"), a_call("vc_a", audio=None), a_call("vc_early", early))
        platform.add(a_call("vc_c", TEN + HOUR), a_call("../önd\n=1", TEN + HOUR))
        rig.backfill(hours=2)
        platform.add(a_call("vc_a"))
        rig.backfill()
        rig.backfill(early, hours=1)

    rows = [row.record.call_id for row in query.records(DAY, DAY + timedelta(days=1))]
    assert rows == ["vc_a", "vc_b", "../önd\n=1", "vc_c"]
    assert query.find("vc_no") is None
    assert query.find("vc_early") is not None
    history = query.find("vc_a")
    assert history is not None
    assert [found.revision for found in history.revisions] == [1, 2]
    first, second = (seal for _, seal in history.sealed.values())
    assert 0 < first < second, "how many seals a backfill of two windows makes is chance"


def test_an_empty_place_is_no_archive(open_bucket: Any) -> None:
    assert codes(open_bucket(LOCKED)) == {"no_archive"}


def test_a_backfill_mends_a_call_that_two_windows_count(
    bucket: Bucket, clock: HandClock, key: SigningKey
) -> None:
    """The source gives a call another start."""
    clock.turn_to(TEN + timedelta(days=3))
    with Platform(clock=clock.now) as platform, wired(platform, bucket, clock, key) as rig:
        platform.add(a_call("vc_moves"), a_call("vc_stays"))
        rig.backfill(hours=2)
        platform.add(a_call("vc_moves", TEN + HOUR))
        rig.backfill(TEN + HOUR, hours=1)
        assert codes(bucket) == {"call_in_two_windows"}

        rig.backfill(TEN, hours=1)

    assert codes(bucket) == set()


def test_seal_0_tells_of_the_pages_that_are_there(
    bucket: Bucket, clock: HandClock, key: SigningKey
) -> None:
    """One was left by an earlier version's try, and stays: what lies there is what is vouched for.
    Whoever lays another one over it is found."""
    bucket.put_once(layout.VERIFY_PAGE, b"of an earlier version\n")
    with Platform(clock=clock.now) as platform, wired(platform, bucket, clock, key) as rig:
        rig.found()
        told = rig.chain.genesis().document["store"]["pages"]

    assert told == {layout.VERIFY_PAGE: hashlib.sha256(b"of an earlier version\n").hexdigest()}
    assert codes(bucket) == set()
    bucket.client.s3.put_object(**bucket.client.at(layout.VERIFY_PAGE), Body=b"all is well\n")
    assert codes(bucket) == {"page_mismatch", "overwritten"}
