"""Half an hour of everything at once: `make soak MINUTES=30`. Not collected unless it is named.

Calls keep appearing at a source over Azurite; they go into SeaweedFS; API, blobs and store lie
behind proxies that reset, truncate, stall, corrupt, throttle and swallow. Into one archive write

- a loop that nothing happens to, whose memory, threads and descriptors are watched;
- a loop that gets a SIGKILL every half minute, and is started again;
- backfills, one after the other, over yesterday and over today; half of them are killed.

Then the weather clears, one more round and one more backfill are run, and the archive is held
against what the source has. Windows are a minute long here, so that each is closed, listed again
and looked after while we watch.

`SOAK_MINUTES`, `SOAK_CALLS` (a second) and `SOAK_SEED`; no machine repeats the moments.
"""

from __future__ import annotations

import itertools
import os
import random
import secrets
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.system import audit
from tests.system.azure_api import AzureApi
from tests.system.bucket import PROBE, Bucket
from tests.system.command import Archiver, Result, Running
from tests.system.conftest import MakeArchive
from tests.system.fault_proxy import FAIR, HARMS, FaultProxy, Weather
from tests.system.servers import Azurite, Weed
from tests.system.soak import outcome
from tests.system.soak.calls import LATEST_SECONDS, BlobsBehind, Calls
from tests.system.soak.watch import Sample, Watch, mean

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
PER_SECOND = float(os.environ.get("SOAK_CALLS", "1"))
SEED = os.environ.get("SOAK_SEED") or secrets.token_hex(4)

WINDOW, SETTLE, RELIST = timedelta(minutes=1), timedelta(seconds=20), timedelta(minutes=2)
KILL_EVERY_SECONDS = 30.0
PAUSE_SECONDS = 5.0
"""Between two backfills."""
WORKERS = 4
POOLED = (WORKERS + 4) + WORKERS + (WORKERS + 8) + 1
"""Connections that the pools of API, blobs and store may keep, and the socket of `/metrics`."""
MOST_SOCKETS = POOLED + 2 * WORKERS + 4
"""While much is asked at a time a few more may be open, which are closed and not kept."""
MEMORY_GROWTH = 1.10
STORM = Weather(reset=8, truncate=8, stall=6, corrupt=15, throttle=8, swallow=8, silence_seconds=75)
ROUGH = replace(STORM, reset=30, truncate=30, stall=10, corrupt=40, throttle=20)
"""For the blobs: of them there are fewer requests, and of a broken one a good deal is kept."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 * MINUTES + 1500)]


@dataclass
class Tally:
    """What happened to the processes."""

    kills: Counter[str] = field(default_factory=Counter)
    """Kills that struck a living process: a loop, or a backfill."""
    codes: dict[str, Counter[int]] = field(default_factory=dict)
    """Exit codes of those that ended by themselves."""
    complaints: list[str] = field(default_factory=list)
    """What these told a person on stderr."""
    rounds: int = 0
    failed_rounds: int = 0
    """Of the loop that nothing happens to."""
    uploads_left: int = 0
    """Multipart uploads of killed processes, which a start a day later aborts."""
    seconds_to_end: float = 0.0

    def note(self, name: str, result: Result) -> None:
        if result.code == -signal.SIGKILL:
            self.kills[name] += 1
        else:
            self.codes.setdefault(name, Counter())[result.code] += 1
            self.complaints += [f"{name}: {line}" for line in result.complaints]


@dataclass
class Soak:
    """All that takes part, and what came of it."""

    archiver: Archiver
    bucket: Bucket
    proxies: dict[str, FaultProxy]
    calls: Calls
    today: datetime
    """Where the loops begin."""
    yesterday: tuple[datetime, datetime]
    tally: Tally = field(default_factory=Tally)
    watch: Watch | None = None
    last: list[Sample] = field(default_factory=list)
    """Looks at the watched loop after the storm, when it has long been idle."""
    found: outcome.Outcome = field(default_factory=outcome.Outcome)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._chance = random.Random(SEED)
        self._errors: list[BaseException] = []

    def run(self) -> None:
        """Raises what went wrong in any of its threads; no process outlives it."""
        self.archiver.run("init").expect(0)  # or the loop would have the sockets of 32 racers
        kept = self.archiver.start("run")
        try:
            self.calls.start()
            kept.wait_for(1, "round.done", timeout=120)
            self.watch = Watch(kept.pid)
            self._storm(kept)
            self._clear_up(kept)
        finally:
            kept.send(signal.SIGKILL)

    def _storm(self, kept: Running) -> None:
        assert self.watch is not None
        self.watch.start()
        self.weather(STORM)
        self.proxies["blobs"].weather = ROUGH
        work = (self._hunted, self._backfills)
        threads = [threading.Thread(target=self._guard, args=(one,)) for one in work]
        for thread in threads:
            thread.start()
        try:
            self._wait(MINUTES * 60, kept)
        finally:
            self.watch.stop()
            self._over.set()
            for thread in threads:
                thread.join()
            self.calls.stop()
            self.weather(FAIR)

    def weather(self, weather: Weather) -> None:
        for proxy in self.proxies.values():
            proxy.weather = weather

    def _wait(self, seconds: float, kept: Running) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert not kept.ended, f"the loop ended by itself\n{kept.wait().stderr[-3000:]}"
            if self._errors:
                raise self._errors[0]
            time.sleep(1)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._errors.append(error)

    # --- the processes that are killed

    def _hunted(self) -> None:
        """A loop that is killed, again and again; where it ended by itself it is started again."""
        while not self._over.is_set():
            running = self.archiver.start("run")
            self._live(running, KILL_EVERY_SECONDS)
            running.send(signal.SIGKILL)
            self.tally.note("loop", running.wait())

    def _backfills(self) -> None:
        """One after the other; every other one of each range is killed."""
        number = 0
        while not self._over.is_set():
            number += 1
            start, end = self.yesterday if number % 2 else (self.today, datetime.now(UTC))
            running = self.archiver.start("backfill", *_dates(start, end))
            if number % 4 >= 2:
                self._live(running, self._chance.uniform(1, 8))
                running.send(signal.SIGKILL)
            self.tally.note("backfill", running.wait(600))
            self._over.wait(PAUSE_SECONDS)

    def _live(self, running: Running, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not running.ended and not self._over.is_set():
            time.sleep(0.1)

    # --- after the storm

    def _clear_up(self, kept: Running) -> None:
        """Let the loop do what comes of age, then end it; one more round, one more backfill."""
        done = self.calls.last + WINDOW + max(RELIST, timedelta(seconds=LATEST_SECONDS))
        self._wait((done - datetime.now(UTC)).total_seconds() + 20, kept)
        for _ in range(10):
            sample = Sample.of(kept.pid)
            self.last += [sample] if sample else []
            time.sleep(0.5)
        began = time.monotonic()
        kept.send(signal.SIGTERM)
        result = kept.wait(60).expect(0)
        self.tally.seconds_to_end = time.monotonic() - began
        self.tally.rounds = len(result.events("round.done"))
        self.tally.failed_rounds = len(result.events("round.failed"))
        self.tally.note("calm", self.archiver.run("run", "--once", timeout=300))
        calm = self.archiver.having(GIVE_UP="1s")
        for start, end in (self.yesterday, (self.today, self.calls.last)):
            self.tally.note("calm", calm.run("backfill", *_dates(start, end), timeout=300))
        self.tally.uploads_left = len(self.bucket.open_uploads())


def _dates(start: datetime, end: datetime) -> tuple[str, ...]:
    return "--from", start.isoformat(), "--to", end.isoformat()


@pytest.fixture(scope="module")
def soak(
    make_archive: MakeArchive, weed: Weed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Soak]:
    print(f"SOAK_MINUTES={MINUTES:g} SOAK_CALLS={PER_SECOND:g} SOAK_SEED={SEED}")
    directory = tmp_path_factory.mktemp("soak")
    with ExitStack() as stack:
        proxies = {
            kind: stack.enter_context(FaultProxy(kind, FAIR, SEED))
            for kind in ("api", "blobs", "store")
        }
        azurite = stack.enter_context(Azurite(directory / "azurite"))
        blobs = BlobsBehind(azurite, proxies["blobs"].address)
        api = stack.enter_context(AzureApi([], blobs))
        proxies["api"].upstream = urlsplit(api.url).netloc
        proxies["blobs"].upstream = azurite.host
        proxies["store"].upstream = urlsplit(weed.endpoint_url).netloc
        today = datetime.now(UTC).replace(second=0, microsecond=0)
        yesterday = today - timedelta(hours=24), today - timedelta(hours=23, minutes=40)
        calls = Calls(api, blobs, SEED, per_second=PER_SECOND, yesterday=yesterday)
        source = {
            **api.settings(azurite),
            "API_BASE_URL": urlsplit(api.url)._replace(netloc=proxies["api"].address).geturl(),
            "RECORDING_HOSTS": proxies["blobs"].address,
        }
        archiver, bucket = make_archive(source, versioned=True)
        archiver = archiver.having(
            S3_ENDPOINT_URL=f"http://{proxies['store'].address}",
            START=today.isoformat(),
            WINDOW=_text(WINDOW),
            SETTLE=_text(SETTLE),
            RELIST=_text(RELIST),
            POLL_INTERVAL="2s",
            GIVE_UP="4m",
            WORKERS=str(WORKERS),
        )
        soak = Soak(archiver, bucket, proxies, calls, today, yesterday)
        soak.run()
        copy = bucket.download(directory / "copy")
        soak.found = outcome.look(copy, calls.truth)
        print(table(soak))
        yield soak
        shutil.rmtree(copy)


def _text(length: timedelta) -> str:
    return f"{int(length.total_seconds())}s"


def table(soak: Soak) -> str:
    """What a person wants to see of it."""
    found, tally = soak.found, soak.tally
    harm = {kind: dict(proxy.done) for kind, proxy in soak.proxies.items()}
    requests = {kind: proxy.requests for kind, proxy in soak.proxies.items()}
    rows: list[tuple[str, object]] = [
        ("minutes", MINUTES),
        ("calls", f"{len(soak.calls.truth)}: {_told(soak.calls.kinds)}"),
        ("missing", len(found.missing)),
        ("doubled", len(found.doubled)),
        ("unreported", len(found.unreported)),
        ("changed", len(found.changed)),
        ("outcomes", _told(found.outcomes)),
        ("archive", f"{found.records} records, {found.segments} segments, {found.seals} seals"),
        ("bytes", f"{found.bytes / 1e6:.0f} MB"),
        *((f"requests, {kind}", f"{requests[kind]}; {_told(harm[kind])}") for kind in harm),
        ("kills", _told(tally.kills)),
        *((f"exit codes, {name}", _told(codes)) for name, codes in tally.codes.items()),
        *(("complaint", line) for line in tally.complaints),
        ("rounds", f"{tally.rounds}, {tally.failed_rounds} failed"),
        ("uploads left by kills", tally.uploads_left),
        ("SIGTERM to end", f"{tally.seconds_to_end:.1f} s"),
        *_usage(soak),
    ]
    return "\n" + "\n".join(f"{name:22} {value}" for name, value in rows)


def _usage(soak: Soak) -> Iterator[tuple[str, str]]:
    assert soak.watch is not None
    parts = [*soak.watch.thirds(), soak.last]
    by_minute = itertools.groupby(soak.watch.samples, lambda sample: int(sample.at // 60))
    means = (mean(list(samples), lambda s: s.rss_bytes / 1e6) for _, samples in by_minute)
    yield "memory by minute, MB", " ".join(f"{value:.0f}" for value in means)
    yield "", "   first  middle    last    idle   (thirds of the storm, and after it)"
    yield "memory, mean MB", _row(mean(part, lambda s: s.rss_bytes / 1e6) for part in parts)
    for name in ("rss_bytes", "threads", "sockets", "files", "others"):
        scale = 1e6 if name == "rss_bytes" else 1
        peaks = (max(getattr(sample, name) for sample in part) / scale for part in parts)
        yield f"{'memory' if scale > 1 else name}, most", _row(peaks)


def _row(values: Iterator[float]) -> str:
    return "".join(f"{value:8.1f}" for value in values)


def _told(counts: Counter[object] | dict[object, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=str)) or "-"


def test_no_call_is_missing_doubled_or_unreported(soak: Soak) -> None:
    assert len(soak.calls.truth) >= 0.5 * 60 * MINUTES * PER_SECOND, "hardly any calls"
    soak.found.assert_sound()
    assert soak.found.versions <= soak.bucket.assert_written_once(but=PROBE)


def test_both_verifiers_find_nothing(soak: Soak, tmp_path: Path) -> None:
    audit.assert_clean(soak.archiver)
    copy = soak.bucket.download(tmp_path / "copy")
    audit.assert_script_clean(copy)
    shutil.rmtree(copy)


def test_there_was_a_storm(soak: Soak) -> None:
    """Else all the others would show little."""
    done = sum((proxy.done for proxy in soak.proxies.values()), Counter())
    assert done.keys() == set(HARMS)
    assert soak.proxies["store"].done["corrupt"]
    assert soak.proxies["blobs"].done["corrupt"]
    assert soak.tally.kills["loop"] >= MINUTES * 60 / KILL_EVERY_SECONDS * 0.7
    assert soak.tally.kills["backfill"] >= 1
    # What ends by itself does so for a reason: it is done, or source or store were out of reach.
    assert set().union(*soak.tally.codes.values()) <= {0, 1, 3, 4}
    assert set(soak.tally.codes["calm"]) <= {0, 1}


def test_memory_is_flat(soak: Soak) -> None:
    assert soak.watch is not None
    _, middle, last = soak.watch.thirds()
    growth = mean(last, lambda s: s.rss_bytes) / mean(middle, lambda s: s.rss_bytes)
    assert growth <= MEMORY_GROWTH, f"{growth:.3f} of the middle third"


def test_nothing_leaks(soak: Soak) -> None:
    """Sockets, files, pipes and threads: no more of them as time goes on, and none but pooled
    connections when the loop has long been idle."""
    assert soak.watch is not None
    _, middle, last = soak.watch.thirds()
    for name, slack in (("sockets", 3), ("files", 0.5), ("others", 0.5), ("threads", 1)):
        before, after = (mean(part, attrgetter(name)) for part in (middle, last))
        assert after <= before + slack, f"{name}: {before:.1f}, then {after:.1f}"
    assert max(sample.sockets for sample in soak.watch.samples) <= MOST_SOCKETS
    assert max(sample.sockets for sample in soak.last) <= POOLED
    assert {sample.files for sample in soak.last} == {0}
    assert soak.tally.seconds_to_end < 30
