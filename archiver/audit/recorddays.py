"""The days that have records of calls, as the bucket's own keys tell."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from archiver.manifest import layout


def record_days(folders: Iterable[str]) -> list[date]:
    """The days among the folders below `records/`, newest first. A source's clock may be anywhere,
    so may a day."""
    days = {day for name in folders if (day := layout.parse_day_dir(name)) is not None}
    return sorted(days, reverse=True)


def record_day(key: str) -> date | None:
    """The day of a record's key; None for any other key."""
    parsed = layout.parse_record_key(key)
    return parsed[0] if parsed else None
