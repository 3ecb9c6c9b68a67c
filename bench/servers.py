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
from pathlib import Path
from typing import Protocol, Self

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
    """nginx over what `material.py` wrote below `root`, on a plain port and one with TLS."""

    def __init__(self, root: Path, home: Path, certificate: tuple[Path, Path]) -> None:
        self.ports = {"http": free_port(), "https": free_port()}
        (home / "tmp").mkdir()
        file = home / "nginx.conf"
        text = (Path(__file__).parent / "nginx.conf").read_text()
        values = {
            # Its workers would else run as an account that may not read our directory.
            "USER": "user root;" if os.geteuid() == 0 else "",
            "HOME": home,
            "ROOT": root,
            "PLAIN": self.ports["http"],
            "TLS": self.ports["https"],
            "CERT": certificate[0],
            "KEY": certificate[1],
        }
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        file.write_text(text)
        command: Command = ["nginx", "-p", home, "-c", file, "-e", home / "nginx.log"]
        super().__init__(command, self.ports["http"], home / "nginx.out")

    def url(self, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self.ports[scheme]}"


class Store(Protocol):
    """Where the contestants write: one bucket, and what came into it."""

    bucket: str
    port: int
    secrets: tuple[str, str]

    @property
    def url(self) -> str: ...

    def stats(self) -> dict[str, int]:
        """`objects`, `bytes`, and of the sink `requests`, so far."""
        ...


class Sink(Server):
    """The null store (c/sink.c): a fresh, empty one."""

    bucket = "bench"
    secrets = ("bench", "bench-secret")

    def __init__(self, home: Path, certificate: tuple[Path, Path] | None) -> None:
        self.port = free_port()
        self._cert = certificate[0] if certificate else None
        command: Command = [BUILT / "sink", str(self.port), *(certificate or ())]
        super().__init__(command, self.port, home / "sink.log")

    @property
    def url(self) -> str:
        return f"{'https' if self._cert else 'http'}://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, int]:
        tls = ssl.create_default_context(cafile=self._cert) if self._cert else None
        with urllib.request.urlopen(f"{self.url}/_stats", context=tls) as answer:
            told: dict[str, int] = json.load(answer)
        return told


class SeaweedFS:
    """The demo's S3 server: one that really keeps what it is sent."""

    bucket = "bench"

    def __init__(self, home: Path, *, object_lock: bool = False) -> None:
        self._home = home / "weed"
        self._object_lock = object_lock

    def __enter__(self) -> Self:
        self._weed = Weed(self._home)
        self.url = self._weed.endpoint_url
        self.port = int(self.url.rpartition(":")[2])
        environment = self._weed.environment
        self.secrets = (environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
        self._weed.create_bucket(self.bucket, object_lock=self._object_lock)
        return self

    def __exit__(self, *_: object) -> None:
        self._weed.kill()

    def stats(self) -> dict[str, int]:
        pages = self._weed.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        sizes = [item["Size"] for page in pages for item in page.get("Contents", ())]
        return {"objects": len(sizes), "bytes": sum(sizes)}
