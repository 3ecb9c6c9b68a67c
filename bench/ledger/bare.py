"""`python -m bench.ledger.bare`: the requests of `verify --level manifest`, and nothing else.

The same client asks for the same objects and listings, from as many threads, and throws away what
comes. It prints the CPU seconds that this took, Python's start and the imports left out: what an
audit takes beyond them is its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from archiver.audit.verify import WINDOWS_AT_ONCE
from archiver.core.clock import SystemClock
from archiver.manifest import layout
from archiver.settings import StoreSettings, load
from archiver.store.bucket import Bucket
from archiver.wiring import reader


def main() -> None:
    settings = load(StoreSettings)
    bucket = reader(settings, SystemClock())
    began, cpu = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(settings.workers) as pool:
        _all(pool.map(bucket.read, _keys(bucket, layout.SEALS)))
    with ThreadPoolExecutor(WINDOWS_AT_ONCE) as pool:
        _all(pool.map(partial(_fetch, bucket), _keys(bucket, layout.SEGMENTS)))
    for prefix in (layout.EVENTS, layout.KEYS):
        _all(bucket.list(prefix))
    _all(bucket.versions("manifest/"))
    took = {"wall_s": time.monotonic() - began, "cpu_s": time.process_time() - cpu}
    print(json.dumps(took))


def _keys(bucket: Bucket, prefix: str) -> list[str]:
    return [listed.key for listed in bucket.list(prefix)]


def _fetch(bucket: Bucket, key: str) -> None:
    """Pointers are read whole, as an audit does; segments and companions in chunks."""
    if key.endswith(".seal"):
        bucket.read(key)
    else:
        _all(bucket.stream(key) or ())


def _all(items: Iterable[object]) -> None:
    for _ in items:
        pass


if __name__ == "__main__":
    main()
