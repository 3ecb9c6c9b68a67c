"""What `verify` says of legal holds: the newest act counts, and every object of a held call."""

from __future__ import annotations

from datetime import timedelta

import pytest

from archiver.manifest import canonical
from archiver.manifest.event import HoldEvent, ObjectRef
from tests.audit.builder import Builder, hour, small_archive
from tests.audit.damage import RECORD, WAV, lose_seal

pytestmark = pytest.mark.usefixtures("any_order")


def acts(*actions: str, **options) -> Builder:
    """Each seals one act about vc_d, and does it."""
    builder = small_archive(**options)
    for action in actions:
        builder.seal(events=[builder.hold(action, "vc_d")])
    return builder


@pytest.mark.parametrize(
    ("actions", "held"),
    [(["add"], True), (["add", "remove"], False), (["add", "remove", "add"], True),
     (["remove"], False)],
)  # fmt: skip
def test_the_newest_act_counts(actions: list[str], held: bool) -> None:
    builder = acts(*actions)
    assert builder.found() == []

    builder.store.entry(WAV).held = not held
    assert builder.found() == [("hold_missing" if held else "hold_unrecorded", WAV)]
    assert builder.found(level="manifest") == [], "nothing is asked of objects"


def test_the_order_is_that_of_the_chain_and_not_of_time_or_name() -> None:
    """Both in one seal, and then both in one segment."""
    builder = small_archive()
    now = builder.now
    later = builder.hold("remove", "vc_d")
    builder.now = now - timedelta(days=9)
    earlier = builder.hold("add", "vc_d")
    builder.now = now
    builder.seal(events=[later, earlier])
    assert builder.found() == []

    lines = [HoldEvent(a, "vc_d", "Ada", "", builder.now, ()).line for a in ("add", "remove")]
    documents = [canonical.load_object(line) for line in lines]
    builder.seal(events=[builder.event("000000-00000000", *documents)])
    assert ("hold_unrecorded", WAV) in builder.found()


def test_every_object_of_a_held_call_is_looked_at_once() -> None:
    builder = acts("add")
    builder.store.requests.clear()
    of_the_call = [key for key in builder.store.all_keys() if "/vc_d/" in key]

    assert builder.found() == []
    heads = [one for one in builder.store.requests if one.startswith("head record")]
    assert sorted(one for one in heads if "/vc_d/" in one) == [f"head {k}" for k in of_the_call]
    assert not [one for one in heads if " records/" in one and "/vc_d/" not in one]

    for key in of_the_call:
        builder.store.entry(key).held = False
    assert builder.found() == [("hold_missing", key) for key in of_the_call]


def test_a_range_does_not_hide_a_hold() -> None:
    """The call's window is out of range: what the event names is looked at all the same."""
    builder = acts("add")
    builder.store.entry(WAV).held = False
    early = {"end": hour(12).start}

    assert builder.found(**early) == [("hold_missing", WAV)]
    builder.store.lose(RECORD)
    assert ("hold_missing", RECORD) in builder.found(**early)


def test_the_version_that_was_held_is_the_one_that_counts() -> None:
    """Another one lies over it, without a hold; the file's own is asked for by its record."""
    builder = acts("add")
    builder.store.put(WAV, builder.store.data(WAV))
    assert builder.found() == [("overwritten", WAV)]


def test_a_revision_that_came_after_the_act_is_held_too() -> None:
    builder = acts("add")
    again = builder.call("vc_d", hour(12), revision=2)
    known = {"vc_c": "failed", "vc_d": "archived", "../önd\n=1": "archived"}
    builder.close(hour(12), [again], revision=2, outcomes=known)

    assert builder.found() == [("hold_missing", again.key)]


@pytest.mark.parametrize(("before", "after"), [("add", "remove"), ("remove", "add")])
def test_an_act_that_is_sealed_meanwhile_is_no_finding(before: str, after: str) -> None:
    """Somebody's command is at work while the auditor looks for versions."""
    builder = small_archive()
    store = builder.store
    builder.seal(events=[builder.hold(before, "vc_d", "vc_c")])
    event = builder.hold(after, "vc_d")  # the store has it already, the chain not yet
    store.meanwhile["versions "] = lambda: builder.seal(events=[event])
    for key in (key for key in store.all_keys() if "/vc_c/" in key):
        store.entry(key).held = before != "add"

    keys = {key for code, key in builder.found() if code.startswith("hold_")}

    assert keys
    assert {key.split("/")[2] for key in keys} == {"vc_c"}


@pytest.mark.parametrize("lost", ["seal", "event"])
def test_without_all_events_it_cannot_be_told_who_is_held(lost: str) -> None:
    builder = acts("add", "remove")
    if lost == "seal":
        builder.seal()
        lose_seal(builder, 6)
    else:
        builder.store.lose(builder.store.all_keys("manifest/events/")[0])

    report = builder.audit()

    assert not {"hold_missing", "hold_unrecorded"} & set(report.totals)
    assert any("legal holds were not looked at" in note for note in report.notes)


def test_a_hold_with_an_odd_version_is_no_question_to_the_store() -> None:
    builder = small_archive()
    for odd in ("", "\x00", "v" * 2000):
        act = HoldEvent("add", "vc_d", "Ada", "x", builder.now, (ObjectRef(WAV, odd),))
        document = canonical.load_object(act.line)
        builder.seal(events=[builder.event(f"00000{len(builder.seals)}-00000000", document)])

    assert [code for code, _ in builder.found()] == ["event_invalid"] * 3


def test_a_hold_on_a_record_is_seen_though_no_lock_is_promised() -> None:
    """What a removal that was cut off leaves: records come last."""
    builder = acts("add", "remove", object_lock=True)
    builder.store.entry(RECORD).held = True
    assert builder.found() == [("hold_unrecorded", RECORD)]
