"""What the tests of re-listings share: the moments of a window's life, processes that come and go
on one bucket, and what the archive tells then."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from archiver.observability.metrics import REGISTRY
from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_rig import Crash
from tests.fakes.memory_source import MemoryPlatform
from tests.fakes.memory_store import MemoryStore
from tests.fakes.memory_store import Request as StoreRequest
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, call_of
from tests.fakes.rig import HOUR, WINDOW, Archive, HandLoop, Rig
from tests.fakes.store_rules import STRANGER

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


class WatchedPlatform(MemoryPlatform):
    """Remembers each request."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.requests: list[Request] = []

    def respond(self, request: Request, client: str = "client") -> Reply:
        self.requests.append(request)
        return super().respond(request, client)

    def asked(self, what: str) -> int:
        """How often paths that end so were asked for: `.wav` are the recordings'."""
        return sum(request.path.endswith(what) for request in self.requests)


def troubled(
    store: MemoryStore,
    operation: str,
    part: str,
    happen: Callable[[], object],
    *,
    after: bool = False,
) -> MemoryStore:
    """For one writer something happens just before the first such request for a key that holds
    `part`, or just `after` it."""
    todo, moment = [happen], "after" if after else "before"

    def hook(request: StoreRequest) -> None:
        asked = (request.operation, request.moment) == (operation, moment)
        if todo and asked and part in request.key:
            todo.pop()()

    made = store.by("troubled")
    made.hooks.append(hook)
    return made


def crashing(store: MemoryStore, part: str, *, after: bool = False) -> MemoryStore:
    """Its process dies before it writes the first key that holds this part, or just after it."""

    def crash() -> None:
        raise Crash

    return troubled(store, "put", part, crash, after=after)


def stranger(store: MemoryStore) -> MemoryStore:
    """The bucket in the hands of somebody whom none of the archive's rules bind."""
    return MemoryStore(HandClock(), writer=STRANGER, rules=False, shelf=store._shelf)
