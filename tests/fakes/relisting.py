"""What the tests of re-listings share: the moments of a window's life, processes that come and go
on one bucket, and what the archive tells then."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from archiver.pipeline.loop import Loop
from archiver.store.bucket import Bucket
from archiver.store.types import Stored
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, call_of
from tests.fakes.rig import HOUR, WINDOW, Archive, Rig

MakeRig = Callable[..., Rig]
Look = Callable[[], Archive]
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
SETTLED = WINDOW.end + 2 * HOUR
AGES = (4 * HOUR, 8 * HOUR)
FIRST, SECOND = WINDOW.end + AGES[0], WINDOW.end + AGES[1]
GIVE_UP = 3 * HOUR


def another(rig: MakeRig, **options: Any) -> Loop:
    """A process that starts anew on the same bucket."""
    made = rig(**{"relist": AGES, "give_up": GIVE_UP, **options})
    made.found(TEN)
    return made.loop()


def amend(platform: Platform, call_id: str, **fields: Any) -> None:
    call_of(platform, call_id).document.update(fields)


def answers(status: int, path_end: str) -> Callable[[Request], Reply | None]:
    """A hook: what ends so is answered with this status and nothing else."""
    return lambda request: Reply(status, {}, b"{}") if request.path.endswith(path_end) else None


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
    """Something happens just before the first request of this name for a key that holds `part`."""

    def __init__(self, real: Bucket, name: str, part: str, happen: Callable[[], object]) -> None:
        client = real.client
        super().__init__(real.options, client.clock, client.retry, client=client.s3)
        self._name, self._part = name, part
        self._happen: Callable[[], object] | None = happen

    def put_once(self, key: str, *rest: Any, **options: Any) -> Stored:
        self._meet("put_once", key)
        return super().put_once(key, *rest, **options)

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
