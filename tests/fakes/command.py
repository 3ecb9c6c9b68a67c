"""The command as people run it: a process of its own, with an environment of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Done:
    """What a finished command left."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on stderr that tells what is wrong; fails where there is not just one."""
        lines = [line for line in self.err.splitlines() if not line.startswith("{")]
        assert len(lines) == 1, f"not one line but: {self.err}"
        assert lines[0].startswith("archiver: ")
        return lines[0]


@dataclass
class Command:
    """Runs `python -m archiver` with `environment` and nothing else of the machine's."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)

    def full_environment(self, changes: dict[str, str | None]) -> dict[str, str]:
        base = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "AWS_EC2_METADATA_DISABLED": "true",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONWARNINGS": "error::ResourceWarning",
            "COLUMNS": "100",
        }
        merged: dict[str, str | None] = {**base, **self.environment, **changes}
        return {name: value for name, value in merged.items() if value is not None}

    def start(self, *arguments: str, **changes: str | None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "archiver", *arguments],
            cwd=self.directory,
            env=self.full_environment(changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(self, *arguments: str, **changes: str | None) -> Done:
        process = self.start(*arguments, **changes)
        try:
            out, err = process.communicate(timeout=90)
        finally:
            process.kill()
        return Done(process.returncode, out, err)

    def interrupt(
        self,
        when: Callable[[], bool],
        number: signal.Signals,
        *arguments: str,
        **changes: str | None,
    ) -> Done:
        """Start, send a signal once `when` holds, and wait for the end."""
        process = self.start(*arguments, **changes)
        try:
            deadline = time.monotonic() + 60
            while not when():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, "what was waited for never came"
                time.sleep(0.02)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        return Done(process.returncode, out, err)
