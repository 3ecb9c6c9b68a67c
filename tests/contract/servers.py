"""rclone as an S3 server: a directory behind S3's protocol, with neither conditions nor locks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.system.command import BIN
from tests.system.servers import START_TRIES, Server, free_port


class Rclone(Server):
    """`rclone serve s3` of a directory; ends with its `with` block."""

    def __init__(self, directory: Path, access_key: str, secret_key: str) -> None:
        super().__init__()
        (directory / "data").mkdir()
        serve = (BIN / "rclone", "serve", "s3", "--config", os.devnull)
        for _ in range(START_TRIES):
            port = free_port()
            self.endpoint_url = f"http://127.0.0.1:{port}"
            options = ("--auth-key", f"{access_key},{secret_key}", "--addr", f"127.0.0.1:{port}")
            with (directory / "rclone.log").open("a") as log:
                self._spawn([*map(str, serve), *options, str(directory / "data")], log)
            if self._listens(port):
                return
            self.stop()
        pytest.fail(f"rclone does not start: see {directory / 'rclone.log'}")
