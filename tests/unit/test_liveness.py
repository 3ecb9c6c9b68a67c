"""What counts as life: whatever moves, and whatever waits on purpose. A deadlock does not."""

from __future__ import annotations

import io
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from archiver import liveness
from archiver.clock import Interrupted, SystemClock
from archiver.heads import NoAnswer
from archiver.hub import Hub
from archiver.source.http import Pace
from archiver.telemetry import Telemetry
from archiver.wire import Wire
from tests.system.tcp_proxy import Proxy

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


class Silent(Proxy):
    """Takes connections, reads slowly or not at all, and never answers."""

    def __init__(self, bytes_per_second: int = 0) -> None:
        super().__init__()
        self._pace = bytes_per_second

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with client:
            while self._pace and client.recv(self._pace // 10):
                time.sleep(0.1)
            time.sleep(30)


def test_a_sleep_and_a_turn_under_a_rate_are_waits_on_purpose() -> None:
    clock = SystemClock()
    pace = Pace(0.4, clock)
    pace.wait()
    with watched() as most:
        clock.sleep(2.5)
        pace.wait()
    assert most() < LONGEST_IDLE_SECONDS


@pytest.mark.parametrize("in_task", [False, True])
def test_the_wait_for_an_answer_is_one(in_task: bool) -> None:
    http = Wire(None, silence_seconds=3.5)
    hub = Hub(2)
    with Silent() as server, watched() as most:

        def ask() -> None:
            with pytest.raises(NoAnswer, match="timeout"):
                http.ask("GET", f"http://{server.address}/", {}, max_bytes=1)

        began = time.monotonic()
        hub.submit(ask).result() if in_task else ask()
        assert time.monotonic() - began > 3.4
        assert most() < LONGEST_IDLE_SECONDS
    hub.shutdown()


def test_whoever_waits_for_an_answer_hears_the_request_to_end() -> None:
    clock = SystemClock()
    http = Wire(None, check=clock.check)
    with Silent() as server:
        threading.Timer(0.5, clock.stop).start()
        began = time.monotonic()
        with pytest.raises(Interrupted):
            http.ask("GET", f"http://{server.address}/", {}, max_bytes=1)
        assert time.monotonic() - began < 5


def test_a_body_that_is_taken_slowly_is_life() -> None:
    http = Wire(None, silence_seconds=1.5)
    with Silent(64 << 10) as server, watched() as most, pytest.raises(NoAnswer):
        http.ask("PUT", f"http://{server.address}/", {}, bytes(6 << 20), max_bytes=1)
    assert most() < LONGEST_IDLE_SECONDS


def test_a_deadlock_is_none() -> None:
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


def test_a_file_that_is_sent_by_another_library_shows_life_at_each_block() -> None:
    from archiver.store.bucket import _Sent

    sent = _Sent(io.BytesIO(b"abc"))
    time.sleep(0.2)
    assert liveness.idle_seconds() > 0.1
    assert (sent.read(2), sent.tell()) == (b"ab", 2)
    assert liveness.idle_seconds() < 0.1
