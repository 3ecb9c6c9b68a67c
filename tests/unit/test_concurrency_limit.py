"""Fewer calls at a time while the other side has too much to do, and more again afterwards."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from archiver.core.concurrency import ConcurrencyLimit, Workers
from archiver.core.errors import SourceError
from archiver.core.retry import Retry
from tests.fakes.clock import HandClock


@pytest.fixture
def limit(clock: HandClock) -> ConcurrencyLimit:
    return ConcurrencyLimit(8, clock)


def throttled_until(concurrency_limit: ConcurrencyLimit, clock: HandClock, limit: int) -> None:
    while concurrency_limit.limit > limit:
        clock.forward(timedelta(seconds=1))
        concurrency_limit.on_throttled()


def test_one_throttled_moment_halves_it_once(limit):
    for _ in range(20):
        limit.on_throttled()
    assert limit.limit == 4


def test_it_never_ends_all_work(clock, limit):
    throttled_until(limit, clock, 1)
    clock.forward(timedelta(seconds=1))
    limit.on_throttled()
    assert limit.limit == 1


def test_work_that_ends_brings_it_back(clock, limit):
    throttled_until(limit, clock, 1)
    limits = []
    for _ in range(40):
        limits.append(limit.limit)
        with limit.slot():
            pass
    assert limits == sorted(limits)
    assert limit.limit == 8
    assert limits.index(8) > 8, "not all at once"


@pytest.mark.parametrize(("status", "left"), [(429, 4), (503, 4), (500, 8), (None, 8)])
def test_it_hears_of_answers_that_say_so(clock, limit, status, left):
    answers = [SourceError("too much", retryable=True, status=status)]

    def ask() -> None:
        if answers:
            raise answers.pop()

    Retry(clock, concurrency_limit=limit).call("list", ask)
    assert limit.limit == left


def test_workers_keep_to_it_and_bring_it_back(clock, limit):
    lock = threading.Lock()
    active, most = [0], []
    throttled_until(limit, clock, 2)

    def work(_: int) -> None:
        with lock:
            active[0] += 1
            most.append((active[0], limit.limit))
        time.sleep(0.005)
        with lock:
            active[0] -= 1

    workers = Workers(8, limit)
    workers.map(work, range(100))
    workers.close()
    assert max(at_work for at_work, _ in most[:2]) <= 2
    assert all(at_work <= allowed for at_work, allowed in most)
    assert max(at_work for at_work, _ in most) > 4
    assert limit.limit == 8


def test_work_that_fails_brings_it_back_too(clock):
    limit = ConcurrencyLimit(2, clock)
    throttled_until(limit, clock, 1)
    workers = Workers(2, limit)
    with pytest.raises(ZeroDivisionError):
        workers.map(lambda n: 1 // n, [0])
    workers.close()
    assert limit.limit == 2
