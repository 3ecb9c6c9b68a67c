"""Record objects, sealed or not: what was archived of calls that no sealed segment tells of.

What a question costs: a LIST for each call and each day where its record may lie; for many calls
of one day, one LIST of that day instead. And a GET for each record that is found.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date

from archiver.audit.parallel import ordered
from archiver.audit.reader import Reader
from archiver.audit.told import MAX_RECORD_BYTES, parse_record
from archiver.errors import FormatError
from archiver.manifest import layout
from archiver.manifest.record import Record

ASKED_ONE_BY_ONE = 100
"""So many calls of a day are looked for by themselves; for more, the day is listed."""


class RecordObjects:
    """Looks for the newest record of calls. Close it after use."""

    def __init__(self, reader: Reader, at_once: int) -> None:
        self._reader = reader
        self._ahead = 2 * at_once
        self._executor = ThreadPoolExecutor(at_once, thread_name_prefix="records")

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def newest(
        self,
        days: Mapping[str, Collection[date]],
        known: Mapping[str, int],
        damage: Callable[[str], None],
    ) -> dict[str, Record]:
        """The newest record of each call that has one, by call id.

        `days` says for each call id on which days its record may lie, `known` which revision of
        it is known already: one that is no newer is left out. `damage` hears of each record
        that is damaged or cannot be read, and the one before it counts. Raises `StoreError`.
        """
        keys: dict[str, list[tuple[int, str]]] = {}
        for day, ids in _by_day(days).items():
            for key in self._keys(day, ids, damage):
                parsed = layout.parse_record_key(key)
                call_id = ids.get(parsed[1]) if parsed else None
                if parsed and call_id is not None and parsed[2] > known.get(call_id, 0):
                    keys.setdefault(call_id, []).append((parsed[2], key))

        def read(found: list[tuple[int, str]]) -> Record | None:
            for _, key in sorted(found, reverse=True):
                try:
                    return self._read(key)
                except FormatError as error:
                    damage(str(error))
            return None

        records = ordered(self._executor, read, keys.values(), self._ahead)
        return {
            call_id: found
            for call_id, found in zip(keys, records, strict=True)
            if found is not None
        }

    def _keys(
        self, day: date, ids: Mapping[str, str], damage: Callable[[str], None]
    ) -> Iterator[str]:
        """The keys below that day, or of these calls alone."""

        def listed(prefix: str) -> list[str]:
            found: list[str] = []
            try:
                found.extend(item.key for item in self._reader.list(prefix))
            except FormatError as error:
                damage(str(error))
            return found

        prefix = layout.record_prefix(day)
        if len(ids) > ASKED_ONE_BY_ONE:
            yield from listed(prefix)
            return
        prefixes = (f"{prefix}{call_dir}/" for call_dir in ids)
        for keys in ordered(self._executor, listed, prefixes, self._ahead):
            yield from keys

    def _read(self, key: str) -> Record:
        data = self._reader.read(key, None, MAX_RECORD_BYTES)
        try:
            return parse_record(data or b"")
        except FormatError as error:
            raise FormatError(f"{key}: {error}; run archiver verify") from None


def _by_day(days: Mapping[str, Iterable[date]]) -> dict[date, dict[str, str]]:
    """day → directory of a call → its id."""
    grouped: dict[date, dict[str, str]] = {}
    for call_id, possible in days.items():
        for day in possible:
            grouped.setdefault(day, {})[layout.call_dir(call_id)] = call_id
    return grouped
