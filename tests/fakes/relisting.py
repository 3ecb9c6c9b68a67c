"""What the tests of re-listings share: the moments of a window's life, processes that come and go
on one bucket, and what the archive tells then."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from archiver.observability.metrics import REGISTRY
from archiver.store.bucket import Bucket
from archiver.store.types import Stored
from tests.fakes.memory_rig import Crash
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, call_of
from tests.fakes.rig import HOUR, WINDOW, Archive, HandLoop, Rig

MakeRig = Callable[..., Rig]
Look = Callable[[], Archive]
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
SETTLED = WINDOW.end + 2 * HOUR
AGES = (4 * HOUR, 8 * HOUR)
FIRST, SECOND = WINDOW.end + AGES[0], WINDOW.end + AGES[1]
GIVE_UP = 3 * HOUR
REST = 16 * MINUTE
"""Longer than a window rests whose source does not answer."""
ELEVEN = TEN + HOUR


def another(rig: MakeRig, **options: Any) -> HandLoop:
    """A process that starts anew on the same bucket."""
    return rig(**{"relist": AGES, "give_up": GIVE_UP, **options}).loop()


def amend(platform: Platform, call_id: str, **fields: Any) -> None:
    call_of(platform, call_id).document.update(fields)


def missing(platform: Platform, call_id: str, *, gone: bool = True) -> None:
    """The recording's URL leads nowhere from now on, or leads there again."""
    call_of(platform, call_id).blob_missing = gone


def value(name: str) -> float:
    """What a metric shows."""
    found = REGISTRY.get_sample_value(name)
    assert found is not None
    return found


def lines_of(look: Archive, start: datetime = TEN) -> list[dict[str, Any]]:
    """The window lines of all revisions."""
    found = [one for one in look.segments.values() if one.window.start == start]
    return [dict(one.line) for one in sorted(found, key=lambda one: one.name.revision)]


def files_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {file["kind"]: file for file in document["files"]}


def told_in(look: Archive, call_id: str) -> list[datetime]:
    """The windows whose segments carry a record of the call, one for each."""
    return [
        one.window.start
        for one in look.segments.values()
        for record in one.records
        if record.call_id == call_id
    ]


class Troubled(Bucket):
    """Something happens just before the first request of this name for a key that holds `part`,
    or just `after` it."""

    def __init__(
        self,
        real: Bucket,
        name: str,
        part: str,
        happen: Callable[[], object],
        *,
        after: bool = False,
    ) -> None:
        client = real.client
        super().__init__(real.options, client.clock, client.retry, client=client.s3)
        self._name, self._part, self._after = name, part, after
        self._happen: Callable[[], object] | None = happen

    def put_once(self, key: str, *rest: Any, **options: Any) -> Stored:
        if not self._after:
            self._meet("put_once", key)
        stored = super().put_once(key, *rest, **options)
        if self._after:
            self._meet("put_once", key)
        return stored

    def read(self, key: str, *rest: Any, **options: Any) -> bytes | None:
        self._meet("read", key)
        return super().read(key, *rest, **options)

    def tail(self, key: str, *rest: Any, **options: Any) -> bytes | None:
        self._meet("tail", key)
        return super().tail(key, *rest, **options)

    def _meet(self, name: str, key: str) -> None:
        if self._happen is not None and name == self._name and self._part in key:
            happen, self._happen = self._happen, None
            happen()


def crashing(real: Bucket, part: str, *, after: bool = False) -> Troubled:
    """Its process dies before it writes the first key that holds this part, or just after it."""

    def crash() -> None:
        raise Crash

    return Troubled(real, "put_once", part, crash, after=after)
