"""A downloaded archive, read with plain Python: what docs/manifest-format.md says of it is worked
out here from the files, with nothing of the archiver's."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

OUTCOMES = ("archived", "no_recording", "failed")
COUNTS = ("listed", *OUTCOMES)
DAY = "manifest/segments/dt=2024-01-15/"


@dataclass
class Revision:
    """A segment's file, parsed; `line` closes it."""

    path: Path

    @cached_property
    def lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines()

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """Call id → its newest record here; in the order of the lines."""
        found: dict[str, dict[str, Any]] = {}
        for row in map(json.loads, self.lines[:-1]):
            if row["revision"] >= found.get(row["call_id"], row)["revision"]:
                found[row["call_id"]] = row
        return found

    @cached_property
    def line(self) -> dict[str, Any]:
        return json.loads(self.lines[-1])

    def write(self, records: list[dict[str, Any]], line: dict[str, Any]) -> None:
        rows = (json.dumps(row, sort_keys=True, separators=(",", ":")) for row in [*records, line])
        self.path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")


@dataclass
class Copy:
    """A downloaded archive."""

    folder: Path

    def revision(self, time: str, number: int) -> Revision:
        return Revision(self.folder / DAY / f"{time}.r{number}.jsonl")

    @cached_property
    def windows(self) -> dict[str, list[Revision]]:
        """Start → its revisions in order; windows in order."""
        found: dict[str, list[Revision]] = {}
        for path in (self.folder / "manifest/segments").glob("*/*.jsonl"):
            found.setdefault(Revision(path).line["from"], []).append(Revision(path))
        return {
            start: sorted(found[start], key=lambda one: one.line["revision"])
            for start in sorted(found)
        }

    @cached_property
    def seals(self) -> list[tuple[bytes, dict[str, Any]]]:
        paths = sorted((self.folder / "manifest/seals").glob("*.json"))
        return [(path.read_bytes(), json.loads(path.read_bytes())) for path in paths]


def newest(revisions: list[Revision]) -> dict[str, str]:
    """Call id → outcome of its newest record."""
    found: dict[str, dict[str, Any]] = {}
    for one in revisions:
        for call_id, record in one.records.items():
            if record["revision"] >= found.get(call_id, record)["revision"]:
                found[call_id] = record
    return {call_id: record["outcome"] for call_id, record in found.items()}


def listed(revisions: list[Revision]) -> list[str]:
    told = set(newest(revisions)) | {i for one in revisions for i in one.line["pending"]}
    return sorted(told - set(revisions[-1].line["vanished"]))


def recompute(revisions: list[Revision]) -> dict[str, Any]:
    outcomes, ids = newest(revisions), listed(revisions)
    counts = Counter(outcomes.get(call_id) for call_id in ids)
    return {
        "listed": len(ids),
        **{name: counts[name] for name in OUTCOMES},
        "pending": [call_id for call_id in ids if call_id not in outcomes],
    }


def told_by(line: dict[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in (*COUNTS, "pending")}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def ids_sha256(ids: list[str]) -> str:
    return sha256("".join(f"{call_id}\n" for call_id in ids).encode())
