"""The records of one segment, read in order: whole batches at a glance, any other line parsed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from archiver.audit import glance
from archiver.audit.chain import Sealed
from archiver.audit.companion import Companion
from archiver.audit.glance import Batch
from archiver.audit.told import Report, Told, of_record, parse_record
from archiver.errors import FormatError, NewerFormat
from archiver.manifest import canonical, layout
from archiver.manifest.layout import SegmentName
from archiver.model import Window


class CallState(NamedTuple):
    """What is kept of a record."""

    revision: int
    outcome: str


def take_newer(calls: dict[str, CallState], call_id: str, new: CallState) -> None:
    """Keep the record with the highest revision, whichever comes first."""
    old = calls.get(call_id)
    if old is None or new.revision >= old.revision:
        calls[call_id] = new


def take_all(calls: dict[str, CallState], new: Collection[tuple[str, CallState]]) -> None:
    """`take_newer` of each; at once where no call comes twice."""
    first = dict(new)
    if len(first) == len(new) and calls.keys().isdisjoint(first):
        calls |= first
        return
    for call_id, state in new:
        take_newer(calls, call_id, state)


@dataclass
class Summary:
    """What is kept of a segment. `window` and `line` only where its last line is a window line."""

    sealed: Sealed
    name: SegmentName
    window: Window | None = None
    line: Mapping[str, Any] | None = None
    calls: dict[str, CallState] = field(default_factory=dict)
    records: int = 0
    as_sealed: bool = False
    """Whether its bytes are those that the seal tells of."""
    intact: bool = True
    """Whether every line could be read."""
    newer_lines: int = 0
    """Lines that a newer release wrote."""
    unread_keys: list[str] = field(default_factory=list)
    """The keys of the records in lines that could not be read, as far as they tell them."""

    @property
    def is_whole(self) -> bool:
        return self.as_sealed and self.intact


def lines_in_words(count: int) -> str:
    """How many lines are of a newer release, in words."""
    return f"{count:,} lines" if count != 1 else "1 line"


class Records(Protocol):
    """Whoever wants to know of the records."""

    def take(self, line: bytes, found: Told) -> None:
        """A record's line, newline included, and what it tells."""
        ...

    def take_batch(self, lines: Sequence[bytes], found: Batch) -> None:
        """The same of some in a row."""
        ...


class Reading:
    """Reads one segment into its summary, its companion, and for whoever wants its records."""

    def __init__(
        self, summary: Summary, companion: Companion, records: Records, report: Report
    ) -> None:
        self.summary = summary
        self._companion = companion
        self._records = records
        self._report = report
        self._before = ""

    def take(self, lines: Sequence[bytes], number: int) -> None:
        """The next records; `number` is the first line's in the segment, counted from 1."""
        if self._take_batch(lines):
            return
        for at, line in enumerate(lines, number):
            if not self._take_batch([line]):
                self._take_line(line, at)

    def invalid(self, where: str, reason: str) -> None:
        """A line cannot be read, or stands in the wrong place."""
        self.summary.intact = False
        self._report("segment_invalid", self.summary.name.jsonl, f"{where}: {reason}")

    def newer(self, line: bytes) -> None:
        """A newer release wrote a line: what it says is not known, but for its record's key."""
        self.summary.intact = False
        self.summary.newer_lines += 1
        self._keep_key(line)

    def finish(self) -> None:
        """Report the lines of a newer release, once for the segment."""
        if self.summary.newer_lines:
            self._report(
                "newer_format", self.summary.name.jsonl, lines_in_words(self.summary.newer_lines)
            )

    def _keep_key(self, line: bytes) -> None:
        """A line that cannot be read names its record all the same."""
        try:
            key = canonical.load_object(line).get("record")
        except FormatError:
            return
        if isinstance(key, str) and layout.parse_record_key(key) is not None:
            self.summary.unread_keys.append(key)

    def _take_batch(self, lines: Sequence[bytes]) -> bool:
        """Take lines of which there is nothing to report; False where it is not known of all."""
        found = glance.batch(lines) if lines else None
        if found is None or found.keys[0] <= self._before:
            return False
        self._before = found.keys[-1]
        self.summary.records += len(lines)
        states = map(CallState, map(int, found.revisions), found.outcomes)
        take_all(self.summary.calls, list(zip(found.call_ids, states, strict=True)))
        self._companion.add_batch(lines, found)
        self._records.take_batch(lines, found)
        return True

    def _take_line(self, line: bytes, number: int) -> None:
        try:
            found = of_record(parse_record(line), self._report)
        except NewerFormat:
            self.newer(line)
            return
        except FormatError as error:
            self.invalid(f"line {number}", str(error))
            self._keep_key(line)
            return
        if found.key <= self._before:
            self.invalid(f"line {number}", "out of order")
        self._before = found.key
        self.summary.records += 1
        state = CallState(found.revision, found.outcome)
        take_newer(self.summary.calls, found.call_id, state)
        self._companion.add(line, found)
        self._records.take(line, found)
