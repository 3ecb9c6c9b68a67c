"""Which calls of a window need work: a pure function of its listing, the bucket and the sightings.

Beside the calls that are listed, a window has calls without a record that were listed before
(`call_records.py` finds them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto

from archiver.core.model import Call
from archiver.pipeline.bucket_state import LatestRecord, UnreadableRecord
from archiver.pipeline.call import Unarchived
from archiver.source.listing import WindowListing


class Purpose(Enum):
    """Why a window is worked at.

    Whatever the purpose: where a window has come to an age of `RELIST` since it was listed last,
    its archived calls are refreshed, and those without a recording are tried again.
    """

    OPEN = auto()
    """Archive its calls and never close it: a window closed then would not be sealed."""
    CLOSE = auto()
    """Archive its calls and, once it has settled, close it. A listing at an age always writes a
    revision: that nothing changed is evidence."""
    REFRESH = auto()
    """As `CLOSE`, and the newest age counts as unseen, though the window was listed since."""
    BACKFILL = auto()
    """As `CLOSE`, and calls whose record says `failed` or `no_recording`, or lacks a document, are
    tried again at any age. A revision is written only where something changed."""


@dataclass(frozen=True)
class Task:
    """A call to be worked at. `previous` is its record, where it has one."""

    call: Call
    previous: LatestRecord | None = None
    was_pending: bool = False
    """Whether a segment calls it pending: another try was made before."""
    taken: int = 0
    """The highest revision whose key is taken by bytes that are no record: the next one is free."""


@dataclass
class Plan:
    """What the calls of a window need. `latest` has the newest record of each call that has one,
    `todo` are to be worked at, `resting` failed a short while ago."""

    listed: WindowListing
    latest: dict[str, LatestRecord] = field(default_factory=dict)
    todo: list[Task] = field(default_factory=list)
    resting: list[Unarchived] = field(default_factory=list)

    @property
    def lacking(self) -> int:
        """Calls that have no record yet, or one that says failed."""
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
    resting: Callable[[str], Unarchived | None],
) -> Plan:
    """Sort the listed calls and the `missing` ones, which were listed before and have no record.

    `unreadable` lies where the newest records of some calls should be. `pending` are the ids that
    the newest segment calls so. `age` is the age of `RELIST` that this listing is for, if any;
    `refreshed` calls were refreshed for it already. `resting` says how the last try of a call
    ended, while it rests.
    """
    plan = Plan(listed, latest)
    for call in [*missing.values(), *listed.calls.values()]:
        known, bad = latest.get(call.id), unreadable.get(call.id)
        if bad is not None and not bad.foreign:
            if known is None:
                plan.resting.append(Unarchived(call, "record_unreadable", 1, None))
            continue
        if known is not None:
            lacks = known.outcome != "archived" or known.incomplete
            is_due = age is not None or (purpose is Purpose.BACKFILL and lacks)
            # A missing call is worked at for want of a record, and for nothing else.
            if not is_due or call.id in refreshed or call.id in missing:
                continue
        if (last := resting(call.id)) is not None:
            plan.resting.append(last)
        else:
            plan.todo.append(Task(call, known, call.id in pending, bad.revision if bad else 0))
    return plan
