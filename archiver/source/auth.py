"""The two ways to authenticate to the source."""

from __future__ import annotations

import base64
import hashlib
import hmac
from abc import ABC, abstractmethod
from collections.abc import Callable

from archiver.clock import Clock

Secret = Callable[[], str]
"""Gives the secret's value of now, so that a rotated file is heard without a restart."""

_NO_BODY = base64.b64encode(hashlib.sha256(b"").digest()).decode()


class Credentials(ABC):
    """What a request is signed with; `may_change` where new ones may come while we run."""

    def __init__(self, *secrets: Secret, may_change: bool) -> None:
        self._secrets = secrets
        self.may_change = may_change

    def secrets(self) -> tuple[str, ...]:
        """Their values of now."""
        return tuple(secret() for secret in self._secrets)

    @abstractmethod
    def headers(self, method: str, path: str) -> dict[str, str]:
        """What to send with a request that has no body. `path` is as it goes over the wire,
        percent-encoded, without the query."""


class BearerAuth(Credentials):
    """`Authorization: Bearer <token>`."""

    def __init__(self, token: Secret, *, may_change: bool = False) -> None:
        super().__init__(token, may_change=may_change)
        self._token = token

    def headers(self, method: str, path: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token()}"}


class SignedKeyAuth(Credentials):
    """An API key with a signature over time, method, path (no host, no query) and body."""

    def __init__(
        self, key: Secret, secret: Secret, clock: Clock, *, may_change: bool = False
    ) -> None:
        super().__init__(key, secret, may_change=may_change)
        self._key = key
        self._secret = secret
        self._clock = clock

    def headers(self, method: str, path: str) -> dict[str, str]:
        timestamp = str(int(self._clock.now().timestamp()))
        message = f"{timestamp}.{method}.{path}.{_NO_BODY}"
        digest = hmac.new(self._secret().encode(), message.encode(), hashlib.sha256).digest()
        return {
            "X-Api-Key": self._key(),
            "X-Timestamp": timestamp,
            "X-Signature": base64.b64encode(digest).decode(),
        }
