"""Done when 5: a legal hold outlives the retention date, and its removal ends it; both acts are on
the ledger, sealed and signed.

The calls ended a day ago, less half a minute; they are kept for one day. On SeaweedFS; with
`CONTRACT_STORES=rgw` on Ceph's gateway instead, where one writer alone is accepted.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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

AHEAD = timedelta(seconds=25)
"""How far ahead the retention date lies when the calls are archived: longer than that takes."""
ALONE = ("--single-writer",) if is_asked_for() else ()
HOLDERS = ("S3_", "SIGNING_KEY_FILE", "OBJECT_LOCK_MODE", "RETENTION_DAYS")

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True)
class Archive:
    """A locked bucket with a call that is to be held and one that is not."""

    archiver: Archiver
    holder: Archiver
    """The same without any setting of the source's."""
    bucket: Bucket
    held: dict[str, Any]
    free: dict[str, Any]

    def versions(self, record: dict[str, Any]) -> list[tuple[str, str]]:
        """Every version of every object of a call."""
        keys = {record["record"], *(file["key"] for file in record["files"])}
        found = [(key, version) for key, version, *_ in self.bucket.versions() if key in keys]
        assert len(found) == len(keys) > 2
        return found

    def delete(self, key: str, version: str) -> int:
        """The status that the store answers with."""
        try:
            told = self.bucket.client.delete_object(
                Bucket=self.bucket.name, Key=key, VersionId=version
            )
        except ClientError as error:
            told = error.response
        return int(told["ResponseMetadata"]["HTTPStatusCode"])

    def events(self) -> list[str]:
        return [key for key in self.bucket.keys("manifest/events/") if key.endswith(".jsonl")]


@pytest.fixture(scope="module")
def archive(
    locking_store: Weed | Ceph, signing_key: Path, tmp_path_factory: pytest.TempPathFactory
) -> Archive:
    bucket = Bucket.make(locking_store.client, "held", lock=True)
    kept = {"OBJECT_LOCK_MODE": "COMPLIANCE", "RETENTION_DAYS": "1"}
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1) + AHEAD
    times = ("--from", start.isoformat(), "--to", (start + timedelta(seconds=2)).isoformat())
    with Source(tmp_path_factory.mktemp("hold"), "--calls", "2", "--short", *times) as source:
        archiver = archiver_to(locking_store, "held", signing_key, source.settings(), **kept)
        archiver.run("backfill", *times, *ALONE).expect(0)
    records = [json.loads(bucket.get(key)) for key in bucket.keys("records/")]
    held, free = sorted(records, key=lambda record: len(record["files"]), reverse=True)
    holding = {name: v for name, v in archiver.settings.items() if name.startswith(HOLDERS)}
    return Archive(archiver, Archiver(holding, archiver.environment), bucket, held, free)


def test_a_hold_outlives_the_date_and_its_removal_ends_it(
    archive: Archive, signing_key: Path, tmp_path: Path
) -> None:
    call_id, objects = archive.held["call_id"], archive.versions(archive.held)
    why = ("--by", "J. Doe, Legal", "--reason", "Case 4711")
    careless = archive.holder.having(OBJECT_LOCK_MODE="none")
    [complaint] = careless.run("hold", "add", call_id, *why, *ALONE).expect(2).complaints
    assert "ARCHIVER_OBJECT_LOCK_MODE" in complaint
    added = archive.holder.run("hold", "add", call_id, *why, *ALONE).expect(0)
    assert added.stdout.startswith(f"{call_id}: held, {len(objects)} objects; seal ")
    dates = [archive.bucket.head(*one)["ObjectLockRetainUntilDate"] for one in objects]
    assert min(dates) > datetime.now(UTC), "held before the date has passed"

    time.sleep(max(0.0, (max(dates) - datetime.now(UTC)).total_seconds()) + 1.5)
    for one in objects:
        assert archive.delete(*one) == 403, one
        head = archive.bucket.head(*one)
        assert head["ObjectLockLegalHoldStatus"] == "ON"
        assert head["ObjectLockRetainUntilDate"] < datetime.now(UTC), "the hold alone keeps it"
    for one in archive.versions(archive.free):
        assert archive.bucket.head(*one).get("ObjectLockLegalHoldStatus", "OFF") == "OFF"
    assert audit.findings(archive.archiver, code=0) == set()
    listed = json.loads(archive.holder.run("hold", "list", "--json").expect(0).stdout)
    assert [one["call_id"] for one in listed["calls"]] == [call_id]

    archive.holder.run("hold", "remove", call_id, *why, *ALONE).expect(0)
    assert audit.findings(archive.archiver, code=0) == set()
    check_ledger(archive, objects, signing_key, tmp_path)

    for one in objects:
        assert archive.delete(*one) == 204, one
    for key in archive.events():
        [version] = [v for k, v, *_ in archive.bucket.versions() if k == key]
        assert archive.delete(key, version) == 403, "what tells of the acts stays"


def check_ledger(
    archive: Archive, objects: list[tuple[str, str]], signing_key: Path, tmp_path: Path
) -> None:
    """Both acts stand in sealed segments, and the seals are signed with the archive's key."""
    copy, public = archive.bucket.download(tmp_path / "copy"), tmp_path / "public.pem"
    command = ["openssl", "pkey", "-in", str(signing_key), "-pubout", "-out", str(public)]
    subprocess.run(command, check=True)
    audit.assert_script_clean(copy, "--public-key", str(public))
    acts = {}
    for key in archive.events():
        [line] = (copy / key).read_bytes().splitlines()
        acts[int((copy / key.replace(".jsonl", ".seal")).read_text())] = json.loads(line)
    assert [acts[number]["action"] for number in sorted(acts)] == ["add", "remove"]
    for act in acts.values():
        assert (act["by"], act["reason"]) == ("J. Doe, Legal", "Case 4711")
        assert act["call_id"] == archive.held["call_id"]
        assert [(one["key"], one["version_id"]) for one in act["objects"]] == sorted(objects)
