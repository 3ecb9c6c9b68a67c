"""What an audit comes to: counts, head, findings, and whether the archive holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archiver.audit.findings import CODES, Finding
from archiver.core.model import format_time
from archiver.manifest.record import OUTCOMES
from archiver.manifest.seal import Seal


@dataclass
class Counts:
    """How much there is, and how much of it was read. `files` and `bytes` are what the records
    name; a file that two revisions of a record name counts once."""

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
    """By outcome of the newest record in its window."""

    def add(self, other: Counts) -> None:
        """Add another's counts to these."""
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
    """What was asked for: level, from, to, sample."""
    archive: str | None
    key_id: str | None
    key_given: bool
    """Whether the key came from outside the bucket."""
    head: Seal | None
    counts: Counts
    findings: Sequence[Finding]
    """The first of them, sorted; `totals` has how many there are."""
    totals: Mapping[str, int]
    """Code → how many findings."""
    notes: Sequence[str]

    @property
    def ok(self) -> bool:
        """Whether nothing was found but information."""
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
            "head": self._head(),
            "counts": self.counts.document(),
            "findings": [
                {"code": f.code, "severity": f.severity, "key": f.key, "detail": f.detail}
                for f in self.findings
            ],
            "totals": dict(self.totals),
            "notes": list(self.notes),
        }

    def _head(self) -> dict[str, Any] | None:
        if self.head is None:
            return None
        return {
            "seq": self.head.seq,
            "sha256": self.head.sha256,
            "sealed_at": format_time(self.head.sealed_at),
            "watermark": format_time(self.head.watermark),
        }
