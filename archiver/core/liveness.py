"""When this process last came on, for `/healthz`: a restart is to end a deadlock, and nothing else.

It comes on with each request that is begun or answered, each piece of a body that is moved, each
record that is worked at, and all the while it waits for something that has an end of its own: a
pause between rounds, a backoff, its turn under `API_RATE`, the answer to a request. So neither a
source nor a store that is slow or out makes it look dead, whose restart would only begin the same
work anew. What waits for ever for a lock, or for a thread that is gone, comes by here no more.

What one thread notes, another reads: neither a float nor a dictionary's entry is ever half set.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_last = time.monotonic()
_waits: dict[object, float] = {}
"""Until when each wait lasts that is under way."""


def note() -> None:
    """Something moved, or waits on purpose."""
    global _last  # noqa: PLW0603  (one process, one life)
    _last = time.monotonic()


@contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """While inside, and for so long at most, this process waits for something on purpose."""
    note()
    wait = object()
    _waits[wait] = time.monotonic() + seconds
    try:
        yield
    finally:
        del _waits[wait]
        note()


def idle_seconds() -> float:
    """Since something last moved, or waited on purpose."""
    return max(0.0, time.monotonic() - max([_last, *list(_waits.values())]))
