"""What lies in a bucket and is not ours, is cut short, or was written by a newer release."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from archiver.core.model import format_time
from archiver.manifest import canonical, event, layout, record, segment, sighting
from tests.audit.builder import DAY, Builder, hour
from tests.audit.damage import SEGMENTS, Damage, edited, seal_bytes, wrong_lines

STRANGE = "records/dt=2024-01-15/vc_strange/r1.json"
FOREIGN_BYTES = b"this is not ours"
THIRTEEN = SEGMENTS + "1300.r1"
TAG = "0123456789abcdef"
SIGHTING = layout.sighting_key(hour(12).start, TAG)


def newer(data: bytes) -> bytes:
    """The same document as a newer release may write it: other fields, another version."""
    return edited(data, novelty={"x": [1]}, v=2)


def at(key: str, data: bytes) -> Callable[[Builder], object]:
    """An object that no writer of ours has put there."""

    def do(builder: Builder) -> None:
        builder.store.put(key, data)

    return do


def unsealed_record(change: Callable[[bytes], bytes]) -> Callable[[Builder], object]:
    """A record that no segment names yet, changed."""

    def do(builder: Builder) -> None:
        found = builder.call("vc_e", hour(13), kinds=())
        builder.store.rot(found.key, change)

    return do


def unsealed_segment(
    change: Callable[[bytes], bytes], suffix: str = ".jsonl"
) -> Callable[[Builder], object]:
    """A segment that no seal names yet; one of its objects is changed."""

    def do(builder: Builder) -> None:
        built = builder.segment(hour(13), [])
        builder.store.rot(built.name.jsonl.removesuffix(".jsonl") + suffix, change)

    return do


def events(change: Callable[[bytes], bytes]) -> bytes:
    held = event.HoldEvent("add", "vc_c", "Ada", "case 7", DAY, ())
    return change(held.line)


def sealed_segment(*newer_lines: int) -> Callable[[Builder], object]:
    """A well sealed window, some of whose lines are of a newer release."""

    def do(builder: Builder) -> None:
        calls = [builder.call(i, hour(13), outcome="failed", kinds=()) for i in ("vc_e", "vc_f")]
        lines = builder.segment(hour(13), calls, write=False).data.splitlines(keepends=True)
        for number in newer_lines:
            lines[number] = newer(lines[number])
            if number < 2:
                builder.store.rot(calls[number].key, lambda _, line=lines[number]: line)
        seal_bytes(builder, THIRTEEN, b"".join(lines), hour(13).end)

    return do


def sealed_events(builder: Builder) -> None:
    builder.seal(events=[builder.event("101112-0123abcd", *[HELD] * 3)])


HELD = {"action": "keep", "at": "2024-01-16T00:00:00Z", "type": "hold", "v": 2}


def sight(
    *ids: str,
    window: int = 12,
    at: datetime | None = None,
    change: Callable[[bytes], bytes] = lambda data: data,
) -> Callable[[Builder], object]:
    """A sighting of that hour, at a time before its newest listing unless told otherwise."""

    def do(builder: Builder) -> None:
        moment = at or builder.now - timedelta(hours=1)
        data = change(sighting.build(hour(window), moment, ids))
        builder.store.put(layout.sighting_key(hour(window).start, TAG), data)

    return do


def passed_over(at_first: bytes | None, **options: Any) -> Callable[[Builder], object]:
    """A window whose first revision is r2, because something else lies at the key of r1."""

    def do(builder: Builder) -> None:
        if at_first is not None:
            builder.store.put(THIRTEEN + ".jsonl", at_first)
        builder.close(hour(13), [builder.call("vc_e", hour(13))], revision=2, **options)

    return do


def windows_late(*pairs: tuple[int, int]) -> Callable[[Builder], object]:
    """Windows that are not sealed in order, each with the window that the watermark stays at."""

    def do(builder: Builder) -> None:
        for window, mark in pairs:
            builder.close(hour(window), watermark=hour(mark).end)

    return do


def unreadable_entries(builder: Builder, *numbers: int) -> None:
    """A window whose listings had so many entries that were no calls."""
    for revision, number in enumerate(numbers, 1):
        line = segment._line(
            hour(13),
            revision,
            segment.Balance({}),
            segment.Listing(builder.now, 1, 2, 0, {"state": ["Completed"]}, unreadable=number),
        )
        seal_bytes(builder, f"{SEGMENTS}1300.r{revision}", canonical.dump(line), hour(13).end)


def second_record(builder: Builder) -> None:
    """A call whose first record is r2, because something else lies at the key of r1."""
    found = builder.call("vc_e", hour(13), revision=2)
    builder.store.put(found.key.replace("r2", "r1"), FOREIGN_BYTES)
    builder.close(hour(13), [found])


def kinds(*files: tuple[str, str]) -> Callable[[Builder], object]:
    """A well sealed call with files of these kinds, by these names."""

    def do(builder: Builder) -> None:
        found = builder.call("vc_e", hour(13))
        document = canonical.load_object(found.data)
        for kind, name in files:
            key = f"recordings/dt=2024-01-15/vc_e/{name}"
            version_id = builder.store.put(key, b"x")
            document["files"].append(
                {
                    "bytes": 1,
                    "content_type": "application/octet-stream",
                    "key": key,
                    "kind": kind,
                    "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
                    "version_id": version_id,
                }
            )
        document["findings"] = sorted(record.INCOMPLETE)
        line = canonical.dump(document)
        builder.store.rot(found.key, lambda _: line)
        window_line = builder.segment(hour(13), [found], write=False).data.splitlines(True)[-1]
        seal_bytes(builder, THIRTEEN, line + window_line, hour(13).end)

    return do


def of_another_window(data: bytes) -> bytes:
    return edited(data, **{"from": format_time(hour(3).start)})


FOREIGN = [
    # records that no sealed segment names
    Damage("foreign bytes at a record's key", {"record_unreadable"}, at(STRANGE, FOREIGN_BYTES)),
    Damage("an empty object at a record's key", {"record_unreadable"}, at(STRANGE, b"")),
    Damage("a record that is cut short", {"record_unreadable"}, unsealed_record(lambda data: data[:
        len(data) // 2])),
    Damage("a record with another key in it", {"record_unreadable"}, lambda b:
        (b.store.put(STRANGE, b.call("vc_e", hour(13), kinds=()).data) and
        b.store.lose("records/dt=2024-01-15/vc_e/r1.json"))),
    Damage("a record of a newer release", {"newer_format"}, unsealed_record(newer)),
    Damage("a record whose directory no id makes", {"record_unreadable"},
        at("records/dt=2024-01-15/a.b/r1.json", b"{}\n")),
    Damage("a call's first record is r2", {"record_unreadable"}, second_record, shell=False),
    # keys that no rule makes
    *(Damage(f"the key {key}", {"foreign_object"}, at(key, FOREIGN_BYTES)) for key in
        ("manifest/evil.json", "manifest/probe2", "records/x", "records/dt=2024-01-15/x.json",
        "recordings/x", "recordings/dt=2024-01-15/../x", "manifest/sightings/x",
        "records/dt=2024-01-15/vc_d/r01.json")),
    # unsealed segments
    Damage("foreign bytes at a segment's key", {"segment_invalid"}, at(THIRTEEN + ".jsonl",
        FOREIGN_BYTES)),
    Damage("an empty segment", {"segment_invalid"}, at(THIRTEEN + ".jsonl", b"")),
    Damage("a segment of another window", {"segment_invalid"}, unsealed_segment(of_another_window)),
    Damage("an unsealed segment of a newer release", {"newer_format"}, unsealed_segment(newer)),
    Damage("foreign bytes at the key of an unsealed companion", {"companion_mismatch",
        "unsealed_segment"}, unsealed_segment(lambda _: FOREIGN_BYTES, ".sha256")),
    Damage("foreign bytes at a pointer's key", {"pointer_dangling"}, at(THIRTEEN + ".seal",
        FOREIGN_BYTES)),
    Damage("foreign bytes at the key of events", {"event_invalid"},
        at(f"{layout.EVENTS}dt=2024-01-15/101112-0123abcd.jsonl", FOREIGN_BYTES)),
    Damage("unsealed events of a newer release", {"newer_format"},
        at(f"{layout.EVENTS}dt=2024-01-15/101112-0123abcd.jsonl", events(newer))),
    # sealed ones of a newer release
    Damage("a newer record in a segment", {"newer_format"}, sealed_segment(0)),
    Damage("a newer window line", {"newer_format"}, sealed_segment(2)),
    Damage("a segment of a newer release", {"newer_format"}, sealed_segment(0, 1, 2)),
    Damage("events of a newer release", {"newer_format"}, sealed_events),
    # revisions
    Damage("a first revision whose key is taken", {"revision_skipped", "segment_invalid"},
        passed_over(FOREIGN_BYTES)),
    Damage("a first revision whose key a newer release took", {"revision_skipped", "newer_format"},
        lambda b: passed_over(newer(b.segment(hour(13), [], write=False).data))(b)),
    Damage("a first revision that is not there", {"window_revision"}, passed_over(None)),
    # listings
    Damage("entries that are no calls", {"listing_unreadable"}, lambda b: unreadable_entries(b, 3)),
    Damage("an unreadable that is no count", {"segment_invalid"},
        wrong_lines(lambda lines: [edited(lines[0], unreadable=-1)], "")),
    # sightings
    Damage("a sighted call is lost", {"sighting_lost"}, sight("vc_d", "vc_lost")),
    Damage("foreign bytes at a sighting's key", {"sighting_unreadable"}, at(SIGHTING, b"{}")),
    Damage("a sighting of another window", {"sighting_unreadable"}, sight("vc_d",
        change=of_another_window)),
    Damage("a sighting of a newer release", {"newer_format"}, sight("vc_d", change=newer)),
]  # fmt: skip
"""Each is found at every level, and is all that is said."""


def many_revisions(builder: Builder) -> None:
    """Of a window; and acts about two of its calls."""
    known = {"vc_c": "failed", "vc_d": "archived", "../önd\n=1": "archived"}
    for revision in range(2, 12):
        builder.close(hour(12), revision=revision, outcomes=known)
    builder.seal(events=[builder.hold("add", "vc_c", "vc_d")])
    builder.seal(events=[builder.hold("remove", "vc_c")])


def sight_odd_id(builder: Builder) -> None:
    """A sighted call with an odd id has its record."""
    sight("../odd\nid", "vc_p")(builder)
    builder.call("../odd\nid", hour(13))
    builder.close(hour(13), pending=["vc_p"])


SOUND: list[tuple[str, Callable[[Builder], object]]] = [
    ("the probe of the store, twice", lambda b: [b.store.put(layout.PROBE, b"x") for _ in "12"]),
    ("windows of a backfill", windows_late((3, 12), (20, 12))),
    ("windows of earlier seals", windows_late((14, 12), (13, 14))),
    ("a call that is archived", sight("vc_d", "vc_c")),
    ("a call that the window beside tells of", sight("vc_a")),
    ("a call that was pending once", sight("vc_x", window=10)),
    ("a listing that was no later", sight("vc_lost", at=DAY + timedelta(days=9))),
    ("a window that is not sealed", sight("vc_lost", window=14)),
    ("a call whose record waits for its seal", lambda b: (b.call("vc_e", hour(13), kinds=()),
        sight("vc_e")(b))),
    ("a call with an odd id that has its record", sight_odd_id),
    ("many revisions, and events", many_revisions),
    ("entries that can be told again", lambda b: unreadable_entries(b, 3, 0)),
    ("documents that are no JSON, and kinds of a later release", kinds(("transcript_malformed",
        "transcript.bad"), ("epa_malformed", f"epa-{TAG}.bad"), ("diary", "Diary_1.v2.json"))),
]  # fmt: skip
"""None of these is damage."""
