"""The API client's connections: which are used again, and what is said of those that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from archiver.core.errors import SourceError
from archiver.core.http import Transport, make_client
from archiver.core.retry import Retry
from archiver.source.api import VoiceCallsClient
from archiver.source.json_api import BearerAuth, JsonApi
from tests.fakes.clock import HandClock
from tests.fakes.platform import Platform
from tests.fakes.population import a_call
from tests.fakes.traps import Connection, Trap
from tests.system.tcp_proxy import reset

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"id":"vc_1"}'
Connect = Callable[..., VoiceCallsClient]


@pytest.fixture(params=["fast", "standard"])
def transport(request: pytest.FixtureRequest) -> Transport:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def connect(transport: Transport, clock: HandClock) -> Iterator[Connect]:
    """Makes API clients: `connect(url)`."""
    with ExitStack() as stack:

        def made(url: str, token: str = "a-token-for-tests", **options: Any) -> VoiceCallsClient:
            client = make_client(transport, check=clock.check, over_httpx=True, **options)
            auth = BearerAuth(lambda: token)
            api = VoiceCallsClient(JsonApi(url, auth, clock, client, retry=Retry(clock)))
            stack.callback(api.close)
            return api

        yield made


def rude() -> Trap:
    """Resets each connection at its first byte: a TLS handshake's, or a request's."""

    def serve(_: Trap, connection: Connection) -> None:
        connection.read(1)
        reset(connection.socket)

    return Trap(serve)


@pytest.mark.parametrize(("scheme", "reason"), [("https", "unreachable"), ("http", "broken_off")])
def test_a_broken_handshake_is_an_outage(
    connect: Connect, clock: HandClock, scheme: str, reason: str
) -> None:
    """A request that breaks off may be its call's own matter."""
    with rude() as server:
        client = connect(f"{scheme}://{server.address}/api/v1")
        with pytest.raises(SourceError, match="ARCHIVER_API_BASE_URL") as caught:
            client.check_access()
    assert (caught.value.reason, len(clock.sleeps)) == (reason, 4)


def test_a_certificate_is_checked_and_said_to_be_untrusted_once(
    connect: Connect, clock: HandClock, tls: Any, root: Path
) -> None:
    with Platform([a_call()], clock=clock.now, tls=tls[0]) as platform:
        client = connect(platform.api_url, platform.token, roots=root)
        assert client.call("vc_1")[0].id == "vc_1"
        client = connect(platform.api_url, platform.token)
        with pytest.raises(SourceError, match=r"not trusted .*: set SSL_CERT_FILE") as caught:
            client.check_access()
        assert (caught.value.retryable, clock.sleeps) == (False, [])
        assert client.latest_clock_skew_seconds() is None


@pytest.mark.parametrize("url", ["https://", "ftp://example.com/api/v1"])
def test_what_is_no_url_is_said_to_be_none(connect: Connect, clock: HandClock, url: str) -> None:
    """Most of these the settings refuse."""
    with pytest.raises(SourceError, match="is not a URL that can be asked"):
        connect(url).check_access()
    assert clock.sleeps == []
