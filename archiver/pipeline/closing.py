"""Closing a window: what stands of each call becomes the next revision of its segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from archiver.errors import KeyTaken
from archiver.manifest import layout, seal, segment
from archiver.manifest.segment import Balance, Listing
from archiver.model import Window
from archiver.pipeline.history import History, HistoryReader, Standing, Unsealed
from archiver.pipeline.index import SegmentIndex
from archiver.pipeline.keeping import Keeper
from archiver.pipeline.ports import Store
from archiver.pipeline.spool import spool


@dataclass(frozen=True)
class Tally:
    """How the calls of a window stand after it was listed and worked at.

    `listed` are the ids that the source lists; `standing` has the newest record of these, and of
    those that it listed before; an id without a record stands in `pending`, listed or not.
    """

    window: Window
    listing: Listing
    listed: Set[str]
    standing: Mapping[str, Standing]
    pending: Set[str]


class Closing:
    """Writes segments. Threads share it."""

    def __init__(
        self,
        store: Store,
        segments: SegmentIndex,
        reader: HistoryReader,
        keeper: Keeper,
    ) -> None:
        self._store = store
        self._segments = segments
        self._reader = reader
        self._keeper = keeper

    TAKEN = object()
    """Another writer's revision has the place."""

    def close(self, tally: Tally, history: History, *, evidence: bool) -> Unsealed | object | None:
        """Write the next revision where one is called for: the first one, where something has
        changed, or to show that the window was listed again (`evidence`). What the window has is
        kept for as long as today's policy says, before more is told of it.

        None where none is called for, `TAKEN` where another writer was faster.
        """
        changed = [
            found
            for call_id, found in tally.standing.items()
            if (told := history.records.get(call_id)) is None or told.key != found.key
        ]
        until = self._keeper.keep(tally.window, history, changed)
        balance = _balance(tally, history)
        same = (frozenset(balance.pending), frozenset(balance.vanished)) == (
            history.pending,
            history.vanished,
        )
        if history.revision and not changed and same and not evidence:
            return None
        return self._write(tally, history.taken + 1, changed, balance, until) or self.TAKEN

    def _write(
        self,
        tally: Tally,
        revision: int,
        changed: Sequence[Standing],
        balance: Balance,
        until: datetime | None,
    ) -> Unsealed | None:
        """Make a segment and its companion durable, locked until then; None where another writer's
        has the key.

        A crash after the first leaves a segment without a seal; the next writer seals it as it is.
        """
        name = layout.SegmentName(tally.window.start, revision)
        lines = segment.lines(tally.window, revision, changed, balance, tally.listing)
        with spool(lines) as file:
            entry = seal.describe(name.jsonl, file)
            try:
                self._store.put_once(
                    name.jsonl, file, content_type="application/x-ndjson", retain_until=until
                )
            except KeyTaken:
                return None
        self._segments.add(name, sealed=False)
        return self._reader.ready(name, entry, _in_order(changed), until)


def _balance(tally: Tally, history: History) -> Balance:
    """Where each id stands. One without a record is counted as listed until it has one; one with
    a record that is not listed any more has vanished."""
    known = tally.standing.keys() | history.records.keys() | history.pending | history.vanished
    return Balance(
        outcomes={
            call_id: found.outcome
            for call_id, found in tally.standing.items()
            if call_id in tally.listed
        },
        pending=sorted(tally.pending),
        vanished=sorted(known - tally.listed - tally.pending),
    )


def _in_order(changed: Sequence[Standing]) -> list[Standing]:
    return sorted(changed, key=lambda one: one.key)
