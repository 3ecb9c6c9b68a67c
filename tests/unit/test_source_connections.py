"""The API client's connections: which are used again, and what is said of those that fail."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import pytest
import trustme

from archiver import wire
from archiver.demo.platform import Platform
from archiver.errors import SourceError
from archiver.retry import Retry
from archiver.source.auth import BearerAuth
from archiver.source.client import VoiceCallsClient
from archiver.source.http import JsonApi
from archiver.tls import client_context
from archiver.wire import Wire
from tests.fakes.clock import HandClock
from tests.fakes.population import a_call
from tests.fakes.rig import api_client
from tests.system.tcp_proxy import Proxy, reset

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"id":"vc_1"}'


class Server(Proxy):
    """Gives the one answer, to so many requests on each connection; `ended` tells of its end."""

    def __init__(self, requests: int = 1000) -> None:
        super().__init__()
        self.connections = 0
        self.ended = threading.Semaphore(0)
        self._requests = requests

    def _serve(self, client: socket.socket) -> None:
        self.connections += 1
        with contextlib.suppress(OSError), client:
            for _ in range(self._requests):
                if not client.recv(1 << 16):
                    break
                client.sendall(ANSWER)
        self.ended.release()


class Rude(Proxy):
    """Resets each connection at its first byte: a TLS handshake's, or a request's."""

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.recv(1)
            reset(client)


def client_at(url: str, clock: HandClock) -> VoiceCallsClient:
    auth = BearerAuth(lambda: "a-token-for-tests")
    http = Wire(client_context(), check=clock.check)
    return VoiceCallsClient(JsonApi(url, auth, clock, http, retry=Retry(clock)))


def client_of(address: str, clock: HandClock, scheme: str = "http") -> VoiceCallsClient:
    return client_at(f"{scheme}://{address}/api/v1", clock)


def test_a_connection_is_used_again(clock: HandClock) -> None:
    with Server() as server:
        client = client_of(server.address, clock)
        for _ in range(3):
            client.call("vc_1")
        assert server.connections == 1
        client.close()


def test_one_that_was_idle_is_not(clock: HandClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "IDLE_SECONDS", -1.0)
    with Server() as server:
        client = client_of(server.address, clock)
        for _ in range(3):
            client.call("vc_1")
        assert server.connections == 3
        client.close()


def test_one_that_the_source_closed_is_no_failure(clock: HandClock) -> None:
    with Server(requests=1) as server:
        client = client_of(server.address, clock)
        for _ in range(3):
            client.call("vc_1")
            assert server.ended.acquire(timeout=10)
        assert (server.connections, clock.sleeps) == (3, [])
        client.close()


@pytest.mark.parametrize(("scheme", "reason"), [("https", "unreachable"), ("http", "broken_off")])
def test_a_broken_handshake_is_an_outage(clock: HandClock, scheme: str, reason: str) -> None:
    """A request that breaks off may be its call's own matter."""
    with Rude() as server:
        client = client_of(server.address, clock, scheme)
        with pytest.raises(SourceError, match="ARCHIVER_API_BASE_URL") as caught:
            client.check_access()
        assert (caught.value.reason, len(clock.sleeps)) == (reason, 4)
        client.close()


def test_who_speaks_no_tls_is_unreachable(clock: HandClock) -> None:
    with Server() as server:
        client = client_of(server.address, clock, "https")
        with pytest.raises(SourceError, match=r"unreachable \(no TLS handshake\)") as caught:
            client.check_access()
        assert caught.value.reason == "unreachable"
        client.close()


def test_a_certificate_is_checked_and_said_to_be_untrusted_once(clock: HandClock) -> None:
    authority, server = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with Platform([a_call()], clock=clock.now, tls=server) as platform:
        client = api_client(platform, clock, tls=trusting)
        assert client.call("vc_1")[0].id == "vc_1"
        client.close()
        client = api_client(platform, clock)
        with pytest.raises(SourceError, match=r"not trusted .*: set SSL_CERT_FILE") as caught:
            client.check_access()
        assert (caught.value.retryable, clock.sleeps) == (False, [])
        assert client.clock_skew_seconds() is None
        client.close()


@pytest.mark.parametrize("url", ["https://api example.com", "https://x..y/api/v1"])
def test_what_is_no_url_is_said_to_be_none(clock: HandClock, url: str) -> None:
    with pytest.raises(SourceError, match="is not a URL that can be asked"):
        client_at(url, clock).check_access()
    assert clock.sleeps == []
