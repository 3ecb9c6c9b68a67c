"""A clock of ours that is wrong for a while: nothing is closed or sealed by it, calls are archived,
and once it is right again all goes on as if nothing had been."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from archiver.cli.backfill import _print_result
from archiver.core.clock import RemoteClock
from archiver.core.model import Retention, parse_time
from archiver.manifest import layout
from archiver.observability.metrics import REGISTRY
from archiver.pipeline.health import MAX_SKEW_SECONDS, ClockCheck
from archiver.pipeline.window import Totals
from tests.fakes.clock import NOON, HandClock, TurnedClock
from tests.fakes.memory_rig import HOUR, World, Writer
from tests.fakes.population import TEN, a_call

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
AHEAD, BEHIND = 3 * DAY, -3 * DAY


class TurnedWorld(World):
    """One machine's clock may be off by `ours.by`; source and store have clocks of their own."""

    def __init__(self, now: datetime = NOON) -> None:
        super().__init__(now, TEN, retention=Retention("COMPLIANCE", 100))
        self.ours = TurnedClock(self.clock)

    def clock_of(self, name: str) -> Any:
        return self.ours

    def store_of(self, name: str) -> Any:
        return self.store.by(name, self.ours)

    def source_shows(self, by: timedelta) -> None:
        """The source's answers have a `Date` that is off by so much from now on."""

        def answer(request: Any) -> Any:
            reply = self.platform.answer(request)
            reply.headers = {
                **reply.headers,
                "Date": format_datetime(self.clock.now() + by, usegmt=True),
            }
            return reply

        self.platform.hooks[:] = [answer]

    def store_shows(self, by: timedelta) -> None:
        self.store.show_date(lambda: self.clock.now() + by)

    @property
    def seals(self) -> list[dict[str, Any]]:
        keys = [key for key in self.store.keys if key.startswith(layout.SEALS)]
        return [json.loads(self.store.object(key).data) for key in keys if key.endswith(".json")]

    @property
    def archived(self) -> set[str]:
        keys = filter(None, map(layout.parse_record_key, self.store.keys))
        return {call_dir for _, call_dir, _ in keys}

    @property
    def windows(self) -> list[datetime]:
        """The windows that have a segment."""
        parsed = filter(None, map(layout.parse_segment_key, self.store.keys))
        return sorted({name.start for name, kind in parsed if kind == "jsonl"})

    def mark(self) -> datetime:
        found = parse_time(self.seals[-1]["watermark"])
        assert found is not None
        return found

    def latest_lock(self) -> datetime:
        return max(one.lock_until for one in self.store.objects if one.lock_until)


@pytest.fixture
def world() -> Iterator[TurnedWorld]:
    made = TurnedWorld()
    yield made
    assert made.complaints() == []
    made.finish()


def events(logs: list[Any], *names: str) -> list[tuple[str, str]]:
    return [(one["event"], one["log_level"]) for one in logs if one["event"] in names]


CLOCK = ("clock.wrong", "clock.differs", "clock.right")


def goes_on(world: TurnedWorld, writer: Writer) -> None:
    """A new call is archived in the round that lists it, and sealed once its window has settled."""
    began = world.clock.now()
    world.platform.add(a_call("new", began))
    writer.round_after(MINUTE)
    assert "new" in world.archived
    writer.round_at(began + 4 * HOUR)
    assert world.mark() > began
    assert world.windows[-1] <= began + 2 * HOUR


# --- the loop


@pytest.mark.parametrize("by", [AHEAD, BEHIND, timedelta(minutes=6)])
def test_a_clock_that_is_wrong_for_a_round_closes_and_seals_nothing(world, by):
    writer = world.writer("main")
    world.platform.add(a_call("before", TEN + MINUTE))
    writer.round()
    world.clock.forward(MINUTE)
    keys = set(world.store.keys)
    world.platform.add(a_call("meanwhile", NOON))
    world.clock.turn_to(NOON + 2 * HOUR)
    world.ours.by = by
    with capture_logs() as logs:
        writer.round()
        writer.round()
    new = [key for key in set(world.store.keys) - keys if key.startswith("manifest/")]
    assert all(key.startswith(layout.SIGHTINGS) for key in new), new
    assert world.latest_lock() <= NOON + MINUTE + 100 * DAY
    assert events(logs, "clock.wrong") == [("clock.wrong", "error")] * 2
    line = next(one for one in logs if one["event"] == "clock.wrong")
    for side in ("source", "store"):
        if f"{side}_skew_seconds" in line:
            assert abs(line[f"{side}_skew_seconds"] + by.total_seconds()) < 2
    if by > timedelta(0):
        assert world.archived == {"before", "meanwhile"}
    world.ours.by = timedelta(0)
    with capture_logs() as logs:
        writer.round()
    assert events(logs, *CLOCK) == [("clock.right", "info")]
    assert world.archived == {"before", "meanwhile"}
    assert world.mark() == NOON, "what was due is sealed in the first round that may"
    goes_on(world, writer)


def test_a_day_that_the_store_does_not_list_keeps_no_other_from_being_archived(world):
    """Whether its windows are sealed cannot be known. They come first, being the newest."""
    world.platform.add(a_call("older", TEN + MINUTE), a_call("newer", TEN + DAY))
    world.clock.turn_to(NOON + DAY)
    writer = world.writer("main")
    newest = layout.segment_prefix((TEN + DAY).date())

    refuses = writer.store.refuse("list", newest)
    world.ours.by = AHEAD
    with capture_logs() as logs:
        totals = writer.round()
    assert world.archived == {"older"}
    assert totals.failed_open == 24, "each window of that day, and it alone"
    assert ("window.failed", "error") in events(logs, "window.failed")
    writer.store.hooks.remove(refuses)
    writer.round()
    assert world.archived == {"older", "newer"}
    world.ours.by = timedelta(0)
    goes_on(world, writer)


def test_seventy_two_windows_are_not_sealed_into_the_future(world):
    """The case that was seen: each window of three days was sealed empty, and a new call waited a
    week for its window to be listed again."""
    writer = world.writer("main")
    world.ours.by = AHEAD
    totals = writer.round()
    assert world.windows == []
    assert totals.closed == 0
    assert totals.clock_wrong > 70
    assert totals.needs_a_person
    world.ours.by = timedelta(0)
    goes_on(world, writer)


def test_a_segment_that_a_crash_left_is_not_sealed_by_a_wrong_clock(world):
    world.platform.add(a_call("vc_1", TEN + MINUTE))
    world.clock.turn_to(TEN + 3 * HOUR)
    first = world.writer("first")

    def dies(request: Any) -> None:
        if request.writes and request.key == layout.seal_key(1):
            first.kill()
            raise KeyboardInterrupt

    first.store.hooks.append(dies)
    with pytest.raises(KeyboardInterrupt):
        first.round()
    assert world.windows == [TEN]
    second = world.writer("second")
    world.ours.by = AHEAD
    second.backfill(TEN, TEN + HOUR)
    second.round()
    assert len(world.seals) == 1
    world.ours.by = timedelta(0)
    second.round()
    assert len(world.seals) == 2
    goes_on(world, second)


@pytest.mark.parametrize("side", ["source", "store"])
def test_where_one_side_agrees_with_us_the_other_s_clock_is_wrong(world, side):
    writer = world.writer("main")
    {"source": world.source_shows, "store": world.store_shows}[side](AHEAD)
    world.platform.add(a_call("vc_1", TEN + MINUTE))
    world.clock.turn_to(TEN + 3 * HOUR)
    with capture_logs() as logs:
        writer.round()
        writer.round()
    assert events(logs, *CLOCK) == [("clock.differs", "warning")], "once, and not each round"
    line = next(one for one in logs if one["event"] == "clock.differs")
    assert line["of"] == side
    assert world.mark() == TEN + HOUR
    shown = REGISTRY.get_sample_value("archiver_clock_skew_seconds", {"of": side})
    assert shown is not None
    assert abs(shown - AHEAD.total_seconds()) < 2
    goes_on(world, writer)


def test_where_one_side_tells_no_date_the_other_decides(world):
    writer = world.writer("main")
    world.store.show_date(None)
    fresh = world.writer("fresh")  # it has never heard of the store's clock
    world.clock.turn_to(TEN + 3 * HOUR)
    world.source_shows(AHEAD)
    with capture_logs() as logs:
        fresh.round()
    assert world.windows == []
    assert events(logs, *CLOCK) == [("clock.wrong", "error")]
    world.source_shows(timedelta(0))
    goes_on(world, writer)


def test_where_nobody_tells_a_date_our_clock_is_believed(world):
    world.store.show_date(None)

    def dateless(request: Any) -> Any:
        reply = world.platform.answer(request)
        reply.headers = {n: text for n, text in reply.headers.items() if n.lower() != "date"}
        return reply

    world.platform.hooks.append(dateless)
    world.platform.add(a_call("vc_1", TEN + MINUTE))
    world.clock.turn_to(TEN + 3 * HOUR)
    with capture_logs() as logs:
        writer = world.writer("main")
        writer.round()
    assert events(logs, *CLOCK) == []
    assert world.mark() == TEN + HOUR


# --- a backfill


@pytest.mark.parametrize("by", [AHEAD, BEHIND])
def test_a_backfill_with_a_wrong_clock_archives_and_closes_nothing(world, by):
    world.platform.add(*(a_call(f"vc_{n}", TEN + n * HOUR) for n in range(4)))
    world.clock.turn_to(TEN + DAY)
    writer = world.writer("main")
    world.ours.by = by
    with capture_logs() as logs:
        totals = writer.backfill(TEN, TEN + 4 * HOUR)
    assert world.archived == {"vc_0", "vc_1", "vc_2", "vc_3"}
    assert world.windows == []
    assert (totals.closed, totals.unsettled, totals.clock_wrong) == (0, 4, 4)
    assert totals.needs_a_person
    assert ("clock.wrong", "error") in events(logs, *CLOCK)
    world.ours.by = timedelta(0)
    totals = writer.backfill(TEN, TEN + 4 * HOUR)
    assert (totals.closed, totals.clock_wrong, totals.needs_a_person) == (4, 0, False)


def test_a_clock_that_goes_wrong_within_a_backfill(world):
    world.platform.add(*(a_call(f"vc_{n}", TEN + n * HOUR) for n in range(4)))
    world.clock.turn_to(TEN + DAY)
    writer = world.writer("main")

    def turns(request: Any) -> None:
        if request.key == layout.seal_key(2) and request.moment == "after":
            world.ours.by = AHEAD

    writer.store.hooks.append(turns)
    totals = writer.backfill(TEN, TEN + 4 * HOUR)
    assert (totals.closed, totals.clock_wrong) == (2, 2)
    assert world.archived == {"vc_0", "vc_1", "vc_2", "vc_3"}
    assert len(world.seals) == 3
    world.ours.by = timedelta(0)


def test_a_backfill_that_our_clock_kept_open_says_why(capsys):
    totals = Totals(windows=4, unsettled=4, clock_wrong=4, committed={"archived": 4})
    assert _print_result(totals, 0) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "4 archived" in line
    assert "4 WINDOWS STAY OPEN because this machine's clock is wrong" in line
    assert "NTP" in line
    assert _print_result(Totals(windows=1, unsettled=1), 0) == 0
    assert "clock" not in capsys.readouterr().out


# --- the rule itself


@pytest.mark.parametrize(
    ("source", "store", "right"),
    [
        (None, None, True),
        (0.0, 0.0, True),
        (MAX_SKEW_SECONDS, -MAX_SKEW_SECONDS, True),
        (MAX_SKEW_SECONDS + 1, None, False),
        (None, -MAX_SKEW_SECONDS - 1, False),
        (1e6, 1e6, False),
        (1e6, -1e6, False),
        (1e6, 0.0, True),
        (0.0, 1e6, True),
    ],
)
def test_the_rule(source, store, right):
    assert ClockCheck(lambda: source, lambda: store).is_right() is right


def test_the_log_tells_of_changes_alone_unless_it_is_to_remind():
    skews: dict[str, float | None] = {"source": 1e6, "store": None}
    check = ClockCheck(lambda: skews["source"], lambda: skews["store"])
    with capture_logs() as logs:
        for remind in (False, False, True):
            assert not check.is_right(remind=remind)
        skews["store"] = 0.0
        assert check.is_right()
        assert check.is_right(remind=True)
        skews["source"] = 0.0
        assert check.is_right()
    assert [one["event"] for one in logs] == [
        "clock.wrong", "clock.wrong", "clock.differs", "clock.right",
    ]  # fmt: skip


# --- where the dates come from


@pytest.mark.parametrize(
    ("date", "skew"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("Mon, 15 Jan 2024 12:00:07 GMT", 7.0),
        ("Mon, 15 Jan 2024 11:59:00 -0000", -60.0),
        ("Mon, 15 Jan 2024 14:00:00 +0200", 0.0),
        ("Mon, 99 Jan 2024 14:00:00 GMT", None),
        ("Mon, 99 Jan 99999 12:05:00 GMT", None),
    ],
)
def test_a_remote_clock(date, skew):
    remote = RemoteClock(HandClock())
    remote.note_date(date)
    assert remote.skew_seconds() == skew


def test_a_remote_clock_goes_on_while_nobody_asks():
    """A clock of ours that is set after the latest answer is noticed without another one."""
    world = HandClock()
    ours = TurnedClock(world)
    remote = RemoteClock(ours)
    remote.note_date("Mon, 15 Jan 2024 12:00:00 GMT")
    world.forward(DAY)
    assert remote.skew_seconds() == 0
    ours.by = -HOUR
    assert remote.skew_seconds() == 3600
    remote.note_date(None)
    assert remote.skew_seconds() == 3600, "an answer without a date says nothing"


@pytest.mark.parametrize("signed", [True, False])
def test_the_bucket_remembers_the_date_of_each_answer(open_bucket, weed, signed):
    """On a real store, over both ways: signed requests and boto3's own. A refusal tells it too."""
    bucket = open_bucket(endpoint_url=weed.endpoint_url, signed_requests=signed)
    assert bucket.latest_clock_skew_seconds() is None
    assert bucket.head("nothing") is None
    now = bucket.client.clock.now()
    real = (datetime.now(now.tzinfo) - now).total_seconds()
    assert bucket.latest_clock_skew_seconds() == pytest.approx(real, abs=60)
