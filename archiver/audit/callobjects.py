"""The objects of calls: the files and records of all their revisions, on whatever day they lie.

A call has its records on one day, but for one that its source moved to another day before the
archive knew it there: that one has records on both. A legal hold must miss neither, so all days of
the archive are looked at. What that costs: a LIST a day, of the whole day where it is not large,
else of each call's own directory; then a GET for each record, and a HEAD for each object.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime

from archiver.audit.parallel import ordered
from archiver.audit.reader import Reader
from archiver.audit.recorddays import record_day, record_days
from archiver.audit.segments import MAX_RECORD_BYTES, is_file_entry, parse_record
from archiver.errors import FormatError
from archiver.manifest import layout
from archiver.manifest.event import Hold, ObjectRef
from archiver.model import parse_time
from archiver.store.objects import CallObjects

PAGE = 1000
"""Keys that one LIST brings."""


class Finder:
    """Finds them. One thread uses it; close it after use."""

    def __init__(self, reader: Reader, at_once: int, *, page: int = PAGE) -> None:
        self._reader = reader
        self._page = page
        self._ahead = 2 * at_once
        self._executor = ThreadPoolExecutor(at_once, thread_name_prefix="objects")

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def find(self, call_ids: Collection[str], now: datetime) -> dict[str, CallObjects]:
        """Of each call that has a record, what there is. Raises `StoreError`."""
        dirs = {layout.call_dir(call_id): call_id for call_id in call_ids}
        keys: dict[str, list[str]] = {}
        days = record_days(self._reader, now)
        for found in ordered(self._executor, lambda d: self._of_day(d, dirs), days, self._ahead):
            for key, call_dir in found:
                keys.setdefault(dirs[call_dir], []).append(key)
        looked = ordered(
            self._executor, lambda one: self._look(one[0], one[1], ()), keys.items(), self._ahead
        )
        return {one.call_id: one for one in looked}

    def beside(self, hold: Hold) -> CallObjects:
        """What an act names, and what lies beside its records now: later revisions stay where the
        first one is. Many threads may call it. Raises `StoreError`."""
        prefixes = {one.key.rpartition("/")[0] + "/" for one in hold.objects if record_day(one.key)}
        keys = [key for prefix in sorted(prefixes) for key in self._records(prefix)]
        return self._look(hold.call_id, keys, hold.objects)

    def _of_day(self, day: date, dirs: Mapping[str, str]) -> list[tuple[str, str]]:
        """The records of these calls on a day, each with its call's directory."""
        prefix = layout.record_prefix(day)
        if len(dirs) > 1:
            found = []
            for number, item in enumerate(self._reader.list(prefix)):
                if number >= self._page * len(dirs):
                    break  # more pages than calls: these are looked for one by one
                call_dir = item.key.removeprefix(prefix).partition("/")[0]
                if call_dir in dirs and record_day(item.key):
                    found.append((item.key, call_dir))
            else:
                return found
        return [(key, one) for one in dirs for key in self._records(f"{prefix}{one}/")]

    def _records(self, prefix: str) -> Iterator[str]:
        return (item.key for item in self._reader.list(prefix) if record_day(item.key))

    def _look(
        self, call_id: str, keys: Collection[str], more: Collection[ObjectRef]
    ) -> CallObjects:
        """Read the records, and ask for each object; a damaged record is an object like others,
        and named among what is gone, because what it named is not known."""
        wanted, damaged, dates = set(more), set[str](), list[datetime]()
        for key in keys:
            wanted.add(ObjectRef(key, None))  # a record in the version that is there
            try:
                refs, promised = self._named(key)
            except FormatError:
                damaged.add(key)
                continue
            wanted |= refs
            dates += [promised] if promised else []
        heads = {one: self._reader.head(one.key, one.version_id) for one in wanted}
        held = {
            replace(one, version_id=head.version_id): head.held
            for one, head in heads.items()
            if head is not None
        }
        return CallObjects(
            call_id,
            held=frozenset(one for one, is_held in held.items() if is_held),
            loose=frozenset(one for one, is_held in held.items() if not is_held),
            gone=frozenset({one.key for one in wanted} - {one.key for one in held} | damaged),
            promised=max(dates, default=None),
        )

    def _named(self, key: str) -> tuple[set[ObjectRef], datetime | None]:
        """The files that a record names, and the date that it promises; raises `FormatError`."""
        document = parse_record(self._reader.read(key, None, MAX_RECORD_BYTES) or b"").document
        if not all(is_file_entry(file) for file in document["files"]):
            raise FormatError("a file with a malformed field")
        refs = {ObjectRef(file["key"], file.get("version_id")) for file in document["files"]}
        retention = document.get("retention")
        until = retention.get("until") if isinstance(retention, dict) else None
        return refs, parse_time(until)
