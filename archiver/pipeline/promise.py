"""How long a call is to be locked: what its record promises, and what today's policy gives it.

The policy counts from the call's end (`Job.retain_until`). A record tells end and start; of a call
that has neither, only the window: it was reckoned from some moment in it, or from its end.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from archiver.manifest.record import Record
from archiver.model import Retention, Window, format_time, parse_time


def lock_date(found: Record, retention: Retention) -> datetime | None:
    """How long a record's call is kept, as far as the record itself tells."""
    ended = found.document.get("ended_at") or found.document.get("started_at")
    moment = parse_time(ended)
    return retention.until(moment) if moment else None


def policy_date(found: Record, window: Window, retention: Retention) -> datetime | None:
    """Until when today's policy locks a record's call; None without a lock."""
    return lock_date(found, retention) or retention.until(window.end)


def covered_date(found: Record, retention: Retention) -> datetime | None:
    """Until when what tells of a record is locked: as long as today's policy locks its call, or as
    the record promised, should that be longer. None without a lock."""
    dates = (lock_date(found, retention), _promised(found) if retention.mode else None)
    return max((date for date in dates if date is not None), default=None)


def is_behind(found: Record, window: Window, retention: Retention) -> bool:
    """Whether a record promises less than today's policy gives its call: no lock, a weaker mode, an
    earlier date."""
    least = lock_date(found, retention) or retention.until(window.start)
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


def _promised(found: Record) -> datetime | None:
    told = found.document.get("retention")
    return parse_time(told.get("until")) if isinstance(told, dict) else None
