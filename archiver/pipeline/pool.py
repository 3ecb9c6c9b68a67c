"""The workers: calls archived at a time, and no call begun after one has failed the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import TypeVar

from archiver.hub import Hub
from archiver.pressure import Pressure

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """What many windows have done for them, `count` pieces at a time; fewer while there is
    `pressure`. What they do are tasks (`archiver.hub`), all on one thread."""

    def __init__(self, count: int, pressure: Pressure | None = None) -> None:
        self._pressure = pressure
        self._hub = Hub(count, None if pressure is None else lambda: pressure.limit)
        self._ahead = 2 * count

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`function` of each item, in order. The first exception ends what has not begun, waits
        for what has, and is raised. Only a few items are queued at a time: there may be many."""
        results: dict[int, R] = {}
        running: dict[Future[R], int] = {}
        done = SimpleQueue[Future[R]]()
        waiting = enumerate(items)
        try:
            while True:
                for number, item in waiting:
                    future = self._hub.submit(self._work, function, item)
                    running[future] = number
                    future.add_done_callback(done.put)
                    if len(running) >= self._ahead:
                        break
                if not running:
                    return [results[number] for number in range(len(results))]
                future = done.get()
                results[running.pop(future)] = future.result()
        finally:
            for future in running:
                future.cancel()
            wait(running)

    def _work(self, function: Callable[[T], R], item: T) -> R:
        try:
            return function(item)
        finally:
            if self._pressure is not None:
                self._pressure.recover()

    def close(self) -> None:
        """End them; what they have begun is finished or aborted first."""
        self._hub.shutdown(cancel_futures=True)
