"""The workers: calls archived at a time, and no call begun after one has failed the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import TypeVar

from archiver.pressure import Pressure

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """A pool of threads that many windows share; fewer of them work while there is `pressure`."""

    def __init__(self, count: int, pressure: Pressure | None = None) -> None:
        self._pressure = pressure
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="worker")
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
                    future = self._executor.submit(self._work, function, item)
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
        if self._pressure is None:
            return function(item)
        with self._pressure.room():
            return function(item)

    def close(self) -> None:
        """End the threads; what they have begun is finished or aborted first."""
        self._executor.shutdown(wait=True, cancel_futures=True)
