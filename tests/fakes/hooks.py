"""Hooks of a platform: what is asked for is answered otherwise."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection
from typing import Any

from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Hook, VoicePlatform


def on(path_end: str, reply: Reply, times: int | None = None) -> Hook:
    """Gives `reply` to requests whose path ends so: to all of them, or to the first `times`."""
    left = iter(range(times)) if times is not None else itertools.count()

    def hook(request: Request) -> Reply | None:
        matches = request.path.endswith(path_end) and next(left, None) is not None
        return reply if matches else None

    return hook


def json_reply(document: Any) -> Reply:
    """200 with this document, as JSON has it."""
    return Reply(body=json.dumps(document).encode())


def id_in(request: Request) -> str | None:
    """The id of the call that this asks about."""
    return request.path.partition("/voice-calls/")[2].split("/")[0] or None


def of_calls(reply: Reply, suffix: str, ids: Collection[str] = ()) -> Hook:
    """`reply` to requests about these calls, or about any, whose path ends so."""

    def hook(request: Request) -> Reply | None:
        is_meant = id_in(request) in ids if ids else id_in(request) is not None
        return reply if is_meant and request.path.endswith(suffix) else None

    return hook


def collect(platform: VoicePlatform, what: Callable[[Request], bool]) -> list[Request]:
    """The requests from now on that are so."""
    found: list[Request] = []
    platform.hooks.insert(0, lambda request: found.append(request) if what(request) else None)
    return found
