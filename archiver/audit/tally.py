"""What is gathered from the records of a window."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from archiver.audit.glance import Batch
from archiver.audit.objects import WindowFiles
from archiver.audit.result import Counts
from archiver.audit.told import FileRef, Told


@dataclass
class Tally:
    """Of a window; a file that several of its records name counts once."""

    files: WindowFiles
    counts: Counts = field(default_factory=lambda: Counts(windows=1))
    named: array[int] = field(default_factory=lambda: array("q"))
    """The keys of its records, and those that they name, as `hashes`; some of them twice."""
    covered: dict[str, datetime] = field(default_factory=dict)
    """The latest date that the records of a segment promise, by its key."""
    whole: bool = True
    """Whether all of its segments are as they were sealed."""

    def count(self, files: Sequence[FileRef]) -> None:
        """Count a record, and the files that no record before it named."""
        self.counts.records += 1
        self.counts.files += len(files)
        self.counts.bytes += sum(file.bytes for file in files)


class Counting:
    """Counts records and their files into a tally, and looks at nothing else.

    Of a file a hash is kept, of what stands in the record: size, key, SHA-256, version.
    """

    def __init__(self, tally: Tally, *, names: bool) -> None:
        """With `names`, the records' keys are gathered."""
        self._counts = tally.counts
        self._named = tally.named if names else None
        self._seen: set[int] = set()

    def take(self, line: bytes, found: Told) -> None:
        self._counts.records += 1
        if self._named is not None:
            self._named.append(hash(found.key))
        rows = [(str(f.bytes), f.key, f.sha256, f.version_id or "") for f in found.files]
        self._files(list(map(hash, rows)), [file.bytes for file in found.files])

    def take_batch(self, lines: Sequence[bytes], found: Batch) -> None:
        self._counts.records += len(lines)
        if self._named is not None:
            self._named.extend(map(hash, found.keys))
        for kind in found.files:
            there = kind.without_gaps()
            marks = list(map(hash, zip(*there, strict=True)))
            self._files(marks, list(map(int, there.sizes)))

    def _files(self, marks: Sequence[int], sizes: Sequence[int]) -> None:
        new = dict(zip(marks, sizes, strict=True))
        for mark in self._seen.intersection(new):
            del new[mark]
        self._seen.update(new)
        self._counts.files += len(new)
        self._counts.bytes += sum(new.values())
