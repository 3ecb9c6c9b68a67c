"""Large buffers of many threads: what one gave back, the next one uses. In a process of its own,
because a process can be told so only once."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

START = """
import re, threading
from pathlib import Path
from archiver import allocator
from archiver.cli.common import start_run
from archiver.settings import LogSettings

def resident():
    found = re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1000

def part():
    return bytearray(b"x") * (8 << 20)

start_run(LogSettings())
before, turn, there = resident(), threading.Lock(), threading.Barrier(16)
"""
ONE_AFTER_THE_OTHER = """
def work():
    there.wait()
    for _ in range(2):  # the first one to be given back makes the limit of what is large rise
        with turn:
            part()
    there.wait()

threads = [threading.Thread(target=work) for _ in range(16)]
for one in threads:
    one.start()
for one in threads:
    one.join()
print(resident() - before)
"""
SIDE_BY_SIDE = """
part()
parts, between = [], []
for _ in range(6):
    parts.append(part())
    between.append(bytes(300_000))  # more than a hole in the heap takes
parts.clear()
kept = resident() - before
allocator.give_back()
print(kept, resident() - before)
"""


def told(script: str, **own: str) -> list[float]:
    clean = {name: v for name, v in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", START + script]
    done = subprocess.run(command, env={**clean, **own}, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")


def test_threads_leave_no_heaps_of_their_own() -> None:
    """What is resident after 16 threads had a part of an upload each, one after the other; unless
    the environment asks for it otherwise."""
    assert told(ONE_AFTER_THE_OTHER)[0] < 30
    assert told(ONE_AFTER_THE_OTHER, MALLOC_ARENA_MAX="16")[0] > 80


def test_what_lay_between_other_things_is_given_back_too() -> None:
    kept, after = told(SIDE_BY_SIDE)
    assert kept > 30
    assert after < 12
