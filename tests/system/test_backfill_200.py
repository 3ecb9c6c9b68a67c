"""A backfill of 200 calls over three days: every byte, every format, and again without effect.

Done when 3: stored WAVs equal the source's, sidecars hold every field, all formats are exact, and
`verify.sh` alone checks the whole chain. Done when 4: the same backfill again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.system import audit, checker
from tests.system.bucket import PROBE, Bucket
from tests.system.command import Archiver, Result
from tests.system.conftest import MakeArchive
from tests.system.servers import Source

START, END = datetime(2024, 1, 15, tzinfo=UTC), datetime(2024, 1, 18, tzinfo=UTC)
RANGE = ("--from", "2024-01-15", "--to", "2024-01-18")
RETENTION_DAYS = 7300

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True)
class Done:
    """A finished backfill into a versioned, locked bucket."""

    source: Source
    archiver: Archiver
    bucket: Bucket
    result: Result
    copy: Path


@pytest.fixture(scope="module")
def done(make_archive: MakeArchive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    directory = tmp_path_factory.mktemp("backfill-200")
    with Source(directory, "--calls", "200", *RANGE, "--enveloped", "mixed") as source:
        archiver, bucket = make_archive(source.settings(), lock=True)
        archiver = archiver.having(
            OBJECT_LOCK_MODE="COMPLIANCE", RETENTION_DAYS=str(RETENTION_DAYS)
        )
        result = archiver.run("backfill", *RANGE, timeout=200)
        yield Done(source, archiver, bucket, result, bucket.download(directory / "copy"))


def test_every_byte_field_and_format(done: Done) -> None:
    """Done when 3."""
    done.result.expect(0)
    retention = ("COMPLIANCE", RETENTION_DAYS)
    expected = done.source.expected(START, END, retention=retention, totals=False)
    checked = checker.check(done.copy, expected)
    outcomes = [record["outcome"] for record in checked.records.values()]
    assert len(done.source.truth) == 200
    assert outcomes.count("archived") >= 150
    assert outcomes.count("no_recording") >= 10
    sizes = [file["bytes"] for r in checked.records.values() for file in r["files"]]
    assert max(sizes) > 8 << 20, "no recording that takes several parts"
    assert all(f["version_id"] for r in checked.records.values() for f in r["files"])


def test_verify_and_its_script_agree(done: Done) -> None:
    """Done when 3: `sha256sum`, `openssl` and `jq` alone check the whole chain."""
    audit.assert_clean(done.archiver)
    audit.assert_script_clean(done.copy)


def test_again_changes_nothing(done: Done) -> None:
    """Done when 4: exit 0, no new object, no new version, no new seal."""
    done.bucket.assert_written_once(but=PROBE)
    before = done.bucket.versions()
    again = done.archiver.run("backfill", *RANGE).expect(0)
    assert done.bucket.versions() == before
    assert not again.events("seal.appended")


def test_a_window_of_several_pages(make_archive: MakeArchive, tmp_path: Path) -> None:
    """A listing goes on to its last page: one window of a day, more calls than a page takes."""
    end = datetime(2024, 1, 16, tzinfo=UTC)
    dates = ("--from", "2024-01-15", "--to", "2024-01-16")
    with Source(tmp_path, "--calls", "230", "--short", *dates) as source:
        archiver, bucket = make_archive(source.settings())
        archiver.having(WINDOW="1d").run("backfill", *dates).expect(0)
        expected = source.expected(START, end, window=end - START)
        checked = checker.check(bucket.download(tmp_path / "copy"), expected)
        assert checked.segments == 1
        assert len(checked.records) > 200
        audit.assert_clean(archiver)
