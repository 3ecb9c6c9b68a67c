"""Done when 5: several backfills at once, into an empty archive, end as one alone would."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.system import audit, checker
from tests.system.conftest import MakeArchive
from tests.system.servers import Source

START, END = datetime(2024, 2, 1, tzinfo=UTC), datetime(2024, 2, 2, tzinfo=UTC)
RANGE = ("--from", "2024-02-01", "--to", "2024-02-02")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    directory = tmp_path_factory.mktemp("together")
    with Source(directory, "--calls", "80", "--short", *RANGE) as running:
        yield running


@pytest.mark.parametrize(
    ("shares", "versioned"),
    [
        pytest.param([(), (), ()], False, id="three, in a bucket without versions"),
        pytest.param(
            [("--shard", "0/2"), ("--shard", "1/2"), ("--shard", "1/2"), ()],
            True,
            id="shards, one of them twice, and the whole",
        ),
    ],
)
def test_one_record_a_call_and_one_chain(
    shares: list[tuple[str, ...]],
    versioned: bool,
    source: Source,
    make_archive: MakeArchive,
    tmp_path: Path,
) -> None:
    archiver, bucket = make_archive(source.settings(), versioned=versioned)
    running = [archiver.start("backfill", *RANGE, *share) for share in shares]
    for one in running:
        one.wait().expect(0)
    expected = source.expected(START, END, leftovers=True)
    checked = checker.check(bucket.download(tmp_path / "copy"), expected)
    assert {record["revision"] for record in checked.records.values()} == {1}
    assert checked.segments == 24, "one listing of each window, whoever wrote it"
    if versioned:
        bucket.assert_written_once()
    audit.assert_clean(archiver)
    audit.assert_script_clean(tmp_path / "copy", "--head", checked.head)
