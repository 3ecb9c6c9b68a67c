"""Done when 4: writers and sealers as processes, killed at random, in twenty rounds.

Each round has new calls, and eight processes that start at one moment: four writers, which archive
into windows that for them have not settled (for two of them, those of the round before have), and
four sealers, which archive and seal the round's windows: two backfills, and two rounds of the loop.
Most of them are killed, some by the clock, some at an event of their log. Nobody cleans up: what
they leave is there for the next round, and at last for one run that nothing happens to.

`RACE_ROUNDS`, `RACE_WRITERS` and `RACE_SEALERS` make it longer or wider; `RACE_SEED` repeats the
calls and the choice of victims, though no machine repeats the moments.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.system import audit, checker
from tests.system.bucket import PROBE, Bucket
from tests.system.command import Archiver, Result, Running
from tests.system.conftest import MakeArchive
from tests.system.waves import Plan, Waves

ROUNDS = int(os.environ.get("RACE_ROUNDS", "20"))
WRITERS = int(os.environ.get("RACE_WRITERS", "4"))
SEALERS = int(os.environ.get("RACE_SEALERS", "4"))
SEED = os.environ.get("RACE_SEED") or secrets.token_hex(4)
LENGTH = timedelta(minutes=5)
"""No round takes as long: a window does not settle in the midst of one."""
RETENTION_DAYS = 30
WORK = {
    *("call.archived", "call.no_recording", "record.adopted"),
    *("records.orphaned", "window.conflict", "seal.appended"),
}
"""What the log says of something done, or of another process that did it."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30 * ROUNDS)]


@dataclass
class Tally:
    """What the kills did, and what the processes say of their meeting."""

    sent: int = 0
    struck: int = 0
    """Kills that found a living process."""
    at_work: int = 0
    """Those of them that had archived or sealed something by then, or met another that had."""
    events: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    """What lay there half done, or was not done, at the ends of rounds."""

    def take(self, results: list[Result], sent: int, left: Counter[str]) -> None:
        for result in results:
            events = Counter(line["event"] for line in result.logs if line["event"] in WORK)
            killed = result.code == -signal.SIGKILL
            if not killed and not _only_waits(result):
                result.expect(0)
            self.struck += killed
            self.at_work += killed and bool(events)
            self.events += events
        self.sent += sent
        self.left += left


@dataclass
class Race:
    """All that the rounds need, and what they leave."""

    plan: Plan
    source: Waves
    archiver: Archiver
    bucket: Bucket
    chance: random.Random
    tally: Tally = field(default_factory=Tally)
    life_seconds: float = 3.0
    """How long processes lived in the last round: kills by the clock are measured by it."""

    def round(self, number: int) -> None:
        self.source.next()
        running = self.start(number)
        strikes = self.strikes(running)
        threads = [threading.Thread(target=strike) for strike in strikes]
        for thread in threads:
            thread.start()
        results = [one.wait() for one in running]
        for thread in threads:
            thread.join()
        self.life_seconds = max(result.seconds for result in results)
        left = undone(self.bucket.keys(), self.plan.windows * (number + 1))
        self.tally.take(results, sum(len(strike.victims) for strike in strikes), left)
        print(f"{number}: {[r.code for r in results]}, {self.life_seconds:.1f} s, {dict(left)}")

    def start(self, number: int) -> list[Running]:
        """All at once, in a random order."""
        (before, _), (begin, end), (_, after) = (
            self.plan.slice(n) for n in (number - 1, number, number + 1)
        )
        wide, narrow = _dates(before, after), _dates(before, end)
        settles = ["7d", _ago(begin)]
        tasks = [(settles[n % 2], ("backfill", *wide)) for n in range(WRITERS)]
        verbs = [("run", "--once"), ("backfill", *narrow)]
        tasks += [(_ago(end), verbs[n % 2]) for n in range(SEALERS)]
        self.chance.shuffle(tasks)
        return [self.archiver.having(SETTLE=settle).start(*verb) for settle, verb in tasks]

    def strikes(self, running: list[Running]) -> list[Strike]:
        """Every third round or so ends for all at one moment; else each victim has its own."""
        if self.chance.random() < 0.35:
            return [self.strike(self.chance.choice(running), running)]
        count = self.chance.randint(len(running) // 2, len(running))
        return [self.strike(one, [one]) for one in self.chance.sample(running, count)]

    def strike(self, watched: Running, victims: list[Running]) -> Strike:
        chance = self.chance
        if chance.random() < 0.3:
            return Strike(watched, victims, chance.uniform(0.4, 1.0) * self.life_seconds)
        return Strike(watched, victims, chance.uniform(0, 0.05), chance.randint(1, 4))

    def finish(self) -> None:
        """One run that nothing happens to."""
        calm = self.archiver.having(SETTLE=_ago(self.plan.end))
        calm.run("run", "--once", timeout=300).expect(0)


@dataclass(frozen=True)
class Strike:
    """SIGKILLs: some time after the start, or after a log's n-th line of something done."""

    watched: Running
    victims: list[Running]
    seconds: float
    lines: int = 0

    def __call__(self) -> None:
        if self.lines:
            self.watched.wait_for(self.lines, *WORK, timeout=120)
        time.sleep(self.seconds)
        for victim in self.victims:
            victim.send(signal.SIGKILL)


def _only_waits(result: Result) -> bool:
    """A call that has no recording gets its record once its window settles: for a writer never."""
    told = re.search(r" 0 failed, 0 pending, \d+ waiting in open windows; ", result.stdout)
    return result.code == 1 and told is not None


def _dates(start: datetime, end: datetime) -> tuple[str, ...]:
    return "--from", start.isoformat(), "--to", end.isoformat()


def _ago(end: datetime) -> str:
    """The `SETTLE` with which windows up to `end` have settled now, and no later ones."""
    return f"{int((datetime.now(UTC) - end).total_seconds())}s"


def undone(keys: list[str], settled: int) -> Counter[str]:
    """What processes left for others to do; so many windows had settled for the sealers."""
    there, segments, found = set(keys), 0, Counter[str]()
    for key in keys:
        stem, _, kind = key.rpartition(".")
        if key.startswith("manifest/segments/") and kind == "jsonl":
            segments += 1
            found["segments without a digest file"] += f"{stem}.sha256" not in there
            found["segments without a pointer"] += f"{stem}.seal" not in there
        if key.startswith("manifest/seals/") and kind == "json":
            found["seals without a signature"] += f"{key}.sig" not in there
    begun = {key.split("/", 1)[1].rpartition("/")[0] for key in keys if key[:11] == "recordings/"}
    found["calls without a record"] = sum(f"records/{one}/r1.json" not in there for one in begun)
    found["windows without a segment"] = settled - segments
    return +found


@pytest.fixture(scope="module")
def race(make_archive: MakeArchive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Race]:
    """An archive after its rounds: begun by eight processes at once, in a locked bucket."""
    print(f"RACE_SEED={SEED}")
    plan = Plan.until(datetime.now(UTC), LENGTH, ROUNDS, SEED)
    with Waves(tmp_path_factory.mktemp("race"), plan) as source:
        archiver, bucket = make_archive(source.settings(), lock=True)
        archiver = archiver.having(
            OBJECT_LOCK_MODE="COMPLIANCE",
            RETENTION_DAYS=str(RETENTION_DAYS),
            WINDOW="5m",
            START=plan.start.isoformat(),
            RELIST="60d",
            GIVE_UP="60d",
            WORKERS="3",
        )
        race = Race(plan, source, archiver, bucket, random.Random(SEED))
        for number in range(ROUNDS):
            race.round(number)
        race.finish()
        print(race.tally)
        yield race


def test_most_kills_struck_processes_at_work(race: Race) -> None:
    """Else all that follows would show little."""
    tally = race.tally
    assert tally.struck >= 2 * ROUNDS, tally
    assert tally.at_work >= ROUNDS, tally
    assert tally.events["record.adopted"] >= ROUNDS, "hardly two met at one call"
    assert tally.left.total() >= ROUNDS // 5, "hardly anything was left undone"


def test_one_record_a_call_and_one_chain(race: Race, tmp_path: Path) -> None:
    """Every byte and digest, no gap, no fork, each segment in one seal; hashlib and openssl."""
    expected = race.source.expected(
        race.plan.start,
        race.plan.end,
        window=LENGTH,
        retention=("COMPLIANCE", RETENTION_DAYS),
        leftovers=True,
        loop=True,
    )
    checked = checker.check(race.bucket.download(tmp_path / "copy"), expected)
    assert {record["revision"] for record in checked.records.values()} == {1}
    assert checked.segments == race.plan.windows * ROUNDS, "a window was told of twice"
    files = [file for record in checked.records.values() for file in record["files"]]
    assert sum(file["bytes"] > 8 << 20 for file in files) == race.plan.big
    # No key has two versions: so what was checked are the very ones that the records name.
    there = race.bucket.assert_written_once(but=PROBE)
    assert {(file["key"], file["version_id"]) for file in files} <= there


def test_verify_finds_nothing(race: Race) -> None:
    audit.assert_clean(race.archiver)


def test_again_changes_nothing(race: Race) -> None:
    """What the calm run left is all there is to do."""
    before = race.bucket.versions()
    calm = race.archiver.having(SETTLE=_ago(race.plan.end))
    calm.run("backfill", *_dates(race.plan.start, race.plan.end)).expect(0)
    assert race.bucket.versions() == before
