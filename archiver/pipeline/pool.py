"""The workers: calls archived at a time, and no call begun after one has failed the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """A pool of threads that many windows share."""

    def __init__(self, count: int) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="worker")

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`function` of each item, in order. The first exception ends what has not begun, waits
        for what has, and is raised."""
        futures: list[Future[R]] = [self._executor.submit(function, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            if any(future.done() and future.exception() for future in futures):
                for future in futures:
                    future.cancel()
                wait(futures)
            failed = next((f for f in futures if not f.cancelled() and f.exception()), None)
            return [failed.result()] if failed else [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """End the threads; what they have begun is finished or aborted first."""
        self._executor.shutdown(wait=True, cancel_futures=True)
