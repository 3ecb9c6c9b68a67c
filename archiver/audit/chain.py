"""The chain of seals, read whole and in order: numbers, hashes, signatures, key, totals.

What is wrong with one seal does not stop the reading: each link is checked against the bytes that
stand before it, so that a damaged seal is told from the seals around it.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from archiver.audit.safe_reader import ReportingReader
from archiver.core.concurrency import ordered
from archiver.core.errors import FormatError, NewerFormat, StoreError, UsageError
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


class ChainCheck:
    """One reading of a chain. `check` is called once."""

    def __init__(self, reader: ReportingReader, executor: Executor, ahead: int) -> None:
        self._reader = reader
        self._report = reader.findings.add
        self._executor = executor
        self._ahead = ahead
        self._view = ChainView()
        self._before: tuple[int, str, Seal | None] = (-1, seal.NO_SEAL, None)
        """Number, SHA-256 and, if it could be parsed, content of the seal read last."""

    def check(self, key: PublicKey | None, head: KnownHead | None) -> ChainView:
        """Read all seals. `key` and `head` are what the auditor knows from outside."""
        view, numbers = self._view, self._list_seals()
        view.key, view.seals = key, len(numbers)

        def fetch(seq: int) -> tuple[int, bytes | None, bytes | None]:
            data = self._reader.read(layout.seal_key(seq), MAX_SEAL_BYTES, "seal_missing")
            at, late = layout.signature_key(seq), seq == view.last
            signature = self._reader.read(at, SIGNATURE_BYTES, "signature_missing", late=late)
            return seq, data, signature

        for seq, data, signature in ordered(self._executor, fetch, numbers, self._ahead):
            if data is not None:
                self._check_seal(seq, data, signature, head)
        if head is not None and head.seq > view.last:
            at = layout.seal_key(head.seq)
            self._report("tail_missing", at, f"the chain ends at seal {view.last}")
        return view

    # --- which seals there are

    def _list_seals(self) -> list[int]:
        """The numbers of the seals that exist, ascending; gaps are reported."""
        seals, signatures = set[int](), set[int]()
        for listed in self._reader.list(layout.SEALS):
            parsed = layout.parse_seal_key(listed.key)
            seq, is_signature = parsed or (0, False)
            if parsed is None or listed.key != _key_of(seq, is_signature=is_signature):
                self._report("unexpected_object", listed.key)
                continue
            (signatures if is_signature else seals).add(seq)
        if layout.SEALS in self._reader.unlistable:
            seals.update(range(self._find_newest(max(seals, default=-1)) + 1))
        self._view.last = max(seals, default=-1)
        if not seals and not signatures:
            self._report("no_archive", layout.seal_key(0))
        expected, newest = 0, max(seals | signatures, default=-1)
        for seq in [*sorted(seals), newest + 1]:
            if expected < seq:
                detail = "" if expected == seq - 1 else f"nor any up to {seq - 1}"
                self._report("seal_missing", layout.seal_key(expected), detail)
            expected = seq + 1
        return sorted(seals)

    def _find_newest(self, known: int) -> int:
        """The number of the newest seal where seals cannot be listed, -1 without any: ask for each,
        in steps that double and then halve."""

        def is_there(number: int) -> bool:
            try:
                return self._reader.reader.head(layout.seal_key(number)) is not None
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

    # --- one seal

    def _check_seal(
        self, seq: int, data: bytes, signature: bytes | None, known: KnownHead | None
    ) -> None:
        """Check a seal's bytes; `known` is the seal that the auditor knows.

        1. Where it is the known one, it has the known SHA-256.
        2. It parses, and is in canonical form.
        3. Seal 0 says which archive and which key it is.
        4. The key has signed these bytes. A seal that does not parse is signed or not all the same.
        5. It agrees with seal 0, and with the seal before.
        6. Its segments and its watermark are remembered.
        """
        view, key, digest = self._view, layout.seal_key(seq), hashlib.sha256(data).hexdigest()
        # 1. The known head.
        if known is not None and known.seq == seq and known.sha256 != digest:
            self._report("head_mismatch", key, f"its SHA-256 is {digest}")
        # 2. The format.
        this = self._parse(key, data)
        # 3. Seal 0.
        if this is not None and seq == 0:
            self._check_genesis(this)
        # 4. The signature.
        if signature is not None and view.key and not view.key.verifies(data, signature):
            self._report("signature_invalid", layout.signature_key(seq))
        if this is not None:
            # 5. The chain.
            self._check_links(seq, this)
            # 6. What it names.
            view.read.add(seq)
            for entry in this.segments:
                earlier = view.segments.setdefault(entry.key, Sealed(entry, seq))
                if earlier.seq != seq or earlier.entry is not entry:
                    self._report("segment_twice", entry.key, f"in seals {earlier.seq} and {seq}")
            start = view.head.watermark if view.head is not None else this.watermark
            if this.watermark > start or view.head is None:
                view.advances.append(Advance(seq, start, this.watermark))
            view.head = this
        self._before = (seq, digest, this)

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

    def _check_genesis(self, genesis: Seal) -> None:
        """Take the archive's name and key from seal 0, and hold them against their objects."""
        view, at = self._view, layout.seal_key(0)
        store = genesis.document.get("store")
        proved = store if isinstance(store, dict) else {}
        view.archive, view.object_lock = genesis.archive, proved.get("object_lock") is True
        try:
            pem = str(genesis.document.get("public_key")).encode()
            own = PublicKey.from_pem(pem)
        except (FormatError, UnicodeEncodeError):
            self._report("seal_invalid", at, "no Ed25519 public key")
            return
        if own.key_id != genesis.key_id:
            self._report("key_mismatch", at, "key_id is not that of public_key")
        if view.key is None:
            view.key = own
        elif view.key.key_id != own.key_id:
            self._report("key_mismatch", at, f"you trust {view.key.key_id}, it has another")
        view.key_object = layout.public_key_key(own.key_id)
        stored = self._reader.read(view.key_object, MAX_KEY_BYTES, "public_key_missing")
        if stored is not None and stored != pem:
            self._report("public_key_mismatch", view.key_object)
        # The verifier's page and script, where seal 0 tells of them: older ones do not.
        pages = proved.get("pages")
        for page in (layout.VERIFY_PAGE, layout.VERIFY_SCRIPT):
            if isinstance(pages, dict) and page in pages:
                data = self._reader.read(page, MAX_PAGE_BYTES, "page_missing")
                if data is not None and hashlib.sha256(data).hexdigest() != pages[page]:
                    self._report("page_mismatch", page)

    def _check_links(self, seq: int, this: Seal) -> None:
        """A seal against seal 0 and the seal before."""
        view, key = self._view, layout.seal_key(seq)
        if this.seq != seq:
            self._report("seal_number", key)
        if view.archive is not None and this.archive != view.archive:
            self._report("archive_mismatch", key)
        if seq > 0 and view.key is not None and this.key_id != view.key.key_id:
            self._report("key_mismatch", key)
        before_seq, before_digest, before = self._before
        if before_seq != seq - 1:
            return  # the seal before is missing, and that has been said
        if this.prev != before_digest:
            self._report("prev_mismatch", key)
        total = sum(entry.records for entry in this.segments)
        if seq == 0 and this.records != total:
            self._report("running_total", key)
        if before is None:
            return
        if this.records != before.records + total:
            self._report("running_total", key)
        if before.sealed_at - this.sealed_at > CLOCK_TOLERANCE:
            self._report("seal_time", key)
        if this.watermark < before.watermark:
            self._report("watermark_back", key)


def _key_of(seq: int, *, is_signature: bool) -> str:
    return layout.signature_key(seq) if is_signature else layout.seal_key(seq)
