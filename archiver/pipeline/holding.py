"""Seeing to it that what the ledger calls held is held: at each touch of a window that has settled.

Whoever puts a hold on a call holds what it has by then. What came meanwhile, and what a crash left
between a record and the second look at its call's hold, is found here. New objects are born held
(`transfer.py`); no hold is ever taken off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog

from archiver.errors import Reach, StoreError
from archiver.manifest.event import ObjectRef
from archiver.manifest.record import Record
from archiver.model import Window
from archiver.pipeline.heldcalls import HeldCalls
from archiver.pipeline.history import Standing
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import Store
from archiver.store.objects import Head

log = structlog.get_logger()

AT_ONCE = 1000
"""Calls of which what is loose is kept in mind: a window may have 100,000 that are held."""


@dataclass(frozen=True)
class _Found:
    """What of a held call has no hold, and how many of its objects are missing or damaged."""

    call_id: str
    loose: list[ObjectRef]
    gone: int


class Holding:
    """Looks at the objects of held calls. Threads share it, each at a window of its own."""

    def __init__(self, store: Store, held: HeldCalls, workers: Workers) -> None:
        self._store = store
        self._held = held
        self._workers = workers

    def see_to(self, window: Window, *standings: Mapping[str, Standing]) -> None:
        """Hold what is loose of a window's held calls, all revisions; `standings` have their newest
        records, by call id, the first that has one counts. What is gone, or refused by the store,
        is left to `verify`, with an error in the log. Raises `StoreError` that is about more than
        one object."""
        held = self._held.ids()
        if not held:
            return
        calls: dict[str, Standing] = {}
        for known in standings:
            calls = {**{i: known[i] for i in known.keys() & held}, **calls}
        todo = list(calls.values())
        done = [self._see_to_some(todo[at : at + AT_ONCE]) for at in range(0, len(todo), AT_ONCE)]
        if loose := sum(count for count, _ in done):
            log.warning("window.held_again", window=str(window), objects=loose)
        if gone := sum(count for _, count in done):
            log.error("window.objects_gone", window=str(window), objects=gone)

    def _see_to_some(self, standings: Sequence[Standing]) -> tuple[int, int]:
        """How many objects of these calls are held now that were not, and how many are gone."""
        found = self._workers.map(self._look, standings)
        if any(one.loose for one in found):
            self._held.look()  # a call that was released meanwhile is not held again
        held = self._held.ids()
        loose = [one for call in found if call.call_id in held for one in call.loose]
        self._workers.map(self._hold, loose)
        return len(loose), sum(call.gone for call in found)

    def _look(self, standing: Standing) -> _Found:
        found = list(standing.revisions(self._store))
        refs = dict.fromkeys(one for each in found if each is not None for one in refs_of(each))
        heads = [(one, self._head(one)) for one in refs]
        loose = [one for one, head in heads if head is not None and not head.held]
        gone = found.count(None) + sum(head is None for _, head in heads)
        return _Found(standing.record().call_id, loose, gone)

    def _head(self, one: ObjectRef) -> Head | None:
        """What the store says of an object; None, with an error in the log, where it refuses."""
        try:
            return self._store.head(one.key, one.version_id)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            log.error("hold.unknown", key=one.key, error=str(error))
            return None

    def _hold(self, one: ObjectRef) -> None:
        try:
            self._store.set_hold(one.key, one.version_id, True)
        except StoreError as error:
            if error.reach is Reach.ITEM:
                log.error("hold.refused", key=one.key, error=str(error))
            elif self._store.head(one.key, one.version_id) is not None:
                raise error


def refs_of(found: Record) -> Iterator[ObjectRef]:
    """The objects of a record: itself, in the version on top, and its files."""
    yield ObjectRef(found.key, None)
    for file in found.document["files"]:
        yield ObjectRef(file["key"], file["version_id"])
