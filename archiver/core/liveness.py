"""When this process last made progress, for `/healthz`. A restart should end a deadlock, nothing
else.

Progress is each request that is begun or answered, each piece of a body, each record that is
processed, and all the time spent waiting for something that has a limit of its own: a pause between
rounds, a backoff, the wait for `API_RATE`, the answer to a request. So a slow source or store, or
one that is out, does not look like a deadlock; a restart would only repeat the same work. A thread
that waits for ever for a lock, or for a thread that has ended, makes no progress.

One thread writes a value and another reads it without a lock: assigning a float and setting an
entry of a dictionary are atomic in CPython.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_last = time.monotonic()
_waits: dict[object, float] = {}
"""The end of each wait in progress."""


def note() -> None:
    """Note progress, or an intended wait."""
    global _last  # noqa: PLW0603  (one process, one life)
    _last = time.monotonic()


@contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """Count as progress while inside, for at most `seconds`: the process waits on purpose."""
    note()
    wait = object()
    _waits[wait] = time.monotonic() + seconds
    try:
        yield
    finally:
        del _waits[wait]
        note()


def idle_seconds() -> float:
    """Seconds since the last progress or intended wait."""
    return max(0.0, time.monotonic() - max([_last, *list(_waits.values())]))
