"""The findings of `verify`: the table of codes, the collected findings, and the report.

A code is stable: it is never renamed and never changes its meaning. Severities:
- `error`: the archive breaks a promise of its format.
- `warning`: no promise is broken, but a person must look.
- `info`: needs no action. An audit with nothing but `info` succeeds.

docs/manifest-format.md has the table, generated from here.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from archiver.core.model import format_time
from archiver.manifest.record import OUTCOMES
from archiver.manifest.seal import Seal

Severity = Literal["error", "warning", "info"]


def counted(count: int, noun: str, plural: str = "") -> str:
    """Format a count with its noun: `1 call`, `2,000 calls`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


@dataclass(frozen=True)
class Code:
    """One row of the table. `clause` names the section of docs/manifest-format.md whose rule is
    broken, or `Invariant n`, a numbered rule of its section "What holds"."""

    severity: Severity
    meaning: str
    clause: str


CODES: dict[str, Code] = {
    # the chain
    "no_archive": Code("error", "there is no seal 0: nothing is archived here", "Seal"),
    "seal_missing": Code("error", "a number up to the newest seal or signature has no seal",
        "Seal"),
    "seal_invalid": Code("error", "a seal is malformed or not in canonical form", "Seal"),
    "seal_number": Code("error", "a seal states another number than its key", "Seal"),
    "prev_mismatch": Code("error", "`prev` is not the SHA-256 of the seal before", "Seal"),
    "archive_mismatch": Code("error", "a seal is of another archive than seal 0", "Seal"),
    "key_mismatch": Code("error", "a seal names another key than the archive's, or than yours",
        "Seal"),
    "public_key_missing": Code("error", "the public key is not under `manifest/keys/`", "Bucket"),
    "public_key_mismatch": Code("error", "the key under `manifest/keys/` is not that of seal 0",
        "Bucket"),
    "page_missing": Code("warning",
        "`VERIFY.md` or `verify.sh` is not there, and seal 0 tells of it", "Bucket"),
    "page_mismatch": Code("error",
        "`VERIFY.md` or `verify.sh` is not the one that seal 0 tells of", "Seal"),
    "signature_missing": Code("error", "a seal has no `.sig`", "Order of writes"),
    "signature_invalid": Code("error",
        "a `.sig` is no signature of the archive's key over the seal's bytes", "Seal"),
    "seal_time": Code("warning", "`sealed_at` lies over 5 minutes before that of the seal before",
        "Seal"),
    "watermark_back": Code("error", "the watermark went back", "Invariant 3"),
    "running_total": Code("error", "`records` is not the seal before's plus that of its segments",
        "Seal"),
    "tail_missing": Code("error", "the chain ends before the head given with `--head`",
        "Invariant 6"),
    "head_mismatch": Code("error", "the seal at the number given with `--head` is another one",
        "Invariant 6"),
    # segments
    "segment_key": Code("error", "a seal names a segment by a key that none can have", "Bucket"),
    "segment_twice": Code("error", "a segment stands in more than one seal", "Seal"),
    "segment_missing": Code("error", "a segment that a seal or a companion names is not there",
        "Order of writes"),
    "segment_mismatch": Code("error", "a segment has another size or SHA-256 than its seal says",
        "Seal"),
    "segment_root": Code("error", "a segment has another Merkle root than its seal says", "Seal"),
    "segment_records": Code("error", "a segment has another number of records than its seal says",
        "Seal"),
    "segment_invalid": Code("error", "a segment has a malformed line, or lines out of order",
        "Segment"),
    "event_invalid": Code("error",
        "an event is malformed, or a hold names an object of another call", "Events"),
    "pointer_missing": Code("error", "a sealed segment has no `.seal`", "Order of writes"),
    "pointer_mismatch": Code("error", "a `.seal` names another seal", "Bucket"),
    "pointer_dangling": Code("error", "a `.seal` stands beside a segment that no seal covers",
        "Order of writes"),
    "companion_missing": Code("error", "a sealed segment has no `.sha256`", "Order of writes"),
    "companion_mismatch": Code("error",
        "a `.sha256` is not the list of its segment, records and files", "Bucket"),
    "newer_format": Code("warning",
        "written by a newer release, in a later format (`v`) than this release knows: verify with "
        "that release; what is known of the object all the same, such as its hash, was checked",
        "The JSON"),
    "unsealed_segment": Code("info", "a segment waits for its seal: a writer is at work, or ended",
        "Order of writes"),
    # windows
    "window_mismatch": Code("error",
        "a window line states another window or revision than its key", "Segment"),
    "window_revision": Code("error", "a window's revisions have a gap", "Segment"),
    "revision_skipped": Code("info",
        "a window's revisions have a gap, because the key of the missing one is taken by an object "
        "that is not ours, which has a finding of its own: the next number was used", "Segment"),
    "window_balance": Code("error", "listed is not archived + no_recording + failed + pending",
        "Segment"),
    "window_counts": Code("error", "a window line's counts are not those of its records",
        "Segment"),
    "listed_mismatch": Code("error",
        "`listed_sha256` is not that of the ids that the window tells of", "Segment"),
    "call_lost": Code("error", "a call once pending is neither recorded, pending nor vanished",
        "Invariant 2"),
    "listing_unreadable": Code("warning",
        "the newest listing of a window had entries that could not be told as calls: they are not "
        "archived, and nobody knows which calls they are", "Segment"),
    "sighting_lost": Code("error",
        "a call that a sighting tells of has no record and is not pending, though a later listing "
        "of its window is sealed (not looked for with `--from` or `--to`)", "Invariant 2"),
    "sighting_unreadable": Code("warning",
        "an object at the key of a sighting is none: foreign bytes, or cut", "Sightings"),
    "call_in_two_windows": Code("warning",
        "two windows count the same calls: the sum over all windows has them twice",
        "Which calls belong to a window"),
    "window_overlap": Code("warning", "two windows overlap", "Invariant 3"),
    "window_gap": Code("error", "between seal 0's watermark and the head's, a time has no window",
        "Invariant 3"),
    "watermark_ahead": Code("error", "a watermark passed a window that was sealed only later",
        "Invariant 3"),
    # records and files
    "record_incomplete": Code("error", "a record says archived and names no recording",
        "Invariant 1"),
    "record_unreadable": Code("error",
        "an object at the key of a record is no record of that key (foreign bytes, empty, or cut), "
        "and no sealed segment names it (not looked for with `--from` or `--to`)", "Record"),
    "record_missing": Code("error", "a record of a segment is not there", "Invariant 1"),
    "record_mismatch": Code("error", "a record is not the line of its segment", "Segment"),
    "file_key": Code("error", "a record names a file by a key that is not its call's", "Bucket"),
    "file_missing": Code("error", "a file, or its very version, is not there", "Invariant 1"),
    "file_size": Code("error", "a file has another size than its record says", "Invariant 1"),
    "file_checksum": Code("error", "the store's own SHA-256 of a file is not the record's",
        "Invariant 1"),
    "file_hash": Code("error", "a file's bytes have another SHA-256", "Invariant 1"),
    "retention_weaker": Code("error",
        "an object is locked for shorter, or weaker, than its record promises; or a segment, "
        "companion, pointer, seal or signature for shorter than the records that it covers",
        "Record"),
    "retention_missing": Code("warning",
        "the store tells of no lock where the record promises one, or the records that a segment "
        "or a seal covers: there is none, or you may not read it (`s3:GetObjectRetention`)",
        "Record"),
    "hold_missing": Code("error",
        "the ledger holds the call, and the store tells of no legal hold on one of its objects: "
        "there is none, or you may not read it (`s3:GetObjectLegalHold`)", "Events"),
    "hold_unrecorded": Code("warning",
        "an object is on legal hold, and the ledger does not hold its call: `archiver hold` was "
        "cut short, or somebody did it without", "Events"),
    "overwritten": Code("error", "a key has more than one version", "Invariant 7"),
    "deleted": Code("error", "a delete marker hides a key", "Invariant 7"),
    "recreated": Code("error", "a key was deleted by a marker, then written again", "Invariant 7"),
    # the bucket
    "too_large": Code("error", "an object is larger than any of its kind can be", "Invariant 9"),
    "unreadable": Code("error", "the store does not hand out an object, while it hands out others",
        "Invariant 1"),
    "unlistable": Code("error",
        "the store does not list what lies below a prefix, or not to its end, while it lists "
        "others: what it did not list was not looked at", "Invariant 1"),
    "unexpected_object": Code("info",
        "a key below `manifest/seals/`, `segments/`, `events/`, `keys/` or `log/` that nothing "
        "explains", "Bucket"),
    "foreign_object": Code("warning",
        "a key below `manifest/`, `records/` or `recordings/` that no rule of the layout makes: "
        "somebody else has put it there", "Bucket"),
    "unnamed_object": Code("info",
        "no sealed record names an object under `recordings/`: its window is not sealed yet, or a "
        "try left it (not looked for with `--from` or `--to`)", "Bucket"),
    "untold_record": Code("info",
        "no sealed segment tells of an object under `records/`: its window is not sealed yet, or "
        "it was amended before that (not looked for with `--from` or `--to`)", "Revisions"),
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Finding:
    """One finding about one object. `key` is the object's key, `detail` a text of the archiver."""

    code: str
    key: str
    detail: str = ""

    @property
    def severity(self) -> Severity:
        return CODES[self.code].severity


class Findings:
    """Collects findings: counts all of them, keeps the first `limit`. Threads share it."""

    def __init__(self, limit: int = 1000) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: list[Finding] = []
        self._counts: Counter[str] = Counter()

    def add(self, code: str, key: str, detail: str = "") -> None:
        """Add one finding. Raises `KeyError` for a code that is not in the table."""
        self.count(code, 1)
        with self._lock:
            if len(self._kept) < self._limit:
                self._kept.append(Finding(code, key, detail))

    def count(self, code: str, number: int) -> None:
        """Count findings without keeping them. Raises `KeyError` as `add` does."""
        if code not in CODES:
            raise KeyError(code)
        with self._lock:
            self._counts[code] += max(0, number)

    def kept(self) -> list[Finding]:
        """Return the kept findings sorted by code, key and detail, because threads add them in any
        order."""
        return sorted(self._kept)

    def counts(self) -> dict[str, int]:
        return dict(sorted((+self._counts).items()))


@dataclass
class Counts:
    """How much the archive has, and how much was hashed. `files` and `bytes` count the files that
    records name; a file that several records of a window name counts once."""

    seals: int = 0
    segments: int = 0
    windows: int = 0
    events: int = 0
    records: int = 0
    files: int = 0
    bytes: int = 0
    files_hashed: int = 0
    bytes_hashed: int = 0
    pending: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    """Calls by outcome. A call's outcome is that of its newest record in the window."""

    def add(self, other: Counts) -> None:
        """Add the other counts to these."""
        for name, value in vars(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)
        self.calls.update(other.calls)

    def document(self) -> dict[str, Any]:
        return {**vars(self), "calls": {name: self.calls[name] for name in OUTCOMES}}


@dataclass(frozen=True)
class Report:
    """The result of an audit."""

    scope: Mapping[str, Any]
    """The options of the audit: level, from, to, sample."""
    archive: str | None
    key_id: str | None
    key_given: bool
    """Whether the auditor gave the public key; else it is the one in seal 0."""
    head: Seal | None
    counts: Counts
    findings: Sequence[Finding]
    """The kept findings, sorted. `totals` counts all."""
    totals: Mapping[str, int]
    """Code → number of findings."""
    notes: Sequence[str]

    @property
    def ok(self) -> bool:
        """Whether all findings have severity `info`."""
        return all(CODES[code].severity == "info" for code in self.totals)

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1

    def document(self) -> dict[str, Any]:
        """The form of `verify --json`: stable; later versions only add fields.

        `v` 1; `ok`; `scope` {level, from, to, sample}; `archive`, `key_id`, `key_given`; `head`
        {seq, sha256, sealed_at, watermark} or null; `counts` {seals, segments, windows, events,
        records, files, bytes, files_hashed, bytes_hashed, pending, calls {outcome: n}};
        `findings` [{code, severity, key, detail}], at most 1,000; `totals` {code: n}; `notes`.
        """
        return {
            "type": "verify",
            "v": 1,
            "ok": self.ok,
            "scope": dict(self.scope),
            "archive": self.archive,
            "key_id": self.key_id,
            "key_given": self.key_given,
            "head": None
            if self.head is None
            else {
                "seq": self.head.seq,
                "sha256": self.head.sha256,
                "sealed_at": format_time(self.head.sealed_at),
                "watermark": format_time(self.head.watermark),
            },
            "counts": self.counts.document(),
            "findings": [{**vars(one), "severity": one.severity} for one in self.findings],
            "totals": dict(self.totals),
            "notes": list(self.notes),
        }
