"""What lies in a bucket, read with `json` and `hashlib` alone, as docs/manifest-format.md has it.

`Ledger` reads everything and holds it against the rules on the way: a broken one is an
`AssertionError`. Nothing of the archiver's is used, so that it can't be wrong in the same way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from tests.fakes.merkle import merkle_root

OUTCOMES = ("archived", "no_recording", "failed")
_SEGMENT = re.compile(r"(manifest/segments/dt=[0-9-]{10}/\d{4})\.r(\d+)\.jsonl")
_EVENTS = "manifest/events/"
_SEAL = re.compile(r"manifest/seals/(\d{12})\.json")

Record = dict[str, Any]


class Blob(Protocol):
    """An object of the bucket."""

    key: str
    data: bytes
    sha256: str
    writer: str
    number: int


class Verifier(Protocol):
    """A public key."""

    def verifies(self, data: bytes, signature: bytes) -> bool: ...


@dataclass
class Revision:
    """One segment of a window: how each id stands once it is told."""

    key: str
    writer: str
    number: int
    line: dict[str, Any]
    records: dict[str, Record]
    """call id → the newest record that this revision or an earlier one carries"""
    listed: set[str]

    @property
    def pending(self) -> list[str]:
        return list(self.line["pending"])

    @property
    def vanished(self) -> list[str]:
        return list(self.line["vanished"])

    @property
    def listed_at(self) -> datetime:
        return moment(self.line["listed_at"])


@dataclass
class Span:
    """A window: its revisions, `r1` first."""

    start: datetime
    end: datetime
    revisions: list[Revision] = field(default_factory=list)

    @property
    def newest(self) -> Revision:
        return self.revisions[-1]


class Ledger:
    """An archive. `windows` are sorted by their start. Of the keys that are `foreign` somebody else
    has taken the place: what should lie there is nowhere."""

    def __init__(
        self, objects: Iterable[Blob], key: Verifier, foreign: Collection[str] = ()
    ) -> None:
        self._objects = {blob.key: blob for blob in objects if blob.key not in foreign}
        self._foreign = foreign
        self.seals = self._read_seals(key)
        self.windows = self._read_windows()
        self._check_sealed()
        self._check_records()

    # --- what it tells

    @property
    def watermark(self) -> datetime:
        return moment(self.seals[-1]["watermark"])

    @property
    def recorded(self) -> set[str]:
        """The ids that have a record in a sealed segment."""
        return {call_id for window in self.windows for call_id in window.newest.records}

    @property
    def pending(self) -> set[str]:
        """The ids that the newest line of some window calls pending."""
        return {call_id for window in self.windows for call_id in window.newest.pending}

    @property
    def listed(self) -> dict[str, Record | None]:
        """What each id that the newest lines count stands for: its record, None where pending."""
        found: dict[str, Record | None] = {}
        for window in self.windows:
            newest = window.newest
            found |= {call_id: newest.records.get(call_id) for call_id in newest.listed}
        return found

    def check_tiling(self, genesis: datetime) -> None:
        """From where the archive begins to the watermark: no gap, no overlap."""
        reach = genesis
        for window in self.windows:
            if window.end <= genesis:
                continue
            assert window.start >= reach, f"{window.start} overlaps"
            if reach < self.watermark:
                assert window.start == reach, f"no window at {reach}"
            reach = window.end
        assert reach >= self.watermark, f"sealed to {reach} only, the mark says {self.watermark}"

    def check_listed_again(
        self, age: timedelta, now: datetime, but: Collection[datetime] = ()
    ) -> None:
        """Every window that is of an age was listed at that age or later, changed or not; `but` for
        those that start then."""
        for window in self.windows:
            if window.end + age <= now and window.start not in but:
                told = f"{window.start} was listed last at {window.newest.listed_at}"
                assert window.newest.listed_at >= window.end + age, told

    # --- reading and checking

    def _read_seals(self, key: Verifier) -> list[dict[str, Any]]:
        names = sorted(name for name in self._objects if _SEAL.fullmatch(name))
        seals: list[dict[str, Any]] = []
        before, total = "0" * 64, 0
        for number, name in enumerate(names):
            blob = self._objects[name]
            seal = json.loads(blob.data)
            assert name == f"manifest/seals/{number:012d}.json", "a gap in the chain"
            assert (seal["seq"], seal["prev"]) == (number, before), f"seal {number} does not follow"
            assert key.verifies(blob.data, self._objects[f"{name}.sig"].data), f"seal {number}"
            assert not seals or seal["archive"] == seals[0]["archive"]
            assert not seals or moment(seal["watermark"]) >= moment(seals[-1]["watermark"])
            before, total = blob.sha256, total + sum(one["records"] for one in seal["segments"])
            assert seal["records"] == total
            seals.append(seal)
        return seals

    def _read_windows(self) -> list[Span]:
        windows: dict[str, list[tuple[int, str]]] = {}
        for name in self._objects:
            if match := _SEGMENT.fullmatch(name):
                windows.setdefault(match[1], []).append((int(match[2]), name))
        spans = [self._read_window(stem, sorted(names)) for stem, names in windows.items()]
        return sorted(spans, key=lambda span: span.start)

    def _read_window(self, stem: str, names: list[tuple[int, str]]) -> Span:
        numbers = [number for number, _ in names]
        taken = [n for n in range(1, numbers[-1]) if f"{stem}.r{n}.jsonl" in self._foreign]
        expected = [n for n in range(1, numbers[-1] + 1) if n not in taken]
        assert numbers == expected, f"{stem}: revisions {numbers}"
        span: Span | None = None
        ever: set[str] = set()
        for number, name in names:
            told = [json.loads(line) for line in self._objects[name].data.splitlines()]
            *records, line = told
            start, end = moment(line["from"]), moment(line["to"])
            span = span or Span(start, end)
            assert (line["type"], line["revision"]) == ("window", number)
            assert (span.start, span.end) == (start, end), f"{name} is of another window"
            assert stem == f"manifest/segments/dt={start:%Y-%m-%d}/{start:%H%M}"
            span.revisions.append(self._revision(name, span, ever, records, line))
        assert span is not None
        return span

    def _revision(
        self, name: str, span: Span, ever: set[str], records: list[Record], line: dict[str, Any]
    ) -> Revision:
        """Fold a segment into what stands before it, and hold its line against that."""
        keys = [record["record"] for record in records]
        assert keys == sorted(set(keys)), f"{name}: not sorted, or repeated"
        newest = dict(span.newest.records) if span.revisions else {}
        for record in records:
            before = newest.get(record["call_id"])
            assert _follows(before, record), f"{name}: {record['record']} after a later one"
            newest[record["call_id"]] = record
        pending, vanished = set(line["pending"]), set(line["vanished"])
        assert not pending & newest.keys(), f"{name}: recorded and pending"
        assert not pending & vanished, f"{name}: pending and vanished"
        ever |= newest.keys() | pending
        assert vanished <= newest.keys(), f"{name}: vanished without a record"
        listed = ever - vanished
        assert listed <= newest.keys() | pending, f"{name}: silence about {listed - newest.keys()}"
        _check_line(name, line, listed, newest)
        blob = self._objects[name]
        return Revision(name, blob.writer, blob.number, line, newest, listed)

    def _check_sealed(self) -> None:
        """Each segment stands in one seal, which tells it as it is; so do companion and pointer."""
        covered: dict[str, int] = {}
        for seal in self.seals:
            for entry in seal["segments"]:
                blob = self._objects[entry["key"]]
                lines = blob.data.split(b"\n")[:-1]
                last = 0 if blob.key.startswith(_EVENTS) else 1  # the window line is no record
                assert entry["key"] not in covered, f"{entry['key']} stands in two seals"
                assert entry == {
                    "key": blob.key, "bytes": len(blob.data), "sha256": blob.sha256,
                    "records": len(lines) - last, "root": merkle_root(lines).hex(),
                }  # fmt: skip
                covered[entry["key"]] = seal["seq"]
        segments = {one.key for window in self.windows for one in window.revisions}
        # A command may be cut off: events without a seal say nothing.
        told = {name for name in covered if not name.startswith(_EVENTS)}
        assert told == segments, "segments without a seal, or the reverse"
        for name, number in covered.items():
            stem = name.removesuffix("jsonl")
            if f"{stem}seal" not in self._foreign:
                assert self._objects[f"{stem}seal"].data == f"{number}\n".encode()
            if f"{stem}sha256" in self._foreign:
                continue
            for line in self._objects[f"{stem}sha256"].data.decode().splitlines():
                digest, _, told = line.partition("  ")
                assert self._objects[told].sha256 == digest, f"{stem}sha256: {told}"

    def _check_records(self) -> None:
        """Every record in the bucket is in a segment, byte for byte; its files are there."""
        carried = {
            json.loads(line)["record"]: line + b"\n"
            for window in self.windows
            for one in window.revisions
            for line in self._objects[one.key].data.split(b"\n")[:-2]
        }
        for name, line in carried.items():
            assert self._objects[name].data == line, f"{name} differs from its line"
            for file in json.loads(line)["files"]:
                blob = self._objects[file["key"]]
                assert (blob.sha256, len(blob.data)) == (file["sha256"], file["bytes"])
        records = {name for name in self._objects if name.startswith("records/")}
        self.unsealed = records - carried.keys()
        """Keys of the records that no segment carries."""


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _follows(before: Record | None, after: Record) -> bool:
    if before is None:
        return True
    same_place = before["record"].rpartition("/")[0] == after["record"].rpartition("/")[0]
    return after["revision"] > before["revision"] if same_place else True


def _check_line(
    name: str, line: Mapping[str, Any], listed: set[str], newest: Mapping[str, Record]
) -> None:
    """The window line against what the records say."""
    counts = dict.fromkeys(OUTCOMES, 0)
    for call_id in listed & newest.keys():
        counts[newest[call_id]["outcome"]] += 1
    told = {outcome: line[outcome] for outcome in OUTCOMES}
    assert told == counts, f"{name}: {told} told, {counts} found"
    assert line["listed"] == len(listed) == sum(told.values()) + len(line["pending"]), name
    digest = hashlib.sha256("".join(f"{call_id}\n" for call_id in sorted(listed)).encode())
    assert line["listed_sha256"] == digest.hexdigest(), f"{name}: listed_sha256"
    for ids in (line["pending"], line["vanished"]):
        assert ids == sorted(set(ids)), f"{name}: ids not sorted, or repeated"


def is_unknowable(call_id: str, seen: list[Any], ended: set[str], objects: list[Any]) -> bool:
    """Whether only processes saw the call that ended before they could write down that they had:
    they wrote nothing any more, but sightings that do not name it."""
    sightings, others = [], []
    for made in objects:
        (sightings if made.key.startswith("manifest/sightings/") else others).append(made)
    last = {made.writer: made.number for made in others}
    if any(one.client not in ended or last.get(one.client, 0) > one.number for one in seen):
        return False
    return not any(call_id in json.loads(made.data)["ids"] for made in sightings)
