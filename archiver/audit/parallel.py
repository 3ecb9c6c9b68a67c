"""Two ways to keep threads busy in bounded memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered(
    executor: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """`function` of each item, in order, at most `ahead` of them begun and not yet taken."""
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(executor.submit(function, item))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


class Backlog:
    """Tasks without results, at most `limit` waiting or running: whoever adds more has to wait.

    Many threads may add, one drains. A task's exception is raised to whoever adds or drains next.
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
