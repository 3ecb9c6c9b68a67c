"""The last line of a terminal: a bar of windows, which log lines scroll by above."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from datetime import timedelta
from io import TextIOBase
from typing import TextIO

import click

REDRAW_SECONDS = 0.2
"""So rarely, however many calls are done in between; so often, however long one of them takes."""

_WIDEST = 30
_START, _TO_END = "\r", "\033[K"
_CUT_OFF, _WRAP = "\033[?7l", "\033[?7h"
"""What is too long for the terminal is left out: a line that wraps could not be drawn over."""


class Bar(TextIOBase):
    """Takes stderr's place while it is `shown`. `note` is asked for what stands beside the bar."""

    def __init__(
        self, terminal: TextIO, label: str, total: int | None, note: Callable[[], str]
    ) -> None:
        self.done, self.total = 0, total
        self._terminal = terminal
        self._label = label
        self._note = note
        # Only asked how far and how long it is: it would draw for one thread, and no log lines.
        self._bar = click.progressbar(length=0, file=terminal, width=_WIDEST)
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._drawn = ""
        self._begun = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Whole lines go above the bar; the start of one waits for its end."""
        with self._lock:
            lines, end, self._begun = (self._begun + text).rpartition("\n")
            if end:
                self._put(f"{_START}{_TO_END}{lines}\n{self._drawn}")
        return len(text)

    def draw(self) -> None:
        with self._lock, suppress(OSError):
            self._drawn = f"{_START}{_CUT_OFF}{self._line()}{_TO_END}{_WRAP}"
            self._put(self._drawn)

    def end(self) -> None:
        """Leave the bar as it is, and go on below."""
        with self._lock:
            self._put(f"\n{self._begun}")

    def _put(self, text: str) -> None:
        with suppress(OSError):  # the terminal is gone: that is no reason to end the work
            self._terminal.write(text)
            self._terminal.flush()

    def _line(self) -> str:
        bar = self._bar
        bar.length = self.total
        if self.done > bar.pos:  # a step of none would count as one that took all the time so far
            bar.make_step(self.done - bar.pos)
        left = _clock(bar.eta) if bar.eta_known else "-:--:--"
        told = (
            f"{bar.format_pos()} windows",
            self._note(),
            _clock(time.monotonic() - self._start),
            "" if bar.finished else f"{left} left",
        )
        info = "  ".join(filter(None, told))
        columns = os.get_terminal_size(self._terminal.fileno()).columns or 80
        spare = columns - len(click.unstyle(f"{self._label} []  {info}"))
        bar.width = max(1, min(bar.width, spare))  # it never grows: that would look like progress
        return f"{self._label} [{bar.format_bar()}]  {info}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


@contextmanager
def shown(bar: Bar) -> Iterator[None]:
    """Draw `bar` now and then, in stderr's place, and a last time at the end."""
    ended = threading.Event()

    def keep_drawing() -> None:
        while not ended.wait(REDRAW_SECONDS):
            bar.draw()

    drawer = threading.Thread(target=keep_drawing, name="bar", daemon=True)
    with redirect_stderr(bar):
        bar.draw()
        drawer.start()
        try:
            yield
        finally:
            ended.set()
            drawer.join()
            bar.draw()
            bar.end()
