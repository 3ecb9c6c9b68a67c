"""The installed `archiver` command as a process, in an environment that holds nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TOOLS = ROOT / ".cache" / "bin"


def clean_environment(**more: str) -> dict[str, str]:
    """No setting, credential or proxy of the person who runs the tests; no metadata service."""
    return {
        "PATH": f"{TOOLS}:{BIN}:{os.environ.get('PATH', os.defpath)}",
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def logs(self) -> list[dict[str, Any]]:
        return json_lines(self.stderr)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.logs if line.get("event") == name]

    @property
    def complaints(self) -> list[str]:
        """What the command told a person on stderr: the lines that are no logs."""
        return [line for line in self.stderr.splitlines() if line and not line.startswith("{")]

    def expect(self, code: int) -> Result:
        assert self.code == code, (
            f"exit code {self.code}, expected {code}\n--- stdout\n{self.stdout[-3000:]}"
            f"\n--- stderr\n{self.stderr[-3000:]}"
        )
        return self


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line.startswith("{")]


@dataclass(frozen=True)
class Archiver:
    """The command with its settings: `ARCHIVER_` names without the prefix, others as they are."""

    settings: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)

    def having(self, **settings: str) -> Archiver:
        return Archiver({**self.settings, **settings}, self.environment)

    def within(self, **environment: str) -> Archiver:
        return Archiver(self.settings, {**self.environment, **environment})

    def run(self, *arguments: str, timeout: float = 120) -> Result:
        return self.start(*arguments).wait(timeout)

    def start(self, *arguments: str) -> Running:
        settings = {f"ARCHIVER_{name}": value for name, value in self.settings.items()}
        environment = clean_environment(**settings, **self.environment)
        return Running([str(BIN / "archiver"), *arguments], environment)


class Running:
    """A command under way, its output kept as it comes."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd="/",
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._more = threading.Condition()
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._closed: set[str] = set()
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._lines
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def peak_bytes(self) -> int:
        """The largest resident set of the process so far, as the kernel counts it."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0

    def _read(self, name: str) -> None:
        for line in getattr(self._process, name):
            with self._more:
                self._lines[name].append(line)
                self._more.notify_all()
        with self._more:
            self._closed.add(name)
            self._more.notify_all()

    def wait_for(self, count: int, *events: str, timeout: float = 60) -> None:
        """Until the log has so many lines of these events, or has come to its end."""
        marks = [f'"event": "{event}"' for event in events]

        def enough() -> bool:
            found = sum(any(mark in line for mark in marks) for line in self._lines["stderr"])
            return found >= count or "stderr" in self._closed

        with self._more:
            assert self._more.wait_for(enough, timeout), f"no {count} lines of {events}"

    def wait_until(self, holds: Callable[[], bool], timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float = 120) -> Result:
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
            raise AssertionError(
                f"no end after {timeout} s\n{''.join(self._lines['stderr'][-30:])}"
            ) from None
        finally:
            for reader in self._readers:
                reader.join(10)
        seconds = time.monotonic() - self._began
        return Result(code, *("".join(self._lines[n]) for n in ("stdout", "stderr")), seconds)
