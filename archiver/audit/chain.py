"""The chain of seals, read whole and in order: numbers, hashes, signatures, key, totals.

What is wrong with one seal does not stop the reading: each link is checked against the bytes that
stand before it, so that a damaged seal is told from the seals around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from archiver.audit.gate import Gate
from archiver.audit.parallel import ordered
from archiver.errors import FormatError, NewerFormat, StoreError, UsageError
from archiver.manifest import canonical, layout, seal
from archiver.manifest.record import refuse_newer
from archiver.manifest.seal import Seal, SegmentEntry
from archiver.manifest.signing import PublicKey

MAX_SEAL_BYTES = 16 << 20
MAX_KEY_BYTES = 64 << 10
MAX_PAGE_BYTES = 4 << 20
SIGNATURE_BYTES = 64
CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far `sealed_at` may go back: two writers' clocks differ."""


@dataclass(frozen=True)
class KnownHead:
    """A seal that the auditor knows from outside the bucket: number and SHA-256."""

    seq: int
    sha256: str

    @classmethod
    def parse(cls, text: str) -> KnownHead:
        """Read `SEQ:SHA256`; raises `UsageError`."""
        seq, _, digest = text.strip().partition(":")
        digest = digest.lower()
        if not (seq.isascii() and seq.isdigit() and len(seq) <= 12):
            raise UsageError(
                "--head takes SEQ:SHA256, for instance 41:9f86d0…, as verify prints it"
            )
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise UsageError("--head takes SEQ:SHA256 with the 64 hex digits that verify prints")
        return cls(int(seq), digest)


@dataclass(frozen=True)
class Sealed:
    """A segment as a seal names it."""

    entry: SegmentEntry
    seq: int


@dataclass(frozen=True)
class Advance:
    """Seal `seq` moved the watermark from `start` to `end`."""

    seq: int
    start: datetime
    end: datetime


@dataclass
class ChainView:
    """What the chain says, as far as it could be read."""

    seals: int = 0
    archive: str | None = None
    key: PublicKey | None = None
    """What signatures were checked with: the given key, else that of seal 0, else nothing."""
    key_object: str | None = None
    """Where the key of seal 0 lies."""
    object_lock: bool = False
    """Whether seal 0 tells of a bucket with Object Lock: only there can a legal hold be."""
    head: Seal | None = None
    """The newest seal that could be read."""
    last: int = -1
    """The newest number, read or not."""
    read: set[int] = field(default_factory=set)
    """The numbers of the seals that could be read."""
    segments: dict[str, Sealed] = field(default_factory=dict)
    """By key, each with the first seal that names it."""
    advances: list[Advance] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether every seal from 0 to the newest could be read."""
        return len(self.read) == self.last + 1 > 0


@dataclass(frozen=True)
class _Fetched:
    seq: int
    data: bytes | None
    signature: bytes | None


class ChainCheck:
    """One reading of a chain. `check` is called once."""

    def __init__(self, gate: Gate, executor: Executor, ahead: int) -> None:
        self._gate = gate
        self._report = gate.findings.add
        self._executor = executor
        self._ahead = ahead
        self._view = ChainView()
        self._before: tuple[int, str, Seal | None] | None = None
        """Number, SHA-256 and, if it parsed, content of the seal read last."""

    def check(self, key: PublicKey | None, head: KnownHead | None) -> ChainView:
        """Read all seals. `key` and `head` are what the auditor knows from outside."""
        view = self._view
        numbers = self._numbers()
        view.key, view.seals = key, len(numbers)
        for fetched in ordered(self._executor, self._fetch, numbers, self._ahead):
            if fetched.data is not None:
                self._seal(fetched.seq, fetched.data, fetched.signature, head)
        if head is not None and head.seq > view.last:
            self._report(
                "tail_missing", layout.seal_key(head.seq), f"the chain ends at seal {view.last}"
            )
        return view

    # --- which seals there are

    def _numbers(self) -> list[int]:
        """The numbers of the seals that exist, ascending; gaps are reported."""
        seals, signatures = set[int](), set[int]()
        for listed in self._gate.list(layout.SEALS):
            parsed = layout.parse_seal_key(listed.key)
            if parsed is None or listed.key not in _keys(parsed[0]):
                self._report("unexpected_object", listed.key)
                continue
            (signatures if parsed[1] else seals).add(parsed[0])
        if layout.SEALS in self._gate.unlistable:
            seals.update(range(self._newest(max(seals, default=-1)) + 1))
        numbers = sorted(seals)
        self._view.last = numbers[-1] if numbers else -1
        if not seals and not signatures:
            self._report("no_archive", layout.seal_key(0))
            return []
        for first, last in _gaps(sorted(seals | signatures), seals):
            detail = "" if first == last else f"nor any up to {last}"
            self._report("seal_missing", layout.seal_key(first), detail)
        return numbers

    def _newest(self, known: int) -> int:
        """The number of the newest seal where seals cannot be listed, -1 without any: ask for each,
        in steps that double and then halve."""

        def is_there(number: int) -> bool:
            try:
                return self._gate.reader.head(layout.seal_key(number)) is not None
            except StoreError:
                return False  # some stores refuse what is not there; an outage shows soon enough

        low, step = known, 1
        while is_there(low + step):
            low, step = low + step, step * 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if is_there(middle) else (low, middle)
        return low

    def _fetch(self, seq: int) -> _Fetched:
        data = self._gate.read(layout.seal_key(seq), MAX_SEAL_BYTES, "seal_missing")
        late = seq == self._view.last
        signature = self._gate.read(
            layout.signature_key(seq), SIGNATURE_BYTES, "signature_missing", late=late
        )
        return _Fetched(seq, data, signature)

    # --- one seal

    def _seal(
        self, seq: int, data: bytes, signature: bytes | None, known: KnownHead | None
    ) -> None:
        key, digest = layout.seal_key(seq), hashlib.sha256(data).hexdigest()
        if known is not None and known.seq == seq and known.sha256 != digest:
            self._report("head_mismatch", key, f"its SHA-256 is {digest}")
        parsed = self._parse(key, data)
        if parsed is not None and seq == 0:
            self._genesis(parsed)
        trusted = self._view.key
        if signature is not None and trusted and not trusted.verifies(data, signature):
            self._report("signature_invalid", layout.signature_key(seq))
        if parsed is not None:
            self._fields(seq, parsed)
            self._collect(seq, parsed)
        self._before = (seq, digest, parsed)

    def _parse(self, key: str, data: bytes) -> Seal | None:
        try:
            refuse_newer(canonical.load_object(data))
            parsed = seal.parse_seal(data)
            if canonical.dump(parsed.document) == data:
                return parsed
            self._report("seal_invalid", key, "not in canonical form")
        except NewerFormat as error:
            self._report("newer_format", key, str(error))
        except FormatError as error:
            self._report("seal_invalid", key, str(error))
        return None

    def _genesis(self, genesis: Seal) -> None:
        """Take the key and the archive's name from seal 0, and compare the key with its object."""
        self._view.archive = genesis.archive
        store = genesis.document.get("store")
        self._view.object_lock = isinstance(store, dict) and store.get("object_lock") is True
        key = layout.seal_key(0)
        try:
            pem = str(genesis.document.get("public_key")).encode()
            own = PublicKey.from_pem(pem)
        except (FormatError, UnicodeEncodeError):
            self._report("seal_invalid", key, "no Ed25519 public key")
            return
        if own.key_id != genesis.key_id:
            self._report("key_mismatch", key, "key_id is not that of public_key")
        if self._view.key is None:
            self._view.key = own
        elif self._view.key.key_id != own.key_id:
            self._report("key_mismatch", key, f"you trust {self._view.key.key_id}, it has another")
        self._view.key_object = at = layout.public_key_key(own.key_id)
        stored = self._gate.read(at, MAX_KEY_BYTES, "public_key_missing")
        if stored is not None and stored != pem:
            self._report("public_key_mismatch", at)
        self._pages(genesis)

    def _pages(self, genesis: Seal) -> None:
        """The verifier's page and script, where seal 0 tells of them: older ones do not."""
        store = genesis.document.get("store")
        told = store.get("pages") if isinstance(store, dict) else None
        for at in (layout.VERIFY_PAGE, layout.VERIFY_SCRIPT):
            if not isinstance(told, dict) or at not in told:
                continue
            page = self._gate.read(at, MAX_PAGE_BYTES, "page_missing")
            if page is not None and hashlib.sha256(page).hexdigest() != told[at]:
                self._report("page_mismatch", at)

    def _fields(self, seq: int, this: Seal) -> None:
        """The seal against what stands before it."""
        view, key = self._view, layout.seal_key(seq)
        if this.seq != seq:
            self._report("seal_number", key)
        if view.archive is not None and this.archive != view.archive:
            self._report("archive_mismatch", key)
        if seq > 0 and view.key is not None and this.key_id != view.key.key_id:
            self._report("key_mismatch", key)
        before_seq, before_digest, before = self._before or (-1, seal.NO_SEAL, None)
        if before_seq != seq - 1:
            return  # the seal before is missing, and that has been said
        if this.prev != before_digest:
            self._report("prev_mismatch", key)
        total = sum(entry.records for entry in this.segments)
        if seq == 0 and this.records != total:
            self._report("running_total", key)
        if before is not None:
            self._progress(key, before, this, total)

    def _progress(self, key: str, before: Seal, this: Seal, total: int) -> None:
        if this.records != before.records + total:
            self._report("running_total", key)
        if before.sealed_at - this.sealed_at > CLOCK_TOLERANCE:
            self._report("seal_time", key)
        if this.watermark < before.watermark:
            self._report("watermark_back", key)

    def _collect(self, seq: int, this: Seal) -> None:
        """Remember the segments, and how far the watermark went."""
        view = self._view
        view.read.add(seq)
        for entry in this.segments:
            earlier = view.segments.setdefault(entry.key, Sealed(entry, seq))
            if earlier.seq != seq or earlier.entry is not entry:
                self._report("segment_twice", entry.key, f"in seals {earlier.seq} and {seq}")
        start = view.head.watermark if view.head is not None else this.watermark
        if this.watermark > start or view.head is None:
            view.advances.append(Advance(seq, start, this.watermark))
        view.head = this


def _keys(seq: int) -> tuple[str, str]:
    return layout.seal_key(seq), layout.signature_key(seq)


def _gaps(expected: Iterable[int], present: set[int]) -> Iterator[tuple[int, int]]:
    """The runs of numbers, from 0 to the largest expected, that are not present."""
    start, last = 0, -1
    for last in expected:
        if last in present:
            if start < last:
                yield start, last - 1
            start = last + 1
    if start <= last:
        yield start, last
