"""What the archive knows of the calls of a listing, wherever it may have them.

A call that has its result in a sealed segment of its window is not looked for any further. Others
are: in the windows beside it and in those of its own times, for a source may list a call in another
window than before; then among the record objects, whose own time says in which window they may be
sealed, if they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from archiver.audit.recorded import RecordObjects
from archiver.audit.standing import Standing, Standings, WindowStanding, standing_of
from archiver.errors import FormatError
from archiver.model import Call, Window, parse_time, window_of

FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)


@dataclass
class View:
    """`found` has the newest record of each call of the window, told of or listed; `pending` those
    that stand as pending; `told` every id that the window's own segments name; `filters` what the
    listings behind them asked for."""

    found: dict[str, Standing] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    filters: set[str] = field(default_factory=set)
    is_sealed: bool = False
    is_known: bool = True
    """False where the window's own segments could not all be read."""
    damages: dict[str, None] = field(default_factory=dict)
    """What could not be read on the way, one line each."""

    def take(self, call_id: str, new: Standing) -> None:
        """Keep the newer of two records; of two that are as new, the one with a result."""
        old = self.found.get(call_id)
        if old is None or (new.revision, new.is_settled) > (old.revision, old.is_settled):
            self.found[call_id] = new


class Lookup:
    """Looks. One thread uses it."""

    def __init__(self, standings: Standings, records: RecordObjects, length: timedelta) -> None:
        self._standings = standings
        self._records = records
        self._length = length

    def look(self, window: Window, calls: Mapping[str, Call]) -> View:
        """What is known of `calls`, which the source lists in `window`, and of all that the window
        tells. What is damaged is in the view; raises `UsageError` and `StoreError`."""
        try:
            told = self._standings.of(window)
        except FormatError as error:
            return View(is_known=False, damages={str(error): None})
        view = View(
            dict(told.calls),
            set(told.pending),
            told.calls.keys() | told.pending | told.vanished,
            told.filters,
            told.revision > 0,
        )
        wanted = {i: Call(i, {}) for i in told.pending} | dict(calls)
        self._look_beside(window, _open(wanted, view), view)
        self._look_at_records(window, _open(wanted, view), view)
        return view

    def _look_beside(self, window: Window, calls: Mapping[str, Call], view: View) -> None:
        for other, ids in sorted(self._others(window, calls).items()):
            standing = self._of(other, view)
            for call_id in ids & standing.calls.keys():
                view.take(call_id, standing.calls[call_id])
            view.pending |= ids & standing.pending

    def _of(self, window: Window, view: View) -> WindowStanding:
        """How the calls of another window stand; nothing is known of a damaged one."""
        try:
            return self._standings.of(window)
        except FormatError as error:
            view.damages[str(error)] = None
            return WindowStanding()

    def _others(self, window: Window, calls: Mapping[str, Call]) -> dict[Window, set[str]]:
        """The windows to look into, each with the calls that may be told there."""
        others = {beside: set(calls) for beside in self._beside(window) if calls}
        for call_id, call in calls.items():
            for moment in (call.own_time, call.created_at):
                home = self._home(moment)
                if home is not None and home != window:
                    others.setdefault(home, set()).add(call_id)
        return others

    def _beside(self, window: Window) -> Iterator[Window]:
        yield Window(window.end, window.end + self._length)
        if window.start > FIRST_MOMENT:
            yield Window(window.start - self._length, window.start)

    def _home(self, moment: datetime | None) -> Window | None:
        """None also for a moment whose window would reach beyond the calendar."""
        try:
            return window_of(moment, self._length) if moment is not None else None
        except OverflowError:
            return None

    def _look_at_records(self, window: Window, calls: Mapping[str, Call], view: View) -> None:
        days = {call_id: _days(window, call) for call_id, call in calls.items()}
        known = {i: view.found[i].revision for i in days if i in view.found}

        def damage(line: str) -> None:
            view.damages[line] = None

        for call_id, found in self._records.newest(days, known, damage).items():
            home = self._home(parse_time(found.document.get("started_at")))
            told = self._of(home, view).calls.get(call_id) if home else None
            is_sealed = told is not None and told.key == found.key
            view.take(call_id, standing_of(found, is_sealed=is_sealed))


def _open(calls: Mapping[str, Call], view: View) -> dict[str, Call]:
    """Those of the calls that have no result in a sealed segment so far."""
    return {
        call_id: call
        for call_id, call in calls.items()
        if not ((found := view.found.get(call_id)) and found.is_settled)
    }


def _days(window: Window, call: Call) -> set[date]:
    """The days below which the call's record may lie."""
    moments = (call.own_time, call.created_at, window.start)
    return {moment.date() for moment in moments if moment is not None}
