"""Done when 7: eight recordings of 250 MB with `WORKERS=4` in under 300 MB of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.bucket import Bucket
from tests.system.conftest import archiver_to
from tests.system.servers import Source, Weed

RECORDINGS, BYTES, WORKERS = 8, 250_000_000, 4
LIMIT_BYTES = 300_000_000
DATES = ("--from", "2024-04-01", "--to", "2024-04-02")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def own_weed(tmp_path: Path) -> Iterator[Weed]:
    """A store of its own, so that its 2 GB are given back at once."""
    weed = Weed(tmp_path / "store")
    yield weed
    weed.remove()


def test_peak_memory(
    own_weed: Weed,
    signing_key: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    bucket = Bucket.make(own_weed.client, "calls")
    huge = ("--calls", "0", "--huge", str(RECORDINGS), "--huge-bytes", str(BYTES))
    with Source(tmp_path, *huge, *DATES) as source:
        archiver = archiver_to(own_weed, "calls", signing_key, source.settings())
        running = archiver.having(WORKERS=str(WORKERS)).start("backfill", *DATES)
        peak = 0

        def ended() -> bool:
            nonlocal peak
            peak = max(peak, running.peak_bytes)
            return running.ended

        running.wait_until(ended, timeout=240)
        result = running.wait().expect(0)
        record_property("peak_mb", round(peak / 1e6))
        record_property("seconds", round(result.seconds))
        print(f"peak {peak / 1e6:.0f} MB, {result.seconds:.0f} s")
        assert 20_000_000 < peak < LIMIT_BYTES

        told = {call["recording"]["sha256"] for call in source.truth.values()}
        keys = [key for key in bucket.keys("recordings/") if key.endswith(".wav")]
        assert len(keys) == RECORDINGS
        assert {bucket.sha256(key) for key in keys} == told
