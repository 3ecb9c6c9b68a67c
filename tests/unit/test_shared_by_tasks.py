"""What tasks share is one task's at a time where it waits, though all of them have one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest

from archiver import hub
from archiver.hub import Hub
from archiver.pipeline.heldcalls import HeldCalls
from archiver.pipeline.index import RecordIndex
from archiver.store.client import StoreOptions
from archiver.store.direct import Direct
from archiver.store.objects import Head, Stored
from archiver.store.protection import Protection
from tests.fakes.clock import HandClock

TASKS = 8


class Waiting:
    """A store, or what asks one, that answers nothing at once; how often and how many at a time."""

    options = StoreOptions("b")

    def __init__(self) -> None:
        self.asked = self.inside = self.most = 0

    def list(self, prefix: str, start_after: str = "") -> Iterator[Any]:
        self._wait()
        yield from ()

    def head(self, key: str, version_id: str | None) -> Head:
        self._wait()
        return Head(3, version_id, '"x"', None, None, None, False, None, None)

    def _wait(self) -> None:
        self.asked += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        hub.sleep(0.005)
        self.inside -= 1


@pytest.fixture
def tasks() -> Iterator[Hub]:
    made = Hub(TASKS)
    yield made
    made.shutdown(wait=False)


def all_at_once(tasks: Hub, function: Callable[[], object]) -> None:
    for future in [tasks.submit(function) for _ in range(TASKS)]:
        future.result(10)


def test_a_day_is_listed_once(tasks: Hub) -> None:
    store = Waiting()
    index = RecordIndex(store)  # type: ignore[arg-type]
    all_at_once(tasks, lambda: index.revision(date(2026, 1, 1), "vc_1"))
    assert store.asked == 1


def test_who_is_held_is_looked_up_once(tasks: Hub, clock: HandClock) -> None:
    store = Waiting()
    held = HeldCalls(store, clock)  # type: ignore[arg-type]
    all_at_once(tasks, lambda: held.is_held("vc_1"))
    assert store.asked == 1


def test_an_object_is_looked_at_and_locked_by_one_at_a_time(tasks: Hub) -> None:
    requests = Waiting()
    protection = Protection(requests)  # type: ignore[arg-type]
    all_at_once(tasks, lambda: protection.check(Stored("k", None, 3, "ab"), None))
    assert (requests.asked, requests.most) == (TASKS, 1)


def test_credentials_that_end_are_fetched_beside_the_tasks(tasks: Hub) -> None:
    """The server that gives them out answers once another task has run."""
    ran = threading.Event()

    class Ending:
        def refresh_needed(self) -> bool:
            return True

        def get_frozen_credentials(self) -> str:
            return "new" if ran.wait(10) else "too late"

    session = SimpleNamespace(get_credentials=Ending)
    direct = Direct(None, session, StoreOptions("b"))  # type: ignore[arg-type]
    first = tasks.submit(direct._credentials)
    tasks.submit(ran.set).result(10)
    assert first.result(10) == "new"
