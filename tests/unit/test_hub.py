"""Tasks on one thread: they wait side by side, and nothing that one does stops another."""

from __future__ import annotations

import contextlib
import gc
import select
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for
from pathlib import Path

import pytest

from archiver import hub
from archiver.hub import Hub, Lock

TASKS = 8


@pytest.fixture
def tasks() -> Iterator[Hub]:
    made = Hub(TASKS)
    yield made
    made.shutdown()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


class Interrupting(Exception):
    """What a signal's handler raises."""


def interrupt(*_: object) -> None:
    raise Interrupting


def results(futures: list[Future[object]]) -> list[object]:
    return [future.result(10) for future in futures]


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_all_run_on_one_thread_and_their_results_come_back(tasks: Hub) -> None:
    futures = [tasks.submit(lambda n: (n, threading.get_ident()), n) for n in range(1000)]
    found = [future.result(10) for future in futures]
    assert [n for n, _ in found] == list(range(1000))
    assert len({thread for _, thread in found}) == 1
    assert found[0][1] != threading.get_ident()


def test_what_a_task_raises_is_its_own(tasks: Hub) -> None:
    def fails() -> None:
        hub.sleep(0.0)
        raise KeyError("mine")

    futures = [tasks.submit(fails), tasks.submit(hub.sleep, 0.0)]
    with pytest.raises(KeyError, match="mine"):
        futures[0].result(10)
    assert futures[1].result(10) is None


def test_even_the_end_of_the_interpreter_ends_only_its_task(tasks: Hub) -> None:
    with pytest.raises(SystemExit):
        tasks.submit(exit).result(10)
    assert tasks.submit(lambda: "on").result(10) == "on"


def test_tasks_wait_for_sockets_side_by_side(tasks: Hub) -> None:
    """Each one hears only after the one begun after it: one at a time they would wait for ever."""
    pairs = [socket.socketpair() for _ in range(TASKS)]

    def relay(number: int) -> bytes:
        mine = pairs[number][0]
        assert hub.wait(mine.fileno(), select.POLLIN, 10)
        heard = mine.recv(1)
        if number:
            pairs[number - 1][1].send(heard)
        return heard

    futures = [tasks.submit(relay, number) for number in range(TASKS)]
    pairs[-1][1].send(b"x")
    assert results(futures) == [b"x"] * TASKS  # type: ignore[arg-type]
    for one, other in pairs:
        one.close()
        other.close()


@pytest.mark.parametrize("as_task", [True, False], ids=["task", "thread"])
def test_a_wait_ends_with_the_peer_or_with_its_time(
    tasks: Hub, pair: tuple[socket.socket, socket.socket], as_task: bool
) -> None:
    def waited(event: int, seconds: float) -> bool:
        if as_task:
            return tasks.submit(hub.wait, pair[0].fileno(), event, seconds).result(10)
        return hub.wait(pair[0].fileno(), event, seconds)

    assert not waited(select.POLLIN, 0.05)
    assert waited(select.POLLOUT, 10)
    pair[1].send(b"x")
    assert waited(select.POLLIN, 10)
    pair[0].recv(1)
    pair[1].close()
    assert waited(select.POLLIN, 10), "its end is to be read"


def test_a_socket_that_is_waited_for_again_is_given_its_whole_time(
    tasks: Hub, pair: tuple[socket.socket, socket.socket]
) -> None:
    def waits() -> list[bool]:
        return [
            hub.wait(pair[0].fileno(), select.POLLIN, 0.0),
            hub.wait(pair[0].fileno(), select.POLLIN, 10),
        ]

    future = tasks.submit(waits)
    time.sleep(3 * hub.LOOK_AGAIN_SECONDS)
    assert not future.done()
    pair[1].send(b"x")
    assert future.result(10) == [False, True]


def test_sleepers_wake_in_their_order(tasks: Hub) -> None:
    woken: list[float] = []

    def sleeps(seconds: float) -> None:
        hub.sleep(seconds)
        woken.append(seconds)

    def computes() -> None:
        time.sleep(0.2)  # all of them are late then

    futures = [tasks.submit(sleeps, seconds) for seconds in (0.06, 0.02, 0.04, 0.0)]
    results([*futures, tasks.submit(computes)])  # type: ignore[list-item]
    assert woken == [0.0, 0.02, 0.04, 0.06]


def test_what_blocks_goes_to_threads_of_its_own(tasks: Hub) -> None:
    """As many at a time as there are tasks: each one waits for all the others."""
    meeting = threading.Barrier(TASKS + 1)
    futures = [tasks.submit(hub.offload, meeting.wait, 10) for _ in range(TASKS)]
    mine = meeting.wait(10)
    assert {mine, *results(futures)} == set(range(TASKS + 1))  # type: ignore[arg-type]


def test_what_is_offloaded_is_heard_of_at_once(tasks: Hub) -> None:
    def often() -> None:
        for _ in range(200):
            hub.offload(int)

    tasks.submit(often).result(10)  # each time a fifth of a second late, it would take 40


def test_what_is_offloaded_returns_or_raises_as_if_called(tasks: Hub) -> None:
    assert tasks.submit(hub.offload, int, "12", base=8).result(10) == 10
    with pytest.raises(ValueError, match="invalid literal"):
        tasks.submit(hub.offload, int, "x").result(10)
    assert hub.offload(int, "12", base=8) == 10, "where there are no tasks"


@pytest.mark.parametrize("others", ["tasks", "threads"])
def test_a_lock_is_one_holders_even_while_it_waits(tasks: Hub, others: str) -> None:
    lock, inside, most = Lock(), [0], [0]

    def work() -> None:
        with lock, lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            hub.sleep(0.002)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(TASKS if others == "threads" else 0)]
    for thread in threads:
        thread.start()
    results([tasks.submit(work) for _ in range(3 * TASKS)])  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert (inside[0], most[0]) == (0, 1)


def test_a_lock_is_given_back_by_who_fails(tasks: Hub) -> None:
    lock = Lock()

    def fails() -> None:
        with lock, lock:
            raise KeyError

    with contextlib.suppress(KeyError):
        tasks.submit(fails).result(10)
    with lock:
        pass


@pytest.mark.parametrize("threads", [0, 1])
def test_who_wants_a_lock_is_given_it_in_turn(tasks: Hub, threads: int) -> None:
    """Whoever takes it again and again, with no wait in between, has to let the others have it."""
    lock, turns = Lock(), []

    def greedy(name: str, times: int) -> None:
        for _ in range(times):
            with lock:
                turns.append(name)
                hub.sleep(0.001)

    first = tasks.submit(greedy, "greedy", 60)
    until(lambda: turns)
    others = [threading.Thread(target=greedy, args=("thread", 3)) for _ in range(threads)]
    for thread in others:
        thread.start()
    results([first, *(tasks.submit(greedy, f"task {n}", 3) for n in range(4))])  # type: ignore[list-item]
    for thread in others:
        thread.join()
    assert len(turns) == 60 + 3 * (4 + threads)
    for name in set(turns):
        assert turns.index(name) < 40


def test_a_thread_that_is_interrupted_wants_the_lock_no_more() -> None:
    lock, come = Lock(), threading.Event()

    def hold() -> None:
        with lock:
            come.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    come.wait(10)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupting), lock:
            raise AssertionError("it was held")
    finally:
        signal.signal(signal.SIGALRM, before)
    holder.join()
    with lock:
        pass


def test_nothing_keeps_an_error_alive_but_who_has_it(tasks: Hub) -> None:
    """A cycle would keep what the failing code had, parts of recordings too, until the collector
    looks: it counts objects, not bytes."""

    class Heavy(Exception):
        pass

    def fails() -> None:
        raise Heavy

    def catches() -> None:
        with contextlib.suppress(Heavy):
            hub.offload(fails)

    alive: weakref.WeakSet[object] = weakref.WeakSet()

    def run(function: Callable[[], None]) -> None:
        future = tasks.submit(function)
        alive.add(future)
        try:
            future.result(10)
        except Heavy as error:
            alive.add(error)
        finally:
            del future  # or this test would keep it

    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            run(fails)
            run(catches)
        tasks.submit(int).result(10)
        until(lambda: len(alive) < 3)
    finally:
        gc.enable()


def test_who_gives_way_lets_the_others_on(tasks: Hub) -> None:
    woken: list[int] = []
    busy = [True]

    def works() -> None:
        while busy[0]:
            hub.give_way()

    def sleeps() -> None:
        for number in range(3):
            hub.sleep(0.001)
            woken.append(number)

    first, second = tasks.submit(works), tasks.submit(sleeps)
    second.result(10)
    busy[0] = False
    first.result(10)
    assert woken == [0, 1, 2]
    hub.give_way()  # no matter to a thread


def test_what_came_in_time_is_no_silence_though_the_look_was_late(
    tasks: Hub, pair: tuple[socket.socket, socket.socket]
) -> None:
    future = tasks.submit(hub.wait, pair[0].fileno(), select.POLLIN, 0.3)
    until(future.running)

    one, other = socket.socketpair()

    def computes() -> None:
        hub.wait(one.fileno(), select.POLLIN, 10)
        pair[1].send(b"x")
        time.sleep(0.6)

    with one, other:
        second = tasks.submit(computes)
        until(second.running)
        other.send(b"x")
        second.result(10)
    assert future.result(10) is True


def test_a_socket_that_is_closed_is_its_tasks_own_trouble(tasks: Hub) -> None:
    with pytest.raises(ValueError, match="negative"):
        tasks.submit(hub.wait, -1, select.POLLIN, 10).result(10)
    time.sleep(2 * hub.LOOK_AGAIN_SECONDS)
    assert tasks.submit(lambda: "on").result(10) == "on"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_hub_that_has_failed() -> None:
    room = [2]
    tasks = Hub(TASKS, lambda: 8 // room[0])
    under_way = tasks.submit(hub.sleep, 30)
    until(under_way.running)
    room[0] = 0
    with pytest.raises(ZeroDivisionError):
        tasks.submit(print).result(10)
    with pytest.raises(ZeroDivisionError):
        under_way.result(10)
    with pytest.raises(RuntimeError, match="closed"):
        tasks.submit(print)
    tasks.shutdown()


def test_no_more_are_under_way_than_there_is_room_for() -> None:
    room, active, most = [2], [0], [0]
    tasks = Hub(TASKS, lambda: room[0])

    def work() -> None:
        active[0] += 1
        most[0] = max(most[0], active[0])
        hub.sleep(0.005)
        active[0] -= 1

    results([tasks.submit(work) for _ in range(20)])  # type: ignore[misc]
    assert most[0] == 2
    room[0] = 100
    results([tasks.submit(work) for _ in range(20)])  # type: ignore[misc]
    assert most[0] == TASKS
    tasks.shutdown(cancel_futures=True)


def test_at_its_end_what_has_begun_is_waited_for_and_the_rest_cancelled() -> None:
    tasks, ended = Hub(2), []

    def work(number: int) -> None:
        hub.sleep(0.1)
        ended.append(number)

    futures = [tasks.submit(work, number) for number in range(5)]
    until(futures[1].running)
    tasks.shutdown(cancel_futures=True)
    assert ended == [0, 1]
    _done, waiting = wait_for(futures, timeout=0)
    assert not waiting, "nobody waits for them for ever"
    with pytest.raises(CancelledError):
        futures[2].result()
    tasks.shutdown(cancel_futures=True)
    with pytest.raises(RuntimeError, match="closed"):
        tasks.submit(print)


def test_at_its_end_all_is_done_that_is_not_cancelled() -> None:
    tasks = Hub(2)
    futures = [tasks.submit(hub.offload, time.sleep, 0.01) for _ in range(9)]
    tasks.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="closed"):
        tasks.submit(print)
    tasks.shutdown()
    assert all(future.done() for future in futures)


def whose_thread() -> int:
    """A hub comes and goes: the thread that served it."""
    tasks = Hub(1)
    found = tasks.submit(threading.get_ident).result(10)
    tasks.shutdown()
    return found


def test_a_thread_that_had_tasks_never_ends_and_serves_the_next_hub() -> None:
    """Its end is where greenlet has crashed, with everything else done."""
    first = whose_thread()
    before = {thread.ident for thread in threading.enumerate()}
    assert first in before
    assert {whose_thread() for _ in range(20)} <= before, "no thread is made where one is free"


def test_a_hub_leaves_nothing_behind() -> None:
    def left() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/dev/fd").iterdir()))

    whose_thread()  # there may be none that waits for a hub yet
    before = left()
    tasks = Hub(TASKS)
    results([tasks.submit(hub.offload, time.sleep, 0.001) for _ in range(20)])  # type: ignore[misc]
    tasks.shutdown(cancel_futures=True)
    unused = Hub(TASKS)
    unused.shutdown()
    assert left() == before


def test_it_does_not_spin_while_it_waits(
    tasks: Hub, pair: tuple[socket.socket, socket.socket]
) -> None:
    future = tasks.submit(hub.wait, pair[0].fileno(), select.POLLIN, 10)
    until(future.running)
    closing = threading.Thread(target=tasks.shutdown)
    closing.start()
    began = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - began < 0.25
    pair[1].send(b"x")
    closing.join()
    assert future.result(0) is True


def test_threads_hand_in_work_at_once(tasks: Hub) -> None:
    found: list[int] = []

    def hand_in(first: int) -> None:
        futures = [tasks.submit(lambda n: n, n) for n in range(first, first + 200)]
        found.extend(future.result(10) for future in futures)

    threads = [threading.Thread(target=hand_in, args=(200 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1600))
