"""The real servers around the command, each a process on loopback with a directory of its own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Self

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.system.checker import Expected
from tests.system.command import BIN, ROOT, clean_environment

REGION = "us-east-1"
DOMAIN = "store.example.com"
AZURITE = ROOT / ".cache" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
_GRPC_OFFSET = 10_000
START_TRIES = 3
_WEED_PARTS = ("s3", "master", "volume", "filer", "admin")


@dataclass(frozen=True)
class Tls:
    """PEM files: a certificate for 127.0.0.1, its key, and the root that vouches for it."""

    cert: Path
    key: Path
    ca: Path


def free_port(*, grpc: bool = False) -> int:
    """A port of loopback's that nobody has, and with `grpc` the one 10000 above as well.

    Below those that Linux gives to outgoing connections: none of these may take it meanwhile.
    """
    while True:
        port = random.randrange(11_000, 22_000)
        if _is_free(port) and (not grpc or _is_free(port + _GRPC_OFFSET)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Server:
    """A process that is ended by SIGTERM, and by SIGKILL where that is not heard."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self, command: list[str], log: IO[str], **more: Any) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            command,
            text=True,
            stdin=subprocess.DEVNULL,
            stderr=log,
            **{"stdout": log, "env": clean_environment(), **more},
        )
        return self._process

    def _listens(self, port: int) -> bool:
        """Waits for it; False where the process ended: somebody else took the port meanwhile."""
        assert self._process is not None
        end = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            time.sleep(0.05)
        return False

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None


def s3_client(endpoint_url: str, credentials: Mapping[str, str], tls: Tls | None = None) -> Any:
    """A client that asks once; `credentials` as boto3 finds them in its environment."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id=credentials["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
        verify=str(tls.ca) if tls else None,
        config=Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=16,
        ),
    )


class Weed(Server):
    """SeaweedFS as one process: a real S3 server with versions, locks and create-once writes."""

    def __init__(self, directory: Path, tls: Tls | None = None) -> None:
        super().__init__()
        self.directory = directory
        self.tls = tls
        self._secret = secrets.token_hex(16)
        (directory / "data").mkdir(parents=True)
        (directory / "s3.json").write_text(json.dumps(self._identities()))
        log_file = directory / "weed.log"
        self._log = log_file.open("w")
        for _ in range(START_TRIES):
            # Another process may take a port between the check and the start: then others do.
            self._ports = {part: free_port(grpc=True) for part in _WEED_PARTS}
            environment = clean_environment(WEED_S3_SSE_KEK_PASSPHRASE=secrets.token_hex(16))
            command = [str(BIN / "weed"), *self._arguments()]
            self._spawn(command, self._log, cwd=directory, env=environment)
            self.client = s3_client(self.endpoint_url, self.environment, tls)
            if self._gets_ready():
                return
            self._end()
        self._log.close()
        raise RuntimeError(f"SeaweedFS does not start: see {log_file}")

    @property
    def endpoint_url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._ports['s3']}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_DEFAULT_REGION": REGION,
        }

    def settings(self, bucket: str) -> dict[str, str]:
        return {"S3_BUCKET": bucket, "S3_ENDPOINT_URL": self.endpoint_url, "S3_REGION": REGION}

    def create_bucket(self, name: str, *, object_lock: bool = True) -> None:
        """Make a bucket unless it is there; versioned and lockable with `object_lock`."""
        try:
            self.client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=object_lock)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 409:
                raise

    def stop(self) -> None:
        self._end()
        self._log.close()

    def kill(self) -> None:
        """End it at once: nobody reads its data again."""
        if self._process is not None:
            self._process.kill()
        self.stop()

    def remove(self) -> None:
        """Give the disk back; only after the process has ended."""
        self.stop()
        shutil.rmtree(self.directory)

    def _end(self) -> None:
        super().stop()
        for part, port in self._ports.items():
            # It leaves some of its Unix sockets behind, there whatever TMPDIR says.
            for left in (f"{part}-{port}", f"{part}-grpc-{port + _GRPC_OFFSET}"):
                Path(f"/tmp/seaweedfs-{left}.sock").unlink(missing_ok=True)

    def _identities(self) -> dict[str, Any]:
        credentials = [{"accessKey": "tests", "secretKey": self._secret}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        return {"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]}

    def _arguments(self) -> list[str]:
        options: dict[str, object] = {
            "dir": self.directory / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            **{f"{name}.port": port for name, port in self._ports.items()},
            "s3.config": self.directory / "s3.json",
            # A bucket may also stand in the host's name, where a client comes by a proxy.
            "s3.domainName": DOMAIN,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.allowDeleteBucketNotEmpty": "false",
            "s3.autoCreateBucket": "false",
            "webdav": "false",
            "admin.ui": "false",
            "volume.preStopSeconds": 0,
            "master.telemetry": "false",
        }
        if self.tls is not None:
            options |= {"s3.cert.file": self.tls.cert, "s3.key.file": self.tls.key}
        return ["-logtostderr=true", "mini", *(f"-{k}={v}" for k, v in options.items())]

    def _gets_ready(self) -> bool:
        """False if it ended, or somebody else answers: only this server knows the key."""
        assert self._process is not None
        end = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(BotoCoreError, ClientError):
                self.client.list_buckets()
                return True
            time.sleep(0.05)
        return False


class SimulatedSource(Server):
    """The simulated platform as a process of its own, `python -m module`; `truth` is what it
    serves, by call id."""

    def __init__(self, directory: Path, module: str, *arguments: str) -> None:
        super().__init__()
        self.truth: dict[str, dict[str, Any]] = {}
        command = [sys.executable, "-m", module, *arguments]
        with (directory / "source.log").open("a") as log:
            self._served = self._spawn(command, log, stdout=subprocess.PIPE, cwd=ROOT)
        try:
            self.addresses: dict[str, Any] = self._answer()
        except ValueError:
            self.stop()
            pytest.fail(f"the source does not start: see {directory / 'source.log'}")

    def settings(self) -> dict[str, str]:
        return {
            "API_BASE_URL": self.addresses["api_url"],
            "API_TOKEN": self.addresses["token"],
            "RECORDING_HOSTS": self.addresses["blob_host"],
            "ALLOW_HTTP": "true",
        }

    def expected(self, start: datetime, end: datetime, **more: Any) -> Expected:
        """What an archive of all its calls must hold."""
        told = {"api": self.addresses["api_url"], "recording_host": self.addresses["blob_host"]}
        return Expected(self.truth, start, end, **{**told, **more})

    def _answer(self) -> Any:
        """The next line that it prints."""
        assert self._served.stdout is not None
        return json.loads(self._served.stdout.readline())


class Source(SimulatedSource):
    """One with calls that its options tell of."""

    def __init__(self, directory: Path, *arguments: str, truth: bool = True) -> None:
        file = directory / f"truth-{secrets.token_hex(4)}.jsonl"
        told = ("--truth", str(file)) if truth else ()
        super().__init__(directory, "tests.fakes.platform", *arguments, *told)
        self.truth = _by_id(file) if truth else {}


def _by_id(file: Path) -> dict[str, dict[str, Any]]:
    # Not splitlines(): a transcript may hold other characters that break lines.
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return {told["id"]: told for told in map(json.loads, lines)}


class Azurite(Server):
    """Microsoft's blob store emulator: it really checks the signatures and dates of its URLs."""

    account = "recs"

    def __init__(self, directory: Path, tls: Tls | None = None) -> None:
        super().__init__()
        if not AZURITE.exists():
            pytest.fail("Azurite is missing: run `make system-setup`")
        self.key = base64.b64encode(os.urandom(64)).decode()
        self.tls = tls
        self.port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        command = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        command += ["--location", str(directory), "--disableTelemetry", "--silent"]
        command += ["--skipApiVersionCheck"]
        command += ["--cert", str(tls.cert), "--key", str(tls.key)] if tls else []
        environment = clean_environment(AZURITE_ACCOUNTS=f"{self.account}:{self.key}")
        with (directory / "azurite.log").open("w") as log:
            self._spawn(command, log, env=environment, cwd=directory)
        if not self._listens(self.port):
            self.stop()
            pytest.fail("Azurite does not start")
        self.host = f"127.0.0.1:{self.port}"
        """What signed URLs name. A test may put a proxy there."""

    @property
    def account_url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}/{self.account}"
