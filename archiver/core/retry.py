"""One way to try again: exponential backoff with jitter, on the injected clock.

tenacity does the looping; `sleep` is the clock's, so a request to end is heard while waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import tenacity

from archiver.core.clock import Clock
from archiver.core.concurrency import THROTTLED_STATUS, ConcurrencyLimit
from archiver.core.errors import ArchiverError
from archiver.observability.metrics import RETRIES

T = TypeVar("T")

LONGEST_WAIT_SECONDS = 60.0
"""A `Retry-After` beyond this ends the attempt: the loop comes back later anyway."""


class Retry:
    """A policy: at most `attempts` tries, waiting `first_wait_seconds` × 2ⁿ with jitter between.

    `concurrency_limit` is lowered by each answer of `THROTTLED_STATUS`.
    """

    def __init__(
        self,
        clock: Clock,
        attempts: int = 5,
        first_wait_seconds: float = 0.5,
        max_wait_seconds: float = 20.0,
        concurrency_limit: ConcurrencyLimit | None = None,
    ) -> None:
        self._clock = clock
        self._concurrency_limit = concurrency_limit
        self._attempts = attempts
        self._first_wait_seconds = first_wait_seconds
        self._max_wait_seconds = max_wait_seconds

    def call(self, stage: str, function: Callable[[], T]) -> T:
        """Run `function` until it returns; raises its last `ArchiverError`."""
        try:
            return function()  # as nearly all do: tenacity takes longer than a small request
        except ArchiverError as error:
            if self._attempts == 1 or not _worth_it(error):
                raise
            first = [error]

        def again() -> T:
            if first:
                raise first.pop()
            return function()

        return self._policy(stage)(again)

    def _policy(self, stage: str) -> tenacity.Retrying:
        grown = tenacity.wait_exponential(
            multiplier=self._first_wait_seconds, max=self._max_wait_seconds
        ) + tenacity.wait_random(0, self._first_wait_seconds)
        return tenacity.Retrying(
            sleep=self._clock.sleep,
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=lambda state: max(grown(state), _asked_seconds(state)),
            retry=tenacity.retry_if_exception(_worth_it),
            before_sleep=lambda state: self._failed(stage, state),
            reraise=True,
        )

    def _failed(self, stage: str, state: tenacity.RetryCallState) -> None:
        RETRIES.labels(stage, _reason(state)).inc()
        error = state.outcome.exception() if state.outcome else None
        if (
            self._concurrency_limit
            and isinstance(error, ArchiverError)
            and error.status in THROTTLED_STATUS
        ):
            self._concurrency_limit.on_throttled()


def _worth_it(error: BaseException) -> bool:
    if not isinstance(error, ArchiverError) or not error.retryable:
        return False
    return (error.retry_after_seconds or 0.0) <= LONGEST_WAIT_SECONDS


def _asked_seconds(state: tenacity.RetryCallState) -> float:
    """What the answer asks to be waited for."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_seconds if isinstance(error, ArchiverError) else None
    return asked or 0.0


def _reason(state: tenacity.RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return error.reason if isinstance(error, ArchiverError) else "error"
