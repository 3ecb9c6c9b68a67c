"""A window of 100,000 calls lists and seals in under 500 MB: the command on a real store.

CI takes a quarter of them, within a bound that grows as that one does; `make large-window` all.

Every call is archived already, and the process that did it was killed: before it closed the window,
or when it had just written the segment. So all these records go through memory on their way into
the segment, or out of it. To have them archived here as well would take too long.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.system.bucket import Bucket
from tests.system.command import Archiver
from tests.system.conftest import archiver_to
from tests.system.many_calls import ManyCalls, OpenWeed, records, segment
from tests.system.servers import free_port

CALLS = int(os.environ.get("LARGE_WINDOW_CALLS", "25000"))
LIMIT_BYTES = 150_000_000 + 3500 * CALLS
DATES = ("--from", "2024-05-06T10:00:00Z", "--to", "2024-05-06T11:00:00Z")
SEGMENT = "manifest/segments/dt=2024-05-06/1000.r1"
TOLD = (
    "archived", "failed", "from", "listed", "listed_sha256", "no_recording", "pending", "revision",
    "source_total", "to", "vanished",
)  # fmt: skip

Begin = Callable[[str], tuple[Archiver, Bucket]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def own_weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWeed]:
    """A store of its own, so that its disk is given back at once."""
    store = OpenWeed(tmp_path_factory.mktemp("large") / "store")
    yield store
    store.remove()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManyCalls]:
    with ManyCalls(tmp_path_factory.mktemp("many"), CALLS) as running:
        yield running


@pytest.fixture(scope="module")
def expected() -> bytes:
    return segment(CALLS)


@pytest.fixture
def begin(own_weed: OpenWeed, source: ManyCalls, signing_key: Path) -> Begin:
    """`begin(name)`: a new bucket, the command to it, and an archive begun there."""

    def made(name: str) -> tuple[Archiver, Bucket]:
        bucket = Bucket.make(own_weed.client, name)
        archiver = archiver_to(own_weed, name, signing_key, source.settings())
        archiver.run("init").expect(0)
        return archiver, bucket

    return made


def test_a_window_that_was_not_closed(
    own_weed: OpenWeed,
    begin: Begin,
    expected: bytes,
    record_property: Callable[[str, object], None],
) -> None:
    archiver, bucket = begin(own_weed.bucket)
    own_weed.seed(records(CALLS))
    began = datetime.now(UTC)
    peak, listing_seconds = backfill(archiver)
    seconds = (datetime.now(UTC) - began).total_seconds()
    line, sealed_at = check_manifest(bucket, expected)
    assert began.replace(microsecond=0) <= datetime.fromisoformat(line["listed_at"]) <= sealed_at
    tell(record_property, peak_mb=peak / 1e6, listing_seconds=listing_seconds, seconds=seconds)
    assert 20_000_000 < peak < LIMIT_BYTES
    check_audit(archiver)


def test_a_segment_that_was_not_sealed(
    begin: Begin, expected: bytes, record_property: Callable[[str, object], None]
) -> None:
    archiver, bucket = begin("segment")
    bucket.put(f"{SEGMENT}.jsonl", expected)
    peak, listing_seconds = backfill(archiver)
    check_manifest(bucket, expected)
    tell(record_property, peak_mb=peak / 1e6, listing_seconds=listing_seconds)
    assert 20_000_000 < peak < LIMIT_BYTES
    check_audit(archiver)


def backfill(archiver: Archiver) -> tuple[int, float]:
    """Archive the window; the largest resident set that the kernel saw, in bytes, and how long the
    pages of the listing took."""
    port = free_port()
    running = archiver.having(METRICS_PORT=str(port)).start("backfill", *DATES)
    peak, listing_seconds = 0, 0.0
    while not running.ended:
        peak = max(peak, running.peak_bytes)
        listing_seconds = max(listing_seconds, seconds_of_pages(port))
        time.sleep(0.1)
    running.wait().expect(0)
    return peak, listing_seconds


def seconds_of_pages(port: int) -> float:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            scrape = answer.read().decode()
    except OSError:
        return 0.0  # it does not listen yet, or not any more
    found = re.search(r'^archiver_stage_seconds_sum\{stage="list"\} (\S+)$', scrape, re.MULTILINE)
    return float(found[1]) if found else 0.0


def tell(record_property: Callable[[str, object], None], **figures: float) -> None:
    for name, figure in figures.items():
        record_property(name, round(figure))
    print({name: round(figure) for name, figure in figures.items()})


def check_manifest(bucket: Bucket, expected: bytes) -> tuple[dict[str, Any], datetime]:
    """One seal over one segment: every record's bytes, in order, and a line that balances.

    Returns the window line, and when it was sealed.
    """
    manifest = bucket.keys("manifest/")
    segments = [key for key in manifest if key.startswith("manifest/segments/")]
    assert segments == [f"{SEGMENT}.{part}" for part in ("jsonl", "seal", "sha256")]
    assert [key for key in manifest if key.endswith(".json")] == [
        f"manifest/seals/{number:012d}.json" for number in (0, 1)
    ]
    data = bucket.get(f"{SEGMENT}.jsonl")
    (lines, line), (wanted_lines, wanted) = parted(data), parted(expected)
    same = lines == wanted_lines  # pytest would spell out what differs: 141 MB
    assert same, "other records than those in the bucket"
    assert {name: line[name] for name in TOLD} == {name: wanted[name] for name in TOLD}
    seal = json.loads(bucket.get("manifest/seals/000000000001.json"))
    [entry] = seal["segments"]
    assert (entry["records"], entry["bytes"]) == (CALLS, len(data))
    assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert seal["records"] == CALLS
    return line, datetime.fromisoformat(seal["sealed_at"])


def parted(whole: bytes) -> tuple[bytes, dict[str, Any]]:
    """The lines of the records, and what the window line says."""
    end = whole.rindex(b"\n", 0, -1) + 1
    return whole[:end], json.loads(whole[end:])


def check_audit(archiver: Archiver) -> None:
    told = json.loads(archiver.run("verify", "--level", "manifest", "--json").expect(0).stdout)
    assert (told["ok"], told["findings"]) == (True, [])
