"""Invariant 4: the same source, any history of faults that ends: the same committed set."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from archiver.core.errors import ArchiverError
from archiver.core.model import DOCUMENTS
from archiver.manifest.signing import SigningKey
from archiver.store.bucket import Bucket
from tests.fakes.audio import wav
from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call
from tests.fakes.proxy import Fault, FaultProxy, Harm
from tests.fakes.rig import HOUR, Archive, new_key, wired

STORE_HARMS: list[Harm] = ["swallow", "reset", "reset-after", "unavailable", "html", "empty"]
BLOB_FAULTS = [
    Reply(503, {}, b"busy"),
    Reply(403, {}, b"expired"),
    Reply(200, {}, wav(1), close_after=77),
    Reply(200, {}, wav(1), close_after=77, reset=True),
    Reply(200, {}, wav(1), close_after=-1),
    Reply(200, {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, wav(1)),
]
API_FAULTS = [
    Reply(500, {}, b"oops"),
    Reply(429, {"Retry-After": "1"}, b"{}"),
    Reply(200, {}, b'[{"id":"half', close_after=8),
    Reply(200, {}, b"[]", close_after=-1),
]


@pytest.fixture
def platform(clock: HandClock) -> Iterator[Platform]:
    calls = [a_call(f"vc_{n}", TEN + n * timedelta(minutes=12), epa={"n": n}) for n in range(10)]
    with Platform([*calls, a_call("none", audio=None)], clock=clock.now) as served:
        yield served
        assert served.violations == []


@pytest.fixture
def proxy(weed: Any) -> Iterator[FaultProxy]:
    with FaultProxy(weed.endpoint_url) as made:
        yield made


class Weather:
    """Bad weather at the source: each request may fail, and it all ends after so many faults."""

    def __init__(self, seed: int, faults: int) -> None:
        self._chance = random.Random(seed)
        self._left = faults
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Reply | None:
        with self._lock:
            if self._left and self._chance.random() < 0.3:
                self._left -= 1
                faults = BLOB_FAULTS if request.server == "blob" else API_FAULTS
                return self._chance.choice(faults)
        return None


def storm(seed: int) -> list[Fault]:
    """Some requests to the store that will go wrong, of each kind of object."""
    chance = random.Random(seed)
    patterns = [
        "recording", *(f"{kind}.json" for kind in DOCUMENTS), "records/", r"\.jsonl", r"\.sha256",
        r"seals/\d+.json$", r"\.sig", r"\.seal$", "^HEAD", "list-type=2",
    ]  # fmt: skip
    return [Fault(chance.choice(STORE_HARMS), one, chance.randint(1, 3)) for one in patterns]


def committed(look: Archive) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """What the archive vouches for: outcome and digests for each call, whatever the keys."""
    return {
        call_id: (found["outcome"], sorted((f["kind"], f["sha256"]) for f in found["files"]))
        for call_id, found in look.records.items()
    }


@pytest.mark.parametrize("seed", range(4))
def test_faults_that_end_leave_no_trace(
    platform: Platform, proxy: FaultProxy, clock: HandClock, open_bucket: Callable[..., Bucket],
    prefix: str, seed: int,
) -> None:  # fmt: skip
    key: SigningKey = new_key()
    clock.turn_to(TEN + 6 * HOUR)
    with wired(platform, open_bucket(prefix=f"{prefix}-calm"), clock, key) as calm:
        calm.backfill(hours=2)
        expected = committed(Archive(calm.bucket))
    platform.hooks.append(Weather(seed, faults=40))
    proxy.faults += storm(seed)
    for _ in range(12):
        with wired(platform, open_bucket(endpoint_url=proxy.url), clock, key) as stormy:
            try:
                totals = stormy.backfill(hours=2)
            except ArchiverError:
                continue
        if not totals.needs_a_person and not totals.waiting:
            break
    look = Archive(open_bucket())
    look.check(key)
    assert committed(look) == expected
    versions = [version.key for version in open_bucket().versions("")]
    assert len(versions) == len(set(versions)), "nothing was ever overwritten"
    assert any(fault.hits for fault in proxy.faults)
