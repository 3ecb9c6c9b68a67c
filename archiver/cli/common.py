"""Shared by the commands: types of options, the start of a run, and its end by a signal."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from archiver.core.errors import UsageError

if TYPE_CHECKING:
    from archiver.core.clock import SystemClock
    from archiver.pipeline.window import Totals
    from archiver.settings import LogSettings
    from archiver.store.bucket import Bucket

F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = 130


def moment(value: str) -> datetime:
    """A date or an RFC 3339 time; UTC if it has no offset."""
    from archiver.core.model import parse_time

    if (found := parse_time(value)) is None:
        raise click.BadParameter(
            f"{value!r} is no date and no RFC 3339 time, such as 2024-01-15T10:00:00Z"
        )
    return found


def shard_of(value: str) -> tuple[int, int]:
    """`I/N`: shard I of N, counted from 0."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", value)
    if match is None or int(match[1]) >= int(match[2]):
        raise click.BadParameter(f"{value!r} is no shard: I/N with I from 0 to N-1, such as 0/4")
    return int(match[1]), int(match[2])


def range_options(required: bool) -> Callable[[F], F]:
    """`--from` and `--to`."""

    def decorate(function: F) -> F:
        option = partial(click.option, type=moment, metavar="T", required=required)
        end = option("--to", "end", help="where it ends")
        return option("--from", "start", help="where the range begins")(end(function))

    return decorate


def check_range(start: datetime | None, end: datetime | None) -> None:
    if start is not None and end is not None and end <= start:
        raise UsageError("--to must lie after --from: the range is empty")


def start_run(settings: LogSettings) -> SystemClock:
    """Set up the logs. Returns the clock of the run, which `stopping` stops on a signal. Raises
    `UsageError` if no TLS connection can be made in this environment."""
    from archiver.core.clock import SystemClock
    from archiver.observability.logs import configure

    check_key_log()
    configure(log_level(settings), settings.log_format)
    return SystemClock()


def check_key_log() -> None:
    """Raise `UsageError` if OpenSSL is to write its keys to a file and cannot: no client could be
    made, and its error would not say why."""
    if not (path := os.environ.get("SSLKEYLOGFILE")):
        return
    try:
        Path(path).open("ab").close()
    except OSError as error:
        raise UsageError(
            f"SSLKEYLOGFILE: {path} cannot be written ({error.strerror}): unset it"
        ) from None


def log_level(settings: LogSettings) -> str:
    if sys.stderr.isatty() and "ARCHIVER_LOG_LEVEL" not in os.environ:
        return "warning"  # a line for each call would push the progress bar off the screen
    return settings.log_level


ABORT_SECONDS = float(os.environ.get("_ARCHIVER_ABORT_SECONDS", "20"))
"""Seconds from the first signal until requests in progress are aborted. Kubernetes kills a pod
after 30 s, and a server may not answer for longer than that. The variable is for tests."""
KILL_SECONDS = 5.0
"""Seconds from then until the process kills itself, because a boto3 request on another thread
cannot be aborted. The next run repairs what a crash at any point leaves."""


_early: list[int] = []
"""Signals that came before `stopping`."""


def stop_early(number: int, _frame: object) -> None:
    """Exit on a signal that comes before `stopping`: the command has done nothing yet. For `run` a
    SIGTERM is the normal end, so the exit code is 0.

    Python ignores the exception if a library has called it from C just then. So the signal is
    remembered too, and `stopping` acts on it.
    """
    _early.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(0 if sys.argv[1:2] == ["run"] else INTERRUPTED)


@contextmanager
def reading() -> Iterator[tuple[Bucket, int]]:
    """The run of a command that only reads the archive. Yields the bucket and the number of
    concurrent requests (ARCHIVER_WORKERS)."""
    from archiver.settings import StoreSettings, load
    from archiver.wiring import reader

    settings = load(StoreSettings)
    clock = start_run(settings)
    with stopping(clock):
        bucket = reader(settings, clock)
        bucket.check_access()
        yield bucket, settings.workers


@contextmanager
def stopping(clock: SystemClock) -> Iterator[list[int]]:
    """Handle SIGTERM and SIGINT as requests for a clean end. Yields a list, which the first signal
    is added to.

    1. The first signal stops the clock: no new work begins, and work in progress is finished. From
       then on a Ctrl-C kills the process at once.
    2. `ABORT_SECONDS` after the first signal, requests are aborted, and `Interrupted` is raised in
       the main thread. Further SIGTERMs change nothing.
    3. `KILL_SECONDS` later the process kills itself.

    A thread does this. Python runs signal handlers in the main thread only, and not while that
    waits inside pyreqwest for an answer; the wakeup descriptor is written to at once.
    """
    from archiver.core.clock import Interrupted
    from archiver.core.http import abort_requests

    signals: list[int] = []
    incoming, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    main_thread = threading.get_ident()

    def handle(number: int, _frame: object) -> None:
        if number == signal.SIGALRM:  # 2
            raise Interrupted
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C kills at once

    def watch() -> None:
        # 1.
        if not (first := incoming.recv(1)):
            return
        signals.append(first[0])
        clock.stop()
        # 2.
        if has_ended_within(ABORT_SECONDS):
            return
        abort_requests()
        signal.pthread_kill(main_thread, signal.SIGALRM)
        # 3.
        if has_ended_within(KILL_SECONDS):
            return
        seconds = ABORT_SECONDS + KILL_SECONDS
        os.write(2, f"archiver: ended after {seconds:g} s with work under way\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def has_ended_within(seconds: float) -> bool:
        """Wait for the end of the `with` block."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            incoming.settimeout(left)
            with suppress(TimeoutError):
                if not (number := incoming.recv(1)):
                    return True
                if number[0] == signal.SIGINT:  # `handle` has not run: the main thread is stuck
                    os.kill(os.getpid(), signal.SIGKILL)
        return False

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    # `handle` leaves a signal to the descriptor. So it is set for no moment without that.
    wakeup_before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = {number: signal.signal(number, handle) for number in numbers}
    watcher.start()
    if _early:
        signal.raise_signal(_early[0])
    try:
        yield signals
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, before[number])
        signal.set_wakeup_fd(wakeup_before)
        wakeup.close()
        watcher.join()
        signal.signal(signal.SIGALRM, before[signal.SIGALRM])  # the watcher sends none any more
        incoming.close()


def summary_line(totals: Totals, seal: int) -> str:
    """Return the result of a run as one line. `seal` is the number of the newest seal."""
    clock = (
        "WINDOWS STAY OPEN because this machine's clock is wrong: set it (NTP) and run this again"
    )
    always = ("archived", "no recording", "failed", "pending")
    counts = {
        "archived": totals.committed.get("archived", 0),
        "no recording": totals.committed.get("no_recording", 0),
        "failed": totals.committed.get("failed", 0),
        "failed as before": totals.failed - totals.committed.get("failed", 0),
        "without a document": totals.incomplete,
        "entries of listings that are no calls": totals.unreadable,
        "pending": totals.pending,
        "waiting in open windows": totals.waiting,
        "WINDOWS STAY OPEN (see the log)": totals.stuck,
        "OPEN WINDOWS HAD ERRORS (see the log)": totals.failed_open,
        clock: totals.clock_wrong,
    }
    shown = [f"{count} {what}" for what, count in counts.items() if count or what in always]
    return (
        f"{totals.windows} windows, {totals.closed} closed: {', '.join(shown)}; "
        f"{totals.bytes / 1e6:,.1f} MB written; the chain stands at seal {seal}"
    )
