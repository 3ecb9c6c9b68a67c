"""Fewer calls at a time while the other side has too much to do, and more again afterwards."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from archiver.core.concurrency import Workers
from archiver.errors import SourceError
from archiver.pressure import Pressure
from archiver.retry import Retry
from tests.fakes.clock import HandClock


def crowded_until(pressure: Pressure, clock: HandClock, limit: int) -> None:
    while pressure.limit > limit:
        clock.forward(timedelta(seconds=1))
        pressure.crowded()


def test_one_crowded_moment_halves_it_once(clock: HandClock) -> None:
    pressure = Pressure(8, clock)
    for _ in range(20):
        pressure.crowded()
    assert pressure.limit == 4


def test_it_never_ends_all_work(clock: HandClock) -> None:
    pressure = Pressure(8, clock)
    crowded_until(pressure, clock, 1)
    clock.forward(timedelta(seconds=1))
    pressure.crowded()
    assert pressure.limit == 1


def test_work_that_ends_brings_it_back(clock: HandClock) -> None:
    pressure = Pressure(8, clock)
    crowded_until(pressure, clock, 1)
    limits = []
    for _ in range(40):
        limits.append(pressure.limit)
        with pressure.slot():
            pass
    assert limits == sorted(limits)
    assert pressure.limit == 8
    assert limits.index(8) > 8, "not all at once"


@pytest.mark.parametrize(("status", "limit"), [(429, 4), (503, 4), (500, 8), (None, 8)])
def test_it_hears_of_answers_that_say_so(clock: HandClock, status: int | None, limit: int) -> None:
    pressure = Pressure(8, clock)
    answers = [SourceError("too much", retryable=True, status=status)]

    def ask() -> None:
        if answers:
            raise answers.pop()

    Retry(clock, pressure=pressure).call("list", ask)
    assert pressure.limit == limit


def test_workers_keep_to_it_and_bring_it_back(clock: HandClock) -> None:
    pressure, lock = Pressure(8, clock), threading.Lock()
    active, most = [0], []
    crowded_until(pressure, clock, 2)

    def work(_: int) -> None:
        with lock:
            active[0] += 1
            most.append((active[0], pressure.limit))
        time.sleep(0.005)
        with lock:
            active[0] -= 1

    workers = Workers(8, pressure)
    workers.map(work, range(100))
    workers.close()
    assert max(at_work for at_work, _ in most[:2]) <= 2
    assert all(at_work <= limit for at_work, limit in most)
    assert max(at_work for at_work, _ in most) > 4
    assert pressure.limit == 8


def test_work_that_fails_brings_it_back_too(clock: HandClock) -> None:
    pressure = Pressure(2, clock)
    crowded_until(pressure, clock, 1)
    workers = Workers(2, pressure)
    with pytest.raises(ZeroDivisionError):
        workers.map(lambda n: 1 // n, [0])
    workers.close()
    assert pressure.limit == 2
