"""What a person sees of a backfill or an audit: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from archiver.model import Window

if TYPE_CHECKING:
    from rich import progress as bars

    from archiver.audit.verify import Progress as AuditProgress
    from archiver.pipeline.ports import Progress

log = structlog.get_logger()

LOG_EVERY_SECONDS = 30.0


class LogProgress:
    """A line now and then."""

    def __init__(self, windows: int) -> None:
        self._lock = threading.Lock()
        self._windows = windows
        self._windows_done = 0
        self._calls: Counter[str] = Counter()
        self._bytes = 0
        self._next = time.monotonic() + LOG_EVERY_SECONDS

    def window_listed(self, window: Window, new_calls: int) -> None:
        log.debug("window.listed", window=str(window), new_calls=new_calls)

    def call_done(self, outcome: str, recording_bytes: int) -> None:
        with self._lock:
            self._calls[outcome] += 1
            self._bytes += recording_bytes
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + LOG_EVERY_SECONDS
        self._say()

    def window_done(self, window: Window) -> None:
        with self._lock:
            self._windows_done += 1
            last = self._windows_done == self._windows
        log.debug("window.done", window=str(window))
        if last:
            self._say()

    def _say(self) -> None:
        log.info(
            "backfill.progress",
            windows=f"{self._windows_done}/{self._windows}",
            bytes=self._bytes,
            **self._calls,
        )


@contextmanager
def watching(windows: int) -> Iterator[Progress]:
    """A progress bar where stderr is a terminal, else log lines."""
    if not sys.stderr.isatty():
        yield LogProgress(windows)
        return
    with _bar("windows") as bar:
        yield _Bar(bar, bar.add_task("archiving", total=windows, note=""))


@contextmanager
def auditing(what: str = "verifying") -> Iterator[AuditProgress | None]:
    """A progress bar where stderr is a terminal, else nothing: the report is the result."""
    if not sys.stderr.isatty():
        yield None
        return
    with _bar("windows") as bar:
        yield _AuditBar(bar, bar.add_task(what, total=None, note=""))


@contextmanager
def _bar(unit: str) -> Iterator[bars.Progress]:
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("[bold]{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn(unit),
        bars.TextColumn("{task.fields[note]}"),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        yield bar


class _Bar:
    """The bar counts windows, the note beside it calls and bytes."""

    def __init__(self, bar: bars.Progress, task: bars.TaskID) -> None:
        self._bar = bar
        self._task = task
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._todo = 0
        self._bytes = 0

    def window_listed(self, window: Window, new_calls: int) -> None:
        with self._lock:
            self._todo += new_calls
        self._show()

    def call_done(self, outcome: str, recording_bytes: int) -> None:
        with self._lock:
            self._calls[outcome] += 1
            self._bytes += recording_bytes
        self._show()

    def window_done(self, window: Window) -> None:
        self._bar.advance(self._task)

    def _show(self) -> None:
        with self._lock:
            done, size = sum(self._calls.values()), self._bytes / 1e6
            note = f"{done}/{self._todo} calls, {size:,.1f} MB"
            bad = self._calls["failed"] + self._calls["pending"]
            note += f", [red]{bad} not archived[/red]" if bad else ""
        self._bar.update(self._task, note=note)


class _AuditBar:
    """Windows looked into, and bytes hashed."""

    def __init__(self, bar: bars.Progress, task: bars.TaskID) -> None:
        self._bar = bar
        self._task = task
        self._lock = threading.Lock()
        self._bytes = 0

    def windows(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def hashed(self, size: int) -> None:
        with self._lock:
            self._bytes += size
        self._bar.update(self._task, note=f"{self._bytes / 1e6:,.1f} MB hashed")
