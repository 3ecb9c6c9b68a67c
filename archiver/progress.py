"""What a person sees of a backfill or an audit: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
import structlog

from archiver.bar import Bar, shown
from archiver.model import Window

if TYPE_CHECKING:
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
    if not _on_terminal():
        yield LogProgress(windows)
        return
    bar = _BackfillBar(windows)
    with shown(bar):
        yield bar


@contextmanager
def auditing(what: str = "verifying") -> Iterator[AuditProgress | None]:
    """A progress bar where stderr is a terminal, else nothing: the report is the result."""
    if not _on_terminal():
        yield None
        return
    bar = _AuditBar(what)
    with shown(bar):
        yield bar


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class _BackfillBar(Bar):
    """The bar counts windows, the note beside it calls and bytes."""

    def __init__(self, windows: int) -> None:
        super().__init__(sys.stderr, "archiving", windows, self._told)
        self._counting = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._todo = 0
        self._bytes = 0

    def window_listed(self, window: Window, new_calls: int) -> None:
        with self._counting:
            self._todo += new_calls

    def call_done(self, outcome: str, recording_bytes: int) -> None:
        with self._counting:
            self._calls[outcome] += 1
            self._bytes += recording_bytes

    def window_done(self, window: Window) -> None:
        with self._counting:
            self.done += 1

    def _told(self) -> str:
        with self._counting:
            note = f"{self._calls.total()}/{self._todo} calls, {self._bytes / 1e6:,.1f} MB"
            bad = self._calls["failed"] + self._calls["pending"]
        return note + (f", {click.style(f'{bad} not archived', fg='red')}" if bad else "")


class _AuditBar(Bar):
    """Windows looked into, and bytes hashed. How many there are is known once it has begun."""

    def __init__(self, what: str) -> None:
        super().__init__(sys.stderr, what, None, self._told)
        self._counting = threading.Lock()
        self._bytes = 0

    def windows(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def hashed(self, size: int) -> None:
        with self._counting:
            self._bytes += size

    def _told(self) -> str:
        return f"{self._bytes / 1e6:,.1f} MB hashed" if self._bytes else ""
