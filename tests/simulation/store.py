"""The way of a request to the store, with all that may befall it."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass

from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    IncompleteReadError,
    ReadTimeoutError,
)

from tests.fakes.memory_s3 import Answer, Body, Effect, refusal
from tests.fakes.store_rules import Violation
from tests.simulation.faults import REFUSED
from tests.simulation.wire import Process, Wire

URL = "https://s3.test"
LATEST = 40
"""After so many more requests whatever was delayed has arrived."""
CODES = {
    "slow_down": "SlowDown",
    "throttled": "TooManyRequests",
    "internal": "InternalError",
    "conflict": "ConditionalRequestConflict",
    "damaged": "BadDigest",
}
PAGE = b"<html><body>Please sign in</body></html>"


@dataclass
class StoreCarrier:
    """A `memory_s3.Carrier`: of one process, over the wire."""

    wire: Wire
    process: Process
    chance: random.Random

    def __call__(self, operation: str, key: str, effect: Effect) -> Answer:
        exchange, fault = self.wire.send(self.process, "store", operation, key)
        try:
            refused = self.wire.harms.refusal(operation, key)
            if refused is not None:
                raise refused
            answer = self._carry(operation, fault, effect)
        except ClientError as error:
            self.wire.done(self.process, exchange, fault, error.response["Error"]["Code"])
            raise
        except Exception as error:
            self.wire.done(self.process, exchange, fault, type(error).__name__)
            raise
        self.wire.done(self.process, exchange, fault, "ok")
        return answer

    def _carry(self, operation: str, fault: str | None, effect: Effect) -> Answer:
        if fault in REFUSED:
            raise refusal(CODES[fault], REFUSED[fault], operation)
        if fault in ("unreachable", "out"):
            raise EndpointConnectionError(endpoint_url=URL)
        if fault == "delayed":
            self.wire.later(self.chance.randint(1, LATEST), lambda: _late(effect))
            raise ReadTimeoutError(endpoint_url=URL)
        if fault == "empty":
            return {"ContentLength": 0} if operation == "head" else {}
        if fault == "page":
            return {"Body": Body(PAGE), "ContentLength": len(PAGE)}
        try:
            answer = effect()
        except ClientError:
            if fault in ("lost", "lost_500"):
                raise _lost(fault, operation) from None
            raise
        if fault in ("lost", "lost_500"):
            raise _lost(fault, operation)
        if fault == "cut":
            answer["Body"] = self._cut(answer["Body"])
        return {} if fault == "empty_done" else answer

    def _cut(self, body: Body) -> Body:
        """Some of it, and then either an error or nothing at all."""
        whole = len(body.data)
        left = body.data[: self.chance.randrange(whole)]
        error = IncompleteReadError(actual_bytes=len(left), expected_bytes=whole)
        return Body(left, error if self.chance.random() < 0.5 else None)


def _lost(fault: str, operation: str) -> Exception:
    if fault == "lost_500":
        return refusal("InternalError", 500, operation)
    return ConnectionClosedError(endpoint_url=URL)


def _late(effect: Effect) -> None:
    """Nobody hears of it any more. What breaks a rule the bucket remembers."""
    with suppress(ClientError, Violation):
        effect()
