"""An archive that has seen everything, made by the real pipeline: late calls, recordings, surveys
and transcripts, calls that fail, vanish and come back, windows by the loop and by a backfill,
legal holds."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from archiver.audit.hold_ledger import ArchivedHolds
from archiver.core.concurrency import Workers
from archiver.manifest.signing import SigningKey
from archiver.pipeline.hold_acts import Holds
from archiver.store.bucket import Bucket
from tests.fakes.calls import SimulatedCall
from tests.fakes.clock import HandClock
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call, call_of, stamp
from tests.fakes.rig import Rig, wired

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
CALL = "vc_abc123"
"""It stands in the window from 10:00, in three revisions."""
ODD = "../önd\n\t\\x=1"
STORY = {
    CALL: ["archived", "archived", "archived"],
    "vc_none": ["no_recording"],
    "vc_silent": ["no_recording", "archived"],
    "vc_broken": ["failed"],
    "vc_brief": ["failed"],
    "vc_fleeting": ["archived"],
    "vc_gone": ["archived"],
    "vc_back": ["archived"],
    "vc_late": ["archived"],
    "vc_stuck": [],
    ODD: ["archived"],
    "vc_midnight": ["archived"],
    "vc_early": ["no_recording", "archived"],
}
"""What becomes of each call: the outcomes of its records."""


def live(platform: Platform, bucket: Bucket, clock: HandClock, key: SigningKey) -> None:
    """From noon to 19:00 of 2024-01-15. Windows are listed again 4 and 8 hours after their end;
    a call that fails is given up after 3."""
    options = {"relist": (4 * HOUR, 8 * HOUR), "give_up": 3 * HOUR}
    with wired(platform, bucket, clock, key, **options) as made:
        made.found(TEN)
        _noon(platform, made)
        loop = made.loop()
        loop.round()
        platform.remove("vc_brief")  # its recording was not there yet
        platform.remove("vc_fleeting")  # archived already
        for hour in (13, 14):  # the window from 10:00 has settled; what fails is given up
            clock.turn_to(TEN + (hour - 10) * HOUR)
            loop.round()
        _afternoon(platform, made)
        clock.turn_to(TEN + 5 * HOUR)
        loop.round()
        _evening(platform)
        clock.turn_to(TEN + 9 * HOUR)
        loop.round()
        _hold(made)


def _noon(platform: Platform, made: Rig) -> None:
    platform.add(
        a_call(CALL, TEN),
        a_call("vc_none", TEN + MINUTE, audio=None),
        a_call("vc_silent", TEN + 2 * MINUTE, audio=None),
        _without_blob("vc_broken", 3 * MINUTE),
        a_call("vc_brief", TEN + 4 * MINUTE, audio=None),
        a_call("vc_fleeting", TEN + 4 * MINUTE),
        a_call("vc_gone", TEN + 5 * MINUTE),
        a_call("vc_back", TEN + 6 * MINUTE, epa={"state": "Completed"}),
        a_call(ODD, TEN + HOUR),
        a_call("vc_midnight", TEN - 10 * HOUR - timedelta(seconds=1), seconds=3),
        a_call("vc_early", TEN - 2 * HOUR, audio=None),
    )
    made.backfill(TEN - 11 * HOUR, hours=1)
    made.backfill(TEN - 2 * HOUR, hours=1)


def _afternoon(platform: Platform, made: Rig) -> None:
    call_of(platform, CALL).epa = {"state": "Completed", "calculatedScore": 9}
    platform.remove("vc_gone")
    platform.remove("vc_back")
    platform.add(
        a_call("vc_silent", TEN + 2 * MINUTE),
        a_call("vc_late", TEN + 7 * MINUTE),
        a_call("vc_early", TEN - 2 * HOUR),
    )
    made.backfill(TEN - 2 * HOUR, hours=1)


def _evening(platform: Platform) -> None:
    goodbye = {"role": "user", "text": "Goodbye", "timestamp": stamp(TEN)}
    call_of(platform, CALL).document["transcript"] = [goodbye]
    platform.add(a_call("vc_back", TEN + 6 * MINUTE, epa={"state": "Completed"}))
    platform.add(_without_blob("vc_stuck", 6 * HOUR))
    platform.remove(ODD)


def _hold(made: Rig) -> None:
    """Who holds what, and why, is to be read from the ledger afterwards."""
    told, workers = ArchivedHolds(made.bucket, 2), Workers(2)
    holds = Holds(made.bucket, made.chain, told, workers, made.clock, made.retention)
    try:
        holds.act("add", ["vc_none", ODD], "J. Doe, Legal", "Case 4711")
        made.clock.forward(MINUTE)
        holds.act("add", [CALL], "M. Roe", 'Audit: "all of it"')
        made.clock.forward(MINUTE)
        holds.act("remove", ["vc_none"], "J. Doe, Legal", "not ours")
    finally:
        workers.close()


def _without_blob(call_id: str, after: timedelta) -> SimulatedCall:
    """A call whose signed URL leads nowhere."""
    call = a_call(call_id, TEN + after)
    call.blob_missing = True
    return call


def save(bucket: Bucket, folder: Path) -> None:
    """Download all of it, as an auditor would: keys become paths."""
    for item in bucket.list(""):
        data = bucket.read(item.key)
        assert data is not None
        path = folder / item.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
