"""Log lines of a test that simulates: none is printed, and each is searched for secrets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from tests.fakes.population import PHONE, SECRET_WORDS

SECRETS = (PHONE, SECRET_WORDS, "sig=", "a-token-for-tests")


def refuse_secrets(text: str) -> None:
    assert not any(secret in text for secret in SECRETS), f"this tells a secret: {text}"


def quiet(events: list[dict[str, Any]]) -> dict[str, Any]:
    """structlog's settings; `events` gets the lines of the level warning and above."""

    def collect(logger: object, method: str, event: Any) -> Any:
        refuse_secrets(str(event))
        if method in ("warning", "error", "critical", "exception"):
            events.append({**event, "level": method})
        raise structlog.DropEvent

    return {
        "processors": [structlog.contextvars.merge_contextvars, collect],
        "wrapper_class": structlog.make_filtering_bound_logger("info"),
        "cache_logger_on_first_use": False,
    }


@contextmanager
def collected() -> Iterator[list[dict[str, Any]]]:
    """The lines of the level warning and above, while inside."""
    events: list[dict[str, Any]] = []
    before = structlog.get_config()
    structlog.configure(**quiet(events))
    try:
        yield events
    finally:
        structlog.configure(**before)
