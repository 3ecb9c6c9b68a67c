"""`python -m bench.ledger.large seal|day CALLS`: one step of the pipeline with very many calls.

It prints the seconds and CPU seconds of the step alone; what comes before it, Python's start and
the records, is left out. Peak memory is that of the whole process.

- `seal`: records in memory, as a window keeps them → segment → companion → seal, into a store that
  hashes what it is sent, as the real one's client does, and throws it away.
- `day`: the LIST of a day's records by the store's client, and which of as many listed calls have
  none.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from archiver.core import checksums
from archiver.core.clock import SystemClock
from archiver.core.model import Retention
from archiver.manifest import layout
from archiver.manifest.segment import Balance, Listing
from archiver.manifest.signing import SigningKey
from archiver.pipeline.bucket_state import (
    LatestRecord,
    RecordIndex,
    SegmentIndex,
    UnsealedSegment,
)
from archiver.pipeline.chain import Chain
from archiver.pipeline.segment_writer import SegmentWriter
from archiver.settings import StoreSettings, load
from archiver.wiring import reader
from bench.ledger import material, pages


def main() -> None:
    step = {"seal": _seal, "day": _day}[sys.argv[1]](int(sys.argv[2]))
    began, cpu = time.monotonic(), time.process_time()
    step()
    took = {"wall_s": time.monotonic() - began, "cpu_s": time.process_time() - cpu}
    print(json.dumps(took))


# --- sealing


class _Null:
    """A store that has the seals, and no more."""

    def __init__(self) -> None:
        self._seals: dict[str, bytes] = {}

    def put_once(self, key: str, data: bytes | IO[bytes], **_: object) -> None:
        if isinstance(data, bytes):
            self._seals[key] = data
            return
        digests = checksums.Digests()
        data.seek(0)
        while chunk := data.read(256 << 10):
            digests.update(chunk)

    def read(self, key: str, *_: object, **__: object) -> bytes | None:
        return self._seals.get(key)

    def head(self, key: str, *_: object) -> object | None:
        return self._seals.get(key)

    def list(self, *_: object, **__: object) -> Iterator[Any]:
        return iter(())


def _seal(calls: int) -> Callable[[], None]:
    within, store, key = material.window(0), _Null(), SigningKey.generate()
    found = {
        call_id: LatestRecord.of(material.call_record(call_id, within))
        for call_id in material.call_ids(0, calls)
    }
    chain = Chain(store, key, SystemClock(), Retention())  # type: ignore[arg-type]
    at = material.START
    chain.begin(capabilities={}, pages={}, watermark=at)
    return lambda: chain.append([_close(store, found)], within.end)


def _close(store: _Null, found: dict[str, LatestRecord]) -> UnsealedSegment:
    """As `pipeline.window` does it."""
    within, name = material.window(0), layout.SegmentName(material.START, 1)
    balance = Balance({call_id: one.outcome for call_id, one in found.items()})
    listing = Listing(within.end, 1000, 2, len(found), {"state": ["Completed"]})
    writer = SegmentWriter(store, SegmentIndex(store))  # type: ignore[arg-type]
    return writer.write(name, within, list(found.values()), balance, listing, None)


# --- a day


def _day(calls: int) -> Callable[[], None]:
    """Every tenth call that the source lists has no record yet."""
    listed = [pages.call_id(number * 10 // 9) for number in range(calls)]
    bucket, day = reader(load(StoreSettings), SystemClock()), material.START.date()

    def step() -> None:
        there = RecordIndex(bucket).revisions(day)
        new = [call_id for call_id in listed if layout.call_dir(call_id) not in there]
        if len(there) != calls or not new:
            raise RuntimeError(f"{len(there)} records, {len(new)} without one")

    return step


if __name__ == "__main__":
    main()
