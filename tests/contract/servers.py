"""rclone as an S3 server: a directory behind S3's protocol, with neither conditions nor locks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

REGION = "us-east-1"


class Rclone:
    """`rclone serve s3` of a directory; ends with its `with` block."""

    def __init__(self, directory: Path, access_key: str, secret_key: str) -> None:
        (directory / "data").mkdir()
        self._log = directory / "rclone.log"
        self._command = [
            str(Path(sys.executable).parent / "rclone"),
            *("serve", "s3", "--config", os.devnull, "--auth-key", f"{access_key},{secret_key}"),
        ]
        self._data = directory / "data"

    def __enter__(self) -> Self:
        end = time.monotonic() + 30
        while True:
            port = _free_port()
            self.endpoint_url = f"http://127.0.0.1:{port}"
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [*self._command, "--addr", f"127.0.0.1:{port}", str(self._data)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
            if self._answers(port, end):
                return self
            self.__exit__()
            assert time.monotonic() < end, f"rclone does not start: see {self._log}"

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self, port: int, end: float) -> bool:
        """False where the process ended: somebody else took the port meanwhile."""
        while self._process.poll() is None and time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return True
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
