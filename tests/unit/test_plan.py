"""Which calls of a window need work: `make_plan` is a pure function, so that is a table."""

from __future__ import annotations

from typing import Any

import pytest

from archiver.core.model import Call
from archiver.manifest.record import Outcome
from archiver.manifest.segment import Listing
from archiver.pipeline.bucket_state import LatestRecord, UnreadableRecord
from archiver.pipeline.call import FailedTry
from archiver.pipeline.plan import Plan, Purpose, make_plan
from archiver.source.listing import WindowListing
from tests.fakes.population import TEN
from tests.fakes.rig import HOUR, WINDOW

AGE = WINDOW.end + 24 * HOUR


def calls(*ids: str) -> dict[str, Call]:
    return {one: Call(one, {}) for one in ids}


def latest(call_id: str, outcome: Outcome = "archived", incomplete: bool = False) -> LatestRecord:
    return LatestRecord(f"records/{call_id}", outcome, 1, incomplete, b"")


def planned(**changes: Any) -> Plan:
    """Of a listing of `new`, `old` (archived), `bad` (failed) and `half` (without a document);
    `lost` was listed before."""
    listing = Listing(TEN, 1, 2, 4, {})
    records = [latest("old"), latest("bad", "failed"), latest("half", incomplete=True)]
    options: dict[str, Any] = {
        "listed": WindowListing(WINDOW, calls("new", "old", "bad", "half"), listing, stable=True),
        "missing": calls("lost"),
        "latest": dict(zip(("old", "bad", "half"), records, strict=True)),
        "unreadable": {},
        "pending": frozenset(),
        "purpose": Purpose.CLOSE,
        "age": None,
        "refreshed": frozenset(),
        "waiting": lambda call_id: None,
    }
    return make_plan(**{**options, **changes})


def todo(plan: Plan) -> set[str]:
    return {task.call.id for task in plan.todo}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, {"new", "lost"}),
        ({"purpose": Purpose.OPEN}, {"new", "lost"}),
        ({"purpose": Purpose.BACKFILL}, {"new", "lost", "bad", "half"}),
        ({"age": AGE}, {"new", "lost", "bad", "half", "old"}),
        ({"age": AGE, "refreshed": frozenset({"old", "half"})}, {"new", "lost", "bad"}),
        ({"age": AGE, "missing": calls("lost", "gone"), "latest": {"gone": latest("gone")}},
         {"new", "lost", "bad", "half", "old"}),
    ],
)  # fmt: skip
def test_who_is_worked_at(changes, wanted):
    assert todo(planned(**changes)) == wanted


def test_who_failed_a_short_while_ago_rests():
    last = FailedTry(Call("new", {}), "not_found", 1, 404)
    plan = planned(waiting={"new": last}.get)
    assert plan.waiting == [last]
    assert todo(plan) == {"lost"}


def test_a_pending_call_was_tried_before():
    plan = planned(pending=frozenset({"lost"}))
    assert {task.call.id: task.was_pending for task in plan.todo} == {"lost": True, "new": False}


def test_foreign_bytes_leave_their_revision_and_what_may_be_a_record_is_left_alone():
    foreign, newer = UnreadableRecord(3, foreign=True), UnreadableRecord(1, foreign=False)
    plan = planned(unreadable={"new": foreign, "lost": newer})
    assert [(task.call.id, task.taken) for task in plan.todo] == [("new", 3)]
    assert [one.reason for one in plan.waiting] == ["record_unreadable"]


def test_what_is_lacking_is_what_has_no_record_or_one_that_says_failed():
    assert planned(purpose=Purpose.BACKFILL).lacking == 3  # new, lost and bad
