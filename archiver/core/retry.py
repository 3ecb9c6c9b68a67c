"""Retries with exponential backoff and jitter, on the injected clock."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from archiver.core.clock import Clock
from archiver.core.concurrency import THROTTLED_STATUS, ConcurrencyLimit
from archiver.core.errors import ArchiverError
from archiver.observability.metrics import RETRIES

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.5
"""The backoff before the second try. It doubles with each try; jitter adds up to this much."""
MAX_WAIT_SECONDS = 20.0
LONGEST_WAIT_SECONDS = 60.5
"""A longer `retry_after_seconds` ends the retries of one request; the half second is the jitter of
a `Retry-After` of 60. Stores and blob stores are asked again after this time, whatever they say.
Where the source as a whole asks for a pause, all workers wait longer (`source/pause.py`)."""


@dataclass(eq=False, repr=False)
class Retry:
    """Tries at most `attempts` times. Each answer of `THROTTLED_STATUS` lowers
    `concurrency_limit`, also the last one."""

    clock: Clock
    attempts: int = 5
    concurrency_limit: ConcurrencyLimit | None = None

    def call(self, stage: str, function: Callable[[], T]) -> T:
        """Call `function` until it returns. Raises its last `ArchiverError`, and `Interrupted` as
        soon as the process must end."""
        for attempt in itertools.count(1):
            try:
                return function()
            except ArchiverError as error:
                limit, asked_seconds = self.concurrency_limit, error.retry_after_seconds or 0.0
                if limit is not None and error.retryable and error.status in THROTTLED_STATUS:
                    limit.on_throttled()
                is_last = attempt == self.attempts or asked_seconds > LONGEST_WAIT_SECONDS
                if is_last or not error.retryable:
                    raise
                RETRIES.labels(stage, error.reason).inc()
            backoff = min(FIRST_WAIT_SECONDS * 2 ** (attempt - 1), MAX_WAIT_SECONDS)
            jitter = random.uniform(0, FIRST_WAIT_SECONDS)  # noqa: S311  (no secret)
            self.clock.sleep(max(backoff + jitter, asked_seconds))
        raise AssertionError("unreachable")
