"""What a person sees on a terminal: whole log lines, and below them one bar that tells all."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import re
import struct
import sys
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from archiver import logs
from archiver.bar import REDRAW_SECONDS
from archiver.model import Window
from archiver.progress import LogProgress, auditing, watching

START = datetime(2024, 1, 15, 10, tzinfo=UTC)
WINDOW = Window(START, START + timedelta(hours=1))
TIMES = r"  \d:\d\d:\d\d  (-:--:--|\d:\d\d:\d\d) left"
"""So long already, and so long still."""


class Screen(io.StringIO):
    """A terminal that nothing scrolls out of. It knows what the bar sends, and nothing else."""

    def __init__(self, size_of: int, columns: int) -> None:
        super().__init__()
        self._size_of = size_of
        self._columns = columns
        self._column = 0
        self._wraps = True
        self.lines = [""]
        self.is_gone = False

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        if self.is_gone:
            raise OSError(errno.EIO, "Input/output error")
        return self._size_of

    def write(self, text: str) -> int:
        if self.is_gone:
            raise OSError(errno.EIO, "Input/output error")
        for token in re.findall(r"\x1b\[[?0-9]*[a-zA-Z]|.", text, re.DOTALL):
            self._take(token)
        return len(text)

    def _take(self, token: str) -> None:
        if token in "\r\n":
            self._column = 0
            self.lines += [""] if token == "\n" else []
        elif token == "\x1b[K":
            self.lines[-1] = self.lines[-1][: self._column]
        elif token in ("\x1b[?7l", "\x1b[?7h"):
            self._wraps = token.endswith("h")
        elif token not in ("\x1b[31m", "\x1b[0m"):
            self._print(token)

    def _print(self, letter: str) -> None:
        assert letter.isprintable()
        if self._column == self._columns:
            if self._wraps:
                self.lines.append("")
            self._column = 0 if self._wraps else self._column - 1
        line = self.lines[-1]
        self.lines[-1] = line[: self._column] + letter + line[self._column + 1 :]
        self._column += 1

    def shows(self, pattern: str) -> bool:
        """Whether the last line is, or soon becomes, what `pattern` says."""
        end = time.monotonic() + 10
        while not re.fullmatch(pattern, self.lines[-1]):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True


@contextmanager
def terminal(columns: int) -> Iterator[Screen]:
    ours, theirs = os.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        screen = Screen(theirs, columns)
        with redirect_stderr(screen):
            yield screen
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.fixture
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    logs.configure("warning")
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = before[0], before[1]


@pytest.fixture(autouse=True)
def _no_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def test_a_backfill_tells_all_of_its_calls() -> None:
    with terminal(columns=120) as screen:
        with watching(2) as progress, ThreadPoolExecutor(4) as pool:
            assert screen.lines[-1].startswith("archiving [---")
            for outcome in ["archived"] * 50 + ["failed"] * 2:
                pool.submit(progress.call_done, outcome, 1_000_000)
            progress.window_listed(WINDOW, 60)
            progress.window_done(WINDOW)
        bar, last = screen.lines
    told = "1/2 windows  52/60 calls, 52.0 MB, 2 not archived"
    assert re.fullmatch(rf"archiving \[#{{15}}-{{15}}\]  {told}{TIMES}", bar)
    assert last == ""


def test_it_is_drawn_anew_by_itself() -> None:
    with terminal(columns=120) as screen, watching(1) as progress:
        assert screen.shows(rf"archiving \[-+\]  0/1 windows  0/0 calls, 0.0 MB{TIMES}")
        progress.window_done(WINDOW)
        assert screen.shows(r"archiving \[#+\]  1/1 windows  0/0 calls, 0.0 MB  0:\d\d:\d\d")


def test_an_audit_learns_how_much_there_is() -> None:
    with terminal(columns=120) as screen, auditing() as progress:
        assert progress is not None
        assert screen.shows(rf"verifying \[-{{30}}\]  0 windows{TIMES}")
        progress.windows(1, 3)
        progress.hashed(2_500_000)
        assert screen.shows(rf"verifying \[#{{10}}-{{20}}\]  1/3 windows  2.5 MB hashed{TIMES}")


@pytest.mark.usefixtures("_logging")
@pytest.mark.parametrize("columns", [20, 60, 200])
def test_log_lines_and_bar_do_not_tear_each_other(columns: int) -> None:
    with terminal(columns) as screen:
        with watching(2) as progress:
            structlog.get_logger().warning("ours")
            logging.getLogger("theirs").warning("theirs")
            sys.stderr.write("half a ")
            progress.window_done(WINDOW)
            time.sleep(2 * REDRAW_SECONDS)
            sys.stderr.write("line\nno end")
        *above, bar, last = screen.lines
    assert bar.startswith("archiving [")
    assert len(bar) <= columns
    log = r'\{[^{}]*"ours"[^{}]*\}\{[^{}]*"theirs"[^{}]*\}half a line'
    assert re.fullmatch(log, "".join(above)), above
    assert last == "no end"


@pytest.mark.usefixtures("_logging")
def test_work_outlives_its_terminal() -> None:
    with terminal(columns=80) as screen, watching(1) as progress:
        screen.is_gone = True
        structlog.get_logger().warning("unseen")
        progress.window_done(WINDOW)


def test_no_bar_where_none_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with redirect_stderr(io.StringIO()) as file:
        _has_no_bar()
    assert file.getvalue() == ""
    monkeypatch.setenv("TERM", "dumb")
    with terminal(columns=80) as screen:
        _has_no_bar()
    assert screen.lines == [""]


def _has_no_bar() -> None:
    with watching(2) as progress:
        assert isinstance(progress, LogProgress)
    with auditing() as audit:
        assert audit is None
