"""The two ways to authenticate to the source."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Generator

import httpx

from archiver.clock import Clock

Secret = Callable[[], str]
"""Gives the secret's value of now, so that a rotated file is heard without a restart."""


class Credentials(httpx.Auth):
    """What a request is signed with; `may_change` where new ones may come while we run."""

    def __init__(self, *secrets: Secret, may_change: bool) -> None:
        self._secrets = secrets
        self.may_change = may_change

    def secrets(self) -> tuple[str, ...]:
        """Their values of now."""
        return tuple(secret() for secret in self._secrets)


class BearerAuth(Credentials):
    """`Authorization: Bearer <token>`."""

    def __init__(self, token: Secret, *, may_change: bool = False) -> None:
        super().__init__(token, may_change=may_change)
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._token()}"
        yield request


class SignedKeyAuth(Credentials):
    """An API key with a signature over time, method, path (no host, no query) and body."""

    requires_request_body = True

    def __init__(
        self, key: Secret, secret: Secret, clock: Clock, *, may_change: bool = False
    ) -> None:
        super().__init__(key, secret, may_change=may_change)
        self._key = key
        self._secret = secret
        self._clock = clock

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        timestamp = str(int(self._clock.now().timestamp()))
        path = request.url.raw_path.partition(b"?")[0].decode("ascii")
        body_hash = base64.b64encode(hashlib.sha256(request.content).digest()).decode()
        message = f"{timestamp}.{request.method}.{path}.{body_hash}"
        digest = hmac.new(self._secret().encode(), message.encode(), hashlib.sha256).digest()
        request.headers["X-Api-Key"] = self._key()
        request.headers["X-Timestamp"] = timestamp
        request.headers["X-Signature"] = base64.b64encode(digest).decode()
        yield request
