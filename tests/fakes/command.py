"""The command as people run it: a process of its own, with an environment of its own.

Loading the modules takes a process longer than most commands do. So it is done once: a process
that has loaded them, and done nothing with them, is split for each command. `start` and `fresh`
begin from nothing, as `tests/system` has the installed command do.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

from archiver.manifest.signing import SigningKey
from tests.fakes.platform import Platform

MODULES = (
    "archiver.cli.audit", "archiver.cli.backfill", "archiver.cli.hold", "archiver.cli.run",
    "archiver.wiring", "botocore.endpoint", "botocore.signers", "http.server", "pyreqwest.client",
)  # fmt: skip
_SPLIT = multiprocessing.get_context("forkserver")
_SPLIT.set_forkserver_preload(list(MODULES))
_TIMEOUT_SECONDS = 90


@dataclass
class Done:
    """What a finished command left."""

    code: int
    out: str
    err: str

    def expect(self, code: int = 0) -> Done:
        """Fails where it ended with another code."""
        assert self.code == code, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self

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
        """By an interpreter that has loaded nothing yet."""
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

    def fresh(self, *arguments: str, **changes: str | None) -> Done:
        """To its end, by an interpreter that has loaded nothing yet."""
        process = self.start(*arguments, **changes)
        try:
            out, err = process.communicate(timeout=_TIMEOUT_SECONDS)
        finally:
            process.kill()
        return Done(process.returncode, out, err)

    def begin(self, *arguments: str, **changes: str | None) -> Running:
        return Running(self.directory, arguments, self.full_environment(changes))

    def run(self, *arguments: str, **changes: str | None) -> Done:
        return self.begin(*arguments, **changes).wait()

    def interrupt(
        self,
        when: Callable[[], bool],
        number: signal.Signals,
        *arguments: str,
        **changes: str | None,
    ) -> Done:
        """Begin, send a signal once `when` holds, and wait for the end."""
        running = self.begin(*arguments, **changes)
        deadline = time.monotonic() + 60
        while not when():
            assert not running.ended, running.wait()
            assert time.monotonic() < deadline, "what was waited for never came"
            time.sleep(0.02)
        running.send(number)
        return running.wait()


def command_for(
    platform: Platform, key: SigningKey, directory: Path, credentials: Mapping[str, str],
    **settings: str,
) -> Command:  # fmt: skip
    """With all that it needs of the source, and with these settings (without `ARCHIVER_`)."""
    (directory / "key.pem").write_bytes(key.pem)
    complete = {
        "API_BASE_URL": platform.api_url,
        "API_TOKEN": platform.token,
        "RECORDING_HOSTS": platform.blob_host,
        "ALLOW_HTTP": "true",
        "SIGNING_KEY_FILE": str(directory / "key.pem"),
        "METRICS_PORT": "0",
        "HTTP_TRANSPORT": os.environ.get("HTTP_TRANSPORT", "fast"),
        "S3_REQUESTS": os.environ.get("S3_REQUESTS", "signed"),
        **settings,
    }
    environment = {f"ARCHIVER_{name}": value for name, value in complete.items()}
    return Command(directory, {**credentials, **environment})


class Running:
    """A command under way; it does not outlive the tests."""

    def __init__(
        self, directory: Path, arguments: tuple[str, ...], environment: dict[str, str]
    ) -> None:
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        streams = [DupFd(stream.fileno()) for stream in (self._out, self._err)]
        self._process = _SPLIT.Process(
            target=_become, args=(directory, arguments, environment, streams), daemon=True
        )
        self._process.start()

    @property
    def ended(self) -> bool:
        return not self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self) -> Done:
        self._process.join(_TIMEOUT_SECONDS)
        if not self.ended:
            self._process.kill()
            raise TimeoutError(f"still running: {_said(self._err)}")
        assert self._process.exitcode is not None
        return Done(self._process.exitcode, _said(self._out), _said(self._err))


def _said(stream: IO[bytes]) -> str:
    with stream:
        stream.seek(0)
        return stream.read().decode()


def _become(
    directory: Path, arguments: tuple[str, ...], environment: dict[str, str], streams: list[Any]
) -> None:
    """In the new process: be `python -m archiver`."""
    for number, stream in enumerate(streams, 1):
        os.dup2(stream.detach(), number)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, environment["PYTHONPATH"])
    sys.argv = ["archiver", *arguments]
    # What Python reads of its environment when it starts, and never again.
    warnings.simplefilter("error", ResourceWarning)
    sys.dont_write_bytecode = False
    runpy.run_module("archiver", run_name="__main__", alter_sys=True)
