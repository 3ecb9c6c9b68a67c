"""The stores that the suite runs on, each a real server on loopback.

`CONTRACT_STORES` says which; without it those that Python packages bring. `CONTRACT_STORES=rgw`
runs it on Ceph, whose packages are Debian's (`make contract-rgw`).
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from archiver.core.retry import Retry
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions, connect, make_client
from tests.contract.servers import Rclone
from tests.contract.stores import KNOWN, Known
from tests.fakes import unlike_s3
from tests.fakes.clock import HandClock
from tests.fakes.rig import SIGNED, TRANSPORT, aws_session, store_requests
from tests.fakes.unlike_s3 import Habits, UnlikeS3
from tests.system.ceph import Ceph
from tests.system.servers import DOMAIN, REGION, Weed

_HERE = Path(__file__).parent
ASKED = os.environ.get(
    "CONTRACT_STORES", "weed,moto,rclone,b2_like,gcs_like,oss_like,minio_like"
).split(",")
STORES = [name for name, known in KNOWN.items() if known.server in ASKED]
LOCKED = [name for name in STORES if KNOWN[name].locked]
LOCKING = [name for name in LOCKED if KNOWN[name].proved.lock_holds]
"""Those whose locks hold: the archiver refuses to lock on any other."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is only for stores that are not asked for is no test of this run."""
    reasons = {
        item: [mark.kwargs.get("reason", "") for mark in item.iter_markers("skip")]
        for item in items
        if item.path.parent == _HERE
    }
    idle = [item for item, told in reasons.items() if any("empty parameter" in t for t in told)]
    items[:] = [item for item in items if item not in idle]
    config.hook.pytest_deselected(items=idle)


@dataclass
class Server:
    """Where a store answers, and a client of the suite's own. Its buckets: `locked`, `plain`."""

    endpoint_url: str
    environment: dict[str, str]
    has_buckets: bool = False
    client: Any = field(init=False)

    def __post_init__(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            self.use(patch)
            options = StoreOptions("", endpoint_url=self.endpoint_url, region=REGION)
            self.client = make_client(options, boto3.Session(botocore_session=aws_session()))
        if not self.has_buckets:
            self.client.create_bucket(Bucket="plain")
            self.client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Have boto3 find this store's credentials."""
        for name, value in self.environment.items():
            patch.setenv(name, value)


def _credentials() -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": "suite", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}


@pytest.fixture(scope="session")
def weed_server(weed: Weed) -> Server:
    return Server(weed.endpoint_url, weed.environment, has_buckets=True)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[Server]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield Server(f"http://{host}:{port}", _credentials())
    moto.stop()


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    credentials = _credentials()
    with Rclone(tmp_path_factory.mktemp("contract-rclone"), *credentials.values()) as rclone:
        yield Server(rclone.endpoint_url, credentials)


@pytest.fixture(scope="session")
def rgw_server(ceph: Ceph) -> Server:
    return Server(ceph.endpoint_url, ceph.environment)


@contextmanager
def _unlike(weed: Weed, habits: Habits) -> Iterator[Server]:
    with UnlikeS3(weed.endpoint_url, habits, weed.environment) as store:
        yield Server(store.url, weed.environment, has_buckets=True)


@pytest.fixture(scope="session")
def b2_like_server(weed: Weed) -> Iterator[Server]:
    with _unlike(weed, unlike_s3.B2) as server:
        yield server


@pytest.fixture(scope="session")
def gcs_like_server(weed: Weed) -> Iterator[Server]:
    with _unlike(weed, unlike_s3.GCS) as server:
        yield server


@pytest.fixture(scope="session")
def minio_like_server(weed: Weed) -> Iterator[Server]:
    with _unlike(weed, unlike_s3.MINIO) as server:
        yield server


@pytest.fixture(scope="session")
def oss_like_server(weed: Weed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It is asked as an HTTP proxy is, because nobody knows a host of the bucket's name."""
    config = tmp_path_factory.mktemp("oss") / "config"
    config.write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    with UnlikeS3(weed.endpoint_url, unlike_s3.OSS, weed.environment) as store:
        proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy"), store.url)
        direct = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
        environment = {**weed.environment, **proxy, **direct, "AWS_CONFIG_FILE": str(config)}
        yield Server(f"http://{DOMAIN}", environment, has_buckets=True)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> str:
    """Which of the known stores a test runs on."""
    return str(request.param)


@pytest.fixture
def known(store: str) -> Known:
    return KNOWN[store]


@pytest.fixture
def server(known: Known, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    found: Server = request.getfixturevalue(f"{known.server}_server")
    found.use(monkeypatch)
    return found


MakeBucket = Callable[..., Bucket]


@pytest.fixture
def open_bucket(server: Server, known: Known, prefix: str, clock: HandClock) -> MakeBucket:
    """Makes a `Bucket` on the store below this test's own prefix, set as the app would set it."""

    def make(name: str = "", **options: Any) -> Bucket:
        where = {"prefix": prefix, "endpoint_url": server.endpoint_url, "region": REGION}
        how = {"transport": TRANSPORT, "signed_requests": SIGNED}
        name = name or ("locked" if known.locked else "plain")
        is_usual = "endpoint_url" not in options
        store = StoreOptions(name, **{**where, **how, **options})
        client = (
            store_requests(name, server.endpoint_url)
            if is_usual
            else connect(store, clock.check, aws_session())
        )
        bucket = Bucket(store, clock, Retry(clock), client=client)
        bucket.create_once = known.proved.create_once
        bucket.conditional_writes = known.proved.conditional_writes is not False
        bucket.conditional_completion = known.proved.complete_create_once is not False
        return bucket

    return make


@pytest.fixture
def locking(open_bucket: MakeBucket, clock: HandClock) -> MakeBucket:
    """Opens the bucket with Object Lock. The real server judges dates by the real time."""
    clock.turn_to(datetime.now(UTC).replace(microsecond=0))
    return lambda lock_mode="GOVERNANCE": open_bucket("locked", lock_mode=lock_mode)


@pytest.fixture
def bucket(open_bucket: MakeBucket) -> Bucket:
    return open_bucket()
