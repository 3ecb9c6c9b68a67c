"""A backfill in several processes: each does a share of the windows, and reports to its parent.

    parent ──stdin───▶ share    nothing is sent: its end says that the parent is gone
           ◀──stdout── share    a JSON line for each call of `Progress`; the summary at the end
           ◀──stderr── share    log lines, passed on whole; a complaint is kept for the parent's

The parent asks nothing of the source or the store while the shares run. One that ends early leaves
the others going: what it has archived stands, and running the range again does the rest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import IO

import structlog

from archiver.core.clock import Interrupted
from archiver.core.errors import ArchiverError
from archiver.core.model import Window
from archiver.pipeline.backfill import Summary
from archiver.pipeline.ports import Progress

log = structlog.get_logger()

COMPLAINT = "archiver: "
"""How the one line begins that a command which fails says why in."""

_WORST_LAST = (0, 1, Interrupted.exit_code, 3, 4, 2)
"""Exit codes: done; needs a person; begun and to be run again; source; store; nothing was done."""

END_SECONDS = 5.0
"""So long shares have to end cleanly whose parent fails itself."""
POLL_SECONDS = 0.1


class ShareFailed(ArchiverError):
    """At least one process did not come to the end of its windows; it has the worst exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Reporter:
    """A share's `Progress`. Each line is one write of less than a pipe takes at once, so that many
    threads may report. Where nobody listens any more, `end_with_parent` ends the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def window_listed(self, window: Window, new_calls: int) -> None:
        self._say("listed", _written(window), new_calls)

    def call_done(self, outcome: str, recording_bytes: int) -> None:
        self._say("call", outcome, recording_bytes)

    def window_done(self, window: Window) -> None:
        self._say("done", _written(window))

    def ended(self, summary: Summary, seal: int) -> None:
        """The share is through: what it did, and where it saw the chain."""
        self._say("ended", asdict(summary), seal)

    def _say(self, *message: object) -> None:
        with suppress(OSError):
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")


def end_with_parent() -> None:
    """In a share: ask for its end once the parent is gone, however that came. As SIGINT does: where
    the end was asked for already, it comes at once."""

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, name="parent", daemon=True).start()


class Share:
    """One process, and what it has reported. A thread for each of its streams fills this in."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], progress: Progress) -> None:
        self.name = name
        self.process = process
        self.summary: Summary | None = None
        self.seal = 0
        self._progress = progress
        self._complaint = ""
        self._readers = [
            threading.Thread(target=self._read, args=(stream, handle), daemon=True)
            for stream, handle in (
                (process.stdout, self._show_report),
                (process.stderr, self._pass_log_on),
            )
        ]
        for reader in self._readers:
            reader.start()

    def has_ended(self) -> bool:
        return self.process.poll() is not None and not any(r.is_alive() for r in self._readers)

    @property
    def failed(self) -> bool:
        return self.summary is None or self.process.returncode not in (0, 1)

    @property
    def exit_code(self) -> int:
        """A signal that killed it interrupted it, as one that it handles does."""
        code: int = self.process.returncode
        return Interrupted.exit_code if code < 0 else code

    @property
    def reason(self) -> str:
        """Why it failed, in a line."""
        code: int = self.process.returncode
        if code < 0:
            memory = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
            killed = f"was killed by {_signal(-code)}{memory}: run it again"
            return f"the process of shard {self.name} {killed}"
        return self._complaint or f"the process of shard {self.name} ended with exit code {code}"

    def _read(self, stream: IO[bytes], handle: Callable[[bytes], None]) -> None:
        with stream:
            for line in stream:
                handle(line)

    def _show_report(self, line: bytes) -> None:
        what, *values = json.loads(line)
        if what == "listed":
            self._progress.window_listed(_window(values[0]), values[1])
        elif what == "call":
            self._progress.call_done(*values)
        elif what == "done":
            self._progress.window_done(_window(values[0]))
        else:
            self.summary, self.seal = Summary(**values[0]), values[1]

    def _pass_log_on(self, line: bytes) -> None:
        """By structlog's logger, whose lock keeps it apart from our own lines. stderr is asked for
        each time: a progress bar of ours may have it."""
        text = line.decode(errors="replace")
        if text.startswith(COMPLAINT):
            self._complaint = text.removeprefix(COMPLAINT).strip()
        else:
            structlog.PrintLogger(sys.stderr).msg(text.rstrip("\n"))


class Shares:
    """The parent's side: starts the shares and ends them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shares: list[Share] = []
        self._asked_to_end = False

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a process of this program. Settings, and so secrets, go by its environment alone.

        It is put into a group of its own: of a terminal's Ctrl-C it hears from us, and once.
        """
        try:
            process = subprocess.Popen(
                # -P: whatever lies in the current directory is not to be imported.
                [sys.executable, "-P", "-m", "archiver", *arguments],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,
            )
        except OSError as error:
            raise ArchiverError(
                f"a process cannot be started ({error.strerror}): ask for fewer by --processes"
            ) from None
        self._shares.append(Share(name, process, self._progress))

    def wait(self, must_end: Callable[[], object]) -> None:
        """Until all have ended. Once the process `must_end` the shares are asked to, by SIGTERM:
        one that is still being loaded ends by it without a word."""
        running = list(self._shares)
        while running:
            if must_end() and not self._asked_to_end:
                self._asked_to_end = True
                for share in self._shares:
                    share.process.terminate()
            time.sleep(POLL_SECONDS)
            for share in [one for one in running if one.has_ended()]:
                running.remove(share)
                if share.failed and not self._is_expected(share):
                    code, why = share.exit_code, share.reason
                    log.warning("share.failed", shard=share.name, exit_code=code, error=why)

    def _is_expected(self, share: Share) -> bool:
        return self._asked_to_end and share.exit_code == Interrupted.exit_code

    def result(self) -> tuple[Summary, int]:
        """What all of them did, and the newest seal. Raises `ShareFailed`, or
        `Interrupted` where they were asked to end."""
        failed = [share for share in self._shares if share.failed]
        if failed:
            worst = max(failed, key=lambda share: _badness(share.exit_code))
            if self._is_expected(worst):
                raise Interrupted
            count = f"{len(failed)} of {len(self._shares)} processes ended early"
            raise ShareFailed(f"{worst.reason} ({count})", worst.exit_code)
        summary = Summary()
        for share in self._shares:
            summary.merge(share.summary or Summary())
        return summary, max(share.seal for share in self._shares)

    def close(self) -> None:
        """End what still runs: where we fail ourselves, or could not start all of them."""
        deadline = time.monotonic() + END_SECONDS
        for share in self._shares:
            if share.process.stdin:
                share.process.stdin.close()
        for share in self._shares:
            try:
                share.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                share.process.kill()
                share.process.wait()


def _badness(exit_code: int) -> int:
    return _WORST_LAST.index(exit_code) if exit_code in _WORST_LAST else 1


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _written(window: Window) -> tuple[str, str]:
    return window.start.isoformat(), window.end.isoformat()


def _window(written: Sequence[str]) -> Window:
    start, end = map(datetime.fromisoformat, written)
    return Window(start, end)
