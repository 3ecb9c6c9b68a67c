"""The servers that the contestants talk to: nginx as the source, a store. None is measured."""

from __future__ import annotations

import json
import os
import random
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from bench.material import Certificate
from tests.system.servers import Weed

ROOT = Path(__file__).parent.parent
BUILT = ROOT / ".cache" / "bench"
Command = list[str | Path]


def free_port() -> int:
    """A port of loopback's that nobody has, below those of outgoing connections."""
    while True:
        port = random.randrange(11_000, 22_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Server:
    """A process that lives as long as the `with` block."""

    def __init__(self, command: Command, port: int, log: Path) -> None:
        self._log = log.open("ab")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        self._wait(port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()

    def _wait(self, port: int) -> None:
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"a server does not start: see {self._log.name}") from None
                time.sleep(0.02)
            else:
                return


class Source(Server):
    """nginx over what `material.py` wrote below `root`, over TLS."""

    def __init__(self, root: Path, home: Path, certificate: Certificate) -> None:
        port = free_port()
        self.url = f"https://127.0.0.1:{port}"
        (home / "tmp").mkdir()
        file = home / "nginx.conf"
        text = (Path(__file__).parent / "nginx.conf").read_text()
        values = {
            # Its workers would else run as an account that may not read our directory.
            "USER": "user root;" if os.geteuid() == 0 else "",
            "HOME": home,
            "ROOT": root,
            "TLS": port,
            "CERT": certificate.cert,
            "KEY": certificate.key,
        }
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        file.write_text(text)
        command: Command = ["nginx", "-p", home, "-c", file, "-e", home / "nginx.log"]
        super().__init__(command, port, home / "nginx.out")


class Sink(Server):
    """The null store (c/sink.c): a fresh, empty one."""

    bucket = "bench"
    secrets = ("bench", "bench-secret")

    def __init__(self, home: Path, certificate: Certificate | None) -> None:
        self.port = free_port()
        self._root = certificate.root if certificate else None
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        files = (certificate.cert, certificate.key) if certificate else ()
        super().__init__([BUILT / "sink", str(self.port), *files], self.port, home / "sink.log")

    def stats(self) -> dict[str, int]:
        """`objects`, `bytes` and `requests` so far."""
        tls = ssl.create_default_context(cafile=self._root) if self._root else None
        with urllib.request.urlopen(f"{self.url}/_stats", context=tls) as answer:
            stats: dict[str, int] = json.load(answer)
        return stats


@contextmanager
def seaweedfs(home: Path, bucket: str) -> Iterator[dict[str, str]]:
    """The demo's S3 server with a bucket under Object Lock; yields what names it."""
    weed = Weed(home / "weed")
    try:
        weed.create_bucket(bucket, object_lock=True)
        yield {
            **weed.environment,
            "AWS_DEFAULT_REGION": "us-east-1",
            "ARCHIVER_S3_BUCKET": bucket,
            "ARCHIVER_S3_ENDPOINT_URL": weed.endpoint_url,
            "ARCHIVER_S3_REGION": "us-east-1",
        }
    finally:
        weed.kill()
