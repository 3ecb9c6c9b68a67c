"""The seal: a numbered, signed, hash-chained JSON object that names segments.

Rules (docs/manifest-format.md):
- Seals are numbered from 0 without a gap. `prev` is the SHA-256 of the previous seal, and 64 zeros
  in seal 0.
- `archive` is one UUID for the whole chain. `records` is the running total of the segments'
  records.
- `watermark`: the loop has sealed every window up to this time. It never moves back.
- A segment is named by exactly one seal.
- Seal 0 (`"type":"genesis"`) has the public key and what the probe found about the store. Its
  watermark is the time at which the loop begins.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from archiver.core.errors import FormatError, UsageError
from archiver.core.model import format_second, format_time, parse_time
from archiver.manifest import canonical, merkle
from archiver.manifest.record import check_type
from archiver.manifest.signing import PublicKey

NO_SEAL = "0" * 64
POINTER_BYTES = 64
"""Read limit for a seal pointer, which is always shorter."""
_POINTER = re.compile(rb"(\d{1,12})\n?")


@dataclass(frozen=True)
class SegmentEntry:
    """A seal's entry for one segment. `records` is the number of lines without the window line."""

    key: str
    bytes: int
    records: int
    root: str
    sha256: str


def segment_entry(key: str, lines: Iterable[bytes], *, window_lines: int = 1) -> SegmentEntry:
    """Build the entry for a segment. Reads `lines` once; each includes its newline. A segment of
    events has no window line: pass `window_lines=0`."""
    digest, size = hashlib.sha256(), 0

    def leaves() -> Iterator[bytes]:
        nonlocal size
        for line in lines:
            digest.update(line)
            size += len(line)
            yield line[:-1]

    root, count = merkle.root_and_size(leaves())
    return SegmentEntry(key, size, count - window_lines, root.hex(), digest.hexdigest())


@dataclass(frozen=True)
class Seal:
    """A seal: its bytes in the bucket, and the parsed fields."""

    data: bytes
    archive: str
    key_id: str
    prev: str
    records: int
    sealed_at: datetime
    segments: Sequence[SegmentEntry]
    seq: int
    watermark: datetime
    document: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def genesis(
    archive: str,
    public_key: PublicKey,
    store: Mapping[str, Any],
    *,
    sealed_at: datetime,
    watermark: datetime,
) -> bytes:
    """The bytes of seal 0."""
    return canonical.dump(
        {
            "archive": archive,
            "key_id": public_key.key_id,
            "prev": NO_SEAL,
            "public_key": public_key.pem.decode(),
            "records": 0,
            "sealed_at": format_second(sealed_at),
            "segments": [],
            "seq": 0,
            "store": dict(store),
            "type": "genesis",
            "v": 1,
            "watermark": format_time(watermark),
        }
    )


def next_seal(
    previous: Seal,
    segments: Sequence[SegmentEntry],
    *,
    key_id: str,
    sealed_at: datetime,
    watermark: datetime,
    single_writer: bool = False,
) -> bytes:
    """The bytes of the seal after `previous`. `single_writer` marks a seal whose writer relied on
    being the only one, because its store has no create-once writes."""
    return canonical.dump(
        {
            **({"single_writer": True} if single_writer else {}),
            "archive": previous.archive,
            "key_id": key_id,
            "prev": previous.sha256,
            "records": previous.records + sum(segment.records for segment in segments),
            "sealed_at": format_second(sealed_at),
            "segments": [vars(segment) for segment in segments],
            "seq": previous.seq + 1,
            "type": "seal",
            "v": 1,
            "watermark": format_time(max(watermark, previous.watermark)),
        }
    )


def parse_seal(data: bytes) -> Seal:
    """Parse a seal. Raises `FormatError` unless it is of version 1 and has all its fields.

    Does not check the canonical form, the signature or the links to other seals.
    """
    document = canonical.load_object(data)
    expected = "genesis" if document.get("seq") == 0 else "seal"
    check_type(document, expected, "not a seal of version 1")
    try:
        segments = [SegmentEntry(**entry) for entry in document["segments"]]
        sealed_at, watermark = (parse_time(document[name]) for name in ("sealed_at", "watermark"))
        archive, key_id, prev = (document[name] for name in ("archive", "key_id", "prev"))
        records, seq = document["records"], document["seq"]
    except (KeyError, TypeError):
        raise FormatError("a seal with a missing or malformed field") from None
    strings = [archive, key_id, prev] + [v for s in segments for v in (s.key, s.root, s.sha256)]
    numbers = [records, seq] + [v for s in segments for v in (s.bytes, s.records)]
    is_typed = all(isinstance(s, str) for s in strings) and all(type(n) is int for n in numbers)
    if sealed_at is None or watermark is None or not is_typed:
        raise FormatError("a seal with a field of the wrong type")
    return Seal(data, archive, key_id, prev, records, sealed_at, segments, seq, watermark, document)


def seal_pointer(seq: int) -> bytes:
    """The bytes of a seal pointer, the `.seal` beside each segment that the seal names."""
    return f"{seq}\n".encode()


def parse_seal_pointer(data: bytes) -> int | None:
    """Return the number in a seal pointer; None if the pointer is malformed."""
    match = _POINTER.fullmatch(data)
    return int(match[1]) if match else None


def check_window_length(genesis: Seal, length: timedelta) -> None:
    """Raise `UsageError` if seal 0 states another window length than `length`. Windows of two
    lengths would overlap, so an archive keeps the length that it began with."""
    store = genesis.document.get("store")
    told = store.get("window_seconds") if isinstance(store, dict) else None
    if type(told) is int and told != length.total_seconds():
        raise UsageError(
            f"ARCHIVER_WINDOW: this archive has windows of {told // 60}m, and keeps them: "
            f"set ARCHIVER_WINDOW={told // 60}m"
        )
