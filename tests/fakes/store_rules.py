"""What no writer of the archive may do, judged at each object that is about to be created.

The order of writes is files → record → segment → `.sha256` → seal → `.sig` → `.seal`: each names
only what is there already, in the very bytes that it says. All is read here with `json` alone; of
the archiver only the keys' own module is used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from archiver.manifest import layout
from tests.fakes.calls import APART

_DOCUMENT = "|".join(("transcript", *APART))
_AUDIO = "wav|w64|mp3|aac|ogg|flac|amr|awb|m4a|aiff|au|caf|webm|wma|bin"
_FILE = re.compile(
    r"recordings/dt=(\d{4}-\d\d-\d\d)/([A-Za-z0-9_.-]+)/"
    rf"(recording(-[0-9a-f]{{16}})?\.({_AUDIO})|({_DOCUMENT})(-[0-9a-f]{{16}})?\.(json|bad))",
    re.ASCII,
)
_PART = re.compile(rf"recordings/.*/recording-[0-9a-f]{{16}}\.({_AUDIO})", re.ASCII)
_KEY = re.compile(r"manifest/keys/([0-9a-f]{16}\.pem|VERIFY\.md|verify\.sh)")
_EVENT = re.compile(r"manifest/events/dt=\d{4}-\d\d-\d\d/\d{6}-[0-9a-f]{8}\.(jsonl|sha256|seal)")
_SIGHTING = re.compile(r"manifest/sightings/dt=\d{4}-\d\d-\d\d/\d{4}-[0-9a-f]{16}\.json")
STRANGER = "stranger"
OUTCOMES = ("archived", "no_recording", "failed")


class Violation(AssertionError):
    """A writer did what no writer may do."""


class Found(Protocol):
    """An object that is there."""

    data: bytes
    sha256: str
    version_id: str | None
    writer: str
    """Who wrote it: what a `STRANGER` wrote follows no rule."""


Look = Callable[[str], Found | None]


def check(key: str, data: bytes, look: Look) -> None:
    """Raises `Violation` where `data` must not be created under `key` now."""
    _require(len(data) > 0, "an empty object")
    if layout.parse_record_key(key) is not None:
        _record(key, data, look)
    elif (segment := layout.parse_segment_key(key)) is not None:
        {"jsonl": _segment, "sha256": _companion, "seal": _pointer}[segment[1]](key, data, look)
    elif (sealed := layout.parse_seal_key(key)) is not None:
        if sealed[1]:
            _require(look(key.removesuffix(".sig")) is not None, "a signature before its seal")
            _require(len(data) == 64, "a signature of an odd length")
        else:
            _seal(sealed[0], data, look)
    elif key.startswith(layout.SIGHTINGS):
        _sighting(key, data)
    else:
        known = key == layout.PROBE or any(
            p.fullmatch(key) for p in (_FILE, _KEY, _EVENT, _SIGHTING)
        )
        _require(known, "a key outside the layout")


def _sighting(key: str, data: bytes) -> None:
    document = json.loads(data)
    start = layout.parse_sighting_key(key)
    _require(start is not None, "a key outside the layout")
    told = datetime.fromisoformat(document["from"])
    _require(told == start, "a sighting under the key of another window")
    ids = document["ids"]
    _require(ids == sorted(set(ids)) and len(ids) > 0, "ids that repeat, or none at all")


def check_parts(key: str) -> None:
    """A recording that comes in parts goes to a key that nobody else uses."""
    _require(_PART.fullmatch(key) is not None, "an upload in parts to a key that others may use")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)


def _record(key: str, data: bytes, look: Look) -> None:
    document = json.loads(data)
    day, directory, revision = layout.parse_record_key(key) or (None, "", 0)
    _require(document["record"] == key, "a record under another key than its own")
    _require(document["revision"] == revision, "a record with another revision than its key's")
    _require(layout.call_dir(document["call_id"]) == directory, "a record of another call")
    _require(document["outcome"] in OUTCOMES, "a record with an unknown outcome")
    for file in document["files"]:
        _file(file, f"recordings/dt={day}/{directory}/", look)
    kinds = [file["kind"] for file in document["files"]]
    _require(len(kinds) == len(set(kinds)), "a record with two files of a kind")
    archived = document["outcome"] == "archived"
    _require(archived == ("recording" in kinds), "archived without a recording, or the reverse")
    if revision > 1:
        before = look(key.replace(f"/r{revision}.json", f"/r{revision - 1}.json"))
        _require(before is not None, "a revision before the one that it amends")
        if before.writer != STRANGER:
            _amends(json.loads(before.data), document)


def _amends(before: dict[str, Any], after: dict[str, Any]) -> None:
    if before["outcome"] == "archived":
        _require(after["outcome"] == "archived", "an archived call amended to something less")
        one, other = (
            [file for file in document["files"] if file["kind"] == "recording"]
            for document in (before, after)
        )
        _require(one == other, "an archived recording exchanged for another")
    _require(before["call_id"] == after["call_id"], "a revision of another call")


def _file(file: dict[str, Any], directory: str, look: Look) -> None:
    found = look(file["key"])
    _require(file["key"].startswith(directory), "a record with a file of another call")
    _require(found is not None, f"a record before its file {file['key']}")
    told = (file["sha256"], file["bytes"], file["version_id"])
    _require(told == (found.sha256, len(found.data), found.version_id), "a file told wrongly")


def _segment(key: str, data: bytes, look: Look) -> None:
    *lines, last = data.split(b"\n")[:-1]
    keys = [json.loads(line)["record"] for line in lines]
    for record, line in zip(keys, lines, strict=True):
        found = look(record)
        _require(found is not None, f"a segment before its record {record}")
        _require(found.data == line + b"\n", f"a segment with other bytes than {record}")
    _require(keys == sorted(set(keys)), "a segment whose records repeat or are not sorted")
    window = json.loads(last)
    _require(window["type"] == "window", "a segment without its window line")
    told = sum(window[name] for name in OUTCOMES) + len(window["pending"])
    _require(window["listed"] == told, "a window line that does not balance")
    name, _ = layout.parse_segment_key(key) or (None, "")
    assert name is not None
    _require(window["revision"] == name.revision, "a segment with another revision than its key's")
    if name.revision > 1:
        earlier = layout.SegmentName(name.start, name.revision - 1)
        _require(look(earlier.jsonl) is not None, "a segment with a gap before it")


def _companion(key: str, data: bytes, look: Look) -> None:
    segment = look(key.removesuffix("sha256") + "jsonl")
    _require(segment is not None, "a companion before its segment")
    for line in data.decode().splitlines():
        digest, _, name = line.partition("  ")
        found = look(name)
        _require(found is not None and found.sha256 == digest, f"a companion wrong about {name}")


def _seal(number: int, data: bytes, look: Look) -> None:
    document = json.loads(data)
    _require(document["seq"] == number, "a seal with another number than its key's")
    if number == 0:
        key = layout.public_key_key(document["key_id"])
        _require(look(key) is not None, "a chain begun before its public key is there")
        return
    previous = look(layout.seal_key(number - 1))
    _require(previous is not None, "a seal with a gap before it")
    _require(document["prev"] == previous.sha256, "a seal that does not follow the one before")
    before = json.loads(previous.data)
    _require(before["watermark"] <= document["watermark"], "a watermark that goes back")
    signature = look(layout.signature_key(number - 1))
    _require(signature is not None, "a seal while the one before has no signature")
    for entry in before["segments"]:
        _require(look(_pointer_of(entry)) is not None, "a seal while one before lacks a pointer")
    for entry in document["segments"]:
        segment = look(entry["key"])
        _require(segment is not None, f"a seal before its segment {entry['key']}")
        _require(look(_companion_of(entry)) is not None, "a seal before a segment's companion")
        told = (entry["sha256"], entry["bytes"])
        _require(told == (segment.sha256, len(segment.data)), "a segment told wrongly")
        # The one before is complete, so whatever is sealed has its pointer.
        # Somebody else may have put other bytes there.
        pointer = look(_pointer_of(entry))
        is_new = pointer is None or not pointer.data.strip().isdigit()
        _require(is_new, f"{entry['key']} sealed a second time")


def _pointer(key: str, data: bytes, look: Look) -> None:
    number = int(data)
    _require(data == f"{number}\n".encode(), "a pointer with odd bytes")
    seal = look(layout.seal_key(number))
    _require(seal is not None, "a pointer before its seal")
    _require(look(layout.signature_key(number)) is not None, "a pointer before the signature")
    covered = {_pointer_of(entry) for entry in json.loads(seal.data)["segments"]}
    _require(key in covered, "a pointer to a seal that does not cover the segment")


def _pointer_of(entry: dict[str, Any]) -> str:
    return str(entry["key"]).removesuffix("jsonl") + "seal"


def _companion_of(entry: dict[str, Any]) -> str:
    return str(entry["key"]).removesuffix("jsonl") + "sha256"


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
