"""What a person sees on a terminal: whole log lines, and below them one bar."""

from __future__ import annotations

import errno
import io
import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from archiver.core.model import Window
from archiver.observability import logs
from archiver.observability.progress import LogProgress, audit_progress, backfill_progress

START = datetime(2024, 1, 15, 10, tzinfo=UTC)
WINDOW = Window(START, START + timedelta(hours=1))
BAR = "[━╸╺]{30}"
TIMES = r"\d:\d\d:\d\d (-:--:--|\d:\d\d:\d\d) left"
"""So long already, and so long still."""


class Screen(io.StringIO):
    """A terminal that nothing scrolls out of. It fails at what it does not know."""

    encoding = "utf-8"

    def __init__(self, columns: int) -> None:
        super().__init__()
        self._columns = columns
        self._row = self._column = 0
        self._lines = [""]
        self._at = threading.Lock()
        self.shows_cursor = True
        self.red = ""
        self.is_gone = False

    @property
    def lines(self) -> list[str]:
        with self._at:
            return [line.rstrip() for line in self._lines]

    def isatty(self) -> bool:
        return not self.is_gone

    def write(self, text: str) -> int:
        if self.is_gone:
            raise OSError(errno.EIO, "Input/output error")
        self.red += "".join(re.findall(r"\x1b\[31m(.*?)\x1b\[0m", text))
        with self._at:
            for token in re.findall(r"\x1b\[[?0-9;]*[a-zA-Z]|.", text, re.DOTALL):
                self._take(token)
        return len(text)

    def _take(self, token: str) -> None:
        if token == "\n":
            self._down()
        elif token == "\r":
            self._column = 0
        elif token == "\x1b[1A":
            self._row -= 1
            assert self._row >= 0
        elif token == "\x1b[2K":
            self._lines[self._row] = ""
        elif token in ("\x1b[?25l", "\x1b[?25h"):
            self.shows_cursor = token.endswith("h")
        elif not re.fullmatch(r"\x1b\[[0-9;]*m", token):
            self._print(token)

    def _down(self) -> None:
        self._row, self._column = self._row + 1, 0
        if self._row == len(self._lines):
            self._lines.append("")

    def _print(self, letter: str) -> None:
        assert letter.isprintable()
        if self._column == self._columns:
            self._down()
        line = self._lines[self._row].ljust(self._column)
        self._lines[self._row] = line[: self._column] + letter + line[self._column + 1 :]
        self._column += 1

    def shows(self, *patterns: str) -> bool:
        """Whether the lines are, or soon become, what the patterns say."""
        end = time.monotonic() + 10
        while not re.fullmatch("\n".join(patterns), "\n".join(self.lines)):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True


@contextmanager
def terminal(columns: int) -> Iterator[Screen]:
    screen = Screen(columns)
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(screen):
        patch.setenv("COLUMNS", str(columns))
        yield screen


@pytest.fixture
def _logging(restored_logs: None) -> None:
    logs.configure("warning")


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_backfill_shows_windows_calls_and_bytes():
    with terminal(columns=80) as screen:
        with backfill_progress(720) as progress, ThreadPoolExecutor(4) as pool:
            assert screen.shows(rf"archiving {BAR}   0/720 windows {TIMES}", "0/0 calls, 0.0 MB")
            for outcome in ["archived"] * 1200 + ["failed", "pending"]:
                pool.submit(progress.call_done, outcome, 50_000_000)
            for _ in range(120):
                pool.submit(progress.window_done, WINDOW)
            progress.window_listed(WINDOW, 12345)
        assert screen.shows(
            rf"archiving {BAR} 120/720 windows {TIMES}",
            r"1202/12345 calls, 60,100.0 MB, 2 not archived",
            "",
        )
    assert screen.red.endswith("2 not archived")


def test_it_is_drawn_anew_by_itself():
    with terminal(columns=80) as screen, backfill_progress(1) as progress:
        assert screen.shows(rf"archiving {BAR} 0/1 windows {TIMES}", "0/0 calls, 0.0 MB")
        progress.window_done(WINDOW)
        assert screen.shows(rf"archiving {BAR} 1/1 windows {TIMES}", "0/0 calls, 0.0 MB")


def test_an_audit_learns_how_much_there_is():
    with terminal(columns=80) as screen, audit_progress("verifying") as progress:
        assert progress is not None
        assert screen.shows(rf"verifying {BAR} 0/\? windows 0:\d\d:\d\d", "")
        progress.windows(1, 3)
        progress.hashed(2_500_000)
        assert screen.shows(rf"verifying {BAR} 1/3 windows {TIMES}", "2.5 MB hashed")


@pytest.mark.usefixtures("_logging")
@pytest.mark.parametrize("columns", [20, 60, 200])
def test_log_lines_and_bar_do_not_tear_each_other(columns):
    """A line that is longer than the terminal is wide is still one line, as it was written."""

    def work() -> None:
        for _ in range(10):
            structlog.get_logger().warning("ours [/red] " + 20 * "and on ")
            logging.getLogger("theirs").warning("theirs")
            progress.window_done(WINDOW)

    with terminal(columns) as screen:
        with backfill_progress(40) as progress, ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(work)
        *above, bar, note, last = screen.lines
    assert bar.startswith("archiv")
    assert note.startswith("0/0 calls")
    assert last == ""
    logged = re.sub(r"\s+", "", "".join(above))
    line = r'\{[^{}]*"(ours\[/red\](andon){20}|theirs)"[^{}]*\}'
    assert re.fullmatch(rf"({line}){{80}}", logged), above
    assert logged.count("theirs") == 40


def test_the_cursor_stays_visible():
    """Else a process that is killed would take it along."""
    with terminal(columns=80) as screen:
        with backfill_progress(1):
            time.sleep(0.3)
            assert screen.shows_cursor
        assert screen.shows_cursor


@pytest.mark.usefixtures("_logging")
def test_work_outlives_its_terminal():
    with terminal(columns=80) as screen, backfill_progress(1) as progress:
        screen.is_gone = True
        structlog.get_logger().warning("unseen")
        progress.window_done(WINDOW)


def test_no_bar_where_none_can_be_drawn(monkeypatch):
    with redirect_stderr(io.StringIO()) as file:
        _has_no_bar()
    assert file.getvalue() == ""
    monkeypatch.setenv("TERM", "dumb")
    with terminal(columns=80) as screen:
        _has_no_bar()
    assert screen.lines == [""]


def _has_no_bar() -> None:
    with backfill_progress(2) as progress:
        assert isinstance(progress, LogProgress)
    with audit_progress("verifying") as audit:
        assert audit is None
