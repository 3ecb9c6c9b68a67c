"""The chain: no fork, no segment sealed twice, and what a crash left is completed."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from archiver.core.errors import StoreError, UsageError
from archiver.core.model import Retention, Window
from archiver.manifest import layout, seal
from archiver.manifest.segment import Balance, Listing
from archiver.pipeline.bucket_state import UnsealedSegment
from archiver.pipeline.chain import Chain, last_number
from tests.fakes.clock import HandClock
from tests.fakes.errors import error_of
from tests.fakes.memory_rig import Crash
from tests.fakes.memory_store import MemoryStore
from tests.fakes.population import TEN, a_call
from tests.fakes.relisting import crashing, stranger
from tests.fakes.rig import HOUR, Rig, new_key
from tests.fakes.segments import build_segment


def write_segment(bucket: MemoryStore, start: datetime, revision: int = 1) -> UnsealedSegment:
    """An empty window's segment, durable with its companion, not sealed."""
    window = Window(start, start + HOUR)
    listing = Listing(start, 1, 2, 0, {"state": ["Completed"]})
    made = build_segment(window, revision, [], Balance({}), listing)
    bucket.put_once(made.name.jsonl, made.data)
    bucket.put_once(made.name.sha256, made.sha256_file())
    return UnsealedSegment(seal.segment_entry(made.name.jsonl, io.BytesIO(made.data)), None)


@pytest.mark.parametrize("count", [*range(12), 100, 1000])
def test_the_head_is_found_in_few_steps(count):
    asked: list[int] = []

    def exists(number: int) -> bool:
        asked.append(number)
        return number < count

    assert last_number(exists) == (count - 1 if count else None)
    assert len(asked) <= 2 * max(1, count).bit_length() + 2


def test_an_archive_begins_once(rig, archive, key):
    first, second = rig(), rig()
    assert not first.chain.open()
    first.found()
    second.found(TEN + HOUR)
    assert first.chain.head.data == second.chain.head.data
    assert second.chain.head.watermark == TEN
    archive().check(key)
    assert archive().read(layout.public_key_key(key.public.key_id)) == key.public.pem


@pytest.fixture
def made(rig: Callable[..., Rig]) -> Rig:
    """A writer that has begun the archive."""
    begun = rig()
    begun.found()
    return begun


def at_once(act: Callable[[int], object], count: int = 4) -> None:
    """`act(n)` on so many threads, which begin together."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> None:
        barrier.wait()
        act(number)

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(begin, range(count)))


def test_two_founders_at_once_found_one_archive(rig, archive, key):
    rigs = [rig() for _ in range(4)]
    at_once(lambda n: rigs[n].found())
    assert len({made.chain.head.archive for made in rigs}) == 1
    archive().check(key)


def test_a_chain_that_was_not_opened_says_so(rig):
    with pytest.raises(StoreError, match="not opened"):
        _ = rig().chain.head


def test_segments_are_sealed_in_one_seal(made, bucket, archive, key):
    segments = [write_segment(bucket, TEN + n * HOUR) for n in range(3)]
    made.chain.append(segments, TEN + 3 * HOUR)
    assert made.chain.head.seq == 1
    assert made.chain.head.watermark == TEN + 3 * HOUR
    archive().check(key)


def test_appending_again_does_nothing(made, bucket, archive):
    one = write_segment(bucket, TEN)
    made.chain.append([one])
    before = archive().keys
    made.chain.append([one])
    made.chain.append([])
    assert archive().keys == before


def test_what_is_no_more_remembered_is_not_sealed_again(rig, bucket, clock, key, archive):
    rig().found()
    chain = Chain(bucket, key, clock, Retention(), remembered=2)
    assert chain.open()
    segments = [write_segment(bucket, TEN + n * HOUR) for n in range(6)]
    for one in segments[:5]:
        chain.append([one])
    chain.append(segments)
    sealed = [[entry.key for entry in one.segments] for one in archive().seals[-6:]]
    assert sealed == [[one.name.jsonl] for one in segments]


def test_writers_that_race_make_one_chain(rig, bucket, archive, key):
    """Four writers, each with segments of its own and all with one in common."""
    rigs = [rig() for _ in range(4)]
    for made in rigs:
        made.found()
    common = write_segment(bucket, TEN - HOUR)
    own = [[write_segment(bucket, TEN + (10 * n + m) * HOUR) for m in range(2)] for n in range(4)]

    def write(number: int) -> None:
        for one in own[number]:
            rigs[number].chain.append([common, one])

    at_once(write)
    look = archive()
    look.check(key)
    assert len(look.segments) == 9
    assert sum(len(one.segments) for one in look.seals) == 9
    versions = [v.key for v in bucket.versions(layout.SEALS)]
    assert len(versions) == len(set(versions)), "no seal has two versions"


@pytest.mark.parametrize("ending", ["001.json", "001.json.sig", "1000.r1.seal", "1100.r1.seal"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("finder", ["open", "append"])
def test_a_crash_is_completed_by_whoever_comes_next(
    rig, bucket, archive, key, ending, after, finder
):
    dying, other = rig(crashing(bucket, ending, after=after)), rig()
    other.found()
    dying.found()
    segments = [write_segment(bucket, TEN), write_segment(bucket, TEN + HOUR)]
    with pytest.raises(Crash):
        dying.chain.append(segments, TEN + 2 * HOUR)
    if finder == "open":
        other = rig()
        other.found()
    other.chain.append(segments, TEN + 2 * HOUR)
    assert other.chain.head.seq == 1
    archive().check(key)


def test_another_key_is_refused(rig, archive):
    rig().found()
    before = archive().keys
    stranger = rig(key=new_key())
    with pytest.raises(UsageError, match="ARCHIVER_SIGNING_KEY_FILE"):
        stranger.chain.open()
    assert archive().keys == before


@pytest.mark.parametrize("data", [b"{}\n", b"not json", b'{"seq":1,"type":"seal","v":1}\n'])
def test_a_damaged_seal_stops_the_writer(made, rig, bucket, data):
    stranger(bucket).put_once(layout.seal_key(1), data)
    for read in (made.chain.refresh, rig().chain.open):
        with pytest.raises(StoreError, match="archiver verify"):
            read()


def test_a_seal_that_does_not_follow_stops_the_writer(made, bucket, key, clock):
    at = {"sealed_at": clock.now(), "watermark": TEN}
    other = seal.parse_seal(seal.genesis("other", key.public, {}, **at))
    data = seal.next_seal(other, [], key_id=key.public.key_id, **at)
    stranger(bucket).put_once(layout.seal_key(1), data)
    with pytest.raises(StoreError, match="does not follow"):
        made.chain.refresh()


def test_a_clock_that_is_behind_does_not_seal_in_the_past(made, bucket, key):
    made.chain.append([write_segment(bucket, TEN)])
    behind = Chain(bucket, key, HandClock(TEN - timedelta(days=1)), Retention())
    behind.open()
    behind.append([write_segment(bucket, TEN + HOUR)])
    assert behind.head.sealed_at == made.chain.head.sealed_at


@pytest.mark.parametrize("left", [layout.seal_key(1), "records/dt=2024-01-15/vc_1/r1.json"])
def test_a_second_archive_is_not_begun_over_one_whose_seal_0_is_gone(rig, bucket, left):
    """Were it, the true seal 0 could never come back to its place."""
    stranger(bucket).put_once(left, b"what an archive has\n")
    error = error_of(StoreError, rig().chain.open)
    assert "seal 0 is missing" in str(error)
    assert error.exit_code == 4
    assert bucket.head(layout.seal_key(0)) is None


def test_a_lost_seal_is_never_replaced(platform, rig, clock, bucket, archive):
    clock.turn_to(TEN + 9 * HOUR)
    made = rig()
    for hour in range(4):
        made.backfill(TEN + hour * HOUR)
    assert made.chain.head.seq == 4
    del bucket._shelf.objects[layout.seal_key(2)]
    bucket._shelf.keys.remove(layout.seal_key(2))
    platform.add(a_call("new", TEN + 5 * HOUR))
    with pytest.raises(StoreError, match="seal 2 is missing"):
        rig().backfill(TEN + 5 * HOUR)
    assert layout.seal_key(2) not in archive().keys
