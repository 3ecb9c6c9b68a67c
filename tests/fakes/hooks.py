"""Hooks of a platform: what is asked for is answered otherwise."""

from __future__ import annotations

import itertools
import json
from typing import Any

from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Hook


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
