"""Fewer calls at a time while the other side has too much to do, and more again afterwards."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from archiver.clock import Interrupted, SystemClock
from archiver.errors import SourceError
from archiver.pipeline.pool import Workers
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
        with pressure.room():
            limits.append(pressure.limit)
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


def test_workers_keep_to_it(clock: HandClock) -> None:
    pressure, go_on, lock, active = Pressure(8, clock), threading.Event(), threading.Lock(), [0]
    crowded_until(pressure, clock, 2)

    def work(_: int) -> None:
        with lock:
            active[0] += 1
        assert go_on.wait(10)

    workers = Workers(8, pressure)
    running = threading.Thread(target=workers.map, args=(work, range(8)))
    running.start()
    while active[0] < 2:
        time.sleep(0.01)
    time.sleep(0.1)
    assert active[0] == 2, "six threads have nothing to do"
    go_on.set()
    running.join()
    workers.close()
    assert active[0] == 8


def test_who_waits_for_room_hears_of_the_end() -> None:
    clock = SystemClock()
    pressure = Pressure(1, clock)
    with pressure.room():
        waiting = threading.Timer(0.1, clock.stop)
        waiting.start()
        with pytest.raises(Interrupted), pressure.room():
            raise AssertionError("there was no room")
