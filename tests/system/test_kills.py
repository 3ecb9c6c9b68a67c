"""SIGKILL at random moments, start again, until a backfill of 300 calls is done; and again.

The network is bad, too: API, blobs and store lie behind proxies that reset, cut, stall, corrupt,
throttle and swallow. Most kills come after so many requests of the process's life, so that they
strike at its work on a slow machine as on a fast one; some come by the clock.

`KILLS` is how many must have struck a living process (20, and 200 by `make kills`). `KILLS_SEED`
repeats the choices, though no machine repeats the moments.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.system import audit, checker
from tests.system.bucket import PROBE, Bucket
from tests.system.command import Archiver, Result, Running
from tests.system.conftest import MakeArchive
from tests.system.fault_proxy import HARMS, FaultProxy, Weather
from tests.system.servers import Source, Weed

KILLS = int(os.environ.get("KILLS", "20"))
SEED = os.environ.get("KILLS_SEED") or secrets.token_hex(4)
CALLS, BIG, BIG_BYTES = 297, 3, 10_000_000
"""The big ones take two parts each."""
START, END = datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 2, tzinfo=UTC)
DATES = ("--from", "2024-05-01", "--to", "2024-05-02")
RETENTION_DAYS = 30
DONE = {"call.archived", "call.no_recording", "record.adopted", "seal.appended"}
WEATHER = Weather(reset=4, truncate=4, stall=4, corrupt=10, throttle=4, swallow=8, stall_seconds=2)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 10 * KILLS)]


@dataclass
class Network:
    """The ways to the three servers. A path is harmed twice at most: no request fails for good, so
    every window closes with all of its calls."""

    proxies: dict[str, FaultProxy]

    @classmethod
    def make(cls) -> Network:
        return cls({kind: FaultProxy(kind, WEATHER, SEED, most=2) for kind in _KINDS})

    @property
    def requests(self) -> int:
        return sum(proxy.requests for proxy in self.proxies.values())

    @property
    def harm(self) -> Counter[str]:
        return sum((Counter(proxy.done) for proxy in self.proxies.values()), Counter[str]())

    def renew(self) -> None:
        """Every path may be harmed again."""
        for proxy in self.proxies.values():
            proxy.forget()


_KINDS = ("api", "blobs", "store")


@dataclass
class Tally:
    """What the kills did."""

    struck: int = 0
    """Kills that found a living process."""
    at_work: int = 0
    """Those of them that had archived or sealed something by then."""
    late: int = 0
    """Kills that came after the end of the work."""
    alone: Counter[int] = field(default_factory=Counter)
    """Exit codes of processes that ended by themselves."""

    @property
    def is_enough(self) -> bool:
        """When a kill strikes is chance: it goes on until a third of them have struck at work."""
        return self.struck >= KILLS and self.at_work >= KILLS // 3


@dataclass
class Slain:
    """One archive, its backfill killed again and again, and done at last."""

    archiver: Archiver
    bucket: Bucket
    locked: bool
    kills: int = 0


@dataclass
class Hunt:
    """All archives, and how to make more of them."""

    source: Source
    network: Network
    make_archive: MakeArchive
    chance: random.Random
    tally: Tally = field(default_factory=Tally)
    slain: list[Slain] = field(default_factory=list)

    def backfill(self) -> None:
        """One, in a bucket of its own; every other one is locked."""
        locked = len(self.slain) % 2 == 0
        archiver, bucket = self.make_archive(self.settings(), versioned=True, lock=locked)
        more = {"S3_ENDPOINT_URL": f"http://{self.network.proxies['store'].address}"}
        if locked:
            more |= {"OBJECT_LOCK_MODE": "COMPLIANCE", "RETENTION_DAYS": str(RETENTION_DAYS)}
        one = Slain(archiver.having(**more, WORKERS="4"), bucket, locked)
        self.slain.append(one)
        self.network.renew()
        while not self.life(one):
            assert self.tally.alone.total() < 10 + KILLS, "it ends by itself again and again"
        print(f"archive {len(self.slain)}: {one.kills} kills; {self.tally}")

    def settings(self) -> dict[str, str]:
        api = urlsplit(self.source.addresses["api_url"])
        through = api._replace(netloc=self.network.proxies["api"].address)
        return {**self.source.settings(), "API_BASE_URL": through.geturl()}

    def life(self, one: Slain) -> bool:
        """Start the backfill and kill it; whether it was done before that."""
        running = one.archiver.start("backfill", *DATES)
        spared = self.tally.is_enough
        if not spared:
            self.strike(running)
        result = running.wait(300)
        killed = result.code == -signal.SIGKILL
        self.count(result, killed=killed, spared=spared)
        one.kills += killed
        return result.code == 0

    def strike(self, running: Running) -> None:
        """Once the process has made so many requests, 50 to 900; one in six by the clock."""
        if self.chance.random() < 1 / 6:
            time.sleep(self.chance.uniform(0.2, 4))
        else:
            goal = self.network.requests + int(50 * 18 ** self.chance.random())
            running.wait_until(lambda: running.ended or self.network.requests >= goal, 120)
        running.send(signal.SIGKILL)

    def count(self, result: Result, *, killed: bool, spared: bool) -> None:
        tally = self.tally
        tally.struck += killed
        tally.at_work += killed and any(line["event"] in DONE for line in result.logs)
        tally.late += not killed and not spared
        if not killed:
            tally.alone[result.code] += 1


@pytest.fixture(scope="module")
def hunt(
    make_archive: MakeArchive, weed: Weed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hunt]:
    """Backfills until so many kills have struck, each of them done in the end."""
    print(f"KILLS={KILLS} KILLS_SEED={SEED}")
    network = Network.make()
    huge = ("--huge", str(BIG), "--huge-bytes", str(BIG_BYTES))
    calls = ("--calls", str(CALLS), "--short", *huge, *DATES, "--seed", SEED)
    with ExitStack() as stack:
        for proxy in network.proxies.values():
            stack.enter_context(proxy)
        via = ("--blob-via", network.proxies["blobs"].address)
        source = stack.enter_context(Source(tmp_path_factory.mktemp("kills"), *calls, *via))
        network.proxies["api"].upstream = urlsplit(source.addresses["api_url"]).netloc
        network.proxies["blobs"].upstream = source.addresses["blob_server"]
        network.proxies["store"].upstream = urlsplit(weed.endpoint_url).netloc
        hunt = Hunt(source, network, make_archive, random.Random(SEED))
        while not hunt.tally.is_enough:
            hunt.backfill()
        yield hunt


def test_kills_struck_processes_at_work(hunt: Hunt) -> None:
    """Else all that follows would show little."""
    tally = hunt.tally
    print(f"{tally}; harm on the way: {dict(hunt.network.harm)}")
    assert tally.struck < 2 * KILLS, "too few of them struck at work"
    assert set(tally.alone) <= {0, 3, 4}, "a process ended in a way of its own"
    assert hunt.network.harm.keys() == set(HARMS), "some harm was never done"


def test_nothing_is_missing_doubled_or_changed(hunt: Hunt, tmp_path: Path) -> None:
    """Every archive: each call once, every byte the source's, one chain, one version a key."""
    for number, one in enumerate(hunt.slain):
        expected = hunt.source.expected(
            START,
            END,
            api=hunt.settings()["API_BASE_URL"],
            retention=("COMPLIANCE", RETENTION_DAYS) if one.locked else None,
            leftovers=True,
        )
        copy = one.bucket.download(tmp_path / str(number))
        checked = checker.check(copy, expected)
        shutil.rmtree(copy)
        assert {record["revision"] for record in checked.records.values()} == {1}
        assert checked.segments == 24, "a window was told of twice"
        files = [file for record in checked.records.values() for file in record["files"]]
        assert sum(file["bytes"] >= BIG_BYTES - 16_000 for file in files) == BIG
        # No key has two versions: so what was checked are the very ones that the records name.
        there = one.bucket.assert_written_once(but=PROBE)
        assert {(file["key"], file["version_id"]) for file in files} <= there


def test_verify_finds_nothing(hunt: Hunt) -> None:
    for one in hunt.slain:
        audit.assert_clean(one.archiver)
