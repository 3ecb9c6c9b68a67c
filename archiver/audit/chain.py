"""Reads the chain of seals: all of it in order, or only the seals of a few segments.

`check_chain` reads every seal and checks numbers, hashes, signatures, key and totals. It continues
after a damaged seal: `prev` is checked against the stored bytes of the previous seal, whether these
parse or not, so that a finding names the damaged seal and not its neighbours.

`SealedSegments` finds and reads segments that a seal names. A seal pointer alone proves nothing,
because anybody with write access may write one: the seal is read too, and the segment must have the
SHA-256 that the seal states. It does not check signatures; `check_chain` does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import groupby
from typing import IO, NamedTuple

from archiver.audit.safe_reader import ItemReader, ReportingReader, Unreadable, naming
from archiver.audit.segment_lines import (
    MAX_RECORD_BYTES,
    MAX_SEGMENT_BYTES,
    parse_record,
    segment_name,
)
from archiver.core.concurrency import ordered
from archiver.core.errors import ArchiverError, FormatError, UsageError
from archiver.manifest import canonical, layout, seal
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Record
from archiver.manifest.seal import POINTER_BYTES, Seal, SegmentEntry, parse_seal_pointer
from archiver.manifest.signing import PublicKey

MAX_SEAL_BYTES = 16 << 20
MAX_KEY_BYTES = 64 << 10
MAX_PAGE_BYTES = 4 << 20
SIGNATURE_BYTES = 64
CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far `sealed_at` may go back from one seal to the next: the clocks of two writers differ."""
SEALS_KEPT = 256
"""Size of the cache of seals. Neighbouring segments are named by the same or neighbouring seals."""


@dataclass(frozen=True)
class KnownHead:
    """A seal that the auditor knows from outside the bucket: its number and SHA-256."""

    seq: int
    sha256: str

    @classmethod
    def parse(cls, text: str) -> KnownHead:
        """Parse `SEQ:SHA256`. Raises `UsageError`."""
        seq, _, digest = text.strip().lower().partition(":")
        if not re.fullmatch("[0-9]{1,12}", seq):
            raise UsageError(
                "--head takes SEQ:SHA256, for instance 41:9f86d0…, as verify prints it"
            )
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise UsageError("--head takes SEQ:SHA256 with the 64 hex digits that verify prints")
        return cls(int(seq), digest)


class SealedEntry(NamedTuple):
    """A seal's entry for a segment, and the number of the seal."""

    entry: SegmentEntry
    seq: int


class Advance(NamedTuple):
    """Seal `seq` moved the watermark from `start` to `end`."""

    seq: int
    start: datetime
    end: datetime


@dataclass
class ChainView:
    """The content of the chain, as far as it could be read."""

    seals: int = 0
    archive: str | None = None
    key: PublicKey | None = None
    """The key that signatures are checked with: the given key, else that of seal 0, else none."""
    key_object: str | None = None
    """The key, in the bucket, of the object with the public key of seal 0."""
    object_lock: bool = False
    """Whether seal 0 says that the bucket has Object Lock. Without it no legal hold can exist."""
    head: Seal | None = None
    """The newest seal that could be read."""
    last: int = -1
    """The number of the newest seal, whether it could be read or not; -1 without seals."""
    read: set[int] = field(default_factory=set)
    """The numbers of the seals that could be read."""
    segments: dict[str, SealedEntry] = field(default_factory=dict)
    """By segment key, the entry of the first seal that names the segment."""
    advances: list[Advance] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether every seal from 0 to the newest could be read."""
        return len(self.read) == self.last + 1 > 0


def check_chain(
    reader: ReportingReader,
    executor: Executor,
    ahead: int,
    public_key: PublicKey | None,
    known: KnownHead | None,
) -> ChainView:
    """Read all seals and report findings. `public_key` and `known` come from the auditor, not from
    the bucket.

    1. List the seals and report gaps in their numbers. Read each seal and its signature.
    2. Compare the known head's SHA-256.
    3. Parse the seal, and check that it is in canonical form.
    4. Take the archive's id and key from seal 0.
    5. Check the signature, also of a seal that does not parse.
    6. Compare the seal with seal 0 and with the previous seal.
    7. Remember the segments that it names, and its watermark.
    8. Check that the chain reaches the known head.
    """
    report, view = reader.findings.add, ChainView(key=public_key)
    # 1. The seals.
    numbers = _list_seals(reader, view)
    view.seals = len(numbers)

    def read(seq: int) -> tuple[bytes | None, bytes | None]:
        data = reader.read(layout.seal_key(seq), MAX_SEAL_BYTES, "seal_missing")
        # A writer may be about to write the signature of the newest seal.
        at, late = layout.signature_key(seq), seq == view.last
        return data, reader.read(at, SIGNATURE_BYTES, "signature_missing", late=late)

    before_seq, before_digest = -1, seal.NO_SEAL
    before: Seal | None = None
    for seq, (data, signature) in zip(
        numbers, ordered(executor, read, numbers, ahead), strict=True
    ):
        if data is None:
            continue
        key, digest = layout.seal_key(seq), hashlib.sha256(data).hexdigest()
        # 2. The known head.
        if known is not None and known.seq == seq and known.sha256 != digest:
            report("head_mismatch", key, f"its SHA-256 is {digest}")
        # 3. The format.
        this = reader.parsed(key, data, _parse, "seal_invalid")
        # 4. Seal 0.
        if this is not None and seq == 0:
            _check_genesis(reader, view, this)
        # 5. The signature.
        if signature is not None and view.key and not view.key.verifies(data, signature):
            report("signature_invalid", layout.signature_key(seq))
        if this is not None:
            # 6. Seal 0 and the previous seal.
            total = sum(entry.records for entry in this.segments)
            if this.seq != seq:
                report("seal_number", key)
            if view.archive is not None and this.archive != view.archive:
                report("archive_mismatch", key)
            if seq > 0 and view.key is not None and this.key_id != view.key.key_id:
                report("key_mismatch", key)
            if before_seq == seq - 1:  # else it is missing or unreadable, which was reported
                if this.prev != before_digest:
                    report("prev_mismatch", key)
                if before is not None or seq == 0:
                    carried = before.records if before is not None else 0
                    if this.records != carried + total:
                        report("running_total", key)
                if before is not None and before.sealed_at - this.sealed_at > CLOCK_TOLERANCE:
                    report("seal_time", key)
                if before is not None and this.watermark < before.watermark:
                    report("watermark_back", key)
            # 7. What it names.
            view.read.add(seq)
            for entry in this.segments:
                first = view.segments.setdefault(entry.key, SealedEntry(entry, seq))
                if first.entry is not entry:
                    report("segment_twice", entry.key, f"in seals {first.seq} and {seq}")
            start = view.head.watermark if view.head is not None else this.watermark
            if this.watermark > start or view.head is None:
                view.advances.append(Advance(seq, start, this.watermark))
            view.head = this
        before_seq, before_digest, before = seq, digest, this
    # 8. The end.
    if known is not None and known.seq > view.last:
        report("tail_missing", layout.seal_key(known.seq), f"the chain ends at seal {view.last}")
    return view


def _list_seals(reader: ReportingReader, view: ChainView) -> list[int]:
    """The numbers of the seals that exist, ascending; gaps are reported."""
    seals, signatures = set[int](), set[int]()
    for listed in reader.list(layout.SEALS):
        seq, is_signature = layout.parse_seal_key(listed.key) or (0, False)
        if listed.key == layout.seal_key(seq) and not is_signature:
            seals.add(seq)
        elif listed.key == layout.signature_key(seq) and is_signature:
            signatures.add(seq)
        else:
            reader.findings.add("unexpected_object", listed.key)
    if layout.SEALS in reader.unlistable:
        # The listing failed or ended early: search the rest with HEAD requests.

        def is_there(seq: int) -> bool:
            try:
                return seq in seals or reader.items.head(layout.seal_key(seq)) is not None
            except ArchiverError:
                # Some stores refuse a missing key with 403. An outage fails the next request.
                return False

        seals.update(range(find_newest(is_there, max(seals, default=-1)) + 1))
    view.last = max(seals, default=-1)
    if not seals and not signatures:
        reader.findings.add("no_archive", layout.seal_key(0))
    # A signature above the newest seal shows that its seal is missing.
    expected, newest = 0, max(seals | signatures, default=-1)
    for seq in [*sorted(seals), newest + 1]:
        if expected < seq:
            detail = "" if expected == seq - 1 else f"nor any up to {seq - 1}"
            reader.findings.add("seal_missing", layout.seal_key(expected), detail)
        expected = seq + 1
    return sorted(seals)


def find_newest(is_there: Callable[[int], bool], low: int = -1) -> int:
    """Return the number of the newest seal, -1 without any. Takes O(log n) calls of `is_there`: the
    steps double, then halve. `low` is a number known to exist. Assumes that there is no gap."""
    step = 1
    while is_there(low + step):
        low, step = low + step, step * 2
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_there(middle) else (low, middle)
    return low


def _parse(data: bytes) -> Seal:
    parsed = seal.parse_seal(data)
    if canonical.dump(parsed.document) != data:
        raise FormatError("not in canonical form")
    return parsed


def _check_genesis(reader: ReportingReader, view: ChainView, genesis: Seal) -> None:
    """Take the archive's id and key from seal 0, and compare the public key, `VERIFY.md` and
    `verify.sh` in the bucket with what seal 0 states."""
    report, at = reader.findings.add, layout.seal_key(0)
    store = genesis.document.get("store")
    proved = store if isinstance(store, dict) else {}
    view.archive, view.object_lock = genesis.archive, proved.get("object_lock") is True
    try:
        pem = str(genesis.document.get("public_key")).encode()
        own = PublicKey.from_pem(pem)
    except (FormatError, UnicodeEncodeError):
        report("seal_invalid", at, "no Ed25519 public key")
        return
    if own.key_id != genesis.key_id:
        report("key_mismatch", at, "key_id is not that of public_key")
    if view.key is None:
        view.key = own
    elif view.key.key_id != own.key_id:
        report("key_mismatch", at, f"you trust {view.key.key_id}, it has another")
    view.key_object = layout.public_key_key(own.key_id)
    stored = reader.read(view.key_object, MAX_KEY_BYTES, "public_key_missing")
    if stored is not None and stored != pem:
        report("public_key_mismatch", view.key_object)
    # `VERIFY.md` and `verify.sh`. Seal 0 of an older release does not name them.
    pages = proved.get("pages")
    for page in (layout.VERIFY_PAGE, layout.VERIFY_SCRIPT):
        if isinstance(pages, dict) and page in pages:
            data = reader.read(page, MAX_PAGE_BYTES, "page_missing")
            if data is not None and hashlib.sha256(data).hexdigest() != pages[page]:
                report("page_mismatch", page)


# --- the segments that seals name


class SealedSegments:
    """Finds segments and the seals that name them. For one thread.

    All methods raise `FormatError` if an object is not as it was sealed; its message says to run
    `archiver verify`.
    """

    def __init__(self, reader: ItemReader) -> None:
        self._reader = reader
        self._seal = lru_cache(SEALS_KEPT)(self._read_seal)
        self._newest: Seal | None = None

    def names(self, prefix: str = layout.SEGMENTS) -> list[SegmentName]:
        """List the segments of windows below a prefix, sealed or not, in order."""
        names = (segment_name(item.key) for item in self._reader.list(prefix))
        return sorted(name for name in names if name is not None)

    def windows(self, day: date) -> dict[datetime, list[SegmentName]]:
        """Return the segments of a day by the start of their window, oldest revision first."""
        names = self.names(layout.segment_prefix(day))
        return {start: list(own) for start, own in groupby(names, lambda name: name.start)}

    def record(self, key: str) -> Record:
        """Read the record at a key, sealed or not."""
        with naming(key):
            return parse_record(self._reader.read(key, None, MAX_RECORD_BYTES) or b"")

    def entry(self, name: SegmentName) -> SealedEntry | None:
        """Return the seal's entry for a segment; None while no seal names it."""
        key = layout.seal_pointer_key(name.jsonl)
        pointer = self._reader.read(key, None, POINTER_BYTES)
        # A writer completes a seal, pointers included, before it writes the next one. So only the
        # newest seal can lack pointers.
        number = parse_seal_pointer(pointer) if pointer is not None else self.newest().seq
        for entry in self._seal(number).segments if number is not None else ():
            if entry.key == name.jsonl:
                return SealedEntry(entry, number or 0)
        if pointer is None:
            return None
        raise FormatError(f"{key} names no seal that covers it: run archiver verify")

    @contextmanager
    def open(self, entry: SegmentEntry) -> Iterator[IO[bytes]]:
        """Open a segment. Raises `FormatError` unless its SHA-256 is that of the seal's entry."""
        damage = FormatError(f"{entry.key} is not as it was sealed: run archiver verify")
        try:
            # A longer object cannot be the sealed one, so no more bytes are read.
            spooled = self._reader.spool(entry.key, min(entry.bytes, MAX_SEGMENT_BYTES))
        except Unreadable as error:
            raise (damage if error.reason == "too_large" else error) from None
        if spooled is None:
            raise damage
        with spooled.file:
            if spooled.sha256 != entry.sha256:
                raise damage
            yield spooled.file

    def genesis(self) -> Seal | None:
        """Return seal 0; None if the archive has no seals. Raises `FormatError` if only others
        exist."""
        if self._is_there(0):
            return self._seal(0)
        if next(iter(self._reader.list(layout.SEALS)), None) is not None:
            raise FormatError(f"{layout.seal_key(0)} is missing: run archiver verify")
        return None

    def newest(self) -> Seal:
        """Return the head of the chain. Raises `FormatError` if there is no seal 0."""
        if self._newest is None:
            number = find_newest(self._is_there)
            if number < 0:
                raise FormatError("there is no archive here: no seal 0")
            self._newest = self._seal(number)
        return self._newest

    def _read_seal(self, number: int) -> Seal:
        key = layout.seal_key(number)
        with naming(key):
            return seal.parse_seal(self._reader.read(key, None, MAX_SEAL_BYTES) or b"")

    def _is_there(self, number: int) -> bool:
        return self._reader.head(layout.seal_key(number)) is not None


def record_days(folders: set[str]) -> list[date]:
    """Return the days among the folders below `records/`, newest first. Any day may occur, also far
    in the past or future: it comes from the source's times."""
    days = {day for name in folders if (day := layout.parse_day_dir(name)) is not None}
    return sorted(days, reverse=True)
