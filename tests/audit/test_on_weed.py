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
from tests.audit.builder import DAY, HOUR, Builder, hour, small_archive
from tests.audit.damage import RECORD, WAV
from tests.conftest import LOCKED, PLAIN
from tests.fakes.clock import HandClock
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call
from tests.fakes.rig import wired

pytestmark = pytest.mark.weed


class S3Store:
    """What the builder needs of a store, by a client of the tests' own."""

    def __init__(self, s3: Any, bucket: str, prefix: str) -> None:
        self.versioned = bucket == LOCKED
        self._s3 = s3
        self._bucket = bucket
        self._prefix = prefix + "/"
        self._versions: dict[str, str | None] = {}

    def put(self, key: str, data: bytes, **_lock: object) -> str | None:
        answer = self._s3.put_object(**self._at(key), Body=data)
        self._versions[key] = answer.get("VersionId")
        return self._versions[key]

    def delete(self, key: str) -> None:
        self._s3.delete_object(**self._at(key))

    def all_keys(self) -> list[str]:
        return list(self._versions)

    def data(self, key: str) -> bytes:
        data: bytes = self._s3.get_object(**self._at(key))["Body"].read()
        return data

    def entry(self, key: str) -> Any:
        return type("Entry", (), {"version_id": self._versions[key]})

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}


@pytest.fixture(params=[LOCKED, PLAIN])
def real(request: Any, s3: Any, prefix: str, open_bucket: Any) -> tuple[Builder, Bucket]:
    """The small archive, in a versioned bucket and in a plain one."""
    builder = small_archive(S3Store(s3, request.param, prefix))  # type: ignore[arg-type]
    return builder, open_bucket(request.param)


def codes(bucket: Bucket) -> set[str]:
    return set(verify(bucket, Options(level="bytes"), pause=lambda _: None).totals)


def test_a_sound_archive_is_clean(real: tuple[Builder, Bucket]) -> None:
    report = verify(real[1], Options(level="bytes"))

    assert report.totals == {}
    assert report.counts.files_hashed == 19


@pytest.mark.parametrize("key", [WAV, RECORD, "manifest/seals/000000000001.json"])
@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda s, k: s.put(k, s.data(k)), "overwritten"),
        (lambda s, k: s.delete(k), "deleted"),
        (lambda s, k: (data := s.data(k), s.delete(k), s.put(k, data)), "recreated"),
    ],
)
def test_what_was_done_to_a_key_is_told_apart(
    s3: Any, prefix: str, open_bucket: Any, key: str, damage: Callable[..., Any], code: str
) -> None:
    builder = small_archive(S3Store(s3, LOCKED, prefix))  # type: ignore[arg-type]
    damage(builder.store, key)

    assert code in codes(open_bucket(LOCKED))


def test_an_overwritten_file_of_a_plain_bucket_is_found_by_its_bytes(
    s3: Any, prefix: str, open_bucket: Any
) -> None:
    builder = small_archive(S3Store(s3, PLAIN, prefix))  # type: ignore[arg-type]
    builder.store.put(WAV, bytes(1600))

    assert codes(open_bucket(PLAIN)) == {"file_hash"}


def test_questions_are_answered(real: tuple[Builder, Bucket]) -> None:
    builder, bucket = real
    query = Query(bucket)
    later = type(hour(0))(hour(0).start + timedelta(days=400), hour(1).start)
    builder.call("vc_later", later)

    rows = [row.record.call_id for row in query.records(DAY, DAY + timedelta(days=1))]
    assert rows == ["vc_a", "vc_b", "vc_g", "vc_x", "../önd\n=1", "vc_c", "vc_d"]
    assert query.find("vc_no") is None
    assert query.find("vc_later") is not None
    history = query.find("vc_a")
    assert history is not None
    assert [seal for _, seal in history.sealed.values()] == [1, 4]


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
