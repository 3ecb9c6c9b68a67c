"""What large buffers took is used again by whichever thread is next, and given back in the end.

glibc gives threads heaps of their own, up to eight for each core, and each heap keeps what was
given back to it, 5 MiB parts of uploads too: in the end as much for every heap as one thread ever
had. Which heap has had a large recording is chance, so memory goes on rising for hours. The heaps
are there for threads that allocate side by side; ours do so one at a time.
"""

from __future__ import annotations

import gc
import os
from typing import Any

_M_ARENA_MAX = -8

_UNDER_WAY = (10_000, 10, 10)
"""Objects made, and rounds, before the collector looks: little of what comes and goes here is in
cycles, and records by the million make it look too often."""
_MORE_THAN_A_START_MAKES = 1_000_000
"""Objects. With no bound at all, a verb that forgot to say that it is under way would grow."""


def share_one_heap() -> bool:
    """To be called before there are threads. False where there is no glibc, or the environment has
    a number of its own."""
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    mallopt = _function("mallopt")
    return bool(mallopt and mallopt(_M_ARENA_MAX, 1))


def start_begins() -> None:
    """Modules come, and next to no garbage: the collector would look at all of it, again and again,
    for a tenth of a start's time. To be ended by `start_is_over`."""
    gc.set_threshold(_MORE_THAN_A_START_MAKES)


def start_is_over() -> None:
    """What was made until now stays: the collector need not look at it again and again, and what
    making it took besides is given back."""
    gc.freeze()
    gc.set_threshold(*_UNDER_WAY)
    give_back()


def give_back() -> bool:
    """Let the system have what nobody uses now: for when there is nothing to do for a while. False
    where there was nothing, or no glibc. Takes a few milliseconds."""
    trim = _function("malloc_trim")
    return bool(trim and trim(0))


def _function(name: str) -> Any:
    """None in another C library, or on another system."""
    import ctypes  # `--help` needs no library

    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return None
