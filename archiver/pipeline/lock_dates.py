"""Until when a call is locked: what its record promises, and what today's policy gives it.

- The policy counts from the call's end (`model.lock_start`). A record states end and start. Where
  it states neither, its lock counted from some moment of the window, or from the window's end.
- Where a record has the finding `time_implausible`, its lock counts from the window's end. The same
  holds for a record without that finding whose end lies over a day after it was written: releases
  before that finding trusted every end. What such a record promises binds its own objects, and not
  the segments and seals that cover it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from archiver.core.model import Retention, Window, format_time, is_too_late, parse_time
from archiver.manifest.record import Record


def latest_date(*dates: datetime | None) -> datetime | None:
    """The latest of these dates; None where all are None."""
    return max((date for date in dates if date is not None), default=None)


def policy_date(found: Record, window: Window, retention: Retention) -> datetime | None:
    """Until when today's policy locks a record's call; None without a lock."""
    return _own_date(found, window, retention) or retention.until(window.end)


def covering_date(found: Record, window: Window, retention: Retention) -> datetime | None:
    """Until when the segments and seals that cover a record are locked: as long as today's policy
    locks its call, or as long as the record promised, if that is longer. None without a lock."""
    binds = retention.mode is not None and not _has_impossible_end(found)
    return latest_date(_own_date(found, window, retention), _promised(found) if binds else None)


def is_behind_policy(found: Record, window: Window, retention: Retention) -> bool:
    """Whether a record promises less than today's policy: no lock, a weaker mode, an earlier
    date."""
    least = _own_date(found, window, retention) or retention.until(window.start)
    return promises_less(found, retention, least)


def promises_less(found: Record, retention: Retention, until: datetime | None) -> bool:
    """Whether a record promises less than a lock in the policy's mode until this date."""
    if until is None:
        return False
    promised = _promised(found)
    if promised is None:
        return True
    is_weaker = found.document["retention"].get("mode") != "COMPLIANCE"
    return promised < until or (is_weaker and retention.mode == "COMPLIANCE")


def promise(
    retention: Retention, until: datetime | None, lock_modes: set[str]
) -> dict[str, Any] | None:
    """The `retention` of a new record. `lock_modes` are the modes that its files are locked in: a
    store may not change the weaker mode of a file that was there before."""
    if until is None:
        return None
    mode = "GOVERNANCE" if "GOVERNANCE" in lock_modes else retention.mode
    return {"mode": mode, "until": format_time(until)}


def _own_date(found: Record, window: Window, retention: Retention) -> datetime | None:
    """The policy's date as far as the record's own times give it; None where they do not."""
    if _is_implausible(found) or _has_impossible_end(found):
        return retention.until(window.end)
    end = _end(found)
    return retention.until(end) if end else None


def _end(found: Record) -> datetime | None:
    return parse_time(found.document.get("ended_at") or found.document.get("started_at"))


def _is_implausible(found: Record) -> bool:
    findings = found.document.get("findings")
    return isinstance(findings, list) and "time_implausible" in findings


def _has_impossible_end(found: Record) -> bool:
    """Whether an earlier release locked the record's call from an end that cannot be true."""
    end, written_at = _end(found), parse_time(found.document.get("archived_at"))
    if end is None or written_at is None or _is_implausible(found):
        return False
    return is_too_late(end, written_at)


def _promised(found: Record) -> datetime | None:
    retention = found.document.get("retention")
    return parse_time(retention.get("until")) if isinstance(retention, dict) else None
