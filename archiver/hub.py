"""Tasks: pieces of work that wait side by side and compute in turn, on one thread.

Threads that work in Python spend as much on handing each other the interpreter's lock, from core to
core, as on the work (docs/adr/0016-tasks-on-one-thread.md). A task is a greenlet: it has a stack of
its own, so what it calls is ordinary code, and another one goes on while it waits. What waits has
to come here for it, and may be called by any thread, for which it waits as ever:

- `wait` for a socket, `sleep`, and `offload` for whatever blocks otherwise;
- `Lock`, where something is held meanwhile. A `threading.Lock` is held only for what does not wait.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, ClassVar, ParamSpec, TypeVar

from greenlet import getcurrent, greenlet

P = ParamSpec("P")
R = TypeVar("R")

LOOK_AGAIN_SECONDS = 0.2
"""How late it may be noticed that a socket was waited for too long."""

_own = threading.local()


def wait(descriptor: int, event: int, seconds: float) -> bool:
    """Until a socket is ready for `event` (`select.POLLIN` or `POLLOUT`), or has ended; False once
    `seconds` have passed."""
    hub = _hub()
    if hub is not None:
        return hub.wait(descriptor, event, seconds)
    waiting = select.poll()
    waiting.register(descriptor, event)
    return bool(waiting.poll(seconds * 1000))


def sleep(seconds: float) -> None:
    hub = _hub()
    if hub is None:
        time.sleep(seconds)
    else:
        hub.sleep(seconds)


def offload(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `function` returns or raises: for a task, on another thread. It may not want a `Lock`
    that the task has."""
    hub = _hub()
    return function(*args, **kwargs) if hub is None else hub.offload(function, *args, **kwargs)


def give_way() -> None:
    """Let other tasks go on: what moves or computes much without a wait calls it now and then."""
    hub = _hub()
    if hub is not None:
        hub.give_way()


def _me() -> object:
    """A task, or a thread without tasks: such a one is none of greenlet's business."""
    return threading.current_thread() if _hub() is None else getcurrent()


def _hub() -> Hub | None:
    """This thread's."""
    found: Hub | None = getattr(_own, "hub", None)
    return found


class Lock:
    """Held by one task, or one thread, at a time, which may take it again; it may wait meanwhile.
    Who wants it is given it in turn. Use it as a context."""

    def __init__(self) -> None:
        self._guard = threading.Lock()  # held for no longer than it takes to look
        self._owner: object = None
        self._depth = 0
        self._queue: deque[tuple[object, Callable[[], None]]] = deque()
        """Who waits, and how to tell them that they have it."""

    def __enter__(self) -> None:
        hub, me = _hub(), _me()
        with self._guard:
            if self._owner is None or self._owner is me:
                self._owner = me
                self._depth += 1
                return
            turn = threading.Lock()
            turn.acquire()
            tell = turn.release if hub is None else partial(hub.resume, getcurrent())
            self._queue.append((me, tell))
        if hub is not None:
            hub.pause()
            return
        try:
            turn.acquire()
        except BaseException:  # a signal's handler may raise
            self._leave(me)
            raise

    def _leave(self, me: object) -> None:
        """Wait no longer, or give back what has come meanwhile."""
        with self._guard:
            self._queue = deque(waiting for waiting in self._queue if waiting[0] is not me)
            mine = self._owner is me
        if mine:
            self.__exit__()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._depth -= 1
            if self._depth:
                return
            if not self._queue:
                self._owner = None
                return
            self._owner, tell = self._queue.popleft()
            self._depth = 1
        tell()


class _Runner:
    """A thread that serves one hub after the other, and never ends.

    When a thread that had tasks ends, greenlet clears up after it while other threads go on: one
    command of some hundreds, with all said and done, crashed in that on a busy machine. A thread
    that waits for its next hub is no hindrance: a process ends without it.
    """

    _free: ClassVar[list[_Runner]] = []
    """Those without a hub; a list's `append` and `pop` are one step each."""

    def __init__(self) -> None:
        self._hubs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._serve, name="tasks", daemon=True).start()

    @classmethod
    def start(cls, run: Callable[[], None]) -> threading.Event:
        """Have a thread `run` a hub; what is set once that is over. Raises `RuntimeError` where no
        more threads are to be had."""
        try:
            runner = cls._free.pop()
        except IndexError:
            runner = cls()
        over = threading.Event()

        def run_once() -> None:
            try:
                run()
                cls._free.append(runner)
            finally:
                over.set()

        runner._hubs.put(run_once)
        return over

    def _serve(self) -> None:
        while True:
            self._hubs.get()()


class Hub(Executor):
    """A thread and its tasks. Any thread may `submit`; tasks wait by this module's functions."""

    def __init__(self, most: int, room: Callable[[], int] | None = None) -> None:
        """At most `most` tasks are under way; fewer while `room` says so, which is asked each time
        before one begins."""
        self._most = most
        self._room = room or (lambda: most)
        self._lock = threading.Lock()
        self._over: threading.Event | None = None
        """Set once the thread has done its work; None while there was none."""
        self._todo: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._returned: deque[greenlet] = deque()  # from another thread
        self._under_way: set[Future[Any]] = set()
        self._poll = select.poll()
        self._waiting: dict[int, tuple[greenlet, float]] = {}
        self._sleeping: dict[greenlet, float] = {}
        self._looked = 0.0
        self._aside = ThreadPoolExecutor(most, thread_name_prefix="aside")
        self._bell = self._ring = -1
        self._listens = False
        """Whether the thread waits for sockets, or is about to, and so has to be rung."""
        self._closing = False

    # --- for any thread

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have `function` run as a task, when those before it have begun."""
        future: Future[R] = Future()
        with self._lock:
            if self._closing:
                raise RuntimeError("the hub is closed")
            if self._over is None:
                self._over = self._start()
            self._todo.append((future, lambda: function(*args, **kwargs)))
            self._rouse()
        return future

    def _start(self) -> threading.Event:
        self._bell, self._ring = os.pipe()
        os.set_blocking(self._ring, False)
        self._poll.register(self._bell, select.POLLIN)
        try:
            return _Runner.start(self._run)
        except BaseException:  # no more threads to be had
            self._poll.unregister(self._bell)
            os.close(self._bell)
            os.close(self._ring)
            raise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more; with `wait`, until all is done. What has begun is never cut off."""
        with self._lock:
            self._closing = True
            while cancel_futures and self._todo:
                future, _ = self._todo.popleft()
                if future.cancel():
                    future.set_running_or_notify_cancel()
            self._rouse()
        if wait and self._over is not None:
            self._over.wait()

    def _rouse(self) -> None:
        """Where the thread listens; the lock is held, lest the pipe be closed meanwhile."""
        if self._listens:
            with suppress(BlockingIOError):  # it has been rung often enough
                os.write(self._ring, b"\0")

    # --- for the hub's own tasks

    def wait(self, descriptor: int, event: int, seconds: float) -> bool:
        self._poll.register(descriptor, event)
        self._waiting[descriptor] = (getcurrent(), time.monotonic() + seconds)
        return bool(self._others.switch())

    def sleep(self, seconds: float) -> None:
        self._sleeping[getcurrent()] = time.monotonic() + seconds
        self._others.switch()

    def give_way(self) -> None:
        self._returned.append(getcurrent())
        self._others.switch()

    def pause(self) -> None:
        """Until somebody has this task `resume`."""
        self._others.switch()

    def resume(self, task: greenlet) -> None:
        """For any thread: have a task go on that pauses, or is about to."""
        with self._lock:
            self._returned.append(task)
            self._rouse()

    def offload(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        me = getcurrent()
        future = self._aside.submit(function, *args, **kwargs)
        future.add_done_callback(lambda _: self.resume(me))
        self.pause()
        try:
            return future.result()
        finally:
            del future  # an error has this frame in its traceback, and would never be let go

    # --- the thread

    def _run(self) -> None:
        _own.hub = self
        self._others = getcurrent()
        try:
            while not self._is_over():
                self._turn()
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            with self._lock:
                self._listens = False
                os.close(self._bell)
                os.close(self._ring)
            self._aside.shutdown()
            _own.hub = None

    def _turn(self) -> None:
        """Have everybody go on who can, once."""
        for _ in range(len(self._returned)):
            self._returned.popleft().switch()
        while self._todo and self._may_begin():
            self._begin()
        self._wake_sleepers()
        for descriptor in self._ready():
            if descriptor != self._bell:
                self._go_on(descriptor, True)
        self._give_up()

    def _fail(self, error: BaseException) -> None:
        """The thread itself has failed: nobody is to wait for ever for what it does no more."""
        with self._lock:
            self._closing = True
            waiting = [future for future, _ in self._todo]
            self._todo.clear()
        for future in waiting:
            future.set_running_or_notify_cancel()
        for future in (*waiting, *self._under_way):
            if not future.done():
                future.set_exception(error)

    def _is_over(self) -> bool:
        return self._closing and not self._under_way and not self._todo

    def _ready(self) -> list[int]:
        """The sockets that are; waits for one where there is nothing else to do."""
        self._listens = True  # before the look: what is queued after it rings
        found = self._poll.poll(0 if self._is_busy() else self._pause_seconds() * 1000)
        self._listens = False
        descriptors = [descriptor for descriptor, _ in found]
        if self._bell in descriptors:
            os.read(self._bell, 4096)
        return descriptors

    def _is_busy(self) -> bool:
        return bool(self._returned or (self._todo and self._may_begin()) or self._is_over())

    def _may_begin(self) -> bool:
        return len(self._under_way) < min(self._most, self._room())

    def _begin(self) -> None:
        with self._lock:
            if not self._todo:  # closed meanwhile
                return
            future, function = self._todo.popleft()
        if future.set_running_or_notify_cancel():
            self._under_way.add(future)
            greenlet(self._work).switch(future, function)

    def _work(self, future: Future[Any], function: Callable[[], Any]) -> None:
        try:
            result = function()
        except BaseException as error:
            self._under_way.remove(future)
            future.set_exception(error)
        else:
            self._under_way.remove(future)
            future.set_result(result)
        del future, function  # as in `offload`

    def _go_on(self, descriptor: int, is_ready: bool) -> None:
        self._poll.unregister(descriptor)
        task, _ = self._waiting.pop(descriptor)
        task.switch(is_ready)

    def _give_up(self) -> None:
        """On sockets that were waited for too long."""
        now = time.monotonic()
        if now < self._looked + LOOK_AGAIN_SECONDS:
            return
        self._looked = now
        late = [(one, waiting) for one, waiting in self._waiting.items() if now > waiting[1]]
        # Some task may have taken its time, and much may have come since the last look.
        ready = {descriptor for descriptor, _ in self._poll.poll(0)} if late else set()
        for descriptor, waiting in late:
            if self._waiting.get(descriptor) is waiting:
                self._go_on(descriptor, descriptor in ready)

    def _wake_sleepers(self) -> None:
        now = time.monotonic()
        due = [task for task, until in self._sleeping.items() if until <= now]
        for task in sorted(due, key=self._sleeping.__getitem__):
            del self._sleeping[task]
            task.switch()

    def _pause_seconds(self) -> float:
        """Until the next sleeper, or until sockets have to be looked at."""
        left = min(self._sleeping.values(), default=float("inf")) - time.monotonic()
        return max(0.0, min(left, LOOK_AGAIN_SECONDS))
