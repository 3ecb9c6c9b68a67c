"""Whether an archive tells of every call, once, and has every byte; by json and hashlib alone.

Unlike `checker.py` it takes any number of revisions: how often a window or a call had to be told of
is a matter of the weather. The chain's digests and signatures are left to the two verifiers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.system.checker import canonical
from tests.system.soak.calls import Truth


@dataclass
class Outcome:
    """What is wrong, by call id or key, and what was counted on the way."""

    missing: set[str] = field(default_factory=set)
    """Calls without a record in a sealed segment, or whose newest one lacks something."""
    doubled: set[str] = field(default_factory=set)
    """Records that are told of twice, segments that are sealed twice."""
    unreported: set[str] = field(default_factory=set)
    """Calls that could not be archived, and are not told of as failed."""
    changed: set[str] = field(default_factory=set)
    """Objects that are not what they should be."""
    versions: set[tuple[str, str]] = field(default_factory=set)
    """Key and version of every file that a record names."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Of the newest records."""
    seals: int = 0
    segments: int = 0
    records: int = 0
    bytes: int = 0

    def assert_sound(self) -> None:
        for name in ("missing", "doubled", "unreported", "changed"):
            found = getattr(self, name)
            assert not found, f"{len(found)} {name}: {sorted(found)[:5]}"


def look(copy: Path, truth: Mapping[str, Truth]) -> Outcome:
    """`copy` is a plain copy of the bucket. Raises where the manifest cannot be read at all."""
    return _Look(copy, truth).run()


class _Look:
    def __init__(self, copy: Path, truth: Mapping[str, Truth]) -> None:
        self._copy = copy
        self._truth = truth
        self._newest: dict[str, dict[str, Any]] = {}
        self._told: set[str] = set()
        self._windows: dict[str, dict[str, Any]] = {}
        self._found = Outcome()

    def run(self) -> Outcome:
        found = self._found
        sealed: set[str] = set()
        for key in self._sealed():
            found.segments += 1
            found.doubled |= {key} & sealed
            sealed.add(key)
            self._segment(key)
        found.changed |= self._keys("manifest/segments", ".jsonl") - sealed
        found.missing |= {
            key for key in self._keys("records", ".json") - self._told if not self._was_amended(key)
        }
        for window in self._windows.values():
            found.unreported |= set(window["pending"])
        for call_id in self._truth.keys() | self._newest.keys():
            self._call(call_id)
        return found

    def _was_amended(self, key: str) -> bool:
        """Whether a segment tells of a later record of the same call: a process that is killed
        before it closes a window may leave one that the next process amends, and that tells."""
        record = json.loads(self._read(key) or b"{}")
        newest = self._newest.get(record["call_id"])
        return newest is not None and newest["revision"] > record["revision"]

    def _keys(self, directory: str, suffix: str) -> set[str]:
        files = (self._copy / directory).rglob(f"*{suffix}")
        return {str(file.relative_to(self._copy)) for file in files}

    def _read(self, key: str) -> bytes | None:
        file = self._copy / key
        return file.read_bytes() if file.is_file() else None

    def _sealed(self) -> Iterator[str]:
        """The keys of all segments, in the order of the chain."""
        while (data := self._read(f"manifest/seals/{self._found.seals:012d}.json")) is not None:
            self._found.seals += 1
            yield from (entry["key"] for entry in json.loads(data)["segments"])

    def _segment(self, key: str) -> None:
        lines = (self._read(key) or b"").split(b"\n")[:-1]
        for line in lines[:-1]:
            record = json.loads(line)
            name = record["record"]
            self._found.records += 1
            self._found.doubled |= {name} & self._told
            self._told.add(name)
            if self._read(name) != line + b"\n":
                self._found.changed.add(name)
            before = self._newest.get(record["call_id"])
            if before is None or before["revision"] < record["revision"]:
                self._newest[record["call_id"]] = record
            for file in record["files"]:
                self._file(file)
        window = json.loads(lines[-1])
        counts = (window[name] for name in ("archived", "no_recording", "failed"))
        if window["listed"] != sum(counts) + len(window["pending"]):
            self._found.changed.add(key)
        self._windows[window["from"]] = window

    def _file(self, file: dict[str, Any]) -> None:
        data = self._read(file["key"]) or b""
        if (len(data), _sha256(data)) != (file["bytes"], file["sha256"]):
            self._found.changed.add(file["key"])
        self._found.versions.add((file["key"], file["version_id"]))
        self._found.bytes += len(data)

    def _call(self, call_id: str) -> None:
        """Its newest record says what the source has now."""
        record, truth = self._newest.get(call_id), self._truth.get(call_id)
        if record is None:
            self._found.missing.add(call_id)
            return
        if truth is None:
            self._found.changed.add(call_id)
            return
        self._found.outcomes[record["outcome"]] += 1
        if truth.lost:
            if (record["outcome"], record["reason"]) != ("failed", "recording_missing"):
                self._found.unreported.add(call_id)
            return
        files = {file["kind"]: (file["bytes"], file["sha256"]) for file in record["files"]}
        outcome = "archived" if truth.recording else "no_recording"
        if record["outcome"] != outcome or files != _files(truth):
            self._found.missing.add(call_id)


def _files(truth: Truth) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of what must be there of a call, by kind."""
    sidecars = {"transcript": canonical(truth.document)}
    if truth.epa is not None:
        sidecars["epa"] = canonical(truth.epa)
    files = {kind: (len(data), _sha256(data)) for kind, data in sidecars.items()}
    return files if truth.recording is None else {**files, "recording": truth.recording}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
