"""How long what covers many calls is locked: as long as the longest of them."""

from __future__ import annotations

from datetime import datetime

from archiver.manifest.segment import Segment
from archiver.model import Retention, parse_time


def lock_until(closing: Segment, retention: Retention) -> datetime | None:
    """The latest retention date among a segment's records, and its window's own."""
    dates = [retention.until(closing.window.end)]
    for found in closing.records:
        ended = found.document.get("ended_at") or found.document.get("started_at")
        moment = parse_time(ended)
        dates.append(retention.until(moment) if moment else None)
    return max((date for date in dates if date is not None), default=None)
