"""Shows progress: a bar on a terminal; elsewhere log lines for a backfill, nothing for an audit.

rich draws the bar. It is imported on a terminal only, so that commands start fast elsewhere. The
classes implement the progress port of a backfill (`pipeline/backfill_progress.py`) or of an audit
(`audit/verify.py`, `audit/reconcile.py`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

from archiver.core.model import Window

if TYPE_CHECKING:
    from typing import Self

log = structlog.get_logger()

LOG_EVERY_SECONDS = 30.0
REDRAWS_PER_SECOND = 5
SPEED_SECONDS = 3600.0
"""The remaining time is estimated from the windows of the last so many seconds. rich's default is
30; if no window ends in that time, it shows no estimate."""


def backfill_progress(windows: int) -> AbstractContextManager[LogProgress | BackfillBar]:
    return BackfillBar(windows) if _on_terminal() else nullcontext(LogProgress(windows))


def audit_progress(label: str) -> AbstractContextManager[AuditBar | None]:
    """A bar, or None if stderr is not a terminal."""
    return AuditBar(label) if _on_terminal() else nullcontext()


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class LogProgress:
    """Logs `backfill.progress` at most every 30 seconds, once after the last window, and as a
    pause of the source begins."""

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

    def source_paused(self, seconds: float) -> None:
        self._say(source_pause_seconds=round(seconds))

    def _say(self, **more: int) -> None:
        log.info(
            "backfill.progress",
            windows=f"{self._windows_done}/{self._windows}",
            bytes=self._bytes,
            **self._calls,
            **more,
        )


class _Bar:
    """The last two lines of the terminal: windows and times, and below them `_note`.

    Lines that are written to stderr meanwhile appear above the bar.
    """

    def __init__(self, label: str, windows: int | None) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        self._lock = threading.Lock()
        self._bytes = 0
        # With soft_wrap the terminal wraps long log lines, and they are copied as one line.
        console = Console(file=cast("TextIO", _Terminal(sys.stderr)), soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30, complete_style="cyan"),  # the default is red, like an error
            MofNCompleteColumn(),
            TextColumn("windows"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            speed_estimate_period=SPEED_SECONDS,
        )
        self._task = self._progress.add_task(label, total=windows, left="left" if windows else "")
        self._live = Live(
            get_renderable=lambda: Group(
                self._progress, Text.from_markup(self._note(), overflow="ellipsis")
            ),
            console=console,
            refresh_per_second=REDRAWS_PER_SECOND,
            redirect_stdout=False,
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        # rich hides the cursor until `stop`. A process that is killed would leave it hidden.
        self._live.console.show_cursor()
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.stop()

    def _note(self) -> str:
        """Return the second line in rich's markup. Called at each redraw, on any thread."""
        raise NotImplementedError


class BackfillBar(_Bar):
    """Counts windows. The second line shows calls and bytes."""

    def __init__(self, windows: int) -> None:
        self._calls: Counter[str] = Counter()
        self._todo = 0
        self._paused_until = 0.0
        super().__init__("archiving", windows)

    def window_listed(self, window: Window, new_calls: int) -> None:
        with self._lock:
            self._todo += new_calls

    def call_done(self, outcome: str, recording_bytes: int) -> None:
        with self._lock:
            self._calls[outcome] += 1
            self._bytes += recording_bytes

    def window_done(self, window: Window) -> None:
        self._progress.advance(self._task)

    def source_paused(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def _note(self) -> str:
        paused_seconds = self._paused_until - time.monotonic()
        with self._lock:
            note = f"{self._calls.total()}/{self._todo} calls, {self._bytes / 1e6:,.1f} MB"
            bad = self._calls["failed"] + self._calls["pending"]
        note += f", [red]{bad} not archived[/]" if bad else ""
        if paused_seconds > 0:
            note += f", the source asks to wait {paused_seconds:.0f} s"
        return note


class AuditBar(_Bar):
    """Counts windows; their number is known only once the audit is under way. The second line shows
    how much was hashed, if anything."""

    def __init__(self, label: str) -> None:
        super().__init__(label, None)

    def windows(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total, left="left")

    def hashed(self, size: int) -> None:
        with self._lock:
            self._bytes += size

    def _note(self) -> str:
        return f"{self._bytes / 1e6:,.1f} MB hashed" if self._bytes else ""


class _Terminal:
    """stderr whose errors are ignored: after the terminal is closed, output is lost and the command
    continues."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()
