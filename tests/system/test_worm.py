"""Done when 1: on a bucket locked in COMPLIANCE mode everything has the promised lock, which holds.

On SeaweedFS; with `CONTRACT_STORES=rgw` on Ceph's gateway instead, which overwrites what must be
created once and drops locks given when an upload begins: one writer alone is accepted there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.system import audit
from tests.system.bucket import Bucket
from tests.system.ceph import Ceph, is_asked_for
from tests.system.command import Archiver
from tests.system.conftest import archiver_to
from tests.system.servers import Source, Weed

RANGE = ("--from", "2024-01-15", "--to", "2024-01-16")
DAYS = 7300
ALONE = ("--single-writer",) if is_asked_for() else ()

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True)
class Archive:
    """A finished backfill: recordings of 5 MB and 60 MB among them."""

    archiver: Archiver
    bucket: Bucket
    records: list[dict[str, Any]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    huge = ("--huge", "1", "--huge-bytes", "60000000")
    calls = ("--calls", "8", "--seed", "4", *huge)
    with Source(tmp_path_factory.mktemp("worm"), *calls, *RANGE) as running:
        yield running


@pytest.fixture(scope="module")
def archiver(locking_store: Weed | Ceph, source: Source, signing_key: Path) -> Archiver:
    kept = {"OBJECT_LOCK_MODE": "COMPLIANCE", "RETENTION_DAYS": str(DAYS)}
    return archiver_to(locking_store, "worm", signing_key, source.settings(), **kept)


@pytest.fixture(scope="module")
def archive(locking_store: Weed | Ceph, archiver: Archiver) -> Archive:
    bucket = Bucket.make(locking_store.client, "worm", lock=True)
    if ALONE:
        refused = archiver.run("backfill", *RANGE).expect(4)
        [complaint] = refused.complaints
        assert "--single-writer" in complaint
        assert bucket.keys() == ["manifest/probe"], "refused before anything is written"
    archiver.run("backfill", *RANGE, *ALONE, timeout=200).expect(0)
    records = [json.loads(bucket.get(key)) for key in bucket.keys("records/")]
    return Archive(archiver, bucket, records)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_small_and_a_large_recording_are_there(archive: Archive, source: Source) -> None:
    told = {record["call_id"]: record for record in archive.records}
    sizes = []
    for call in source.truth.values():
        recording = call["recording"]
        if recording is None:
            continue
        [file] = [f for f in told[call["id"]]["files"] if f["kind"] == "recording"]
        assert (file["bytes"], file["sha256"]) == (recording["bytes"], recording["sha256"])
        assert archive.bucket.sha256(file["key"]) == recording["sha256"]
        sizes.append(file["bytes"])
    assert any(4_500_000 < size < 8 << 20 for size in sizes), "none of 5 MB"
    assert any(size >= 59_000_000 for size in sizes), "none of 60 MB"


def test_every_object_has_the_promised_mode_and_date(archive: Archive) -> None:
    until: dict[str, datetime] = {}
    for record in archive.records:
        assert record["retention"]["mode"] == "COMPLIANCE"
        date = moment(record["retention"]["until"])
        if record["ended_at"]:
            past = date - moment(record["ended_at"]) - timedelta(days=DAYS)
            assert timedelta(0) <= past < timedelta(seconds=1)
        until |= {file["key"]: date for file in record["files"]} | {record["record"]: date}
    until |= _of_the_manifest(archive.bucket, until)
    # Neither the probe nor what was listed before it was archived has to stay.
    keys = set(archive.bucket.keys()) - {"manifest/probe"}
    keys = {one for one in keys if not one.startswith("manifest/sightings/")}
    assert until.keys() <= keys
    for key in sorted(keys):
        head = archive.bucket.head(key)
        assert head.get("ObjectLockMode") == "COMPLIANCE", key
        if key in until:
            late = head["ObjectLockRetainUntilDate"] - until[key]
            assert timedelta(0) <= late, key
            assert key.startswith("manifest/") or late < timedelta(seconds=1), key


def _of_the_manifest(bucket: Bucket, until: dict[str, datetime]) -> dict[str, datetime]:
    """Segments are locked for as long as the last of their records, seals as their segments."""
    found: dict[str, datetime] = {}
    for key in bucket.keys("manifest/segments/"):
        if key.endswith(".jsonl"):
            lines = [json.loads(line) for line in bucket.get(key).splitlines()]
            covered = [until[line["record"]] for line in lines if line["type"] == "call"]
            if covered:
                found[key] = max(covered)
    for key in bucket.keys("manifest/seals/"):
        if key.endswith(".json"):
            seal = json.loads(bucket.get(key))
            dates = [found[entry["key"]] for entry in seal["segments"] if entry["key"] in found]
            if dates:
                found |= {key: max(dates), f"{key}.sig": max(dates)}
    return found


def test_verify_finds_nothing(archive: Archive) -> None:
    """Before anybody attacks it."""
    assert audit.findings(archive.archiver, "--level", "objects", code=0) == set()


def test_seals_say_whether_there_was_one_writer(archive: Archive) -> None:
    seals = [
        json.loads(archive.bucket.get(key))
        for key in archive.bucket.keys("manifest/seals/")
        if key.endswith(".json")
    ]
    assert seals[0]["store"]["create_once"] is not bool(ALONE)
    assert seals[0]["store"]["lock_holds"] is True
    assert len(seals) > 1
    assert {seal.get("single_writer", False) for seal in seals[1:]} == {bool(ALONE)}


def test_nothing_can_be_deleted_shortened_or_got_round(archive: Archive) -> None:
    for key in _one_of_each(archive):
        head, data = archive.bucket.head(key), archive.bucket.sha256(key)
        until = head["ObjectLockRetainUntilDate"]
        for attack in _attacks(archive.bucket, key, head["VersionId"], until):
            with pytest.raises(ClientError) as caught:
                attack()
            assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403, key
        after = archive.bucket.head(key, head["VersionId"])
        assert after["ObjectLockMode"] == "COMPLIANCE"
        assert after["ObjectLockRetainUntilDate"] == until
        assert archive.bucket.sha256(key) == data


def _attacks(
    bucket: Bucket, key: str, version: str, until: datetime
) -> Iterator[Callable[[], Any]]:
    client, at = bucket.client, {"Bucket": bucket.name, "Key": key, "VersionId": version}
    bypass = {"BypassGovernanceRetention": True}
    yield partial(client.delete_object, **at)
    yield partial(client.delete_object, **at, **bypass)
    for mode, date in (
        ("COMPLIANCE", until - timedelta(days=1)),
        ("COMPLIANCE", datetime.now(UTC) + timedelta(seconds=5)),
        ("GOVERNANCE", until),
    ):
        retention = {"Mode": mode, "RetainUntilDate": date}
        yield partial(client.put_object_retention, **at, Retention=retention)
        yield partial(client.put_object_retention, **at, Retention=retention, **bypass)


def test_an_overwrite_leaves_the_version_that_the_record_names(archive: Archive) -> None:
    """It hides it, which `verify` tells; what was archived is there."""
    record = max(archive.records, key=lambda one: sum(file["bytes"] for file in one["files"]))
    [file] = [file for file in record["files"] if file["kind"] == "recording"]
    archive.bucket.put(file["key"], b"something else")
    head = archive.bucket.head(file["key"], file["version_id"])
    assert head["ContentLength"] == file["bytes"]
    assert head["ObjectLockMode"] == "COMPLIANCE"
    assert audit.findings(archive.archiver, "--level", "objects", code=1)


def _one_of_each(archive: Archive) -> list[str]:
    """A recording put at once, one put in parts, a sidecar, a record, and the manifest's files."""
    files = [file for record in archive.records for file in record["files"]]
    recordings = sorted((f["bytes"], f["key"]) for f in files if f["kind"] == "recording")
    first = {
        key.rpartition(".")[2]: key
        for key in archive.bucket.keys("manifest/se")
        if not key.endswith(".json") or "000000000000" not in key
    }
    others = [next(f["key"] for f in files if f["kind"] == "transcript")]
    others += [archive.records[0]["record"], *first.values()]
    return [recordings[0][1], recordings[-1][1], *others]
