"""What the tests share: one real S3 server for each worker, clean environments, ports on loopback.

Nothing of the package is imported here but inside fixtures, because tests/system must not.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

# What an example may take is pytest-timeout's matter: on a busy machine any of them may be slow.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

if TYPE_CHECKING:
    from archiver.manifest.signing import SigningKey
    from archiver.store.bucket import Bucket
    from tests.fakes.clock import HandClock
    from tests.fakes.rig import Archive
    from tests.system.ceph import Ceph
    from tests.system.servers import Weed

_NUMBERS = itertools.count(1)
LOCKED, PLAIN = "locked", "plain"


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """No variable of a person's shell reaches a test; boto3 never looks beyond loopback."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(("ARCHIVER_", "AWS_", "JOB_COMPLETION_")):
            del os.environ[name]
    os.environ |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """SeaweedFS with two buckets: `locked` (versions, Object Lock) and `plain`."""
    from tests.system.servers import Weed

    server = Weed(tmp_path_factory.mktemp("weed"))
    try:
        server.create_bucket(LOCKED, object_lock=True)
        server.create_bucket(PLAIN, object_lock=False)
        os.environ.update(server.environment)
        yield server
    finally:
        server.kill()  # nobody reads its data again, so it need not be asked and waited for


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """Ceph's S3 gateway, without buckets: only asked for with `CONTRACT_STORES=rgw`."""
    from tests.system.ceph import Ceph

    with Ceph(tmp_path_factory.mktemp("ceph") / "cluster") as running:
        yield running


@pytest.fixture(scope="session")
def s3(weed: Weed) -> Any:
    """A boto3 client of the tests' own: it looks at what the archiver did."""
    from archiver.store.client import StoreOptions, make_client

    return make_client(StoreOptions("locked", endpoint_url=weed.endpoint_url, region="us-east-1"))


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test uses."""
    return f"test-{next(_NUMBERS)}"


@pytest.fixture
def clock() -> HandClock:
    from tests.fakes.clock import HandClock

    return HandClock()


@pytest.fixture
def open_bucket(weed: Weed, prefix: str, clock: HandClock) -> Callable[..., Bucket]:
    """Makes a `Bucket` on the real store, below this test's own prefix."""
    from archiver.core.retry import Retry
    from archiver.store.bucket import Bucket
    from archiver.store.client import StoreOptions, connect
    from tests.fakes.rig import SIGNED, TRANSPORT, aws_session, store_requests

    def make(name: str = LOCKED, **options: Any) -> Bucket:
        where = {"prefix": prefix, "endpoint_url": weed.endpoint_url, "region": "us-east-1"}
        how = {"transport": TRANSPORT, "signed_requests": SIGNED}
        is_usual = options.keys().isdisjoint(("endpoint_url", "transport", "signed_requests"))
        store = StoreOptions(name, **{**where, **how, **options})
        client = (
            store_requests(name, weed.endpoint_url)
            if is_usual
            else connect(store, clock.check, aws_session())
        )
        return Bucket(store, clock, Retry(clock), client=client)

    return make


@pytest.fixture(params=["of keys", "shuffled"])
def any_order(request: pytest.FixtureRequest) -> Iterator[None]:
    """The stores in memory list in this order: some real ones do not list by keys."""
    from tests.audit import store
    from tests.fakes import memory_store

    def shuffled(keys: list[str]) -> list[str]:
        return random.Random(len(keys)).sample(keys, len(keys))

    orders = {"of keys": list, "shuffled": shuffled}
    kinds: tuple[Any, ...] = (store.MemoryStore, memory_store.MemoryStore)
    for kind in kinds:
        kind.order = staticmethod(orders[request.param])
    yield
    for kind in kinds:
        kind.order = staticmethod(list)


@pytest.fixture
def key() -> SigningKey:
    from tests.fakes.rig import new_key

    return new_key()


@pytest.fixture
def bucket(open_bucket: Callable[..., Bucket]) -> Bucket:
    return open_bucket()


@pytest.fixture
def archive(bucket: Bucket) -> Callable[[], Archive]:
    """The bucket as it stands when it is called."""
    from tests.fakes.rig import Archive

    return lambda: Archive(bucket)
