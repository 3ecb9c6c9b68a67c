"""How long a call is to be locked: what its record promises, and what today's policy gives it.

The policy counts from the call's end (`model.lock_start`). A record tells end and start; of a call
that has neither, only the window: it was reckoned from some moment in it, or from its end.

Where a record has the finding `time_implausible`, it counts from the window's end. So it does where
a record without it tells of an end over a day after it was written: releases before that finding
believed every end. What such a record promises binds its own objects, and not what covers it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from archiver.manifest.record import Record
from archiver.model import Retention, Window, format_time, is_too_late, parse_time


def lock_date(found: Record, window: Window, retention: Retention) -> datetime | None:
    """How long a record's call is kept, as far as the record itself tells."""
    if _was_bounded(found) or _believed_too_much(found):
        return retention.until(window.end)
    moment = _end(found)
    return retention.until(moment) if moment else None


def policy_date(found: Record, window: Window, retention: Retention) -> datetime | None:
    """Until when today's policy locks a record's call; None without a lock."""
    return lock_date(found, window, retention) or retention.until(window.end)


def covered_date(found: Record, window: Window, retention: Retention) -> datetime | None:
    """Until when what tells of a record is locked: as long as today's policy locks its call, or as
    the record promised, should that be longer. None without a lock."""
    binds = retention.mode is not None and not _believed_too_much(found)
    dates = (lock_date(found, window, retention), _promised(found) if binds else None)
    return max((date for date in dates if date is not None), default=None)


def is_behind(found: Record, window: Window, retention: Retention) -> bool:
    """Whether a record promises less than today's policy gives its call: no lock, a weaker mode, an
    earlier date."""
    least = lock_date(found, window, retention) or retention.until(window.start)
    return promises_less(found, retention, least)


def promises_less(found: Record, retention: Retention, until: datetime | None) -> bool:
    """Whether a record promises less than a lock of the policy's mode until then."""
    if until is None:
        return False
    promised = _promised(found)
    if promised is None:
        return True
    weaker = found.document["retention"].get("mode") != "COMPLIANCE"
    return promised < until or (weaker and retention.mode == "COMPLIANCE")


def promise(
    retention: Retention, until: datetime | None, stands: set[str]
) -> dict[str, Any] | None:
    """What a new record says of the lock on all that it names. `stands` are the modes that its
    files are locked in: of a file that was there before, a store may not change a weaker one."""
    if until is None:
        return None
    mode = "GOVERNANCE" if "GOVERNANCE" in stands else retention.mode
    return {"mode": mode, "until": format_time(until)}


def _end(found: Record) -> datetime | None:
    """The end of a record's call, else its start; None where it tells neither."""
    return parse_time(found.document.get("ended_at") or found.document.get("started_at"))


def _believed_too_much(found: Record) -> bool:
    """Whether the lock of an earlier release's record counts from an end that cannot be true."""
    ended, written = _end(found), parse_time(found.document.get("archived_at"))
    if ended is None or written is None or _was_bounded(found):
        return False
    return is_too_late(ended, written)


def _was_bounded(found: Record) -> bool:
    findings = found.document.get("findings")
    return isinstance(findings, list) and "time_implausible" in findings


def _promised(found: Record) -> datetime | None:
    told = found.document.get("retention")
    return parse_time(told.get("until")) if isinstance(told, dict) else None
