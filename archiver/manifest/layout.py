"""Builds and parses the keys of the bucket (docs/manifest-format.md).

Keys are relative to the archive's prefix. Of what the source sends, only call ids reach a key, and
only if all characters are harmless: any other id is replaced by its SHA-256, and the record holds
the real one.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime

RECORDINGS = "recordings/"
RECORDS = "records/"
SEGMENTS = "manifest/segments/"
EVENTS = "manifest/events/"
SIGHTINGS = "manifest/sightings/"
SEALS = "manifest/seals/"
KEYS = "manifest/keys/"
VERIFY_PAGE = "manifest/keys/VERIFY.md"
VERIFY_SCRIPT = "manifest/keys/verify.sh"
PROBE = "manifest/probe"
MAX_SEQUENCE = 10**12 - 1
"""Largest number of a seal: its key has twelve digits."""

# re.ASCII below: otherwise `\d` matches digits of other scripts.
_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_SEGMENT = re.compile(
    r"manifest/segments/dt=(\d{4}-\d\d-\d\d)/([01]\d|2[0-3])([0-5]\d)\.r([1-9]\d{0,8})"
    r"\.(jsonl|sha256|seal)",
    re.ASCII,
)
_RECORD = re.compile(
    r"records/dt=(\d{4}-\d\d-\d\d)/([A-Za-z0-9_.-]+)/r([1-9]\d{0,8})\.json", re.ASCII
)
_EVENTS = re.compile(
    r"(manifest/events/dt=(\d{4}-\d\d-\d\d)/([01]\d|2[0-3])[0-5]\d[0-5]\d-[0-9a-f]{8})"
    r"\.(jsonl|sha256|seal)",
    re.ASCII,
)
_SIGHTING = re.compile(
    r"manifest/sightings/dt=(\d{4}-\d\d-\d\d)/([01]\d|2[0-3])([0-5]\d)-[0-9a-f]{16}\.json", re.ASCII
)
_SEAL = re.compile(r"manifest/seals/(\d{12})\.json(\.sig)?", re.ASCII)


def day_dir(day: date) -> str:
    return f"dt={day.isoformat()}"


def parse_day_dir(name: str) -> date | None:
    """The day of a folder `dt=<day>`, or None."""
    return _day(name[3:]) if re.fullmatch(r"dt=\d{4}-\d\d-\d\d", name, re.ASCII) else None


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _moment(day_text: str, hour: str, minute: str) -> datetime | None:
    day = _day(day_text)
    if day is None:
        return None
    return datetime(day.year, day.month, day.day, int(hour), int(minute), tzinfo=UTC)


def call_dir(call_id: str) -> str:
    """Return the call id if its characters are harmless, else `id.<sha256 of its UTF-8>`."""
    if _SAFE_ID.fullmatch(call_id):
        return call_id
    return "id." + hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()


def recording_dir(day: date, call_id: str) -> str:
    return f"{RECORDINGS}{day_dir(day)}/{call_dir(call_id)}/"


def alternative_key(key: str, tag: str) -> str:
    """Return another key for a key that is taken: `<name>-<tag>.<ext>`; `tag` has 16 hex digits."""
    stem, dot, extension = key.rpartition(".")
    return f"{stem}-{tag}{dot}{extension}"


def with_extension(key: str, extension: str) -> str:
    """Return the key with another extension. A recording's follows what it is."""
    return f"{key.rpartition('.')[0]}.{extension}"


def record_prefix(day: date) -> str:
    return f"{RECORDS}{day_dir(day)}/"


def record_key(day: date, call_id: str, revision: int) -> str:
    return f"{record_prefix(day)}{call_dir(call_id)}/r{revision}.json"


def parse_record_key(key: str) -> tuple[date, str, int] | None:
    """Return `(day, call directory, revision)` of a record's key; None for any other key."""
    match = _RECORD.fullmatch(key)
    day = _day(match[1]) if match is not None else None
    return (day, match[2], int(match[3])) if match is not None and day is not None else None


@dataclass(frozen=True, order=True)
class SegmentName:
    """Names a window's segment: the start of the window, and the segment's revision."""

    start: datetime
    revision: int

    @property
    def stem(self) -> str:
        return f"{segment_prefix(self.start.date())}{self.start:%H%M}.r{self.revision}"

    @property
    def jsonl(self) -> str:
        return self.stem + ".jsonl"

    @property
    def sha256(self) -> str:
        return self.stem + ".sha256"

    @property
    def seal(self) -> str:
        return self.stem + ".seal"


def segment_prefix(day: date) -> str:
    return f"{SEGMENTS}{day_dir(day)}/"


def parse_segment_key(key: str) -> tuple[SegmentName, str] | None:
    """Return `(name, "jsonl" | "sha256" | "seal")` of a segment's key; None for any other key."""
    match = _SEGMENT.fullmatch(key)
    start = _moment(match[1], match[2], match[3]) if match is not None else None
    return (SegmentName(start, int(match[4])), match[5]) if match and start else None


def event_key(moment: datetime, tag: str) -> str:
    """The key of a segment of events; `tag` has 8 hex digits."""
    return f"{EVENTS}{day_dir(moment.date())}/{moment:%H%M%S}-{tag}.jsonl"


def parse_event_key(key: str) -> tuple[str, str] | None:
    """Return `(key before the suffix, "jsonl" | "sha256" | "seal")` of an event segment's key;
    None for any other key."""
    match = _EVENTS.fullmatch(key)
    return (match[1], match[4]) if match is not None and _day(match[2]) is not None else None


def sighting_prefix(day: date) -> str:
    return f"{SIGHTINGS}{day_dir(day)}/"


def sighting_key(window_start: datetime, tag: str) -> str:
    """The key of a sighting of the window with this start; `tag` has 16 random hex digits."""
    return f"{sighting_prefix(window_start.date())}{window_start:%H%M}-{tag}.json"


def parse_sighting_key(key: str) -> datetime | None:
    """Return the start of a sighting's window; None for any other key."""
    match = _SIGHTING.fullmatch(key)
    return _moment(match[1], match[2], match[3]) if match is not None else None


def checksum_list_key(segment_key: str) -> str:
    """The key of a segment's checksum list, `.sha256`; the segment is of a window or of events."""
    return segment_key.removesuffix(".jsonl") + ".sha256"


def seal_pointer_key(segment_key: str) -> str:
    """The key of a segment's seal pointer, `.seal`; the segment is of a window or of events."""
    return segment_key.removesuffix(".jsonl") + ".seal"


def seal_key(sequence: int) -> str:
    return f"{SEALS}{sequence:012d}.json"


def signature_key(sequence: int) -> str:
    return seal_key(sequence) + ".sig"


def parse_seal_key(key: str) -> tuple[int, bool] | None:
    """Return `(number, is_signature)` of the key of a seal or its signature; None for any other."""
    match = _SEAL.fullmatch(key)
    return (int(match[1]), match[2] is not None) if match else None


def public_key_key(key_id: str) -> str:
    return f"{KEYS}{key_id}.pem"
