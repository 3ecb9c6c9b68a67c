"""The days that may have records of calls, as the bucket's own keys tell."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

from archiver.audit.reader import Reader
from archiver.manifest import layout
from archiver.model import DAY


def record_days(reader: Reader, now: datetime, oldest: date | None = None) -> Iterator[date]:
    """Every day that may have records, newest first; some of them have none. The oldest is looked
    for where it is not given."""
    tomorrow = now.astimezone(UTC).date() + DAY
    oldest = oldest or _first_day(reader, "")
    if oldest is None:
        return
    later = _first_day(reader, f"{layout.RECORDS}{layout.day_dir(tomorrow)}0")
    while later is not None and later > tomorrow:  # a source's clock may be anywhere
        yield later
        later = _first_day(reader, f"{layout.RECORDS}{layout.day_dir(later)}0")
    for number in range((tomorrow - oldest).days + 1):
        yield tomorrow - timedelta(days=number)


def record_day(key: str) -> date | None:
    """The day of a record's key; None for any other key."""
    parsed = layout.parse_record_key(key)
    return parsed[0] if parsed else None


def _first_day(reader: Reader, start_after: str) -> date | None:
    """The day of the first record after a key, as far as the store lists in order."""
    for item in reader.list(layout.RECORDS, start_after):
        if (day := record_day(item.key)) is not None:
            return day
    return None
