"""The objects of calls: every version of all that lies in a call's two directories.

A legal hold must miss none of them, so nothing is taken from what a record says: that may be hidden
or overlaid. A call has its records on one day, but for one that its source moved to another day
before the archive knew it there: that one has records on both. So all days of the archive are
looked at. What that costs: a LIST a day, of the whole day where it is not large, else of each
call's own directory; then a HEAD for each object, and a GET for each record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, datetime

from archiver.audit.control import Unreadable
from archiver.audit.everyversion import EveryVersion
from archiver.audit.parallel import ordered
from archiver.audit.reader import Reader
from archiver.audit.recorddays import record_day, record_days
from archiver.audit.segments import is_held_object
from archiver.audit.told import MAX_RECORD_BYTES, parse_record
from archiver.errors import ArchiverError, FormatError, StoreError
from archiver.manifest import layout
from archiver.manifest.event import Hold, ObjectRef
from archiver.store.control import is_of_one_object
from archiver.store.objects import CallObjects

PAGE = 1000
"""Keys that one LIST brings."""


@dataclass
class Found:
    """The objects of each call that has a record, by call id; and of which calls one of them cannot
    be asked for, with the reason."""

    calls: dict[str, CallObjects] = field(default_factory=dict)
    left: dict[str, ArchiverError] = field(default_factory=dict)


class Finder:
    """Finds them. One thread uses it; close it after use."""

    def __init__(self, reader: Reader, at_once: int, *, page: int = PAGE) -> None:
        self._reader = reader
        self._every = EveryVersion(reader)
        self._page = page
        self._ahead = 2 * at_once
        self._executor = ThreadPoolExecutor(at_once, thread_name_prefix="objects")

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def find(self, call_ids: Collection[str]) -> Found:
        """Of each call that has a record, hidden or not, what there is. Raises `StoreError` where
        the store is out, or refuses to list."""
        found = Found()
        days = self.days(call_ids)
        looked = ordered(
            self._executor, lambda one: self._try(*one), list(days.items()), self._ahead
        )
        for call_id, one in zip(days, looked, strict=True):
            if isinstance(one, ArchiverError):
                found.left[call_id] = one
            else:
                found.calls[call_id] = one
        return found

    def days(self, call_ids: Collection[str]) -> dict[str, set[str]]:
        """Of each call that has a record, hidden or not, the days (`dt=…`) of its records. Raises
        `StoreError`."""
        dirs = {layout.call_dir(call_id): call_id for call_id in call_ids}
        days: dict[str, set[str]] = {}
        looked_at = record_days(self._every.folders(layout.RECORDS))
        for found_there in ordered(
            self._executor, lambda d: self._of_day(d, dirs), looked_at, self._ahead
        ):
            for day, call_dir in found_there:
                days.setdefault(dirs[call_dir], set()).add(day)
        return days

    def _try(self, call_id: str, days: Iterable[str]) -> CallObjects | ArchiverError:
        """As `_look`; what is wrong with one call's objects keeps no other call waiting."""
        try:
            return self._look(call_id, days)
        except Unreadable as error:
            return error
        except StoreError as error:
            if not is_of_one_object(self._reader, error):
                raise
            return error

    def beside(self, hold: Hold) -> CallObjects:
        """What lies by now where the objects of an act lie: later revisions stay where the first
        one is. Many threads may call it. Raises `StoreError`."""
        return self._look(hold.call_id, {one.key.split("/")[1] for one in hold.objects})

    def _of_day(self, day: date, dirs: Mapping[str, str]) -> set[tuple[str, str]]:
        """`(dt=<day>, directory)` of each of these calls that has a record on a day."""
        prefix, found = layout.record_prefix(day), set[tuple[str, str]]()
        if len(dirs) > 1:
            for number, (call_dir, is_record) in enumerate(self._records(prefix)):
                if number >= self._page * len(dirs):
                    break  # more pages than calls: these are looked for one by one
                if call_dir in dirs and is_record:
                    found.add((layout.day_dir(day), call_dir))
            else:
                return found
        return {
            (layout.day_dir(day), one)
            for one in dirs
            if any(is_record for _, is_record in self._records(f"{prefix}{one}/"))
        }

    def _records(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """Each version below a prefix: its call's directory, and whether it is a record."""
        for ref, is_marker in self._every.below(prefix):
            is_record = not is_marker and record_day(ref.key) is not None
            yield ref.key.split("/")[2], is_record

    def _look(self, call_id: str, days: Iterable[str]) -> CallObjects:
        """List what the call has on these days (`dt=…`), and ask for each version of it."""
        held, loose, gone, dates = set[ObjectRef](), set[ObjectRef](), set[str](), set[datetime]()
        for day in sorted(days):
            for top in (layout.RECORDS, layout.RECORDINGS):
                prefix = f"{top}{day}/{layout.call_dir(call_id)}/"
                for ref, is_marker in self._every.below(prefix):
                    head = None if is_marker else self._reader.head(ref.key, ref.version_id)
                    if head is None:
                        gone.add(ref.key)
                        continue
                    (held if head.held else loose).add(replace(ref, version_id=head.version_id))
                    dates |= {head.lock_until} if head.lock_until else set()
        found = held | loose
        return CallObjects(
            call_id,
            held=frozenset(held),
            loose=frozenset(loose),
            named=frozenset(one for one in found if is_held_object(call_id, one)),
            gone=frozenset(gone | self._missing(found)),
            locked_until=max(dates, default=None),
        )

    def _missing(self, found: Collection[ObjectRef]) -> set[str]:
        """What records name and is not there, and the records that are damaged. It is only told
        of: anybody may have put a record there."""
        missing, keys = set[str](), {one.key for one in found}
        for one in found:
            if record_day(one.key) is None:
                continue
            try:
                data = self._reader.read(one.key, one.version_id, MAX_RECORD_BYTES)
                files = parse_record(data or b"").document["files"]
            except FormatError:
                missing.add(one.key)
            except StoreError as error:
                if error.reason != "too_large":
                    raise
                missing.add(one.key)
            else:
                missing |= {file["key"] for file in files} - keys
        return missing
