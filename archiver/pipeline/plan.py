"""Decides which calls of a window need work: a pure function of listing, bucket state and
sightings.

A window may also have calls that were listed before and have no record yet
(`call_records.py` finds them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto

from archiver.core.model import Call
from archiver.pipeline.bucket_state import LatestRecord, UnreadableRecord
from archiver.pipeline.call import FailedTry
from archiver.source.listing import WindowListing


class Purpose(Enum):
    """Why a window is processed.

    Every purpose: once the window has reached an age of `RELIST` since it was last listed, its
    archived calls are refreshed, and calls without a recording are tried again.
    """

    OPEN = auto()
    """Archive its calls and never close it: a window closed in this step would not be sealed."""
    CLOSE = auto()
    """Archive its calls and close it once it has settled. A listing at an age always writes a
    revision, because it is evidence that nothing changed."""
    REFRESH = auto()
    """As `CLOSE`, and treat the newest age as not yet listed, even if the window was listed since.
    """
    BACKFILL = auto()
    """As `CLOSE`, and try calls again at any age if their record says `failed` or `no_recording` or
    lacks a document. A revision is written only if something changed."""


@dataclass(frozen=True)
class Task:
    """A call to archive or refresh. `previous` is its latest record, if it has one."""

    call: Call
    previous: LatestRecord | None = None
    was_pending: bool = False
    """Whether a segment names it as pending, so an earlier process has tried it."""
    taken: int = 0
    """The highest revision whose key has bytes that are not a record; the next revision is free."""


@dataclass
class Plan:
    """What the calls of a window need. `latest` has the latest record of each call that has one,
    `todo` the calls to process, `waiting` the calls in backoff or with an unreadable record."""

    listed: WindowListing
    latest: dict[str, LatestRecord] = field(default_factory=dict)
    todo: list[Task] = field(default_factory=list)
    waiting: list[FailedTry] = field(default_factory=list)

    @property
    def lacking(self) -> int:
        """The number of calls to process that have no record, or a record that says `failed`."""
        records = [task.previous for task in self.todo]
        return sum(1 for one in records if one is None or one.outcome == "failed")


def make_plan(
    listed: WindowListing,
    missing: Mapping[str, Call],
    latest: dict[str, LatestRecord],
    unreadable: Mapping[str, UnreadableRecord],
    *,
    pending: Set[str],
    purpose: Purpose,
    age: datetime | None,
    refreshed: Set[str],
    waiting: Callable[[str], FailedTry | None],
) -> Plan:
    """Sort the listed calls and the `missing` ones, which were listed before and have no record.

    - `unreadable`: objects that take the place of a call's latest record.
    - `pending`: the ids that the newest segment names as pending.
    - `age`: the age of `RELIST` that this listing is for, if any.
    - `refreshed`: calls that were already refreshed for this age.
    - `waiting`: returns how the last try of a call ended while the call is in backoff, else None.
    """
    plan = Plan(listed, latest)
    for call in [*missing.values(), *listed.calls.values()]:
        known, bad = latest.get(call.id), unreadable.get(call.id)
        # Another process may be able to read it, so it is not superseded here.
        if bad is not None and not bad.foreign:
            if known is None:
                plan.waiting.append(FailedTry(call, "record_unreadable", 1, None))
            continue
        if known is not None:
            lacks = known.outcome != "archived" or known.incomplete
            is_due = age is not None or (purpose is Purpose.BACKFILL and lacks)
            # A missing call is processed only if it has no record.
            if not is_due or call.id in refreshed or call.id in missing:
                continue
        if (last := waiting(call.id)) is not None:
            plan.waiting.append(last)
        else:
            plan.todo.append(Task(call, known, call.id in pending, bad.revision if bad else 0))
    return plan
