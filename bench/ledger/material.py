"""The ledger of an archive that never was: windows of calls in the real formats, without the calls.

No line of the pipeline runs here. A call's record is made by `manifest.record.build` from what a
source would have told of it; its files are names and digests alone, because nothing that this is
made for looks at them. Of 25 calls one had no recording and one failed; of 10 one had no survey.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from archiver.core.model import Call, Window, format_time
from archiver.manifest import layout, record, segment
from archiver.manifest.record import File, Record
from archiver.manifest.segment import Balance, Listing

START = datetime(2024, 1, 15, tzinfo=UTC)
HOUR = timedelta(hours=1)
LATER = timedelta(days=2)
RETENTION_DAYS = 3650
SOURCE = {"api": "https://api.example.com/api/v1", "recording_host": "recordings.example.com"}


def window(number: int) -> Window:
    """The `number`th hour since `START`."""
    return Window(START + number * HOUR, START + (number + 1) * HOUR)


def call_ids(number: int, count: int) -> list[str]:
    """The ids of a window's calls, as a source makes them up: in no order."""
    name = f"{number}".encode()
    return [f"vc_{_hex(name, str(each).encode())[:12]}" for each in range(count)]


def call_record(call_id: str, within: Window) -> Record:
    """A record: like those of the demo's calls, some 1.5 kB with three files."""
    digest = _hex(call_id.encode())
    seconds = int(digest[:3], 16) % 600 + 15
    started = within.start + timedelta(milliseconds=int(digest[3:9], 16) % 3_600_000)
    ended = started + timedelta(seconds=seconds)
    return record.build(
        _call(call_id, started, ended, seconds),
        **_answers(call_id, started, seconds, digest),
        day=started.date(),
        revision=1,
        archived_at=within.end + timedelta(seconds=seconds),
        retention={
            "mode": "COMPLIANCE",
            "until": format_time(ended.replace(microsecond=0) + timedelta(days=RETENTION_DAYS)),
        },
    )


def _call(call_id: str, started: datetime, ended: datetime, seconds: int) -> Call:
    told = {
        "campaignId": "camp_delivery",
        "direction": "Outbound" if seconds % 3 else "Inbound",
        "durationSeconds": seconds,
        "endTime": format_time(ended),
        "id": call_id,
        "startTime": format_time(started),
        "state": "Completed",
    }
    return Call(call_id, told)


def _answers(call_id: str, started: datetime, seconds: int, digest: str) -> dict[str, Any]:
    """What came of the call, as `record.build` takes it."""
    kind = int(digest[10:14], 16)
    outcome = {0: "no_recording", 1: "failed"}.get(kind % 25, "archived")
    kinds = ["recording", "transcript", "epa"] if kind % 10 else ["recording", "transcript"]
    source: dict[str, Any] = {"api": SOURCE["api"], "request_id": f"req_{digest[:16]}"}
    if outcome != "archived":
        reason = {"no_recording": "not_found", "failed": "not_wav"}[outcome]
        files = [_file(call_id, started, one, seconds) for one in kinds[1:]]
        failed = {"reason": reason, "attempts": 3, "status": 404}
        return {"outcome": outcome, "files": files, "source": source, **failed}
    source |= {
        "content_md5": "fPGRgNGNFnJJ+82DxV4GBQ==",
        "etag": f'"0x{digest[:16].upper()}"',
        "last_modified": f"{started:%a, %d %b %Y %H:%M:%S} GMT",
        "recording_host": SOURCE["recording_host"],
    }
    audio = {
        "bits_per_sample": 16,
        "channels": 1,
        "duration_seconds": seconds + kind % 8 / 8,
        "encoding": "pcm",
        "sample_rate_hz": 8000,
    }
    files = [_file(call_id, started, one, seconds) for one in kinds]
    return {"outcome": "archived", "files": files, "source": source, "audio": audio}


def _file(call_id: str, started: datetime, kind: str, seconds: int) -> File:
    row = record.FILE_KINDS[kind]
    digest = _hex(call_id.encode(), kind.encode())
    key = layout.recording_dir(started.date(), call_id) + row.name
    size = seconds * 16_000 + 44 if kind == "recording" else seconds * 40
    return File(kind, key, size, digest, row.content_type, digest[:32])


def _hex(*parts: bytes) -> str:
    return hashlib.sha256(b"/".join(parts)).hexdigest()


@dataclass(frozen=True)
class Closed:
    """A window's segment and the `.sha256` beside it."""

    name: layout.SegmentName
    data: bytes
    checksum_list: bytes


def close(number: int, count: int) -> Closed:
    """The first revision of the `number`th window, with `count` calls."""
    within = window(number)
    ids = call_ids(number, count)
    records = [call_record(call_id, within) for call_id in ids]
    return close_records(within, records)


def close_records(within: Window, records: list[Record]) -> Closed:
    records = sorted(records, key=lambda one: one.key)
    balance = Balance({one.call_id: one.outcome for one in records})
    listing = Listing(within.end + LATER, 10, 2, len(records), {"state": ["Completed"]})
    data = b"".join(segment.lines(within, 1, records, balance, listing))
    name, digest = layout.SegmentName(within.start, 1), hashlib.sha256(data).hexdigest()
    return Closed(name, data, b"".join(segment.checksum_list(digest, name, records, io.BytesIO())))
