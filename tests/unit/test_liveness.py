"""What counts as life: whatever moves, and whatever waits on purpose. A deadlock does not."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from archiver.core import liveness
from archiver.core.clock import SystemClock
from archiver.core.concurrency import Workers
from archiver.core.errors import StoreError
from archiver.core.http import TransportError, make_client
from archiver.core.retry import Retry
from archiver.observability.server import Telemetry
from archiver.source.json_api import RateLimit
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions, connect
from tests.fakes.rig import aws_session
from tests.fakes.traps import silent, slow

LONGEST_IDLE_SECONDS = 2.0
"""A second is what a wait goes on without a note; the rest is for a machine that is busy."""


@contextmanager
def watched() -> Iterator[Callable[[], float]]:
    """Gives the longest time in which nothing was noted, so far."""
    most, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            most.append(liveness.idle_seconds())

    liveness.note()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(most)
    finally:
        over.set()
        thread.join()


def test_a_sleep_and_a_turn_under_a_rate_are_waits_on_purpose():
    clock = SystemClock()
    rate = RateLimit(0.4, clock)
    rate.wait()
    with watched() as most:
        clock.sleep(2.5)
        rate.wait()
    assert most() < LONGEST_IDLE_SECONDS


def test_the_wait_for_an_answer_is_one(transport):
    http, workers = make_client(transport), Workers(2)
    with silent() as server, watched() as most:

        def ask(_: int) -> None:
            with pytest.raises(TransportError):
                http.request("GET", server.url, {}, max_bytes=1, seconds=2.5)

        began = time.monotonic()
        workers.map(ask, range(2))
        assert time.monotonic() - began > 2.4
        assert most() < LONGEST_IDLE_SECONDS
    workers.close()


def test_it_is_none_any_longer_once_it_should_have_ended():
    with liveness.waiting(0.2):
        assert liveness.idle_seconds() == 0
        time.sleep(0.5)
        assert liveness.idle_seconds() > 0.2
    assert liveness.idle_seconds() < 0.2


def test_a_body_that_is_taken_slowly_is_life(transport):
    http = make_client(transport)
    with slow(400_000) as server, watched() as most:
        http.request("PUT", server.url, {}, bytes(1_000_000), max_bytes=9)
    assert most() < LONGEST_IDLE_SECONDS


def test_a_deadlock_is_none():
    """Two threads that wait for each other, and a server that goes on answering probes."""
    one, other = threading.Lock(), threading.Lock()
    met = threading.Barrier(2)

    def hold(first: threading.Lock, second: threading.Lock) -> None:
        with first:
            met.wait()
            second.acquire(timeout=30)

    telemetry = Telemetry(0, lambda: liveness.idle_seconds() < 0.5, lambda: True)
    liveness.note()
    for locks in ((one, other), (other, one)):
        threading.Thread(target=hold, args=locks, daemon=True).start()
    try:
        end = time.monotonic() + 10
        while status(telemetry.port) == 200:
            assert time.monotonic() < end, "a deadlock passes for life"
            time.sleep(0.05)
        liveness.note()
        assert status(telemetry.port) == 200
    finally:
        telemetry.close()


def status(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.usefixtures("aws_keys")
@pytest.mark.parametrize("signed", [True, False])
def test_so_is_a_body_that_goes_out_slowly(clock, signed):
    with slow(400_000) as server:
        options = StoreOptions(
            "bucket", endpoint_url=server.url, region="us-east-1", signed_requests=signed
        )
        client = connect(options, clock.check, aws_session())
        bucket = Bucket(options, clock, Retry(clock, attempts=1), client=client)
        with watched() as most, pytest.raises(StoreError):
            bucket.put_once("k", bytes(1_000_000))
    assert most() < LONGEST_IDLE_SECONDS
