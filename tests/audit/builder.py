"""Real archives for the auditor, made with the formats alone: no line of the pipeline runs here.

A builder also says what `verify` finds in its archive.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from archiver.audit.findings import Report
from archiver.audit.verify import Options, verify
from archiver.core.errors import StoreError
from archiver.core.model import Call, Window, format_time
from archiver.manifest import canonical, event, layout, record, seal
from archiver.manifest.event import HoldEvent, ObjectRef
from archiver.manifest.record import FILE_KINDS, File, FileKind, Record
from archiver.manifest.seal import Seal
from archiver.manifest.segment import Balance, Listing
from archiver.manifest.signing import SigningKey
from tests.audit.store import MemoryStore
from tests.fakes.segments import Segment, build_segment

DAY = datetime(2024, 1, 15, tzinfo=UTC)
HOUR = timedelta(hours=1)
FOREVER = {"mode": "COMPLIANCE", "until": "2099-01-01T00:00:00Z"}
COMPLETED = {"state": ["Completed"]}
"""The filter that windows are listed with, unless a test says otherwise."""
PAGES = {layout.VERIFY_PAGE: b"how to verify\n", layout.VERIFY_SCRIPT: b"exit 2\n"}
UNKNOWN = FileKind("diary.md", "text/markdown", "what a later release may add")
KINDS = {**FILE_KINDS, "diary": UNKNOWN}


def hour(number: int) -> Window:
    """The `number`th hour of the builder's day."""
    return Window(DAY + number * HOUR, DAY + (number + 1) * HOUR)


@dataclass
class Builder:
    """Builds one archive in a `MemoryStore`, in the order of writes."""

    store: MemoryStore = field(default_factory=MemoryStore)
    key: SigningKey = field(default_factory=SigningKey.generate)
    retention: Mapping[str, Any] | None = None
    object_lock: bool = False
    start: datetime = DAY + 10 * HOUR
    now: datetime = DAY + 48 * HOUR
    seals: list[Seal] = field(default_factory=list)

    def genesis(
        self,
        *,
        archive: str = "6f1f7b0e-0000-4000-8000-000000000001",
        pages: Mapping[str, bytes] | None = PAGES,
    ) -> Builder:
        """`pages` None: as development versions began archives."""
        self.put(layout.public_key_key(self.key.public.key_id), self.key.public.pem)
        proved: dict[str, Any] = {"object_lock": self.object_lock, "versioning": True}
        for key, page in (pages or {}).items():
            self.put(key, page)
            proved.setdefault("pages", {})[key] = hashlib.sha256(page).hexdigest()
        data = seal.genesis(
            archive, self.key.public, proved, sealed_at=self.now, watermark=self.start
        )
        self.put_seal(data)
        return self

    def put(self, key: str, data: bytes) -> str | None:
        """What covers records is locked for longer than any record promises."""
        lock = FOREVER if key.startswith("manifest/") else self.retention or {}
        until = datetime.fromisoformat(lock["until"]) if lock else None
        return self.store.put(key, data, lock_mode=lock.get("mode"), lock_until=until)

    def call(
        self,
        call_id: str,
        window: Window,
        *,
        outcome: str = "archived",
        revision: int = 1,
        kinds: Sequence[str] = ("recording", "transcript", "epa"),
        audio: bytes | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> Record:
        """Archive one call: files, then the record. `fields` are what the source tells otherwise
        of the call."""
        started = window.start + timedelta(minutes=5)
        call = Call(
            call_id,
            {
                "id": call_id,
                "startTime": format_time(started),
                "endTime": format_time(started + timedelta(seconds=312)),
                "durationSeconds": 312,
                "campaignId": "camp_456",
                "direction": "Outbound",
                "state": "Completed",
                **(fields or {}),
            },
        )
        if outcome != "archived":
            kinds = [kind for kind in kinds if kind != "recording"]
        files = tuple(self._file(call_id, window, kind, audio) for kind in kinds)
        found = record.build(
            call,
            outcome=outcome,  # type: ignore[arg-type]
            files=files,
            source={"api": "https://api.example.com/api/v1"},
            audio={"channels": 1, "sample_rate_hz": 8000} if outcome == "archived" else None,
            reason={"archived": None, "no_recording": "not_found", "failed": "not_wav"}[outcome],
            day=started.date(),
            revision=revision,
            archived_at=self.now,
            retention=self.retention,
        )
        self.put(found.key, found.data)
        return found

    def _file(self, call_id: str, window: Window, kind: str, audio: bytes | None) -> File:
        row = KINDS[kind]
        key = layout.recording_dir(window.start.date(), call_id) + row.name
        if kind == "recording":
            data = audio or hashlib.sha256(call_id.encode()).digest() * 50
        else:
            data = canonical.dump({"id": call_id, "kind": kind, "text": "Grüße"})
        if key in self.store.all_keys():  # an amendment names what is there
            version_id = self.store.entry(key).version_id if self.store.versioned else None
            data = self.store.data(key)
        else:
            version_id = self.put(key, data)
        digest = hashlib.sha256(data).hexdigest()
        return File(kind, key, len(data), digest, row.content_type, version_id)

    def segment(
        self,
        window: Window,
        records: Sequence[Record],
        *,
        revision: int = 1,
        outcomes: Mapping[str, str] | None = None,
        pending: Sequence[str] = (),
        vanished: Sequence[str] = (),
        filters: Mapping[str, Any] = COMPLETED,
        write: bool = True,
    ) -> Segment:
        """Close a window. `outcomes` is the state after this revision, if not just `records`."""
        if outcomes is None:
            outcomes = {found.call_id: found.outcome for found in records}
        listing = Listing(self.now, 1, 2, len(outcomes) + len(pending), filters)
        built = build_segment(
            window, revision, records, Balance(outcomes, pending, vanished), listing
        )
        if write:
            self.put(built.name.jsonl, built.data)
            self.put(built.name.sha256, built.sha256_file())
        return built

    def event(self, name: str, *events: Mapping[str, Any]) -> tuple[str, bytes]:
        """A segment of any events, and its companion, as `(key, bytes)`."""
        data = b"".join(canonical.dump({"v": 1, **event}) for event in events)
        return self._put_events(f"{layout.EVENTS}dt={DAY.date()}/{name}.jsonl", data)

    def hold(self, action: str, *call_ids: str, on: bool | None = None) -> tuple[str, bytes]:
        """A segment with an act for each call, as `(key, bytes)`. All objects of the call are put
        on hold, or taken off; `on` says otherwise."""
        held = action == "add" if on is None else on
        acts = []
        for call_id in call_ids:
            keys = [key for key in self.store.all_keys() if f"/{layout.call_dir(call_id)}/" in key]
            for key in keys:
                self.store.entry(key).held = held
            objects = tuple(ObjectRef(key, self.store.entry(key).version_id) for key in keys)
            at = self.now + timedelta(seconds=len(self.seals))
            acts.append(HoldEvent(action, call_id, "Ada", "case 7", at, objects))  # type: ignore[arg-type]
        return self._put_events(*event.segment(acts))

    def _put_events(self, key: str, data: bytes) -> tuple[str, bytes]:
        self.put(key, data)
        self.put(layout.checksum_list_key(key), event.checksum_list(key, data))
        return key, data

    def seal(
        self,
        *segments: Segment,
        watermark: datetime | None = None,
        events: Sequence[tuple[str, bytes]] = (),
    ) -> Seal:
        """Append to the chain; the watermark goes to the end of the last window unless told."""
        entries = [seal.segment_entry(s.name.jsonl, io.BytesIO(s.data)) for s in segments]
        entries += [
            seal.segment_entry(key, io.BytesIO(data), window_lines=0) for key, data in events
        ]
        carried = self.seals[-1].watermark
        mark = watermark or max((s.window.end for s in segments), default=carried)
        data = seal.next_seal(
            self.seals[-1],
            entries,
            key_id=self.key.public.key_id,
            sealed_at=self.now,
            watermark=mark,
        )
        sealed = self.put_seal(data)
        for one in segments:
            self.put(one.name.seal, f"{sealed.seq}\n".encode())
        for key, _ in events:
            self.put(layout.seal_pointer_key(key), f"{sealed.seq}\n".encode())
        return sealed

    def close(
        self,
        window: Window,
        records: Sequence[Record] = (),
        *,
        watermark: datetime | None = None,
        **options: Any,
    ) -> Seal:
        """Close a window, and seal it; `options` are those of `segment`."""
        return self.seal(self.segment(window, records, **options), watermark=watermark)

    def put_seal(self, data: bytes, *, at: int | None = None) -> Seal:
        """Write a seal's bytes with a good signature."""
        sealed = seal.parse_seal(data)
        number = sealed.seq if at is None else at
        self.put(layout.seal_key(number), data)
        self.put(layout.signature_key(number), self.key.sign(data))
        self.seals.append(sealed)
        return sealed

    @property
    def head(self) -> str:
        """What an auditor notes of the chain: SEQ:SHA256."""
        return f"{self.seals[-1].seq}:{self.seals[-1].sha256}"

    def lock(self, key: str, mode: str | None, until: str | None) -> None:
        """Have the store say that its newest version is locked so."""
        entry = self.store.entry(key)
        entry.lock_mode = mode
        entry.lock_until = datetime.fromisoformat(until) if until else None

    def refuse(self, key: str) -> None:
        """Have the store refuse whatever is asked of this key, or below this prefix."""
        self.store.refuse[key] = StoreError("odd", reason="denied")

    # --- what the auditor says of it

    def audit(self, *, now: datetime | None = None, **options: Any) -> Report:
        """What `verify` reports; nobody waits for a writer at work."""
        return verify(self.store, Options(**options), now=now, pause=lambda _: None)

    def found(self, **options: Any) -> list[tuple[str, str]]:
        """Code and key of each finding."""
        return [(one.code, one.key) for one in self.audit(**options).findings]


def small_archive(store: MemoryStore | None = None, **options: Any) -> Builder:
    """Three windows of the loop, one re-listed: four seals, every outcome, pending and vanished.

    10:00 r1  vc_a archived, vc_b no_recording, vc_x pending, vc_g archived
    10:00 r2  vc_x archived now, vc_a amended, vc_g vanished
    11:00 r1  nothing
    12:00 r1  vc_c failed, vc_d archived, one with an odd id
    """
    builder = Builder(store or MemoryStore(), **options).genesis()
    a1 = builder.call("vc_a", hour(10), kinds=("recording", "transcript"))
    first = builder.segment(
        hour(10),
        [
            a1,
            builder.call("vc_b", hour(10), outcome="no_recording"),
            builder.call("vc_g", hour(10)),
        ],
        pending=["vc_x"],
    )
    builder.seal(first)
    builder.close(hour(11))
    third = builder.segment(
        hour(12),
        [
            builder.call("vc_c", hour(12), outcome="failed"),
            builder.call("vc_d", hour(12)),
            builder.call("../önd\n=1", hour(12)),
        ],
    )
    builder.seal(third)
    again = builder.segment(
        hour(10),
        [builder.call("vc_x", hour(10)), builder.call("vc_a", hour(10), revision=2)],
        revision=2,
        outcomes={"vc_a": "archived", "vc_b": "no_recording", "vc_x": "archived"},
        vanished=["vc_g"],
    )
    builder.seal(again, watermark=hour(12).end)
    return builder


def unordered_archive() -> Builder:
    """What is newest comes neither last in its segment nor in the last segment; by name, the tenth
    revision of anything comes before the second.

    10:00 r1   vc_a in r10 (archived), then in r2 (failed)
    10:00 r2   vc_a in r3 (failed), vc_b in r10 (archived)
    10:00 r3   vc_b in r9 (failed)
    11:00 r1   vc_c failed, vc_p pending
    11:00 r10  vc_c archived, vc_p archived; vc_d, which vanishes in r11
    """
    builder = Builder().genesis()
    a10, b10 = (builder.call(call_id, hour(10), revision=10) for call_id in ("vc_a", "vc_b"))
    a2, a3, b9 = (
        builder.call(call_id, hour(10), revision=number, outcome="failed")
        for call_id, number in (("vc_a", 2), ("vc_a", 3), ("vc_b", 9))
    )
    known = {"vc_a": "archived"}
    builder.close(hour(10), [a10, a2], outcomes=known)
    known["vc_b"] = "archived"
    builder.close(hour(10), [a3, b10], revision=2, outcomes=known)
    builder.close(hour(10), [b9], revision=3, outcomes=known)
    known = {"vc_c": "failed"}
    failed = builder.call("vc_c", hour(11), outcome="failed")
    builder.close(hour(11), [failed], pending=["vc_p"])
    for number in range(2, 10):
        builder.close(hour(11), revision=number, outcomes=known, pending=["vc_p"])
    late = [builder.call("vc_c", hour(11), revision=2)]
    late += [builder.call(call_id, hour(11)) for call_id in ("vc_d", "vc_p")]
    builder.close(hour(11), late, revision=10)
    known = {"vc_c": "archived", "vc_p": "archived"}
    last = builder.segment(hour(11), [], revision=11, outcomes=known, vanished=["vc_d"])
    builder.seal(last)
    return builder
