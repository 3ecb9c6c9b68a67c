"""Every kind of damage that `verify` has a code for, each done to a sound archive."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from archiver.manifest import canonical, layout, record, seal
from archiver.manifest.signing import SigningKey
from tests.audit.builder import Builder, hour, small_archive

SEGMENTS = "manifest/segments/dt=2024-01-15/"
FIRST = SEGMENTS + "1000.r1"
THIRD = SEGMENTS + "1200.r1"
WAV = "recordings/dt=2024-01-15/vc_d/recording.wav"
TRANSCRIPT = "recordings/dt=2024-01-15/vc_d/transcript.json"
RECORD = "records/dt=2024-01-15/vc_d/r1.json"
HOLD = {
    "action": "add",
    "at": "2024-01-16T00:00:00Z",
    "by": "Ada",
    "call_id": "vc_c",
    "reason": "case 7",
    "type": "hold",
}
UNTOLD = {"untold_record", "unnamed_object"}
"""What is left of a window that no seal tells of, or of a call that its segment has lost."""


@dataclass(frozen=True)
class Damage:
    """`do` damages an archive; `codes` is all that verify may say. `head`: it needs `--head`."""

    name: str
    codes: set[str]
    do: Callable[[Builder], object]
    level: str = "objects"
    head: bool = False
    shell: bool = True
    """Whether verify.sh, which sees newest versions only and computes no Merkle root, finds it."""


def flip(data: bytes, at: int | None = None) -> bytes:
    """One bit of one byte changed; in the middle unless told where."""
    at = len(data) // 2 if at is None else at
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def replace(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return change


def edited(data: bytes, **fields: Any) -> bytes:
    """A document with other fields."""
    return canonical.dump({**canonical.load_object(data), **fields})


def drop_record(data: bytes) -> bytes:
    """A segment without its second record: the window line goes on to count it."""
    lines = data.splitlines(keepends=True)
    return b"".join([lines[0], *lines[2:]])


def rehash_companion(builder: Builder, stem: str) -> None:
    """What somebody without the key can do: make the `.sha256` fit the segment again."""
    data = builder.store.data(stem + ".jsonl")
    digest = hashlib.sha256(data).hexdigest().encode()
    builder.store.rot(stem + ".sha256", lambda old: digest + old[64:])


def dropped_and_rehashed(builder: Builder) -> None:
    builder.store.rot(THIRD + ".jsonl", drop_record)
    rehash_companion(builder, THIRD)


def dropped_and_resealed(builder: Builder) -> None:
    """As above, and the seal rewritten to fit, without the key to sign it."""
    dropped_and_rehashed(builder)
    entry = seal.segment_entry(THIRD + ".jsonl", io.BytesIO(builder.store.data(THIRD + ".jsonl")))
    edit_seal(builder, 3, segments=[vars(entry)])


def edit_seal(builder: Builder, seq: int, *, sign: bool = False, **fields: Any) -> None:
    key = layout.seal_key(seq)
    data = edited(builder.store.data(key), **fields)
    builder.store.rot(key, lambda _: data)
    if sign:
        builder.store.rot(layout.signature_key(seq), lambda _: builder.key.sign(data))


def dropped_and_rechained(builder: Builder) -> None:
    """As above, and the seal after it as well."""
    dropped_and_resealed(builder)
    edit_seal(builder, 3, records=builder.seals[3].records - 1)
    before = seal.parse_seal(builder.store.data(layout.seal_key(3)))
    edit_seal(builder, 4, prev=before.sha256, records=builder.seals[4].records - 1)


def swap_seals(builder: Builder, *, signatures: bool = True) -> None:
    for make in (layout.seal_key, layout.signature_key)[: 1 + signatures]:
        builder.store.swap(make(2), make(3))


def lose_seal(builder: Builder, seq: int, *, signature: bool = True) -> None:
    builder.store.lose(layout.seal_key(seq))
    if signature:
        builder.store.lose(layout.signature_key(seq))


def cut_tail(builder: Builder) -> None:
    """The newest seal and all that shows that it was there."""
    lose_seal(builder, 4)
    for extension in ("jsonl", "sha256", "seal"):
        builder.store.lose(f"{SEGMENTS}1000.r2.{extension}")


def other_key(builder: Builder) -> None:
    """Seal 4 made again, well-formed and well signed, by somebody else."""
    other = SigningKey.generate()
    edit_seal(builder, 4, key_id=other.public.key_id)
    data = builder.store.data(layout.seal_key(4))
    builder.store.rot(layout.signature_key(4), lambda _: other.sign(data))


# Mistakes of a writer that has the key: well signed and wrong all the same.


def wrong_segment(**options: Any) -> Callable[[Builder], object]:
    """A fourth window whose line does not fit its records."""

    def do(builder: Builder) -> None:
        found = builder.call("vc_e", hour(13))
        builder.close(hour(13), [found], **options)

    return do


def wrong_lines(
    change: Callable[[list[bytes]], list[bytes]], calls: str = "ef"
) -> Callable[[Builder], object]:
    """A fourth window with its lines changed before it was sealed; a letter for each call."""

    def do(builder: Builder) -> None:
        records = [builder.call(f"vc_{name}", hour(13)) for name in calls]
        built = builder.segment(hour(13), records, write=False)
        data = b"".join(change(built.data.splitlines(keepends=True)))
        seal_bytes(builder, SEGMENTS + "1300.r1", data, hour(13).end)

    return do


def wrong_line(**fields: Any) -> Callable[[Builder], object]:
    """A fourth window with fields of its window line changed before it was sealed."""
    return wrong_lines(lambda lines: [*lines[:-1], edited(lines[-1], **fields)], "e")


def seal_bytes(builder: Builder, stem: str, data: bytes, watermark: Any, **entry: Any) -> None:
    """Seal any bytes as a segment; its companion lists what can be told of them."""
    described = seal.segment_entry(stem + ".jsonl", io.BytesIO(data))
    before = builder.seals[-1]
    builder.put(stem + ".jsonl", data)
    digest = hashlib.sha256(data).hexdigest()
    rows, files = [f"{digest}  {stem}.jsonl"], []
    for line in data.splitlines(keepends=True)[:-1]:
        document = canonical.load_object(line)
        rows.append(f"{hashlib.sha256(line).hexdigest()}  {document['record']}")
        files += [f"{file['sha256']}  {file['key']}" for file in document["files"]]
    builder.put(stem + ".sha256", "".join(row + "\n" for row in rows + files).encode())
    made = canonical.load_object(
        seal.next_seal(
            before,
            [described],
            key_id=builder.key.public.key_id,
            sealed_at=builder.now,
            watermark=watermark,
        )
    )
    made["segments"][0].update(entry)
    made["records"] = before.records + made["segments"][0]["records"]
    sealed = builder.put_seal(canonical.dump(made))
    builder.put(stem + ".seal", f"{sealed.seq}\n".encode())


def wrong_entry(**entry: Any) -> Callable[[Builder], object]:
    """A fourth window whose seal says something else of it."""

    def do(builder: Builder) -> None:
        data = builder.segment(hour(13), [], write=False).data
        seal_bytes(builder, SEGMENTS + "1300.r1", data, hour(13).end, **entry)

    return do


def odd_file(**fields: Any) -> Callable[[Builder], object]:
    """A record, well sealed, whose recording has other fields than it may."""

    def do(builder: Builder) -> None:
        found = builder.call("vc_e", hour(13))
        document = canonical.load_object(found.data)
        document["files"][0].update(fields)
        line = canonical.dump(document)
        builder.store.rot(found.key, lambda _: line)
        last = builder.segment(hour(13), [found], write=False).data.splitlines(keepends=True)[-1]
        seal_bytes(builder, SEGMENTS + "1300.r1", line + last, hour(13).end)

    return do


def fall_silent(builder: Builder) -> None:
    """A call is pending, and the next revision does not speak of it."""
    builder.close(hour(13), pending=["vc_p"])
    builder.close(hour(13), revision=2, outcomes={})


def skip_window(builder: Builder) -> None:
    builder.close(hour(14))


def seal_late(builder: Builder) -> None:
    """The watermark passes a window that only the next seal covers."""
    builder.seal(watermark=hour(13).end)
    builder.close(hour(13))


def skip_revision(builder: Builder) -> None:
    builder.close(hour(11), revision=3)


def overlap(builder: Builder) -> None:
    window = hour(12)
    half = type(window)(window.start + timedelta(minutes=30), window.end)
    builder.close(half, watermark=hour(12).end)


def count_twice(builder: Builder) -> None:
    """A window counts a call of the window before."""
    builder.close(hour(13), [record.parse(builder.store.data(RECORD))])


def archive_without_recording(builder: Builder) -> None:
    builder.close(hour(13), [builder.call("vc_e", hour(13), kinds=("transcript",))])


def event(builder: Builder, line: dict[str, Any]) -> None:
    builder.seal(events=[builder.event("101112-0123abcd", line)])


def held(builder: Builder) -> str:
    """Put vc_d on hold; where the segment lies, without its suffix."""
    key, data = builder.hold("add", "vc_d")
    builder.seal(events=[(key, data)])
    return key.removesuffix(".jsonl")


DAMAGES = [
    # flips
    Damage("flip in a WAV", {"file_hash"}, lambda b: b.store.rot(WAV, flip), "bytes"),
    Damage("flip in a sidecar", {"file_hash"}, lambda b: b.store.rot(TRANSCRIPT, flip), "bytes"),
    Damage("flip in a record", {"record_mismatch"}, lambda b: b.store.rot(RECORD, flip)),
    Damage("flip in a segment", {"segment_mismatch", "record_mismatch"}, lambda b:
        b.store.rot(THIRD + ".jsonl", replace(b"Outbound", b"Outbounc"))),
    Damage("flip in a seal", {"signature_invalid", "prev_mismatch"}, lambda b:
        b.store.rot(layout.seal_key(2), replace(b"00Z", b"01Z"))),
    Damage("flip in the newest seal", {"signature_invalid"}, lambda b:
        b.store.rot(layout.seal_key(4), replace(b"00Z", b"01Z"))),
    Damage("flip that leaves no JSON", {"seal_invalid", "signature_invalid", "prev_mismatch"},
        lambda b: b.store.rot(layout.seal_key(2), replace(b'"v":1', b'"v";1'))),
    Damage("flip in a signature", {"signature_invalid"}, lambda b:
        b.store.rot(layout.signature_key(2), flip)),
    Damage("flip in a pointer", {"pointer_mismatch"}, lambda b: b.store.rot(FIRST + ".seal", lambda
        d: flip(d, 0))),
    Damage("flip in a companion", {"companion_mismatch"}, lambda b: b.store.rot(FIRST + ".sha256",
        flip)),
    Damage("flip in the public key", {"public_key_mismatch"}, lambda b:
        b.store.rot(layout.public_key_key(b.key.public.key_id), flip)),
    # what is gone
    Damage("a file is gone", {"file_missing"}, lambda b: b.store.lose(WAV)),
    Damage("a record is gone", {"record_missing"}, lambda b: b.store.lose(RECORD)),
    Damage("a segment is gone", {"segment_missing"}, lambda b: b.store.lose(THIRD + ".jsonl")),
    Damage("a companion is gone", {"companion_missing"}, lambda b: b.store.lose(THIRD + ".sha256")),
    Damage("a pointer is gone", {"pointer_missing"}, lambda b: b.store.lose(THIRD + ".seal")),
    Damage("a seal is gone", {"seal_missing"}, lambda b: lose_seal(b, 2)),
    Damage("the newest seal is gone, its signature is not", {"seal_missing", "pointer_dangling",
        *UNTOLD}, lambda b: lose_seal(b, 4, signature=False)),
    Damage("the newest seal and its signature are gone", {"pointer_dangling", *UNTOLD}, lambda b:
        lose_seal(b, 4), shell=False),
    Damage("a segment is gone that no seal names, its companion is not", {"segment_missing"},
        lambda b: b.store.lose(b.segment(hour(13), []).name.jsonl), shell=False),
    Damage("seal 0 is gone", {"seal_missing"}, lambda b: lose_seal(b, 0)),
    Damage("a signature is gone", {"signature_missing"}, lambda b:
        b.store.lose(layout.signature_key(4))),
    Damage("the public key is gone", {"public_key_missing"}, lambda b:
        b.store.lose(layout.public_key_key(b.key.public.key_id))),
    Damage("everything is gone", {"no_archive"}, lambda b: [b.store.lose(key) for key in
        b.store.all_keys()]),
    # what somebody did on purpose
    Damage("two seals swapped", {"seal_number", "prev_mismatch", "running_total",
        "pointer_mismatch", "watermark_back", "watermark_ahead"}, swap_seals),
    Damage("two seals swapped, their signatures left", {"signature_invalid", "seal_number",
        "prev_mismatch", "running_total", "pointer_mismatch", "watermark_back", "watermark_ahead"},
        lambda b:
        swap_seals(b, signatures=False)),
    Damage("a record dropped, companion re-hashed", {"segment_mismatch", "companion_mismatch",
        "window_counts", "listed_mismatch"}, dropped_and_rehashed),
    Damage("a record dropped, seal rewritten without the key", {"signature_invalid",
        "prev_mismatch", "running_total", "companion_mismatch", "window_counts", "listed_mismatch",
        *UNTOLD}, dropped_and_resealed),
    Damage("a record dropped, all seals rewritten without the key", {"signature_invalid",
        "companion_mismatch", "window_counts", "listed_mismatch", *UNTOLD}, dropped_and_rechained),
    Damage("the newest seal rewritten without the key", {"signature_invalid"}, lambda b:
        edit_seal(b, 4, sealed_at="2024-01-17T00:00:01Z")),
    Damage("a cut-off tail", {"tail_missing", *UNTOLD}, cut_tail, head=True),
    Damage("a rewritten tail", {"head_mismatch"}, lambda b: edit_seal(b, 4, sign=True,
        sealed_at="2024-01-17T00:00:01Z"), head=True),
    Damage("seal 0 names another key than it holds", {"key_mismatch", "prev_mismatch"}, lambda b:
        edit_seal(b, 0, sign=True, key_id="0123456789abcdef")),
    Damage("a seal by another key", {"key_mismatch", "signature_invalid"}, other_key),
    Damage("a seal of another archive", {"archive_mismatch"}, lambda b: edit_seal(b, 4, sign=True,
        archive="6f1f7b0e-0000-4000-8000-000000000002")),
    Damage("overwritten", {"overwritten"}, lambda b: b.store.put(WAV, b"other bytes"), shell=True),
    Damage("overwritten with the same bytes", {"overwritten"}, lambda b: b.store.put(WAV,
        b.store.data(WAV)), shell=False),
    Damage("a seal overwritten with the same bytes", {"overwritten"}, lambda b:
        b.store.put(layout.seal_key(1), b.store.data(layout.seal_key(1))), "manifest", shell=False),
    Damage("hidden by a delete marker", {"deleted"}, lambda b: b.store.delete(WAV)),
    Damage("deleted and created again", {"recreated"}, lambda b: (data := b.store.data(WAV),
        b.store.delete(WAV), b.store.put(WAV, data)), shell=False),
    # what a writer got wrong
    Damage("records is no running total", {"running_total"}, lambda b: edit_seal(b, 4, sign=True,
        records=9)),
    Damage("the watermark goes back", {"watermark_back"}, lambda b: edit_seal(b, 4, sign=True,
        watermark="2024-01-15T12:00:00Z")),
    Damage("sealed long before the seal before", {"seal_time"}, lambda b: edit_seal(b, 4,
        sign=True, sealed_at="2024-01-16T00:00:00Z"), shell=False),
    Damage("a segment in two seals", {"segment_twice"}, lambda b: edit_seal(b, 4, sign=True,
        segments=[vars(b.seals[4].segments[0]), vars(b.seals[2].segments[0])])),
    Damage("a segment with an odd key", {"segment_key", "pointer_dangling", *UNTOLD}, lambda b:
        edit_seal(b, 4, sign=True, segments=[{**vars(b.seals[4].segments[0]), "key":
        "../etc/passwd"}])),
    Damage("another Merkle root", {"segment_root"}, wrong_entry(root="0" * 64), shell=False),
    Damage("another number of records", {"segment_records"}, wrong_entry(records=1)),
    Damage("a line that is no window line", {"segment_invalid"}, wrong_line(type="x")),
    Damage("a window without its counts", {"segment_invalid"}, wrong_line(failed=None)),
    Damage("a window line in another form", {"segment_invalid"}, wrong_lines(lambda lines:
        [*lines[:-1], lines[-1].replace(b",", b", ", 1)]), shell=False),
    Damage("another window", {"window_mismatch"}, wrong_line(**{"from": "2024-01-15T13:01:00Z"})),
    Damage("another revision", {"window_mismatch"}, wrong_line(revision=2)),
    Damage("a window that does not balance", {"window_balance"}, wrong_line(listed=2)),
    Damage("counts that are not the records'", {"window_counts"}, wrong_line(archived=0,
        no_recording=1)),
    Damage("another listing", {"listed_mismatch"}, wrong_line(listed_sha256="0" * 64)),
    Damage("an id listed and not told of", {"window_counts", "listed_mismatch"},
        wrong_segment(outcomes={"vc_e": "archived", "vc_lost": "archived"})),
    Damage("records out of order", {"segment_invalid"}, wrong_lines(lambda lines: [lines[1],
        lines[0], lines[2]]), shell=False),
    Damage("a record twice", {"segment_invalid"}, wrong_lines(lambda lines: [lines[0], lines[0],
        lines[2]])),
    Damage("a call falls silent", {"call_lost"}, fall_silent),
    Damage("a window left out", {"window_gap"}, skip_window),
    Damage("a watermark too early", {"watermark_ahead"}, seal_late, shell=False),
    Damage("a revision left out", {"window_revision"}, skip_revision),
    Damage("two windows overlap", {"window_overlap"}, overlap),
    Damage("a call in two windows", {"call_in_two_windows"}, count_twice, shell=False),
    Damage("archived without a recording", {"record_incomplete"}, archive_without_recording),
    Damage("a file of another call", {"file_key", "unnamed_object"}, odd_file(key=WAV),
        shell=False),
    Damage("a file of another kind", {"file_key", "record_incomplete"},
        odd_file(kind="transcript")),
    Damage("a file anywhere", {"file_key", "unnamed_object"}, odd_file(key="manifest/../x")),
    Damage("a file of another size", {"file_size"}, odd_file(bytes=7), shell=False),
    Damage("a file of a version that is not there", {"file_missing"},
        odd_file(version_id="v99999"), shell=False),
    Damage("a file of another SHA-256", {"file_checksum"}, odd_file(sha256="0" * 64)),
    Damage("a file without a size", {"segment_invalid"}, odd_file(bytes=-1), shell=False),
    # events
    Damage("an event without a time", {"event_invalid"}, lambda b: event(b, {"type": "note"}),
        shell=False),
    Damage("a hold that does not say whose", {"event_invalid"}, lambda b: event(b, {"type": "hold",
        "at": "2024-01-16T00:00:00Z"}), shell=False),
    Damage("a hold of another call's object", {"event_invalid"}, lambda b: event(b, {**HOLD,
        "objects": [{"key": WAV, "version_id": None}]}), shell=False),
    Damage("a hold of what is no object of a call", {"event_invalid"}, lambda b: event(b, {**HOLD,
        "objects": [{"key": "manifest/x", "version_id": None}]}), shell=False),
    Damage("flip in a segment of events", {"segment_mismatch", "event_invalid"}, lambda b:
        b.store.rot(held(b) + ".jsonl", replace(b'"v":1', b'"v":0'))),
    Damage("another reason for a hold", {"segment_mismatch"}, lambda b: b.store.rot(held(b) +
        ".jsonl", replace(b"case 7", b"case 8"))),
    Damage("flip in a pointer of events", {"pointer_mismatch"}, lambda b: b.store.rot(held(b) +
        ".seal", lambda d: flip(d, 0))),
    Damage("a pointer of events is gone", {"pointer_missing"}, lambda b: b.store.lose(held(b) +
        ".seal")),
    Damage("flip in a companion of events", {"companion_mismatch"}, lambda b: b.store.rot(held(b) +
        ".sha256", flip)),
    Damage("a line more in a companion of events", {"companion_mismatch"}, lambda b:
        b.store.rot(held(b) + ".sha256", lambda d: d + d)),
    Damage("a companion of events is gone", {"companion_missing"}, lambda b: b.store.lose(held(b) +
        ".sha256")),
    Damage("a segment of events is gone", {"segment_missing"}, lambda b: b.store.lose(held(b) +
        ".jsonl")),
    Damage("the seal of events is gone, their pointer is not", {"pointer_dangling",
        "hold_unrecorded"}, lambda b: (held(b), lose_seal(b, 5)), shell=False),
    Damage("a hold is gone from a file", {"hold_missing"}, lambda b: (held(b),
        setattr(b.store.entry(WAV), "held", False)), shell=False),
    Damage("a hold is gone from a record", {"hold_missing"}, lambda b: (held(b),
        setattr(b.store.entry(RECORD), "held", False)), shell=False),
    Damage("a hold that nobody wrote down", {"hold_unrecorded"}, lambda b:
        setattr(b.store.entry(WAV), "held", True), shell=False),
    # the verifier's own page
    Damage("another verify.sh", {"page_mismatch"}, lambda b: b.store.rot(layout.VERIFY_SCRIPT,
        flip)),
    Damage("VERIFY.md is gone", {"page_missing"}, lambda b: b.store.lose(layout.VERIFY_PAGE)),
]  # fmt: skip


def damaged(damage: Damage) -> tuple[Builder, str]:
    """An archive with the damage done, and the head that an auditor knew before."""
    builder = small_archive()
    head = builder.head
    damage.do(builder)
    return builder, head
