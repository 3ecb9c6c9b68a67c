"""Times, windows, calls and their documents, which all packages share. Pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

DAY = timedelta(days=1)

MAX_DURATION_SECONDS = 10**9
CALL_YEARS = range(1970, 3000)
"""A call's time outside these years is ignored: arithmetic with it may leave the calendar."""

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_TIME = 40
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d([Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:?\d\d)?)?")


def parse_time(text: object) -> datetime | None:
    """Parse an RFC 3339 time, or a bare date as its midnight; UTC if there is no zone.

    Returns None for anything else, so that a malformed value of the source counts as missing.
    """
    if not isinstance(text, str) or len(text) > _LONGEST_TIME:
        return None
    return _moment(text)


@lru_cache(maxsize=1024)  # the times of a call are parsed many times
def _moment(text: str) -> datetime | None:
    if not _RFC3339.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text.upper())
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


_SHORT_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(:\d\d(?:\.\d{1,9})?)?([Zz]|[+-]\d\d(?::?\d\d)?)?"
)
_RFC1123 = re.compile(
    r"(?:[A-Za-z]{3}, )?\d{1,2} [A-Za-z]{3} \d{4} \d\d:\d\d(?::\d\d)? (?:GMT|UTC|[+-]\d{4})"
)
_EPOCH = re.compile(r"(\d{10}|\d{13})(\.\d{1,9})?")
_EPOCH_SECONDS = 10**9, 10**10
"""From 2001 to 2286: ten digits as seconds, thirteen as milliseconds. Other numbers are no times: 0
often stands for "none", and 20240115103000 for a date that is written without separators."""


def parse_source_time(value: object) -> datetime | None:
    """Parse a time as sources write it; UTC if there is no zone. Returns None for anything else.

    Takes what `parse_time` takes, and times without seconds, offsets of hours alone, RFC 1123 (the
    form of HTTP dates), and Unix times in seconds or milliseconds, as numbers or digits. Our own
    formats, settings and options are read by `parse_time`.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _of_epoch(value)
    if not isinstance(value, str) or len(value) > _LONGEST_TIME:
        return None
    return _moment(value) or _source_moment(value)


@lru_cache(maxsize=1024)
def _source_moment(text: str) -> datetime | None:
    if not text.isascii():  # `\d` also matches the digits of other scripts
        return None
    if _EPOCH.fullmatch(text):
        return _of_epoch(float(text))
    if match := _SHORT_ISO.fullmatch(text):
        day, minute, seconds, zone = match.groups()
        return _moment(f"{day}T{minute}{seconds or ':00'}{_whole_offset(zone or '')}")
    if not _RFC1123.fullmatch(text):
        return None
    try:
        moment = parsedate_to_datetime(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None


def _whole_offset(zone: str) -> str:
    return f"{zone}:00" if len(zone) == 3 else zone


def _of_epoch(value: float) -> datetime | None:
    first, last = _EPOCH_SECONDS
    seconds = value / 1000 if value >= last else value
    if not first <= seconds < last:
        return None
    # Rounded to what a double of this size can tell.
    return _UNIX_EPOCH + timedelta(microseconds=round(seconds * 1_000_000))


def format_time(moment: datetime) -> str:
    """RFC 3339, UTC, `Z`; with microseconds only if there are any."""
    text = moment.astimezone(UTC).isoformat(timespec="auto")
    return text.replace("+00:00", "Z")


def format_second(moment: datetime) -> str:
    """As `format_time`, rounded down to the second: the form of our own times, for `jq`."""
    return format_time(moment.replace(microsecond=0))


def next_second(moment: datetime) -> datetime:
    """`moment`, rounded up to the second. Stores keep lock dates to the second, and a date must not
    be earlier than promised."""
    whole = moment.astimezone(UTC).replace(microsecond=0)
    return whole if whole == moment else whole + timedelta(seconds=1)


@dataclass(frozen=True, order=True)
class Window:
    """A half-open UTC interval `[start, end)`: the unit of listing, completeness and sealing."""

    start: datetime
    end: datetime

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    def __str__(self) -> str:
        return f"{format_time(self.start)}/{format_time(self.end)}"


def window_of(moment: datetime, length: timedelta) -> Window:
    """The window of `length` (a divisor of 24 h) that holds `moment`, aligned to midnight UTC."""
    midnight = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    start = midnight + (moment - midnight) // length * length
    return Window(start, start + length)


def windows_between(start: datetime, end: datetime, length: timedelta) -> Iterator[Window]:
    """Every window that overlaps `[start, end)`: the range is extended to whole windows."""
    window = window_of(start, length)
    while window.start < end:
        yield window
        window = Window(window.end, window.end + length)


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the source returned it; `document` is the answer with every field."""

    id: str
    document: Mapping[str, Any]

    @property
    def started_at(self) -> datetime | None:
        return self._time("startTime")

    @property
    def ended_at(self) -> datetime | None:
        return self._time("endTime")

    @property
    def created_at(self) -> datetime | None:
        return self._time("createdAt")

    def _time(self, field: str) -> datetime | None:
        moment = parse_source_time(self.document.get(field))
        return moment if moment is not None and moment.year in CALL_YEARS else None

    @property
    def own_time(self) -> datetime | None:
        """The time that places the call: its start, else its creation (docs/manifest-format.md)."""
        return self.started_at or self.created_at

    @property
    def state(self) -> str | None:
        return self.text("state")

    @property
    def campaign_id(self) -> str | None:
        """The campaign's id; a whole number as its digits."""
        value = self.document.get("campaignId")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text("campaignId")

    @property
    def duration_seconds(self) -> int | float | None:
        """None also for a number that no call can have, because arithmetic with it could fail."""
        value = self.document.get("durationSeconds")
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return value if abs(value) <= MAX_DURATION_SECONDS else None

    def text(self, field: str) -> str | None:
        """A field if it is a string, else None."""
        value = self.document.get(field)
        return value if isinstance(value, str) else None


@dataclass(frozen=True)
class DocumentKind:
    """One kind of JSON document that the source has about a call."""

    path: str
    """Where the source has it, below the call's own path."""
    noun: str
    """What messages call it."""
    means: str
    """What its file is, for the page of the manifest's format."""
    unavailable: str
    """The finding of a record whose call has no such document because it could not be fetched."""


DOCUMENTS = {
    "transcript": DocumentKind(
        path="",
        noun="the call's own document",
        means="the call as the source told it, without its survey",
        unavailable="transcript_unavailable",
    ),
    "epa": DocumentKind(
        path="/epa-results",
        noun="the survey",
        means="the survey, where there is one",
        unavailable="survey_unavailable",
    ),
}
"""The documents of a call, by file kind. To archive one more, add a row: it is then fetched for
each call and kept as `<kind>.json`. The first is the call itself, with the transcript."""
OTHER_DOCUMENTS = tuple(DOCUMENTS)[1:]
"""The kinds of documents that the source has apart from the call."""


def is_too_late(moment: datetime, known_at: datetime) -> bool:
    """Whether a time from the source is over a day later than `known_at`, when we received it.

    Records and window lines store our own times to the second, so `known_at` is rounded down.
    """
    return moment - known_at.replace(microsecond=0) > DAY


def placing_time(call: Call, window: Window, listed_at: datetime) -> datetime:
    """The time that decides to which window and day a call belongs that was listed in `window`: its
    own time, or the window's start if it has none or one that is implausibly late."""
    own = call.own_time
    return window.start if own is None or is_too_late(own, listed_at) else own


def lock_start(call: Call, window: Window, listed_at: datetime) -> tuple[datetime, bool]:
    """The moment from which a call's lock counts, and whether the source's time is plausible.

    It is the call's end (else its own time) if that lies between the window's start and a day after
    `listed_at`; otherwise the window's end, because a lock cannot be undone.
    """
    ended = call.ended_at or call.own_time
    if ended is None:
        return window.end, True
    if ended < window.start or is_too_late(ended, listed_at):
        return window.end, False
    return ended, True


@dataclass(frozen=True)
class Retention:
    """How long objects are locked. `mode` None means not at all; `days` count from a call's end."""

    mode: str | None = None
    days: int = 0

    def until(self, moment: datetime) -> datetime | None:
        """The lock date, a whole second; None without a lock."""
        if self.mode is None:
            return None
        return next_second(moment) + timedelta(days=self.days)
