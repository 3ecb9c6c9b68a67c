"""What the store refuses for one call, one window or one object harms only that."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from archiver.core.errors import Reach, StoreError
from archiver.core.model import Window
from archiver.manifest import layout
from archiver.pipeline.health import REFUSALS_BEFORE_CONTROL, REFUSALS_OF_OUTAGE, StoreHealth
from archiver.pipeline.loop import CLOSED_AT_A_TIME
from tests.fakes import harm
from tests.fakes.audio import wav
from tests.fakes.harm import Harms
from tests.fakes.memory_rig import HOUR, World, Writer
from tests.fakes.memory_store import Request
from tests.fakes.population import TEN, a_call
from tests.fakes.store_rules import STRANGER
from tests.model.ledger import Ledger

CALLS = ["vc_0", "vc_1", "vc_2", "vc_3"]


@pytest.fixture
def world() -> World:
    """Four calls, one an hour from ten o'clock on; all windows have settled."""
    made = World(TEN + 6 * HOUR, TEN)
    for number, call_id in enumerate(CALLS):
        made.platform.add(a_call(call_id, TEN + number * HOUR))
    return made


def run_loop(writer: Writer) -> None:
    writer.round()


def run_backfill(writer: Writer) -> None:
    writer.backfill(TEN, TEN + 4 * HOUR)


RUNS = pytest.mark.parametrize("run", [run_loop, run_backfill])


def ledger(world: World, without: str = "no such key") -> Ledger:
    """What the archive itself tells: no foreign objects, and none `without` this in their keys."""
    objects = world.store.objects
    own = [one for one in objects if one.writer != STRANGER and without not in one.key]
    return Ledger(own, world.key.public)


def test_a_call_that_the_store_goes_on_refusing_is_given_up(world):
    writer = world.writer("a")
    writer.store.refuse("put", "/vc_1/recording.wav")
    for _ in range(8):
        writer.round()
        world.clock.forward(HOUR)
    record = ledger(world).listed["vc_1"]
    assert record is not None
    assert (record["outcome"], record["reason"]) == ("failed", "store_refused")


PARTS = 4 << 10
"""Recordings of the test are larger: they are uploaded in parts."""


def recordings(world: World, call_id: str) -> list[str]:
    return [key for key in world.store.keys if f"/{call_id}/recording" in key]


def refused_in_rounds(world: World, writer: Writer, rounds: int = 4) -> None:
    for _ in range(rounds):
        writer.round()
        world.clock.forward(HOUR)


@pytest.mark.parametrize("name", ["r1.json", "transcript.json"])
def test_a_recording_in_parts_is_uploaded_once_however_often_its_call_is_tried(world, name):
    writer = world.writer("a", PARTS)
    writer.store.refuse("put", f"/vc_1/{name}")
    refused_in_rounds(world, writer)
    [uploaded] = recordings(world, "vc_1")
    assert ledger(world).pending == {"vc_1"}
    writer.store.hooks.clear()
    writer.backfill(TEN, TEN + 4 * HOUR)
    record = ledger(world).listed["vc_1"]
    assert record is not None
    assert [file["key"] for file in record["files"] if file["kind"] == "recording"] == [uploaded]
    assert record["source"]["etag"] is not None
    assert world.complaints("bytes") == []


def test_a_recording_that_has_changed_is_uploaded_anew(world):
    writer = world.writer("a", PARTS)
    writer.store.refuse("put", "/vc_1/r1.json")
    refused_in_rounds(world, writer, 2)
    world.platform.add(a_call("vc_1", TEN + HOUR, audio=wav(9)))
    refused_in_rounds(world, writer, 2)
    assert len(recordings(world, "vc_1")) == 2
    writer.store.hooks.clear()
    writer.backfill(TEN, TEN + 4 * HOUR)
    record = ledger(world).listed["vc_1"]
    assert record is not None
    [audio] = [file for file in record["files"] if file["kind"] == "recording"]
    assert audio["bytes"] == len(wav(9))


@pytest.mark.parametrize("status", [403, 404])
def test_an_upload_that_the_store_does_not_show_is_done_anew(world, status):
    writer = world.writer("a", PARTS)
    writer.store.refuse("put", "/vc_1/r1.json")
    writer.round()
    [uploaded] = recordings(world, "vc_1")
    if status == 404:
        del world.store._shelf.objects[uploaded]
        world.store._shelf.keys.remove(uploaded)
    else:
        writer.store.refuse("head", uploaded, status)
    writer.store.hooks[:] = writer.store.hooks[1:]
    writer.round_after(HOUR)
    assert "vc_1" in ledger(world).recorded


def test_calls_that_are_given_up_are_no_outage_however_many(world):
    """Their records are stored, so the store is well. Before that, so many refusals in a row end a
    round, and the next one goes on."""
    for number in range(REFUSALS_OF_OUTAGE + 10):
        world.platform.add(a_call(f"bad_{number:03}", TEN))
    world.platform.add(a_call("zz_last", TEN))
    writer = world.writer("a")
    writer.store.refuse("put", "/bad_")
    writer.store.hooks[:] = [only_recordings(hook) for hook in writer.store.hooks]
    for _ in range(8):
        with suppress(StoreError):  # as the loop does
            writer.round()
        world.clock.forward(HOUR)
    found = ledger(world)
    assert found.recorded >= {*CALLS, "bad_000", "zz_last"}
    assert not found.pending


def only_recordings(hook: Callable[[Request], None]) -> Callable[[Request], None]:
    """The same refusal, of recordings alone."""
    return lambda request: hook(request) if "recording" in request.key.split("/")[-1] else None


@RUNS
def test_a_day_of_records_that_the_store_does_not_list_harms_that_day(run):
    midnight = TEN + 14 * HOUR
    world = World(midnight + 6 * HOUR, midnight - 2 * HOUR)
    world.platform.add(a_call("before", midnight - HOUR), a_call("after", midnight))
    writer = world.writer("a")
    writer.store.refuse("list", layout.record_prefix(midnight.date()))
    if run is run_loop:
        writer.round()
    else:
        writer.backfill(midnight - 2 * HOUR, midnight + 2 * HOUR)
    assert ledger(world).recorded == {"before"}


@RUNS
def test_a_pointer_that_the_store_refuses_does_not_seal_a_segment_twice(world, run):
    world.store._rules = False  # they do not let a seal lack its pointer
    for name in ("a", "b", "c"):
        writer = world.writer(name)
        writer.store.refuse("put", "1100.r1.seal")
        run(writer)
        world.clock.forward(HOUR)
    assert {one.code for one in world.complaints("bytes")} <= {"pointer_missing"}


@RUNS
def test_a_mistake_of_ours_that_one_call_brings_out_leaves_that_call_pending(world, run):
    writer = world.writer("a")

    def hook(request: Request) -> None:
        if "/vc_1/recording.wav" in request.key:
            raise ZeroDivisionError

    writer.store.hooks.append(hook)
    with capture_logs() as logs:
        run(writer)
    assert ledger(world).pending == {"vc_1"}
    [line] = [one for one in logs if one["event"] == "call.internal_error"]
    assert (line["call_id"], line["error"]) == ("vc_1", "ZeroDivisionError")


# --- an outage


def refused(reason: str = "refused") -> StoreError:
    return StoreError("refused", reason=reason, reach=Reach.ITEM)


WRONG_KEY = StoreError("the store refused the credentials", reason="credentials")


@pytest.mark.parametrize(
    ("is_answering", "refusals", "is_outage"),
    [
        pytest.param(
            False,
            [(f"vc_{n}", refused()) for n in range(REFUSALS_BEFORE_CONTROL)],
            True,
            id="many items, and the control fails",
        ),
        pytest.param(
            True,
            [(f"vc_{n}", refused()) for n in range(REFUSALS_OF_OUTAGE)],
            True,
            id="the control is answered, and nothing is stored in the end",
        ),
        pytest.param(
            False, [("vc_1", refused())] * (REFUSALS_OF_OUTAGE * 2), False, id="one item alone"
        ),
        pytest.param(False, [("vc_1", refused("unreachable"))], True, id="unreachable"),
        pytest.param(True, [("vc_1", refused("unreachable"))], False, id="unreachable at first"),
        pytest.param(True, [("vc_1", WRONG_KEY)], True, id="an error about the store"),
    ],
)
def test_which_refusals_are_an_outage(is_answering, refusals, is_outage):
    health = StoreHealth(lambda: is_answering)
    *before, last = [health.is_outage(item, error) for item, error in refusals]
    assert not any(before)
    assert last is is_outage


def test_what_is_stored_in_between_clears_the_count():
    health = StoreHealth(lambda: False)
    for number in range(REFUSALS_BEFORE_CONTROL * 2):
        assert not health.is_outage(f"vc_{number}", refused())
        if number % 5 == 0:
            health.succeeded()


def test_the_seal_of_a_window_that_was_open_for_long_moves_the_watermark_past_all_behind_it(world):
    """More windows than are closed between two seals are sealed behind it; what follows has nothing
    to seal, and so would leave the watermark where it is until the next window settles."""
    hours = CLOSED_AT_A_TIME + 4
    writer, bad = world.writer("a"), harm.listing(Window(TEN, TEN + HOUR), harm.status(500), "500")
    harms = Harms()
    harms.all.append(bad)
    world.platform.spoilt = harms.answer
    writer.round_at(TEN + (hours + 2) * HOUR)
    assert writer.chain.head.watermark == TEN
    bad.healed = True
    writer.round()
    assert writer.chain.head.watermark == TEN + hours * HOUR
