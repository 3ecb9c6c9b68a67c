"""Done when 6: commands of the same words, several at a time, each tell what became of them.

`HOLD_COMMANDS` says how many there are: 200 is what was asked for, and takes some minutes.
"""

from __future__ import annotations

import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.system import audit
from tests.system.bucket import Bucket
from tests.system.command import Archiver, Result
from tests.system.conftest import MakeArchive
from tests.system.servers import Source

COMMANDS = int(os.environ.get("HOLD_COMMANDS", "24"))
AT_ONCE = 4
WORDS = ("--by", "J. Doe, Legal", "--reason", "Case 4711")

pytestmark = pytest.mark.timeout(60 + 6 * COMMANDS)


@pytest.fixture
def archive(make_archive: MakeArchive, tmp_path: Path) -> tuple[Archiver, Bucket]:
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    times = ("--from", start.isoformat(), "--to", (start + timedelta(seconds=2)).isoformat())
    with Source(tmp_path, "--calls", "2", "--short", *times) as source:
        archiver, bucket = make_archive(source.settings(), lock=True)
        archiver.run("backfill", *times).expect(0)
    return archiver, bucket


@pytest.mark.parametrize("which", ["the same calls", "a call each"])
def test_commands_of_the_same_words_four_at_a_time(
    archive: tuple[Archiver, Bucket], which: str, tmp_path: Path
) -> None:
    archiver, bucket = archive
    records = [json.loads(bucket.get(key)) for key in bucket.keys("records/")]
    ids = sorted(record["call_id"] for record in records)

    def command(number: int) -> Result:
        verb = "remove" if number // 2 % 2 else "add"
        calls = ids if which == "the same calls" else [ids[number % 2]]
        return archiver.run("hold", verb, *calls, *WORDS)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(command, range(COMMANDS)))

    for result in results:
        if result.code != 0:
            assert result.code == 2, result.stderr
            [complaint] = result.complaints
            assert "nothing was" in complaint, complaint
    done = sum(len(result.stdout.splitlines()) for result in results)
    told = itertools.chain.from_iterable(
        bucket.get(key).splitlines() for key in bucket.keys("manifest/events/") if "jsonl" in key
    )
    acts = [json.loads(line) for line in told]
    assert len({act["id"] for act in acts}) == len(acts) >= done
    assert audit.findings(archiver, "--level", "bytes", code=0) == set()
    copy = bucket.download(tmp_path / "copy")
    audit.assert_script_clean(copy)
    archiver.run("hold", "add", *ids, *WORDS).expect(0)
    listed = json.loads(archiver.run("hold", "list", "--json").expect(0).stdout)
    assert sorted(one["call_id"] for one in listed["calls"]) == ids
