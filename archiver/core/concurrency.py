"""Thread pools with bounded queues, and a concurrency limit that throttling lowers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from queue import SimpleQueue
from typing import TypeVar

import structlog

from archiver.core.clock import Clock

log = structlog.get_logger()

T = TypeVar("T")
R = TypeVar("R")

THROTTLED_STATUS = (429, 503)
HALVED_EVERY_SECONDS = 1.0


class ConcurrencyLimit:
    """Lets at most `most` tasks run at a time, at least one; fewer while source or store throttle.

    Each 429 or 503 halves the limit, at most once a second, because many requests meet the same
    throttling. Each task that ends adds 1/limit to it: after as many tasks as it allows, the limit
    is about one higher. Thread-safe.
    """

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = most
        self._clock = clock
        self._limit = float(most)
        self._halved_at = -HALVED_EVERY_SECONDS
        self._at_work = 0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        return int(self._limit)

    def on_throttled(self) -> None:
        """Lower the limit after an answer of `THROTTLED_STATUS`."""
        with self._changed:
            now = self._clock.monotonic()
            if now - self._halved_at < HALVED_EVERY_SECONDS or self.limit == 1:
                return
            if self.limit == self._most:
                log.warning("concurrency.lowered", reason="throttled")
            self._halved_at, self._limit = now, max(1.0, self._limit / 2)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Run a task inside this; waits while as many tasks as the limit are running."""
        with self._changed:
            self._changed.wait_for(lambda: self._at_work < self.limit)
            self._at_work += 1
        try:
            yield
        finally:
            with self._changed:
                self._at_work -= 1
                if self.limit < self._most:
                    self._limit = min(float(self._most), self._limit + 1 / self._limit)
                    if self.limit == self._most:
                        log.info("concurrency.restored")
                self._changed.notify_all()


class Workers:
    """A pool of `count` threads that all windows share; `concurrency_limit` may admit fewer."""

    def __init__(self, count: int, concurrency_limit: ConcurrencyLimit | None = None) -> None:
        self._slot = nullcontext if concurrency_limit is None else concurrency_limit.slot
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._ahead = 2 * count

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return `function` of each item, in order. The first exception cancels the tasks that have
        not begun, waits for the others, and is raised. Only a few items are queued at a time: there
        may be many."""
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
        with self._slot():
            return function(item)

    def close(self) -> None:
        """End the threads; tasks that have begun are finished or aborted first."""
        self._executor.shutdown(cancel_futures=True)


def ordered(
    executor: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Yield `function` of each item, in order, at most `ahead` submitted and not yet taken."""
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(executor.submit(function, item))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


class Backlog:
    """Runs tasks without results, at most `limit` queued or running; `add` blocks while there are
    more.

    Many threads may add, one drains. The exception of a task is raised by the next `add` or
    `drain`.
    """

    def __init__(self, executor: Executor, limit: int) -> None:
        self._executor = executor
        self._limit = limit
        self._slots = threading.Semaphore(limit)
        self._error: BaseException | None = None

    def add(self, function: Callable[[], None]) -> None:
        self._slots.acquire()
        if self._error is not None:
            self._slots.release()
            raise self._error
        self._executor.submit(function).add_done_callback(self._done)

    def drain(self) -> None:
        """Wait for all tasks."""
        for _ in range(self._limit):
            self._slots.acquire()
        for _ in range(self._limit):
            self._slots.release()
        if self._error is not None:
            raise self._error

    def _done(self, future: Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._error = self._error or error
        self._slots.release()
