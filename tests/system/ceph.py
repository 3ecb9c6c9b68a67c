"""A Ceph cluster of one monitor, one disk in memory and one S3 gateway, on loopback.

    with Ceph(directory) as ceph:
        ceph.client.create_bucket(...)  # ceph.endpoint_url, ceph.environment

Debian's packages, which `ceph-setup.sh` installs. Nothing of it outlives its process but what lies
in the directory.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from tests.system.command import clean_environment
from tests.system.servers import REGION, free_port, s3_client

COMMANDS = ("monmaptool", "ceph-mon", "ceph", "ceph-osd", "radosgw-admin", "radosgw")
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""Before a command: it does not outlive a run of the tests that is cut off."""
_START_SECONDS = 60.0

_SETTINGS = {
    # Nobody else is on this loopback, and each process lives for one run of the tests.
    "auth cluster required": "none",
    "auth service required": "none",
    "auth client required": "none",
    "ms bind ipv6": "false",
    "public addr": "127.0.0.1",
    "cluster addr": "127.0.0.1",
    # One copy of everything is what one disk can hold.
    "mon allow pool size one": "true",
    "mon warn on pool no redundancy": "false",
    "osd pool default size": "1",
    "osd pool default min size": "1",
    "osd pool default pg num": "4",
    "osd pool default pgp num": "4",
    "osd pool default pg autoscale mode": "off",
    "osd crush chooseleaf type": "0",
    "mon max pg per osd": "1000",
    # A full disk of the machine is not this cluster's matter: its own is in memory.
    "mon data avail warn": "1",
    "mon data avail crit": "1",
    "osd objectstore": "memstore",
    "memstore device bytes": str(3 << 30),
    "osd class load list": "*",
    "osd class default list": "*",
    "rgw dns name": "127.0.0.1",
    "rgw relaxed region enforcement": "true",
    "rgw enable usage log": "false",
    # As behind TLS: else it refuses whatever asks for encryption.
    "rgw crypt require ssl": "false",
}


class Ceph:
    """A running cluster. `pytest.fail` where a part is missing or does not start."""

    def __init__(self, directory: Path) -> None:
        missing = [name for name in COMMANDS if shutil.which(name) is None]
        if missing:
            pytest.fail(f"{missing[0]} is missing: run tests/system/ceph-setup.sh")
        self.directory = directory
        self._port = free_port()
        self._monitor = f"v1:127.0.0.1:{free_port()}"
        self._secret = secrets.token_hex(20)
        self._cluster = str(uuid.uuid4())
        self._daemons: dict[tuple[str, ...], subprocess.Popen[bytes]] = {}
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": self._secret}

    def settings(self, bucket: str) -> dict[str, str]:
        return {"S3_BUCKET": bucket, "S3_ENDPOINT_URL": self.endpoint_url, "S3_REGION": REGION}

    @property
    def client(self) -> Any:
        return s3_client(self.endpoint_url, self.environment)

    def add_user(self, name: str) -> dict[str, str]:
        """A user of its own, who may do nothing yet; what boto3 needs to be that user."""
        secret = secrets.token_hex(20)
        keys = (f"--access-key={name}", f"--secret={secret}")
        self._run(
            "radosgw-admin", "user", "create", f"--uid={name}", f"--display-name={name}", *keys
        )
        return {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": secret}

    def stop(self) -> None:
        """End what was started here: nobody reads its data again, so it is not asked nicely."""
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
        for daemon in self._daemons.values():
            daemon.wait()
        self._daemons.clear()

    # --- from nothing to a gateway that answers

    def _start(self) -> None:
        for name in ("mon", "osd", "rgw", "run"):
            (self.directory / name).mkdir(parents=True)
        (self.directory / "ceph.conf").write_text(self._configuration())
        self._start_monitor()
        self._start_disk()
        user = ("--uid=tests", "--display-name=tests", "--access-key=tests")
        self._run("radosgw-admin", "user", "create", *user, f"--secret={self._secret}")
        self._serve("radosgw", "-n", "client.rgw", "-f")
        self._wait(self._answers)

    def _start_monitor(self) -> None:
        map_file = self.directory / "monmap"
        address = ("--addv", "a", f"[{self._monitor}]")
        self._run("monmaptool", "--create", "--fsid", self._cluster, *address, str(map_file))
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", str(map_file))
        self._serve("ceph-mon", "-i", "a", "-f")
        self._wait(lambda: self._ask("quorum_status") is not None)

    def _start_disk(self) -> None:
        disk = str(uuid.uuid4())
        self._run("ceph", "osd", "new", disk)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._serve("ceph-osd", "-i", "0", "-f")
        self._wait(lambda: (self._ask("osd", "stat") or {}).get("num_up_osds") == 1)

    def _configuration(self) -> str:
        here = self.directory
        parts: dict[str, dict[str, object]] = {
            "global": {
                "fsid": self._cluster,
                "mon host": f"[{self._monitor}]",
                "run dir": here / "run",
                "admin socket": "",
                "pid file": "",
                "log file": here / "$name.log",
                "crash dir": here / "run",
                **_SETTINGS,
            },
            "mon.a": {"mon data": here / "mon", "mon cluster log file": here / "cluster.log"},
            "osd.0": {"osd data": here / "osd"},
            "client.rgw": {
                "rgw data": here / "rgw",
                "rgw frontends": f"beast endpoint=127.0.0.1:{self._port}",
            },
        }
        return "".join(
            f"[{part}]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
            for part, settings in parts.items()
        )

    @property
    def _environment(self) -> dict[str, str]:
        return clean_environment(CEPH_CONF=str(self.directory / "ceph.conf"))

    def _serve(self, *command: str) -> None:
        with (self.directory / f"{command[0]}.out").open("wb") as out:
            daemon = subprocess.Popen(
                [*DIES_WITH_US, *command],
                env=self._environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self._daemons[command] = daemon

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=_START_SECONDS
        )
        if done.returncode:
            pytest.fail(f"{' '.join(command[:3])}: {done.stderr[-500:]}")

    def _ask(self, *question: str) -> dict[str, Any] | None:
        """What the monitor says; None where it does not answer yet."""
        command = ["ceph", "--connect-timeout", "2", "--format", "json", *question]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status < 500
        except OSError:
            return False
        finally:
            connection.close()

    def _wait(self, holds: Callable[[], bool]) -> None:
        """A disk that meets a monitor just come up now and then ends at once: it is started again,
        like any other part."""
        end = time.monotonic() + _START_SECONDS
        while not holds():
            ended = [command for command, one in self._daemons.items() if one.poll() is not None]
            if time.monotonic() > end:
                pytest.fail(f"{ended or 'Ceph'} does not start: see {self.directory}")
            for command in ended:
                self._serve(*command)
            time.sleep(0.2)


def is_asked_for() -> bool:
    """Whether the tests are to run on Ceph too: `CONTRACT_STORES=rgw`."""
    return "rgw" in os.environ.get("CONTRACT_STORES", "").split(",")
