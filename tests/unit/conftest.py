"""What these tests share: the platform, a bucket, a writer, a certificate."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
import trustme

from archiver.audit.verify import Options, verify
from archiver.core.http import Transport
from archiver.manifest.signing import SigningKey
from archiver.store.bucket import Bucket
from tests.fakes.clock import HandClock
from tests.fakes.memory_source import MemoryPlatform, api_client, recording_client
from tests.fakes.memory_store import MemoryStore
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call
from tests.fakes.relisting import SETTLED, WatchedPlatform, another
from tests.fakes.rig import Archive, HandLoop, Rig, wired


@pytest.fixture
def platform(clock: HandClock) -> Iterator[WatchedPlatform]:
    """A source in memory, without calls, on the test's clock; it must have nothing to complain
    of."""
    made = WatchedPlatform(clock=clock.now)
    yield made
    assert made.violations == []


@pytest.fixture
def bucket(clock: HandClock) -> MemoryStore:
    """In memory: whoever breaks the order of writes is found out."""
    return MemoryStore(clock)


@pytest.fixture
def served(clock: HandClock) -> Iterator[Platform]:
    """As `platform`, over HTTP."""
    with Platform(clock=clock.now) as running:
        yield running
        assert running.violations == []


@pytest.fixture
def served_late(served: Platform, clock: HandClock) -> Platform:
    """As `served`, thirty days after its calls: their windows have settled."""
    clock.turn_to(TEN + timedelta(days=30))
    return served


@pytest.fixture
def rig(
    platform: Platform | MemoryPlatform, bucket: Any, clock: HandClock, key: SigningKey
) -> Iterator[Callable[..., Rig]]:
    """Makes writers on the test's bucket: `rig()`. Both platform and bucket may be in memory."""
    with ExitStack() as stack:

        def make(where: Bucket | None = None, **options: Any) -> Rig:
            signing = options.pop("key", key)
            if isinstance(platform, MemoryPlatform):
                options["api"] = api_client(platform, clock)
                options["recordings"] = recording_client(platform, clock)
            made = wired(platform, where or bucket, clock, signing, **options)
            return stack.enter_context(made)

        yield make


@pytest.fixture
def loop(rig: Callable[..., Rig]) -> HandLoop:
    """The loop of a process that lists sealed windows again at two ages."""
    return another(rig)


@pytest.fixture
def sealed(platform: Platform, loop: HandLoop) -> HandLoop:
    """The loop, which has archived `vc_1` and sealed its window."""
    platform.add(a_call())
    loop.round_at(SETTLED)
    return loop


@pytest.fixture
def audited(bucket: Any, key: SigningKey, archive: Callable[[], Archive]) -> Iterator[None]:
    """An audit, at the test's end, of what it left."""
    yield
    archive().check(key)
    found = verify(bucket, Options(level="bytes")).findings
    assert [item for item in found if item.severity != "info"] == []


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Signs the certificates of servers."""
    return trustme.CA()


@pytest.fixture(scope="session")
def root(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with its certificate."""
    path = tmp_path_factory.mktemp("root") / "root.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="session")
def tls(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context, and that of a client which trusts it."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.fixture(params=["fast", "standard"])
def transport(request: pytest.FixtureRequest) -> Transport:
    """Each HTTP client."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def aws_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some credentials for a store, in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")


@pytest.fixture
def restored_logs() -> Iterator[None]:
    """Whatever the test makes of the logs, they are as they were afterwards."""
    base = logging.getLogger()
    handlers, level = base.handlers[:], base.level
    yield
    structlog.reset_defaults()
    base.handlers[:], base.level = handlers, level
