"""Runs a backfill in several processes: each processes a share and reports to the parent.

    parent ──stdin───▶ share    nothing is sent; its end means that the parent is gone
           ◀──stdout── share    one JSON line per event of `BackfillProgress`, one at the end
           ◀──stderr── share    log lines, passed on unchanged

The parent sends no request to the source or the store while the shares run. If a share ends early,
the others go on. What it has archived stays; running the range again does the rest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import IO, cast

import structlog

from archiver.core.clock import Interrupted
from archiver.core.errors import ArchiverError
from archiver.core.model import Window
from archiver.pipeline.backfill_progress import BackfillProgress
from archiver.pipeline.window import Totals

log = structlog.get_logger()

_WORST_LAST = (0, 1, Interrupted.exit_code, 3, 4, 2)
"""Exit codes from best to worst: done; a person must act; interrupted, to be run again; source;
store; nothing was done."""

END_SECONDS = 5.0
"""How long the shares may take to end after the parent has failed; then they are killed."""
POLL_SECONDS = 0.1


# --- in a share


class Reporter:
    """Sends the progress of a share to its parent.

    Each line is one write below the size that a pipe writes atomically (`PIPE_BUF`), so many
    threads may report at once. Errors are ignored: once the parent is gone, `end_with_parent` ends
    this process.
    """

    def window_listed(self, window: Window, new_calls: int) -> None:
        self._send("window_listed", window.start.isoformat(), window.end.isoformat(), new_calls)

    def call_done(self, outcome: str, recording_bytes: int) -> None:
        self._send("call_done", outcome, recording_bytes)

    def window_done(self, window: Window) -> None:
        self._send("window_done", window.start.isoformat(), window.end.isoformat())

    def source_paused(self, seconds: float) -> None:
        self._send("source_paused", seconds)

    def ended(self, totals: Totals, seal: int) -> None:
        """Report that the share is done, what it did, and the newest seal that it saw."""
        self._send("ended", vars(totals), seal)

    def failed(self, error: ArchiverError) -> None:
        # JSON writes a character as up to 12 bytes.
        self._send("failed", " ".join(str(error).split())[:300])

    def _send(self, *message: object) -> None:
        with suppress(OSError):
            os.write(1, json.dumps(message).encode() + b"\n")


def end_with_parent() -> None:
    """Interrupt this process once its parent is gone, for whatever reason. It sends SIGINT: if the
    process was already asked to end, this ends it at once."""

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, name="parent", daemon=True).start()


# --- in the parent


class Share:
    """One child process, and what it has reported. One thread per stream fills this in."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        progress: BackfillProgress,
    ) -> None:
        self.name = name
        self.totals: Totals | None = None
        self.seal = 0
        self._complaint = ""
        self._progress = progress
        try:
            self.process = subprocess.Popen(
                # -P: import nothing from the current directory.
                [sys.executable, "-P", "-m", "archiver", *arguments],
                # Settings include secrets, so they go through the environment, not the arguments.
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Its own process group: a terminal's Ctrl-C reaches the parent only, which passes
                # it on once.
                process_group=0,
            )
        except OSError as error:
            raise ArchiverError(
                f"a process cannot be started ({error.strerror}): ask for fewer by --processes"
            ) from None
        targets = (self._read_reports, self._pass_log_on)
        self._readers = [threading.Thread(target=target, daemon=True) for target in targets]
        for reader in self._readers:
            reader.start()

    def has_ended(self) -> bool:
        return self.process.poll() is not None and not any(r.is_alive() for r in self._readers)

    def failure(self) -> tuple[int, str] | None:
        """The exit code and a one-line reason if the share did not finish its windows; else None. A
        share that a signal killed counts as interrupted, as one that handled the signal does."""
        code: int = self.process.returncode
        if self.totals is not None and code in (0, 1):
            return None
        shard = f"the process of shard {self.name}"
        if code >= 0:
            return code, self._complaint or f"{shard} ended with exit code {code}"
        names = {one.value: one.name for one in signal.Signals}
        killed = names.get(-code, f"signal {-code}")
        memory = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return Interrupted.exit_code, f"{shard} was killed by {killed}{memory}: run it again"

    def _read_reports(self) -> None:
        with cast("IO[bytes]", self.process.stdout) as lines:
            for line in lines:
                what, *values = json.loads(line)
                if what == "ended":
                    counts, self.seal = values
                    self.totals = Totals(**{**counts, "committed": Counter(counts["committed"])})
                elif what == "failed":
                    [self._complaint] = values
                elif what == "call_done":
                    self._progress.call_done(*values)
                elif what == "source_paused":
                    self._progress.source_paused(*values)
                else:
                    start, end, *rest = values
                    window = Window(datetime.fromisoformat(start), datetime.fromisoformat(end))
                    getattr(self._progress, what)(window, *rest)

    def _pass_log_on(self) -> None:
        """Write the share's log lines through structlog's logger, whose lock keeps them apart from
        our own. `sys.stderr` is read each time, because a progress bar may have replaced it."""
        with cast("IO[bytes]", self.process.stderr) as lines:
            for line in lines:
                structlog.PrintLogger(sys.stderr).msg(line.decode(errors="replace").rstrip("\n"))


def run_shares(
    names: Iterable[str],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    progress: BackfillProgress,
    must_end: Callable[[], object],
) -> tuple[Totals, int]:
    """Run `archiver ARGUMENTS --shard NAME` for each name, at the same time. Returns the sum of
    what the shares did, and the newest seal.

    1. Start the shares.
    2. Wait until all have ended. Once this process must end, send SIGTERM to each share. A share
       that is still starting ends without a message.
    3. Raise `Interrupted` if they were asked to end; else the worst failure, if one ended early.
    4. End the shares that still run, if this process fails or could not start all of them.
    """
    shares: list[Share] = []
    failures: list[tuple[int, str]] = []
    asked_to_end = False
    try:
        # 1.
        for name in names:
            shares.append(Share(name, [*arguments, "--shard", name], environment, progress))
        # 2.
        running = list(shares)
        while running:
            if must_end() and not asked_to_end:
                asked_to_end = True
                for share in shares:
                    share.process.terminate()
            time.sleep(POLL_SECONDS)
            for share in [one for one in running if one.has_ended()]:
                running.remove(share)
                if (failure := share.failure()) is None:
                    continue
                failures.append(failure)
                code, why = failure
                if not (asked_to_end and code == Interrupted.exit_code):
                    log.warning("share.failed", shard=share.name, exit_code=code, error=why)
        # 3.
        if failures:
            ranks = {code: rank for rank, code in enumerate(_WORST_LAST)}
            code, why = max(failures, key=lambda failure: ranks.get(failure[0], 1))
            if asked_to_end and code == Interrupted.exit_code:
                raise Interrupted
            error = ArchiverError(f"{why} ({len(failures)} of {len(shares)} processes ended early)")
            error.exit_code = code
            raise error
        total = Totals()
        for share in shares:
            total += share.totals or Totals()
        return total, max(share.seal for share in shares)
    finally:
        # 4.
        deadline = time.monotonic() + END_SECONDS
        for share in shares:
            if share.process.stdin:
                share.process.stdin.close()
        for share in shares:
            try:
                share.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                share.process.kill()
                share.process.wait()
